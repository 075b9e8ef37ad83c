"""`RealTime`: forward-mode hypergradients that move the hyperparameters while training goes on."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hypergrad_search.checks import whole_number
from hypergrad_search.cost import HESSIAN_VECTOR_PRODUCT, TRAINING_STEP
from hypergrad_search.fold import Fold
from hypergrad_search.hypergradient.algorithms import VALIDATION_STEP
from hypergrad_search.hypergradient.box import Box
from hypergrad_search.hypergradient.continuing import Continuing, Stretch, checked_optimizer, checked_steps
from hypergrad_search.hypergradient.on_the_way import (
    DEFAULT_OPTIMIZER,
    check_acts,
    losses_at,
    moved,
    start_of,
    update,
)
from hypergrad_search.losses import LeftOut, OuterLosses, fitted_loss, left_out
from hypergrad_search.parameters import split_statistics
from hypergrad_search.problem import TrainingProblem
from hypergrad_search.programs import compiled
from hypergrad_search.space import Hyperparameters, Space, dimension
from hypergrad_search.training.floats import FloatState, float_training, judged_model


@dataclass(frozen=True)
class RealTime(Continuing):
    """Train once, carry the derivative of the state by each hyperparameter along, and follow it on the way (RTHO).

    It is `Forward` in real time (Franceschi et al. 2017, section 3.3). Each number among the hyperparameters of the
    space has a tangent: the derivative by it of the weights and of all that the optimizer keeps. Once in `every` steps
    the gradient of the validation loss, through the present tangents, moves the hyperparameters. Training and tangents
    go on from there.

    An evaluation is a stretch of `steps` training steps that begins at the given hyperparameters and ends at others,
    `refined`. Its value is the validation loss of the weights at its end. With its `checkpoint`, which holds the
    tangents too, the next stretch goes on from there: it trains the same weights further. `evaluate` needs the `space`,
    in whose unit box the hyperparameters move.

    - `every`: the hyperparameters move once in so many steps.
    - `optimizer`: the optax optimizer that moves them in the unit box, by default Adam with a learning rate of 0.03.
    - `steps`: the length of a stretch; by default the problem's `steps`. Beyond these, schedules stay at their end.

    Cost: a step takes one gradient evaluation and two for each number, since a tangent takes a Hessian-vector product,
    and a move takes one: `1 + 2 * numbers + 1 / every` times that of training. Memory is that of `1 + numbers` copies
    of the weights and slots, and does not grow with the number of steps.

    While the hyperparameters do not move, the direction is the gradient of the validation loss with respect to them,
    exact up to rounding. It is biased by what they have moved: the tangents are those of the steps that were taken, at
    the hyperparameters of each, so that slow moves are the more exact. Unlike `OnePass` it sees long horizons. The
    value is that of weights which other hyperparameters have trained before, so training anew at the refined ones gives
    another.

    It sees all that a step of training or the validation loss reads. It cannot see what `init` alone reads, since the
    weights of a run that is under way no longer depend on it; an error names it, and `Reversible` can. A number that
    acts in some steps alone, such as one of several rates by step, moves on after these steps, without effect on the
    run. Do not use it for more than about ten numbers, where training is chaotic and tangents grow without bound, or to
    compare whole training runs. Functions with a `jax.custom_vjp` of their own have no forward mode, except in the
    losses. Raises `ValueError` where a setting does not fit.

    Example:
        >>> from hypergrad_search import RealTime, evaluate
        >>> result = evaluate(problem, point, key=key, method=RealTime(), space=space)
        >>> sorted(result.refined)
        ['l2', 'rate']
    """

    _: KW_ONLY
    every: int = 10
    optimizer: optax.GradientTransformation | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "every", whole_number("RealTime: every", self.every, 1))
        checked_optimizer("RealTime: optimizer", self.optimizer)
        object.__setattr__(self, "steps", checked_steps("RealTime: steps", self.steps))

    def check(self, problem: TrainingProblem, hyperparameters: Hyperparameters, *, space: Space) -> None:
        """Raise `ValueError` where the arguments do not fit, or neither an update nor the loss reads a number."""
        check_acts("RealTime", problem, hyperparameters, space)

    def cost_between(self, problem: TrainingProblem, first: int, last: int, space: Space | None) -> float:
        """See `Continuing`. Raises `ValueError` without a space, since each number in it has a tangent."""
        if space is None:
            raise ValueError("RealTime.cost: give the space, since each number in it has a tangent, got None")
        of_step = TRAINING_STEP + HESSIAN_VECTOR_PRODUCT * dimension(space)
        moves = last // self.every - first // self.every
        return of_step * (last - first) + VALIDATION_STEP * moves

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
        run = _Run(problem, box, self.optimizer or DEFAULT_OPTIMIZER, self.every)

        def losses(state: _State) -> OuterLosses:
            return losses_at(problem, box, state.training, state.point, fixed)

        return Stretch(
            facts=("RealTime", box.facts),
            start=lambda: _start(run, point, fixed, key),
            resume=lambda state: state._replace(point=point),
            advance=lambda state, last, stop: _advance(run, state, fixed, key, left_out(fold), stop),
            point=lambda state: state.point,
            losses_on_the_way=losses,
            losses=losses,
            trained=lambda state: judged_model(problem, state.training),
        )


@dataclass(frozen=True)
class _Run:
    """All that is known when a stretch is compiled; the fields are those of `RealTime`."""

    problem: TrainingProblem
    box: Box
    optimizer: optax.GradientTransformation
    every: int


class _State(NamedTuple):
    """The state of training and its tangents, the point in the unit box, what moves it has kept, and the steps done.

    A tangent for each number is the derivative of the floating-point arrays among `training`, shape `(numbers, ...)`.
    """

    training: FloatState
    tangents: list[jax.Array]
    point: jax.Array
    slots: Any
    step: jax.Array


@compiled(static=1)
def _start(run: _Run, point: jax.Array, fixed: dict[str, Any], key: jax.Array) -> _State:
    def initial(point: jax.Array) -> tuple[list[jax.Array], FloatState]:
        _, training, _ = float_training(run.problem, run.box.within(point, fixed), key)
        return split_statistics(training)[0], training

    def along(direction: jax.Array) -> tuple[list[jax.Array], FloatState]:
        _, tangents, training = jax.jvp(initial, (point,), (direction,), has_aux=True)
        return tangents, training

    tangents, training = jax.vmap(along, out_axes=(0, None))(_directions(point))
    return _State(training, tangents, point, run.optimizer.init(point), jnp.zeros((), jnp.int32))


@compiled(static=1)
def _advance(run: _Run, state: _State, fixed: dict[str, Any], key: jax.Array, without: LeftOut, stop: int) -> _State:
    """Return the state at the step `stop`; `without` is what the validation loss leaves out."""

    def step(state: _State) -> _State:
        state = _trained(run, state, fixed, key)
        point, slots = jax.lax.cond(
            state.step % run.every == 0,
            lambda: moved(run.optimizer, _slope(run, state, fixed, without), state.slots, state.point),
            lambda: (state.point, state.slots),
        )
        return state._replace(point=point, slots=slots)

    return jax.lax.while_loop(lambda state: state.step < stop, step, state)


def _trained(run: _Run, state: _State, fixed: dict[str, Any], key: jax.Array) -> _State:
    """Return the state after one more step of training and its tangents."""
    before, put = split_statistics(state.training)

    def one_step(before: list[jax.Array], point: jax.Array) -> tuple[list[jax.Array], FloatState]:
        training = update(run.problem, run.box.within(point, fixed), put(before), key, state.step)
        return split_statistics(training)[0], training

    def along(tangent: list[jax.Array], direction: jax.Array) -> tuple[list[jax.Array], FloatState]:
        _, tangents, training = jax.jvp(one_step, (before, state.point), (tangent, direction), has_aux=True)
        return tangents, training

    # What is the same for all tangents is computed once.
    tangents, training = jax.vmap(along, out_axes=(0, None))(state.tangents, _directions(state.point))
    return state._replace(training=training, tangents=tangents, step=state.step + 1)


def _slope(run: _Run, state: _State, fixed: dict[str, Any], without: LeftOut) -> jax.Array:
    """Return the hypergradient in the unit box, through the present tangents."""
    floats, put = split_statistics(state.training)

    def fitted(floats: list[jax.Array], point: jax.Array) -> jax.Array:
        return fitted_loss(run.problem, judged_model(run.problem, put(floats)), run.box.within(point, fixed), without)

    of_floats, direct = jax.grad(fitted, argnums=(0, 1))(floats, state.point)

    def along(tangent: list[jax.Array]) -> jax.Array:
        pairs = [(x.astype(direct.dtype), y.astype(direct.dtype)) for x, y in zip(tangent, of_floats, strict=True)]
        return jnp.sum(jnp.stack([jnp.sum(x * y) for x, y in pairs]))

    slope: jax.Array = direct + jax.vmap(along)(state.tangents)
    return slope


def _directions(point: jax.Array) -> jax.Array:
    return jnp.eye(point.size, dtype=point.dtype)
