"""`Persistent`: random runs around the hyperparameters, whose losses move these, for chaotic training."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad_search.checks import number, whole_number
from hypergrad_search.cost import TRAINING_STEP
from hypergrad_search.fold import Fold
from hypergrad_search.hypergradient.box import Box, check_start
from hypergrad_search.hypergradient.continuing import Continuing, Stretch, checked_optimizer, checked_steps
from hypergrad_search.hypergradient.on_the_way import DEFAULT_OPTIMIZER, losses_at, moved, start_of, update
from hypergrad_search.losses import LeftOut, OuterLosses, fitted_loss, left_out
from hypergrad_search.problem import TrainingProblem
from hypergrad_search.programs import compiled
from hypergrad_search.space import Hyperparameters, Space
from hypergrad_search.training.floats import FloatState, float_training, judged_model


@dataclass(frozen=True)
class Persistent(Continuing):
    """Train at the hyperparameters and at random points around them, and move them by the losses on the way (PES).

    Beside the run at the hyperparameters u there are `pairs` of runs at `u + e` and `u - e`, where e is normal and
    drawn anew every `every` steps. After these the hyperparameters move along the mean over the pairs of `(d - d') *
    s / (2 * sigma^2)`: d is by how much the validation loss of `u + e` is above that of `u - e`, d' is what d was
    before these steps, and s is the sum of all e since the run began (persistent evolution strategies, Vicol et al.
    2021). Over a whole run the changes of d add up to that of its last loss. This needs no derivative of training, and
    so no smooth one: it is for runs where `Reversible` says "exploded", as `Smoothed` is.

    An evaluation is a stretch of `steps` training steps that begins at the given hyperparameters and ends at others,
    `refined`. Its value is the validation loss of the weights at its end. With its `checkpoint` the next stretch goes
    on from there. After the problem's `steps` all runs begin anew, at the hyperparameters that were reached, so the
    last loss of runs of this length is what falls. `evaluate` needs the `space`, in whose unit box they move.

    - `sigma`: the standard deviation of the points, in units of the box; one outside of the box counts as the nearest
      one within.
    - `pairs`: the number of pairs of runs, which are trained together, by `jax.vmap`.
    - `every`: the hyperparameters move once in so many steps, and at the end of a run.
    - `optimizer`: the optax optimizer that moves them in the unit box, by default Adam with a learning rate of 0.03.
    - `seed`: decides the random directions, together with the step.
    - `steps`: the length of a stretch; by default the problem's `steps`.

    Cost: that of `1 + 2 * pairs` training runs. Memory is that of as many runs, and does not grow with the number of
    steps.

    While the hyperparameters do not move, the sum of the directions of a run is an unbiased estimate of the gradient of
    its last loss, smoothed over the points of all its parts. Truncated evolution strategies, which have e in place of
    s, miss what a part does to later ones. It is biased by what the hyperparameters move during a run. Its standard
    error falls with `1 / sqrt(pairs)`, and grows with the number of parts, `steps / every`, and with the numbers that
    are searched, so it is for few of both. The value is that of weights which other hyperparameters have trained
    before, so training anew at the refined ones gives another.

    It sees all hyperparameters of the space. Where a run around the hyperparameters has no finite loss, the status is
    "nan"; lower sigma there. Do not use it where training is smooth: `OnePass` and `RealTime` have no such noise.
    Raises `ValueError` where a setting does not fit.

    Example:
        >>> from hypergrad_search import Persistent, evaluate
        >>> result = evaluate(problem, point, key=key, method=Persistent(pairs=2), space=space)
        >>> sorted(result.refined)
        ['l2', 'rate']
    """

    _: KW_ONLY
    sigma: float = 0.03
    pairs: int = 10
    every: int = 10
    optimizer: optax.GradientTransformation | None = None
    seed: int = 0
    steps: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", number("Persistent: sigma", self.sigma, 1e-6, 1))
        object.__setattr__(self, "pairs", whole_number("Persistent: pairs", self.pairs, 1))
        object.__setattr__(self, "every", whole_number("Persistent: every", self.every, 1))
        checked_optimizer("Persistent: optimizer", self.optimizer)
        object.__setattr__(self, "seed", whole_number("Persistent: seed", self.seed, 0))
        object.__setattr__(self, "steps", checked_steps("Persistent: steps", self.steps))

    def check(self, problem: TrainingProblem, hyperparameters: Hyperparameters, *, space: Space) -> None:
        """Raise `ValueError` where the hyperparameters do not fit the space."""
        check_start("Persistent", space, hyperparameters)

    def cost_between(self, problem: TrainingProblem, first: int, last: int, space: Space | None) -> float:
        """See `Continuing`."""
        return TRAINING_STEP * (1 + 2 * self.pairs) * (last - first)

    def stretch(
        self,
        problem: TrainingProblem,
        hyperparameters: Hyperparameters,
        key: jax.Array,
        space: Space,
        fold: Fold | None = None,
    ) -> Stretch:
        """See `Continuing`."""
        box, point, fixed = start_of(space, hyperparameters)
        run = _Run(problem, box, self.optimizer or DEFAULT_OPTIMIZER, self.sigma, self.pairs, self.every)
        noise_key = jax.random.key(self.seed)

        def own(state: _State) -> FloatState:
            """Return the state of training at the hyperparameters themselves."""
            training: FloatState = jax.tree.map(lambda x: x[0], state.training)
            return training

        def losses(state: _State) -> OuterLosses:
            # Where a run around the point has failed, the point is NaN, and the loss at the start tells more.
            known = jnp.where(jnp.isfinite(state.point), state.point, point)
            return losses_at(problem, box, own(state), known, fixed)

        return Stretch(
            facts=("Persistent", box.facts),
            start=lambda: _begun(run, point, run.optimizer.init(point), jnp.int32(0), fixed, key, noise_key),
            resume=lambda state: state._replace(point=point),
            advance=lambda state, last, stop: _advance(run, state, fixed, key, noise_key, left_out(fold), stop),
            point=lambda state: state.point,
            losses_on_the_way=losses,
            losses=losses,
            trained=lambda state: judged_model(problem, own(state)),
        )


@dataclass(frozen=True)
class _Run:
    """All that is known when a stretch is compiled; the fields are those of `Persistent`."""

    problem: TrainingProblem
    box: Box
    optimizer: optax.GradientTransformation
    sigma: float
    pairs: int
    every: int


class _State(NamedTuple):
    """The states of all runs, the point in the unit box, what moves it has kept, and the number of steps done.

    The first of the runs is that at the point itself, then those above follow, and those below. `shifts`, shape
    `(pairs, numbers)`, is how far these are from the point now, and `shifted` the sum of that over the parts of the run
    so far. `differences`, shape `(pairs,)`, are those of the losses of each pair after the last part, 0 before the
    first.
    """

    training: FloatState
    shifts: jax.Array
    shifted: jax.Array
    differences: jax.Array
    point: jax.Array
    slots: Any
    step: jax.Array


@compiled(static=1)
def _begun(
    run: _Run,
    point: jax.Array,
    slots: Any,
    step: jax.Array,
    fixed: dict[str, Any],
    key: jax.Array,
    noise_key: jax.Array,
) -> _State:
    """Return the state in which all runs begin, in their first part."""
    shifts = _shifts(run, point, step, noise_key)

    def initial(point: jax.Array) -> FloatState:
        return float_training(run.problem, run.box.hyperparameters(point, fixed), key)[1]

    training = jax.vmap(initial)(_points(point, shifts))
    return _State(training, shifts, shifts, jnp.zeros(run.pairs, point.dtype), point, slots, step)


@compiled(static=1)
def _redrawn(run: _Run, state: _State, noise_key: jax.Array) -> _State:
    """Return the state in which the next part begins."""
    shifts = _shifts(run, state.point, state.step, noise_key)
    return state._replace(shifts=shifts, shifted=state.shifted + shifts)


@compiled(static=1)
def _trained(run: _Run, state: _State, fixed: dict[str, Any], key: jax.Array, steps: int) -> _State:
    """Return the state after more steps of training, all of them within a part."""
    points = _points(state.point, state.shifts)

    def one_step(i: jax.Array, training: FloatState) -> FloatState:
        def of_run(training: FloatState, point: jax.Array) -> FloatState:
            at = (state.step + i) % run.problem.steps
            return update(run.problem, run.box.hyperparameters(point, fixed), training, key, at)

        return jax.vmap(of_run)(training, points)

    training = jax.lax.fori_loop(0, steps, one_step, state.training)
    return state._replace(training=training, step=state.step + steps)


@compiled(static=1)
def _after_part(run: _Run, state: _State, fixed: dict[str, Any], without: LeftOut) -> _State:
    """Return the state in which the point has moved by what the runs lost or gained in the part that ends."""

    def loss(training: FloatState, point: jax.Array) -> jax.Array:
        model = judged_model(run.problem, training)
        return fitted_loss(run.problem, model, run.box.hyperparameters(point, fixed), without).astype(point.dtype)

    around = jax.tree.map(lambda x: x[1:], state.training)
    above, below = jnp.split(jax.vmap(loss)(around, _points(state.point, state.shifts)[1:]), 2)
    differences = above - below
    slopes = (differences - state.differences)[:, None] * state.shifted / (2 * run.sigma**2)
    point, slots = moved(run.optimizer, slopes.mean(axis=0), state.slots, state.point)
    return state._replace(differences=differences, point=point, slots=slots)


def _advance(
    run: _Run,
    state: _State,
    fixed: dict[str, Any],
    key: jax.Array,
    noise_key: jax.Array,
    without: LeftOut,
    stop: int,
) -> _State:
    """Return the state at the step `stop`, or at an earlier one where a loss around the point is not finite.

    `without` is what the validation loss leaves out.
    """
    step = int(state.step)
    while step < stop and np.isfinite(state.point).all():
        done = step % run.problem.steps  # in this run
        if step and not done:
            state = _begun(run, state.point, state.slots, state.step, fixed, key, noise_key)
        elif done and done % run.every == 0:
            state = _redrawn(run, state, noise_key)
        part_ends = min(done - done % run.every + run.every, run.problem.steps)
        steps = min(part_ends - done, stop - step)
        state = _trained(run, state, fixed, key, steps)
        step, done = step + steps, done + steps
        if done == part_ends:
            state = _after_part(run, state, fixed, without)
    return state


def _shifts(run: _Run, point: jax.Array, step: jax.Array, noise_key: jax.Array) -> jax.Array:
    noise = jax.random.normal(jax.random.fold_in(noise_key, step), (run.pairs, point.size), point.dtype)
    return run.sigma * noise


def _points(point: jax.Array, shifts: jax.Array) -> jax.Array:
    """Return the points of all runs, shape `(1 + 2 * pairs, numbers)`."""
    return jnp.concatenate([point[None], point[None] + shifts, point[None] - shifts])
