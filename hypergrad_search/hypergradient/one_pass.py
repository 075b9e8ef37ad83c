"""`OnePass`: it tunes hyperparameters of the update itself within one training run."""

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
from hypergrad_search.hypergradient.on_the_way import DEFAULT_OPTIMIZER, check_acts, losses_at, moved, start_of, update
from hypergrad_search.losses import LeftOut, OuterLosses, fitted_loss, left_out
from hypergrad_search.parameters import split_statistics
from hypergrad_search.problem import TrainingProblem
from hypergrad_search.programs import compiled
from hypergrad_search.space import Hyperparameters, Space
from hypergrad_search.training.floats import FloatState, float_training, judged_model


@dataclass(frozen=True)
class OnePass(Continuing):
    """Train once, and improve the hyperparameters on the way by implicit differentiation of the update (Clarke 2022).

    An update takes the state, which is the weights and what the optimizer keeps, to the next one. Where it settles, the
    implicit function theorem gives the derivative of the state by the hyperparameters, as a Neumann series of the
    update's own Jacobian. Its first `lookback + 1` terms, all at the last update, give the direction in which the
    hyperparameters move: it is the gradient of the last `lookback + 1` steps, had all of them been like the last.

    An evaluation is a stretch of `steps` training steps that begins at the given hyperparameters and ends at others,
    `refined`. Its value is the validation loss of the weights at its end. With its `checkpoint` the next stretch goes
    on from there: it trains the same weights further. `evaluate` needs the `space`, in whose unit box the
    hyperparameters move.

    - `lookback`: the number of steps before the last that count, from 0.
    - `every`: the hyperparameters move once in so many steps.
    - `optimizer`: the optax optimizer that moves them in the unit box, by default Adam with a learning rate of 0.03.
    - `steps`: the length of a stretch; by default the problem's `steps`. Beyond these, schedules stay at their end.

    Cost: a step takes one gradient evaluation, and a move `1 + 2 * (lookback + 1)` more: with the defaults 2.3 times
    that of training. Memory is that of about three copies of the state, whatever the number of steps.

    It is biased to short horizons: what pays only after more than `lookback` steps, such as a higher rate that slows
    down the fall at first, is not seen (Wu et al. 2018). The value is that of weights which other hyperparameters have
    trained before, so training anew at the refined ones gives another. It sees what the optimizer reads, where
    `Hypernet` sees losses alone, and the losses too. It cannot see what `init` alone reads; an error names it, and
    `Reversible` can. Do not use it to compare whole training runs. Raises `ValueError` where a setting does not fit.

    Example:
        >>> from hypergrad_search import OnePass, evaluate
        >>> result = evaluate(problem, {**point, "rate": 0.01}, key=key, method=OnePass(), space=space)
        >>> result.gradient is None, result.refined["rate"] > 0.01
        (True, True)
    """

    _: KW_ONLY
    lookback: int = 5
    every: int = 10
    optimizer: optax.GradientTransformation | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "lookback", whole_number("OnePass: lookback", self.lookback, 0))
        object.__setattr__(self, "every", whole_number("OnePass: every", self.every, 1))
        checked_optimizer("OnePass: optimizer", self.optimizer)
        object.__setattr__(self, "steps", checked_steps("OnePass: steps", self.steps))

    def check(self, problem: TrainingProblem, hyperparameters: Hyperparameters, *, space: Space) -> None:
        """Raise `ValueError` where the arguments do not fit, or neither an update nor the loss reads a number."""
        check_acts("OnePass", problem, hyperparameters, space)

    def cost_between(self, problem: TrainingProblem, first: int, last: int, space: Space | None) -> float:
        """See `Continuing`."""
        moves = last // self.every - first // self.every
        return TRAINING_STEP * (last - first) + self._cost_of_move * moves

    @property
    def _cost_of_move(self) -> int:
        return VALIDATION_STEP + HESSIAN_VECTOR_PRODUCT * (self.lookback + 1)

    def stretch(
        self,
        problem: TrainingProblem,
        hyperparameters: Hyperparameters,
        key: jax.Array,
        space: Space,
        fold: Fold | None = None,
    ) -> Stretch:
        """See `Continuing`."""
        run, point, fixed = self._set_up(problem, space, hyperparameters)

        def losses(state: _State) -> OuterLosses:
            return losses_at(problem, run.box, state.training, state.point, fixed)

        return Stretch(
            facts=run.facts,
            start=lambda: _start(run, point, fixed, key),
            resume=lambda state: state._replace(point=point),
            advance=lambda state, last, stop: _advance(run, state, fixed, key, left_out(fold), stop),
            point=lambda state: state.point,
            losses_on_the_way=losses,
            losses=losses,
            trained=lambda state: judged_model(problem, state.training),
        )

    def _set_up(
        self, problem: TrainingProblem, space: Space, hyperparameters: Hyperparameters
    ) -> "tuple[_Run, jax.Array, dict[str, Any]]":
        """Return the run, the point in the unit box, and the floating-point hyperparameters that do not move."""
        box, point, fixed = start_of(space, hyperparameters)
        return _Run(problem, box, self.optimizer or DEFAULT_OPTIMIZER, self.lookback, self.every), point, fixed


