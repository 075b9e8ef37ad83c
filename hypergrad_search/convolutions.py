"""Convolutions in the arrangement of axes for which XLA has fast kernels on CPUs.

These kernels take images with the axes (batch, space, features) and filters with (space, inputs, outputs). XLA brings
other convolutions into this arrangement itself, such as those in the gradient of a convolution, but not inside of
loops: its pass ConvCanonicalization visits the entry computation alone. There they are compiled to plain nested loops,
with which training took ten to twenty times as long as the same steps one by one.

What XLA rearranges later is out of reach: the gradient of the filters of a convolution with dilated images (one that
enlarges images) stays slow, in loops and outside of them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun
from jax.lax import ConvDimensionNumbers, conv_general_dilated_p

Result = TypeVar("Result")


def rearranged(function: Callable[..., Result]) -> Callable[..., Result]:
    """Return the function with all its convolutions rearranged, in whatever loop or branch they are.

    The arguments of the function are pytrees of arrays. The returned one has the same values, up to how kernels round,
    and is to be compiled as a whole. Convolutions that arise when it is differentiated are not rearranged, so give it a
    function that differentiates. On other devices than CPUs nothing is changed.

        >>> import jax.numpy as jnp
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
    replace: Any = jaxpr.replace  # JAX gives it no types
    result: Jaxpr = replace(eqns=[_in_equation(equation) for equation in jaxpr.eqns])
    return result


def _in_equation(equation: JaxprEqn) -> JaxprEqn:
    if equation.primitive is conv_general_dilated_p:
        return _replaced(equation)
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


def _replaced(equation: JaxprEqn) -> JaxprEqn:
    """Return an equation that calls the same convolution between transpositions."""
    convolve = jax.jit(functools.partial(_convolved, **equation.params))
    (call,) = jax.make_jaxpr(convolve)(*(x.aval for x in equation.invars)).eqns
    result: JaxprEqn = call.replace(invars=equation.invars, outvars=equation.outvars)
    return result


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
