"""`Smoothed`: gradients of the loss smoothed over the hyperparameters, for training that is chaotic."""

import zlib
from dataclasses import KW_ONLY, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search.checks import number, whole_number
from hypergrad_search.cost import TRAINING_STEP
from hypergrad_search.hypergradient.base import Evaluation, Method, Request
from hypergrad_search.hypergradient.box import Box, box_of, check_start
from hypergrad_search.hypergradient.in_floats import Derived, after_training, trained
from hypergrad_search.hyperparameters import split
from hypergrad_search.losses import LeftOut, fitted_loss, left_out
from hypergrad_search.problem import Trained, TrainingProblem
from hypergrad_search.programs import compiled
from hypergrad_search.space import Hyperparameters, Space, floats, gradient_from_unit
from hypergrad_search.training.floats import train_in_floats


@dataclass(frozen=True)
class Smoothed(Method):
    """Train at the hyperparameters and at random points around them, and take the slope of the loss from the latter.

    The gradient is that of the smoothed loss, `E[loss(u + sigma * e)]`, where u are the hyperparameters in the unit box
    of the space and e is normal; a point outside of the box counts as the nearest one within. It is estimated by
    antithetic pairs (evolution strategies, Salimans et al. 2017): the mean of `(loss(u + sigma * e) - loss(u - sigma *
    e)) / (2 * sigma) * e`. This needs no derivative of training, and so no smooth one: it is for runs where
    `Reversible` says "exploded" (Metz et al. 2019). The value is the true one at the hyperparameters.

    - `sigma`: the standard deviation of the points, in units of the box.
    - `pairs`: the number of pairs.
    - `seed`: decides the random directions, together with the hyperparameters: the same point has the same ones.
    - `at_once`: so many pairs are trained together, by `jax.vmap`; all by default.

    Cost: `1 + 2 * pairs` training runs, of which the value takes one. Memory is that of `2 * at_once` runs, and does
    not grow with the number of steps.

    It is unbiased for the smoothed loss, whose slope differs from that of the loss the more the loss bends within
    sigma. Its standard error falls with `1 / sqrt(pairs)` and grows with the square root of the numbers that are
    searched, so it is for few: with more numbers than pairs most of the gradient is noise. `diagnostics` have `slope`
    and `slope_error`, the norms of the gradient in the unit box and of its standard error (None for one pair). `trust`
    is the share of a hyperparameter's squared slope that is more than noise: `1 - error^2 / slope^2`, or 0. One pair
    has no standard error, so nothing says that its slope is mostly noise.

    It sees all hyperparameters of the space, and needs the space. Where a run around the point has no finite loss, the
    status is "exploded". Do not use it where `Reversible` works, which is exact at the cost of four training runs.
    Training is one program, so `report` is never called. Raises `ValueError` where a setting does not fit.

    Example:
        >>> from hypergrad_search import Smoothed, evaluate
        >>> result = evaluate(problem, point, key=key, method=Smoothed(pairs=2), space=space)
        >>> sorted(result.gradient)
        ['l2', 'rate']
    """

    _: KW_ONLY
    sigma: float = 0.03
    pairs: int = 10
    seed: int = 0
    at_once: int | None = None
    reports = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", number("Smoothed: sigma", self.sigma, 1e-6, 1))
        object.__setattr__(self, "pairs", whole_number("Smoothed: pairs", self.pairs, 1))
        object.__setattr__(self, "seed", whole_number("Smoothed: seed", self.seed, 0))
        if self.at_once is not None:
            object.__setattr__(self, "at_once", whole_number("Smoothed: at_once", self.at_once, 1))

    def evaluate(
        self, problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array, request: Request
    ) -> Evaluation:
        """See `hypergrad_search.evaluate`."""
        space = request.space
        if space is None:
            raise ValueError("evaluate: Smoothed needs space=, in whose unit box it smooths the loss")
        check_start("Smoothed", space, hyperparameters)
        dynamic, static = split(hyperparameters, space)
        box, point, fixed = box_of(space, hyperparameters)

        def differentiate(_: Trained) -> Derived:
            # Other points get other directions, or a search could never leave those of its first point.
            of_point = zlib.crc32(np.asarray(point).tobytes())
            noise_key = jax.random.fold_in(jax.random.key(self.seed), of_point)
            at_once = min(self.at_once or self.pairs, self.pairs)
            shape = problem, box, self.pairs, at_once
            slopes = np.asarray(
                _slopes(*shape, point, fixed, self.sigma, key, noise_key, left_out(request.fold)), np.float64
            )
            failed = int((~np.isfinite(slopes).all(axis=1)).sum())
            useless = f"{_FAILED} {failed} of {self.pairs} pairs; lower Smoothed(sigma=...)" if failed else ""
            mean = slopes.mean(axis=0)
            error = slopes.std(axis=0, ddof=1) / np.sqrt(self.pairs) if self.pairs > 1 and not failed else None
            trust = None if error is None else _trust(mean, error, space)
            diagnostics = {
                "slope": None if failed else float(np.linalg.norm(mean)),
                "slope_error": None if error is None else float(np.linalg.norm(error)),
            }
            cost = 2 * self.pairs * TRAINING_STEP * problem.steps
            gradient = gradient_from_unit(space, hyperparameters, mean)
            return Derived(gradient, cost, diagnostics, useless, trust)

        return after_training(problem, request, lambda: trained(problem, static, dynamic, key), differentiate)


def _trust(mean: np.ndarray[Any, Any], error: np.ndarray[Any, Any], space: Space) -> dict[str, float]:
    """Return the share of the squared slope by each hyperparameter that is not noise, as its standard error tells."""
    trust, start = {}, 0
    for name, parameter in floats(space).items():
        own = slice(start, start + parameter.size)
        size, noise = float(np.sum(mean[own] ** 2)), float(np.sum(error[own] ** 2))
        trust[name] = max(1.0 - noise / size, 0.0) if size else 0.0
        start = own.stop
    return trust


_FAILED = "the value is sound, but its gradient is useless: the loss around the hyperparameters is not finite in"


@compiled(static=4)
def _slopes(
    problem: TrainingProblem,
    box: Box,
    pairs: int,
    at_once: int,
    point: jax.Array,
    fixed: dict[str, Any],
    sigma: float,
    key: jax.Array,
    noise_key: jax.Array,
    without: LeftOut,
) -> jax.Array:
    """Return the estimate of each pair, shape `(pairs, numbers)`, in the unit box."""
    width = jnp.asarray(sigma, point.dtype)

    def loss(point: jax.Array) -> jax.Array:
        hyperparameters = box.hyperparameters(point, fixed)
        model = train_in_floats(problem, hyperparameters, key)
        return fitted_loss(problem, model, hyperparameters, without).astype(point.dtype)

    def of_pair(direction: jax.Array) -> jax.Array:
        above, below = jax.vmap(loss)(jnp.stack([point + width * direction, point - width * direction]))
        slope: jax.Array = (above - below) / (2 * width) * direction
        return slope

    directions = jax.random.normal(noise_key, (pairs, point.size), point.dtype)
    slopes: jax.Array = jax.lax.map(of_pair, directions, batch_size=at_once)
    return slopes
