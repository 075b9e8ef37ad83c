"""Programs in the form for which XLA has fast kernels on CPUs."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var, jaxpr_as_fun
from jax.extend.core.primitives import add_jaxvals_p, conv_general_dilated_p, dot_general_p, transpose_p
from jax.lax import ConvDimensionNumbers

Result = TypeVar("Result")


def rearranged(function: Callable[..., Result]) -> Callable[..., Result]:
    """Return the function with its operations rearranged for XLA's fast kernels on CPUs.

    The arguments of the function are pytrees of arrays. The returned one has the same values, up to how kernels round,
    and is to be compiled as a whole. What is differentiated later is not rearranged, so give it a function that
    differentiates. On other devices than CPUs nothing is changed. Two things are, in whatever loop or branch they are:

    - Convolutions. The fast kernels take images with the axes (batch, space, features) and filters with (space, inputs,
      outputs). XLA brings other convolutions into this arrangement itself, such as those in the gradient of a
      convolution, but not inside of loops: its pass ConvCanonicalization visits the entry computation alone. There they
      are compiled to plain nested loops, which are many times slower. The exception is the gradient of filters whose
      images are dilated (they enlarge images), which XLA rearranges again, and which stays slow.
    - Sums of two matrix products that are transposed afterwards, as they arise in Hessian-vector products. To transpose
      each product costs nothing, since it is that of the other order. To transpose their sum takes a pass over memory
      against its order, which shows in the time of a hypergradient.

        >>> import jax, jax.numpy as jnp
        >>> from hypergrad_search.rearranged import rearranged
        >>> smoothed = jax.jit(rearranged(lambda x: jax.lax.conv(x, jnp.ones((1, 1, 3)), (1,), "VALID")))
        >>> float(smoothed(jnp.ones((1, 1, 3)))[0, 0, 0])
        3.0
    """

    def call(*args: Any) -> Result:
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        if jax.default_backend() == "cpu":
            traced = _in_closed(traced)
        leaves = jaxpr_as_fun(traced)(*jax.tree.leaves(args))
        result: Result = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        return result

    return call


def _in_closed(closed: ClosedJaxpr) -> ClosedJaxpr:
    return ClosedJaxpr(_in_jaxpr(closed.jaxpr), closed.consts)


def _in_jaxpr(jaxpr: Jaxpr) -> Jaxpr:
    makers = {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}
    replace: Any = jaxpr.replace  # JAX gives it no types
    result: Jaxpr = replace(eqns=[_in_equation(equation, makers) for equation in jaxpr.eqns])
    return result


def _in_equation(equation: JaxprEqn, makers: Mapping[Any, JaxprEqn]) -> JaxprEqn:
    """Return an equation of a program in which `makers` are the equations that make each variable."""
    if equation.primitive is conv_general_dilated_p:
        return _calling(functools.partial(_convolved, **equation.params), equation.invars, equation)
    products = _products(equation, makers)
    if products is not None:
        return _calling(functools.partial(_sum_of_transposed, **equation.params), products, equation)
    params = {name: _in_parameter(value) for name, value in equation.params.items()}
    result: JaxprEqn = equation.replace(params=params)
    return result


def _in_parameter(value: Any) -> Any:
    """Return a parameter of an equation; it may be the body of a loop, or a tuple of branches."""
    if isinstance(value, ClosedJaxpr):
        return _in_closed(value)
    if isinstance(value, Jaxpr):
        return _in_jaxpr(value)
    if isinstance(value, tuple):
        parts = map(_in_parameter, value)
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def _calling(function: Callable[..., jax.Array], inputs: Sequence[Any], equation: JaxprEqn) -> JaxprEqn:
    """Return an equation that calls a function, and makes what `equation` makes."""
    (call,) = jax.make_jaxpr(jax.jit(function))(*(x.aval for x in inputs)).eqns
    result: JaxprEqn = call.replace(invars=list(inputs), outvars=equation.outvars)
    return result


def _products(equation: JaxprEqn, makers: Mapping[Any, JaxprEqn]) -> list[Any] | None:
    """Return the two matrix products whose sum an equation transposes, if it does that."""
    if equation.primitive is not transpose_p:
        return None
    summed = _made_by(add_jaxvals_p, equation.invars[0], makers)
    if summed is None:
        return None
    products = [_made_by(dot_general_p, x, makers) for x in summed.invars]
    # Products of arrays with more axes are transposed themselves, so that to transpose them once more does cost.
    return summed.invars if all(product is not None and _of_matrices(product) for product in products) else None


def _of_matrices(product: JaxprEqn) -> bool:
    factors: list[Any] = product.invars
    return all(factor.aval.ndim == 2 for factor in factors)


def _made_by(primitive: Any, variable: Any, makers: Mapping[Any, JaxprEqn]) -> JaxprEqn | None:
    """Return the equation that makes a variable, if it has this primitive."""
    maker = makers.get(variable) if isinstance(variable, Var) else None
    return maker if maker is not None and maker.primitive is primitive else None


def _sum_of_transposed(x: jax.Array, y: jax.Array, *, permutation: Sequence[int]) -> jax.Array:
    return jax.lax.transpose(x, permutation) + jax.lax.transpose(y, permutation)


def _convolved(
    images: jax.Array,
    filters: jax.Array,
    *,
    dimension_numbers: ConvDimensionNumbers,
    batch_group_count: int,
    feature_group_count: int,
    **others: Any,
) -> jax.Array:
    image_axes, filter_axes, result_axes = dimension_numbers
    last = images.ndim - 1
    # These list the positions of (batch, features, space), and those of (outputs, inputs, space).
    of_images, of_filters = (0, last, *range(1, last)), (last, last - 1, *range(last - 1))
    images = jax.lax.transpose(images, _moved(image_axes, of_images))
    if batch_group_count > 1:  # groups of the batch are not among what is fast, and groups of features are
        images = _groups_of_features(images, batch_group_count)
        feature_group_count = batch_group_count
    result = conv_general_dilated_p.bind(
        images,
        jax.lax.transpose(filters, _moved(filter_axes, of_filters)),
        dimension_numbers=ConvDimensionNumbers(of_images, of_filters, of_images),
        batch_group_count=1,
        feature_group_count=feature_group_count,
        **others,
    )
    return jax.lax.transpose(result, _moved(of_images, result_axes))


def _moved(axes: Sequence[int], to: Sequence[int]) -> list[int]:
    """Return the permutation that moves each of `axes` to its place in `to`."""
    origin = dict(zip(to, axes, strict=True))
    return [origin[i] for i in range(len(to))]


def _groups_of_features(images: jax.Array, groups: int) -> jax.Array:
    """Return the groups of a batch beside each other, as groups of features of a smaller batch."""
    batch, *space, features = images.shape
    apart = jax.lax.reshape(images, (groups, batch // groups, *space, features))
    moved = jax.lax.transpose(apart, (*range(1, apart.ndim - 1), 0, apart.ndim - 1))
    return jax.lax.reshape(moved, (batch // groups, *space, groups * features))
