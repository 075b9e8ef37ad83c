"""What the engine's tests share: stricter rules than users have, and a small network on digits."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from hypergrad_search import Optimizer, TrainingProblem, sgd

SIZES = (64, 30, 10)
LAYERS = len(SIZES) - 1


Array = np.ndarray[Any, Any]
Digits = tuple[Array, Array]
Layers = list[dict[str, jax.Array]]


@pytest.fixture(scope="module", autouse=True)
def _strict_promotion() -> Iterator[None]:
    """Refuse what users may do: to mix types, and to combine arrays of different ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
    # Thousands of compiled programs in one process exhaust its memory maps.
    jax.clear_caches()  # type: ignore[no-untyped-call]  # JAX has no types here


@pytest.fixture(scope="session")
def digits() -> Digits:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return images[order] / 16, labels[order]


@pytest.fixture(scope="session")
def make_problem(digits: Digits) -> Callable[..., TrainingProblem]:
    """A function (steps, optimizer, dtype, sizes, batch) -> problem, with a hyperparameter of every kind."""
    images, labels = digits

    @functools.cache  # so that tests share compiled programs
    def make(
        steps: int,
        optimizer: Optimizer | None = None,
        dtype: Any = jnp.float32,
        sizes: tuple[int, ...] = SIZES,
        batch: int = 200,
    ) -> TrainingProblem:
        def init(key: jax.Array, h: dict[str, Any]) -> Layers:
            shapes = list(itertools.pairwise(sizes))
            ends = np.cumsum([math.prod(shape) for shape in shapes])
            # Drawn in float32, so that every dtype starts at the same point, and all at once and uniformly: what
            # draws takes longer to compile than all the rest.
            drawn = jnp.split(jax.random.uniform(key, (int(ends[-1]),), jnp.float32, -1.7, 1.7), ends[:-1])
            return [
                {"w": h["scale"][i] * x.reshape(shape).astype(dtype), "b": jnp.zeros(shape[1], dtype)}
                for i, (x, shape) in enumerate(zip(drawn, shapes, strict=True))
            ]

        def cross_entropy(params: Layers, x: jax.Array, y: jax.Array) -> jax.Array:
            for layer in params[:-1]:
                x = jnp.tanh(x @ layer["w"] + layer["b"][None, :])
            scores = jax.nn.log_softmax(x @ params[-1]["w"] + params[-1]["b"][None, :])
            return -jnp.mean(jnp.take_along_axis(scores, y[:, None], axis=1))

        def train_loss(params: Layers, h: dict[str, Any], data: Any, key: jax.Array) -> jax.Array:
            penalties = [h["l2"][i] * jnp.sum(layer["w"] ** 2) for i, layer in enumerate(params)]
            return cross_entropy(params, *data) + jnp.stack(penalties).sum()

        def batches(step: jax.Array) -> tuple[jax.Array, jax.Array]:
            start = step * batch % 1000
            x = jax.lax.dynamic_slice_in_dim(images[:1000].astype(dtype), start, batch)
            return x, jax.lax.dynamic_slice_in_dim(labels[:1000], start, batch)

        def valid_loss(params: Layers, h: dict[str, Any]) -> jax.Array:
            return cross_entropy(params, jnp.asarray(images[1000:1400], dtype), jnp.asarray(labels[1000:1400]))

        return TrainingProblem(
            init, train_loss, valid_loss, batches, optimizer or sgd("rate", "momentum", dampening=True), steps
        )

    return make


@pytest.fixture
def hyperparameters() -> dict[str, Any]:
    return {"rate": 1.0, "momentum": 0.9, "l2": np.full(LAYERS, 1e-4), "scale": np.full(LAYERS, 0.15)}


class Ridge:
    """Regression with a penalty for each feature, in closed form; its functions compute in the type of the penalty."""

    features = 6

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self.x, self.y = rng.normal(size=(30, self.features)), rng.normal(size=30)
        self.x_valid, self.y_valid = rng.normal(size=(20, self.features)), rng.normal(size=20)
        self.penalty = np.geomspace(0.05, 0.5, self.features)

    def problem(self, **changes: Any) -> TrainingProblem:
        """Return a problem that 300 steps bring to its minimum, to the last digit of float64 but a few."""

        def squares(p: jax.Array, x: Array, y: Array) -> jax.Array:
            return (jnp.asarray(x, p.dtype) @ p - jnp.asarray(y, p.dtype)) ** 2

        parts = {
            "init": lambda key, h: jnp.zeros(self.features, h["penalty"].dtype),
            "train_loss": lambda p, h, b, k: jnp.mean(squares(p, self.x, self.y)) + jnp.sum(h["penalty"] * p**2),
            "valid_loss": lambda p, h: squares(p, self.x_valid, self.y_valid),
            "batches": lambda step: None,
            "optimizer": sgd(0.2, 0.5),
            "steps": 300,
        }
        return TrainingProblem(**{**parts, **changes})

    @property
    def hessian(self) -> Array:
        return np.asarray(2 * self.x.T @ self.x / len(self.x) + 2 * np.diag(self.penalty))

    @property
    def weights(self) -> Array:
        return np.linalg.solve(self.hessian, 2 * self.x.T @ self.y / len(self.x))

    @property
    def slope(self) -> Array:
        """The gradient of the validation loss by the weights."""
        return np.asarray(2 * self.x_valid.T @ (self.x_valid @ self.weights - self.y_valid) / len(self.y_valid))

    def gradient(self, inverse: Array | None = None) -> Array:
        """The hypergradient by the penalties, with another matrix in place of the Hessian's inverse if one is given."""
        applied = np.linalg.inv(self.hessian) if inverse is None else inverse
        return np.asarray(-2 * self.weights * (applied @ self.slope))


@pytest.fixture(scope="session")
def closed_form() -> Ridge:
    return Ridge()
