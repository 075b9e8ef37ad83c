"""The kinds of operations that the doctor trains: small classifiers, each built around one operation.

All of them see inputs of shape `(n, 8, 8)`: images, or sequences of 8 vectors.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LENGTH = 8  # of sequences, and the number of rows of an image
FEATURES = 8
CLASSES = 4

Params = dict[str, jax.Array]

#: Called with a shape, it returns for each element whether it is kept; None where nothing is dropped.
Keep = Callable[[tuple[int, ...]], jax.Array] | None

_HEADS = 2
_ORDER = np.random.default_rng(0).permutation(FEATURES).astype(np.int32)


class Kind(NamedTuple):
    """A model: the shapes of its parameters, given its width, and the scores of classes, shape `(n, 4)`."""

    shapes: Callable[[int], dict[str, tuple[int, ...]]]
    scores: Callable[[Params, jax.Array, Keep], jax.Array]

    def init(self, key: jax.Array, width: int, scale: jax.Array) -> Params:
        """Return normal weights of standard deviation `scale / sqrt(inputs)`, and vectors of 0.

        They are drawn in float32 whatever the type of `scale` is, so that float64 starts at the same point.
        """
        shapes = self.shapes(width)
        sizes = [math.prod(shape) if len(shape) > 1 else 0 for shape in shapes.values()]
        drawn = jnp.split(jax.random.uniform(key, (sum(sizes),), jnp.float32, -1.7, 1.7), np.cumsum(sizes)[:-1])
        return {
            name: scale / math.sqrt(math.prod(shape[:-1])) * x.reshape(shape).astype(scale.dtype)
            if x.size
            else jnp.zeros(shape, scale.dtype)
            for (name, shape), x in zip(shapes.items(), drawn, strict=True)
        }


def _layers(width: int) -> dict[str, tuple[int, ...]]:
    inputs = LENGTH * FEATURES
    return {
        "in": (inputs, width),
        "in_bias": (width,),
        "middle": (width, width),
        "middle_bias": (width,),
        **_last(width),
    }


def _last(inputs: int) -> dict[str, tuple[int, ...]]:
    return {"out": (inputs, CLASSES), "out_bias": (CLASSES,)}


def _scores(params: Params, x: jax.Array) -> jax.Array:
    return x @ params["out"] + params["out_bias"][None]


def _network(params: Params, x: jax.Array, between: Callable[[jax.Array, str], jax.Array]) -> jax.Array:
    x = x.reshape(len(x), -1)
    for name in ("in", "middle"):
        x = between(jnp.tanh(x @ params[name] + params[f"{name}_bias"][None]), name)
    return _scores(params, x)


def _matmul(params: Params, x: jax.Array, keep: Keep) -> jax.Array:
    return _network(params, x, lambda x, name: x)


def _dropout(params: Params, x: jax.Array, keep: Keep) -> jax.Array:
    return _network(params, x, lambda x, name: x if keep is None else keep(x.shape) * x)


def _layer_norm(params: Params, x: jax.Array, keep: Keep) -> jax.Array:
    def normalised(x: jax.Array, name: str) -> jax.Array:
        x = x - jnp.mean(x, axis=1, keepdims=True)
        x = x / jnp.sqrt(jnp.mean(x**2, axis=1, keepdims=True) + 1e-5)
        return x * (1 + params[f"{name}_gain"])[None] + params[f"{name}_shift"][None]

    return _network(params, x, normalised)


def _normalised_layers(width: int) -> dict[str, tuple[int, ...]]:
    extra = {f"{name}_{part}": (width,) for name in ("in", "middle") for part in ("gain", "shift")}
    return {**_layers(width), **extra}


def _convolution(params: Params, x: jax.Array, keep: Keep) -> jax.Array:
    x = x[..., None]
    for name, stride in (("in", 1), ("middle", 2)):
        x = jax.lax.conv_general_dilated(
            x, params[name], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.gelu(x + params[f"{name}_bias"][None, None, None])
    return _scores(params, jnp.mean(x, axis=(1, 2)))


def _filters(width: int) -> dict[str, tuple[int, ...]]:
    filters = {"in": (3, 3, 1, width), "middle": (3, 3, width, width)}
    return {**filters, **{f"{name}_bias": (width,) for name in filters}, **_last(width)}


def _attention(params: Params, x: jax.Array, keep: Keep) -> jax.Array:
    x = jnp.tanh(x @ params["in"] + params["in_bias"][None, None])
    query, key, value = (x @ params[name] for name in ("query", "key", "value"))
    heads = (*x.shape[:2], _HEADS, x.shape[2] // _HEADS)
    attended = jax.nn.dot_product_attention(*(y.reshape(heads) for y in (query, key, value)))
    return _scores(params, jnp.mean(x + attended.reshape(x.shape), axis=1))


def _projections(width: int) -> dict[str, tuple[int, ...]]:
    square = dict.fromkeys(("query", "key", "value"), (width, width))
    return {"in": (FEATURES, width), "in_bias": (width,), **square, **_last(width)}


def _scatter(params: Params, x: jax.Array, keep: Keep) -> jax.Array:
    """Look words up in a table, add up the vectors of equal words, and put the sums in another order."""
    words, rows = jax.lax.argmax(x, 2, jnp.int32), jnp.arange(len(x), dtype=jnp.int32)[:, None]
    vectors = params["table"][words] * params["positions"][None]
    sums = jnp.zeros((len(x), FEATURES, vectors.shape[2]), x.dtype).at[rows, words].add(vectors)
    ordered = jnp.zeros_like(sums).at[:, _ORDER].set(jnp.tanh(sums))
    return _scores(params, ordered.reshape(len(x), -1))


def _tables(width: int) -> dict[str, tuple[int, ...]]:
    return {"table": (FEATURES, width), "positions": (LENGTH, width), **_last(FEATURES * width)}


def _recurrent(params: Params, x: jax.Array, keep: Keep) -> jax.Array:
    def step(state: jax.Array, now: jax.Array) -> tuple[jax.Array, None]:
        both = jnp.concatenate([now, state], axis=1)
        gate = jax.nn.sigmoid(both @ params["gate"] + params["gate_bias"][None])
        return gate * state + (1 - gate) * jnp.tanh(both @ params["cell"] + params["cell_bias"][None]), None

    start = jnp.zeros((len(x), params["cell"].shape[1]), x.dtype)
    return _scores(params, jax.lax.scan(step, start, jnp.swapaxes(x, 0, 1))[0])


def _cell(width: int) -> dict[str, tuple[int, ...]]:
    square = dict.fromkeys(("gate", "cell"), (FEATURES + width, width))
    return {**square, **{f"{name}_bias": (width,) for name in square}, **_last(width)}


KINDS = {
    "matmul": Kind(_layers, _matmul),
    "convolution": Kind(_filters, _convolution),
    "attention": Kind(_projections, _attention),
    "dropout": Kind(_layers, _dropout),
    "scatter": Kind(_tables, _scatter),
    "layer norm": Kind(_normalised_layers, _layer_norm),
    "recurrent": Kind(_cell, _recurrent),
}
