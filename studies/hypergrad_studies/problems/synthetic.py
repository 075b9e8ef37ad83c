"""Functions of a point with a known optimum of 0, as training runs of one step that changes nothing.

A trial costs 1 gradient evaluation, and 4 with its gradient, so that a budget is a number of trials. Optima lie off
the centre of the box, at places drawn once and for all. The functions do not show how a method does on real training,
since each of them is one difficulty alone.

- quadratic: a valley of condition number 10,000, along none of the axes.
- rosenbrock: a valley that bends.
- rastrigin: thousands of local minima.
- steps: a flat function with steps, and with a slope far smaller than the steps.
- exploding: a bowl, and the 40th iterates of two logistic maps, which are chaotic in much of the box. The gradient is
  huge there, and says nothing about the value nearby.
- wrong: a bowl whose gradient has the opposite sign.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search import Float, Space, TrainingProblem, sgd


def optimum(dimensions: int, bound: float, seed: int) -> np.ndarray:
    """Return a point drawn from the inner three fifths of the box from `-bound` to `bound`."""
    return np.random.default_rng(seed).uniform(-0.6 * bound, 0.6 * bound, dimensions).astype(np.float32)


QUADRATIC = optimum(10, 5.0, seed=1)
RASTRIGIN = optimum(6, 5.12, seed=2)
STEPS = optimum(10, 5.0, seed=3)
WRONG = optimum(10, 5.0, seed=4)
ROSENBROCK = np.ones(8, np.float32)
EXPLODING = np.concatenate([[-3.0, -2.0], optimum(6, 5.0, seed=5)]).astype(np.float32)  # tame at the first two

CURVATURES = np.geomspace(1e-2, 1e2, 10).astype(np.float32)
ROTATION = np.linalg.qr(np.random.default_rng(0).normal(size=(10, 10)))[0].astype(np.float32)


def quadratic(x: jax.Array) -> jax.Array:
    return jnp.mean(CURVATURES * (ROTATION @ (x - QUADRATIC)) ** 2)


def rosenbrock(x: jax.Array) -> jax.Array:
    return jnp.mean(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def rastrigin(x: jax.Array) -> jax.Array:
    z = x - RASTRIGIN
    return jnp.mean(z**2 + 10 * (1 - jnp.cos(2 * jnp.pi * z)))


def steps(x: jax.Array) -> jax.Array:
    z = x - STEPS
    return jnp.mean(jnp.round(z) ** 2 + 1e-2 * z**2)


def exploding(x: jax.Array) -> jax.Array:
    chaos = _iterates(x[:2]) - _iterates(jnp.asarray(EXPLODING[:2]))
    return jnp.mean((x - EXPLODING) ** 2) + 5 * jnp.sum(chaos**2)


def _iterates(x: jax.Array) -> jax.Array:
    """Return iterates of logistic maps. Over the box their growth is 2.6 to 4; above 3.57 most are chaotic."""
    growth = 3.3 + 0.14 * x
    last: jax.Array = jax.lax.fori_loop(0, 40, lambda _, u: growth * u * (1 - u), jnp.full_like(x, 0.3))
    return last


@jax.custom_jvp
def wrong(x: jax.Array) -> jax.Array:
    return jnp.mean((x - WRONG) ** 2)


@wrong.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    return wrong(x), -2 * jnp.mean((x - WRONG) * tangent)


#: name -> the function, the lowest and highest value of each coordinate, and the point where the function is 0
FUNCTIONS: dict[str, tuple[Callable[[jax.Array], jax.Array], float, float, np.ndarray]] = {
    "quadratic": (quadratic, -5.0, 5.0, QUADRATIC),
    "rosenbrock": (rosenbrock, -3.0, 2.0, ROSENBROCK),
    "rastrigin": (rastrigin, -5.12, 5.12, RASTRIGIN),
    "steps": (steps, -5.0, 5.0, STEPS),
    "exploding": (exploding, -5.0, 5.0, EXPLODING),
    "wrong": (wrong, -5.0, 5.0, WRONG),
}


def init(key: jax.Array, hyperparameters: dict[str, Any]) -> jax.Array:
    return jnp.stack([hyperparameters[f"x{i}"] for i in range(len(hyperparameters))])


def train_loss(params: jax.Array, hyperparameters: dict[str, Any], batch: None, key: jax.Array) -> jax.Array:
    return 0.0 * jnp.sum(params)


def batches(step: jax.Array) -> None:
    return None


def problem(name: str) -> tuple[TrainingProblem, Space]:
    """Return the problem and its space, by its name in `FUNCTIONS`."""
    function, low, high, best = FUNCTIONS[name]

    def valid_loss(params: jax.Array, hyperparameters: dict[str, Any]) -> jax.Array:
        return function(params)

    return (
        TrainingProblem(
            init=init,
            train_loss=train_loss,
            valid_loss=valid_loss,
            batches=batches,
            optimizer=sgd(0.0, 0.5),
            steps=1,
        ),
        {f"x{i}": Float(low, high) for i in range(len(best))},
    )
