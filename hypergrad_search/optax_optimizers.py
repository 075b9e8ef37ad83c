"""Optimizers of optax, as functions of the hyperparameters: how a problem takes them, and what they are called."""

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

from hypergrad_search.checks import number_or_traced
from hypergrad_search.nesting import nested
from hypergrad_search.space import Hyperparameters

OptaxOptimizer = Callable[[Any], optax.GradientTransformation]

#: By the transformation that gives an optimizer its character: the exact optimizer that comes nearest. The first that
#: is found counts. `docs/reversible_optimizers.md` says what keeps the others from being exact.
_NEAREST = {
    "scale_by_muon": "muon",
    "scale_by_belief": "adabelief",
    **dict.fromkeys(("scale_by_rms", "scale_by_stddev", "scale_by_rss"), "rmsprop"),
    **dict.fromkeys(("scale_by_adadelta", "scale_by_factored_rms"), "rmsprop"),
    **dict.fromkeys(("scale_by_adam", "adam", "scale_by_amsgrad", "scale_by_adamax", "scale_by_radam"), "adam"),
    **dict.fromkeys(("scale_by_yogi", "scale_by_ademamix", "scale_by_adopt", "scale_by_novograd"), "adam"),
    **dict.fromkeys(("scale_by_adan", "scale_by_lion", "scale_by_sign", "scale_by_rprop"), "adam"),
    "adamw": "adamw",
    **dict.fromkeys(("trace", "sgd", "identity"), "sgd"),
}


def made(optimizer: OptaxOptimizer, hyperparameters: Hyperparameters) -> optax.GradientTransformationExtraArgs:
    """Return the transformation at given hyperparameters, which JAX may trace.

    Raises `ValueError` where the function returns something else.
    """
    with jax.numpy_dtype_promotion("standard"):
        transformation = optimizer(nested(hyperparameters))
    if not isinstance(transformation, optax.GradientTransformation):
        raise ValueError(
            f"optimizer: a function must return a transformation of optax, such as optax.adam(h['rate']), "
            f"got {transformation!r}"
        )
    return optax.with_extra_args_support(transformation)


def start(transformation: optax.GradientTransformation, params: Any) -> Any:
    """Return the transformation's state before the first step."""
    with jax.numpy_dtype_promotion("standard"):
        return transformation.init(params)


def step(
    transformation: optax.GradientTransformationExtraArgs, gradient: Any, state: Any, params: Any, loss: Any
) -> tuple[Any, Any]:
    """Return the parameters and the state after one step.

    Optax mixes integers and floats, so strict promotion, which a user may have chosen, is off here.
    """
    with jax.numpy_dtype_promotion("standard"):
        updates, state = transformation.update(gradient, state, params, value=loss, grad=gradient)
        return optax.apply_updates(params, updates), state


def transformed(
    optimizer: OptaxOptimizer, hyperparameters: Hyperparameters, gradient: Any, params: Any, key: jax.Array
) -> Any:
    """Return a gradient after a transformation that keeps no state; `key` is that of the step.

    Raises `ValueError` where the transformation keeps a state.
    """
    transformation = made(optimizer, hyperparameters)
    state = start(transformation, params)
    if jax.tree.leaves(state):
        raise ValueError(
            f"optimizer: transform must keep no state from step to step, got {name_of(transformation)}; give the whole "
            "as optimizer=lambda h: optax.chain(...), and differentiate with Unrolled()"
        )
    with jax.numpy_dtype_promotion("standard"):
        return transformation.update(gradient, state, params, key=key)[0]


# The loss draws from the key of the step, and from parts of it, which are `fold_in` of small numbers.
_OF_NOISE = zlib.crc32(b"gradient_noise")


def gradient_noise(scale: Any) -> optax.GradientTransformationExtraArgs:
    """Return a transformation that adds normal noise to a gradient (Neelakantan et al. 2015), for `transform`.

    It takes its randomness from the key of the training step, so that the same step always has the same noise, where
    `optax.add_noise` keeps a key from step to step. Leave it out where batches are small: their gradients are noisy
    already.

    Example:
        >>> from hypergrad_search import gradient_noise, sgd
        >>> optimizer = sgd("rate", 0.9, transform=lambda h: gradient_noise(h["noise"]))

    Args:
        scale: the standard deviation of the noise, a number from 0 that JAX may trace.

    Raises:
        ValueError: `scale` is not such a number.
    """
    scale = number_or_traced("gradient_noise: scale", scale, 0)

    def update(updates: Any, state: Any, params: Any = None, *, key: jax.Array, **_: Any) -> tuple[Any, Any]:
        leaves, treedef = jax.tree.flatten(updates)
        keys = jax.random.split(jax.random.fold_in(key, _OF_NOISE), len(leaves))
        noisy = [x + scale * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
        return jax.tree.unflatten(treedef, noisy), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def name_of(transformation: optax.GradientTransformation) -> str:
    """Return what an optimizer is made of, such as `"optax: clip_by_global_norm, scale_by_adam"`."""
    return f"optax: {', '.join(dict.fromkeys(_parts(transformation.update)))}"


def nearest_exact(transformation: optax.GradientTransformation) -> str | None:
    """Return the name of the exact optimizer that comes nearest to an optimizer; None where none is near."""
    parts = set(_parts(transformation.update))
    near = next((name for part, name in _NEAREST.items() if part in parts), None)
    return "adamw" if near == "adam" and "add_decayed_weights" in parts else near


def _parts(function: Any) -> Iterator[str]:
    """Yield the names of the transformations that a function is made of, as its closures tell them."""
    inner = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    names = [name for f in _functions(inner) for name in _parts(f) if name != "init_empty_state"]
    yield from names or [function.__qualname__.partition(".")[0]]


def _functions(inside: Any) -> Iterator[Any]:
    """Yield the functions in lists, tuples and dicts of functions."""
    if isinstance(inside, tuple | list | dict):
        for part in inside.values() if isinstance(inside, dict) else inside:
            yield from _functions(part)
    elif callable(inside):
        yield inside
