"""Convolutions in loops are rearranged for XLA's fast kernels, and compute what they computed before, to the bit."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import Reversible, TrainingProblem, Unrolled, evaluate, sgd, train
from hypergrad_search.convolutions import rearranged
from hypergrad_search.programs import compiled

#: for each kind: the shapes of images and filters, and the arguments of the convolution
KINDS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "usual": ((4, 6, 6, 3), (3, 3, 3, 5), {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}),
    "features first": ((4, 3, 6, 6), (5, 3, 3, 3), {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}),
    "odd axes": ((6, 4, 3, 7), (2, 3, 3, 5), {"dimension_numbers": ("HNCW", "HIWO", "WCHN")}),
    "one axis": ((4, 9, 3), (3, 3, 5), {"dimension_numbers": ("NWC", "WIO", "NWC")}),
    "three axes": ((2, 3, 4, 5, 6), (5, 3, 2, 2, 3), {}),
    "strides": ((4, 3, 7, 7), (5, 3, 3, 3), {"window_strides": (2, 3)}),
    "dilated": ((4, 3, 9, 9), (5, 3, 3, 3), {"rhs_dilation": (2, 2)}),
    "transposed": ((4, 3, 5, 5), (5, 3, 3, 3), {"lhs_dilation": (2, 2), "padding": ((1, 2), (1, 2))}),
    "groups": ((4, 6, 6, 6), (8, 3, 3, 3), {"feature_group_count": 2}),
    "depthwise": ((4, 6, 6, 6), (6, 1, 3, 3), {"feature_group_count": 6}),
    "groups of the batch": ((4, 3, 6, 6), (8, 3, 3, 3), {"batch_group_count": 2}),
}


def convolution(kind: str) -> tuple[Callable[..., jax.Array], jax.Array, jax.Array]:
    """Return a convolution, images and filters; these are whole numbers, so that no order of sums rounds anything."""
    image_shape, filter_shape, arguments = KINDS[kind]
    random = np.random.default_rng(0)
    images, filters = (jnp.asarray(random.integers(-3, 4, s), jnp.float32) for s in (image_shape, filter_shape))
    arguments = {"window_strides": (1,) * (len(image_shape) - 2), "padding": "SAME", **arguments}

    def convolve(images: jax.Array, filters: jax.Array) -> jax.Array:
        result: jax.Array = jax.lax.conv_general_dilated(images, filters, **arguments)
        return result

    return convolve, images, filters


def in_a_loop(gradient: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that adds up the gradients of two images and of filters over three steps."""

    def summed(images: jax.Array, filters: jax.Array) -> Any:
        def body(_: int, sums: Any) -> Any:
            return jax.tree.map(jnp.add, sums, gradient(images, filters))

        return jax.lax.fori_loop(0, 3, body, (jnp.zeros_like(images), jnp.zeros_like(filters)))

    return summed


def arrangements(program: str) -> set[str]:
    """Return the arrangement of the axes of each convolution that is left in a compiled program."""
    return set(re.findall(r"dim_labels=(\S+?)[,}]?(?:\s|$)", program))


def is_fast(arrangement: str) -> bool:
    space = "".join(map(str, range(len(arrangement.split("_")[0]) - 2)))
    return arrangement == f"b{space}f_{space}io->b{space}f"


def check(convolve: Callable[..., jax.Array], images: jax.Array, filters: jax.Array) -> set[str]:
    """Hold the gradient in a loop against that without rearrangement; return how its convolutions are arranged."""
    gradient = jax.grad(lambda images, filters: jnp.sum(convolve(images, filters) ** 2), argnums=(0, 1))
    summed = in_a_loop(gradient)
    program = jax.jit(rearranged(summed)).lower(images, filters).compile()
    jax.tree.map(np.testing.assert_array_equal, program(images, filters), jax.jit(summed)(images, filters))
    return arrangements(program.as_text() or "")


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_a_loop_are_the_same_to_the_bit_and_fast(kind: str) -> None:
    found = check(*convolution(kind))
    assert any(map(is_fast, found))
    assert all(map(is_fast, found)) or kind == "transposed", found  # see the module


def test_this_version_of_xla_needs_it() -> None:
    """Where this fails, XLA rearranges convolutions in loops itself, and the module can go."""
    convolve, images, filters = convolution("usual")
    gradient = jax.grad(lambda images, filters: jnp.sum(convolve(images, filters) ** 2), argnums=(0, 1))
    program = jax.jit(in_a_loop(gradient)).lower(images, filters).compile()
    assert not all(map(is_fast, arrangements(program.as_text() or "")))