@dataclass(frozen=True)
class _Run:
    """All that is known when a stretch is compiled; the fields are those of `OnePass`."""

    problem: TrainingProblem
    box: Box
    optimizer: optax.GradientTransformation
    lookback: int
    every: int

    @property
    def facts(self) -> tuple[Any, ...]:
        """All that must be the same where a checkpoint is written and where it is read."""
        return ("OnePass", self.box.facts)


class _State(NamedTuple):
    """The state of training, the point in the unit box, what moves it has kept, and the number of steps done."""

    training: FloatState
    point: jax.Array
    slots: Any
    step: jax.Array


@compiled(static=1)
def _start(run: _Run, point: jax.Array, fixed: dict[str, Any], key: jax.Array) -> _State:
    _, training, _ = float_training(run.problem, run.box.within(point, fixed), key)
    return _State(training, point, run.optimizer.init(point), jnp.zeros((), jnp.int32))


@compiled(static=1)
def _advance(run: _Run, state: _State, fixed: dict[str, Any], key: jax.Array, without: LeftOut, stop: int) -> _State:
    """Return the state at the step `stop`; `without` is what the validation loss leaves out."""

    def step(state: _State) -> _State:
        training = update(run.problem, run.box.within(state.point, fixed), state.training, key, state.step)
        moves = (state.step + 1) % run.every == 0
        point, slots = jax.lax.cond(
            moves,
            lambda: _moved(run, state, training, fixed, key, without),
            lambda: (state.point, state.slots),
        )
        return _State(training, point, slots, state.step + 1)

    return jax.lax.while_loop(lambda state: state.step < stop, step, state)


def _moved(
    run: _Run, state: _State, after: FloatState, fixed: dict[str, Any], key: jax.Array, without: LeftOut
) -> tuple[jax.Array, Any]:
    """Return the point that follows, and the slots, for the update that has led from `state` to `after`."""
    slope = _slope(run, state, after, fixed, key, without)
    return moved(run.optimizer, slope, state.slots, state.point)


def _slope(
    run: _Run, state: _State, after: FloatState, fixed: dict[str, Any], key: jax.Array, without: LeftOut
) -> jax.Array:
    """Return the hypergradient in the unit box, by a Neumann series of the last update."""
    before, put_before = split_statistics(state.training)
    floats, put_after = split_statistics(after)

    def last_update(before: list[jax.Array], point: jax.Array) -> list[jax.Array]:
        hyperparameters = run.box.within(point, fixed)
        return split_statistics(update(run.problem, hyperparameters, put_before(before), key, state.step))[0]

    def loss(floats: list[jax.Array], point: jax.Array) -> jax.Array:
        model = judged_model(run.problem, put_after(floats))
        return fitted_loss(run.problem, model, run.box.within(point, fixed), without)

    _, pull_back = jax.vjp(last_update, before, state.point)

    def look_back(_: jax.Array, carry: tuple[list[jax.Array], jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        adjoint, total = carry
        adjoint, of_point = pull_back(adjoint)
        return adjoint, total + of_point

    start: tuple[list[jax.Array], jax.Array] = jax.grad(loss, argnums=(0, 1))(floats, state.point)
    total: jax.Array
    _, total = jax.lax.fori_loop(0, run.lookback + 1, look_back, start)
    return total