CONVOLVE, IMAGES, FILTERS = convolution("features first")


def in_a_branch(images: jax.Array, filters: jax.Array) -> jax.Array:
    is_new = images[0, 0, 0, 0] > 0
    found: jax.Array = jax.lax.cond(is_new, CONVOLVE, lambda x, w: CONVOLVE(-x, w), images, filters)
    return found


def in_an_inner_loop(images: jax.Array, filters: jax.Array) -> jax.Array:
    def body(sums: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return sums + CONVOLVE(images, w), None

    return jax.lax.scan(body, CONVOLVE(images, filters), jnp.stack([filters, filters]))[0]


def in_a_linear_system(images: jax.Array, filters: jax.Array) -> jax.Array:
    """Return the convolution plus the solution y of y / 2 = convolution."""

    def solve(of: Callable[[jax.Array], jax.Array], y: jax.Array) -> jax.Array:
        return 2 * of(2 * y)

    halved = CONVOLVE(images, filters)
    solution: jax.Array = jax.lax.custom_linear_solve(lambda y: y / 2, halved, solve, solve)
    return halved + solution


@jax.custom_vjp
def with_a_derivative(images: jax.Array, filters: jax.Array) -> jax.Array:
    return CONVOLVE(images, filters)


with_a_derivative.defvjp(
    lambda images, filters: (CONVOLVE(images, filters), (images, filters)),
    lambda both, adjoint: jax.vjp(CONVOLVE, *both)[1](adjoint),
)


@pytest.mark.parametrize(
    "convolve",
    [
        in_a_branch,
        in_an_inner_loop,
        in_a_linear_system,
        with_a_derivative,
        jax.checkpoint(CONVOLVE),
        jax.jit(CONVOLVE),
    ],
)
def test_convolutions_are_found_wherever_they_are(convolve: Callable[..., jax.Array]) -> None:
    found = check(convolve, IMAGES, FILTERS)
    assert found
    assert all(map(is_fast, found)), found


def test_without_convolutions_nothing_changes() -> None:
    def function(x: jax.Array) -> dict[str, jax.Array]:
        return {"sum": jax.lax.fori_loop(0, 3, lambda i, y: jnp.sin(y), x), "itself": x}

    x = jnp.ones(3)
    assert str(jax.make_jaxpr(rearranged(function))(x)) == str(jax.make_jaxpr(function)(x))


def test_programs_are_rearranged() -> None:
    convolve = compiled(static=0)(CONVOLVE)
    assert axes_in(jax.make_jaxpr(convolve)(IMAGES, FILTERS)) == FAST_AXES


PROBLEM = TrainingProblem(
    init=lambda key, h: 0.1 * jax.random.normal(key, FILTERS.shape),
    train_loss=lambda w, h, x, key: jnp.mean(jnp.tanh(CONVOLVE(x, w)) ** 2),
    valid_loss=lambda w, h: jnp.mean((CONVOLVE(IMAGES, w) - 1) ** 2),
    batches=lambda step: IMAGES + step.astype(jnp.float32),
    optimizer=sgd("rate", 0.9),
    steps=5,
)


def test_the_gradient_through_train_is_rearranged() -> None:
    def loss(rate: jax.Array) -> jax.Array:
        return jnp.sum(train(PROBLEM, {"rate": rate}, jax.random.key(0)) ** 2)

    assert axes_in(jax.make_jaxpr(jax.grad(loss))(jnp.float32(0.01))) == FAST_AXES


def test_both_methods_agree_about_convolutions() -> None:
    h = {"rate": jnp.float32(0.01)}
    exactly, in_floats = (
        evaluate(PROBLEM, h, key=jax.random.key(0), method=method) for method in (Reversible(), Unrolled())
    )
    assert exactly.diagnostics["exact"]
    assert exactly.cost.gradient_evaluations == 4 * PROBLEM.steps  # the gradient did not have to be isolated
    assert exactly.gradient is not None
    assert in_floats.gradient is not None
    assert exactly.gradient["rate"] == pytest.approx(in_floats.gradient["rate"], rel=1e-3)


FAST_AXES = {"lhs_spec=(0, 3, 1, 2), rhs_spec=(3, 2, 0, 1), out_spec=(0, 3, 1, 2)"}


def axes_in(jaxpr: Any) -> set[str]:
    """Return the axes of all convolutions that a jaxpr has, in whatever depth."""
    return set(re.findall(r"ConvDimensionNumbers\((.*?\))\)", str(jaxpr)))
