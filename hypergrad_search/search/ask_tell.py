"""Ask and tell: decisions about a search that are the same for all hosts.

A host's adapter stores what `AskTell.ask` wants of a trial (`Wanted`) and what the trial reported (`Outcome`), and
reads both back. An `AskTell` is a frozen value, so a host can rebuild it from storage at any time.
"""

import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from hypergrad_search.checks import shown
from hypergrad_search.cost import VALUE_AND_GRADIENT
from hypergrad_search.fold import Fold
from hypergrad_search.search.explore_descend import ExploreDescend
from hypergrad_search.search.observation import Attempt, Observation, number_to_json
from hypergrad_search.search.strategy import Proposal, Strategy
from hypergrad_search.space import Float, Hyperparameters, Space, dimension, floats, from_unit, level
from hypergrad_search.trouble import see

#: the status of a step that fits what was held back no better than before, so that it has failed
OVERFITTED = "overfitted"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The request that a search makes of a trial, as its host stores it.

    - `parent`: the trial whose chain this one extends; None where the explorer or the user chose the point.
    - `variant`: which of the steps from the parent it is, where several may be taken at the same time.
    - `again`: whether the trial has its parent's own hyperparameters.
    - `gradient_below`: the loss below which the gradient is wanted.
    - `fold`: the part of the validation set that is held back where the space has a `lift`.
    - `maximise`: whether the objective's value is maximised; all thresholds are losses nevertheless.
    - `checkpoint`: the path of the parent's checkpoint, for hosts whose trials cannot look it up.
    """

    parent: str | None = None
    again: bool = False
    gradient_below: float = math.inf
    fold: Fold | None = None
    maximise: bool = False
    checkpoint: str | None = None
    variant: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return a dict that is strict JSON."""
        fold = None
        if self.fold is not None:
            blocks = list(map(number_to_json, self.fold.blocks))
            fold = {**vars(self.fold), "below": number_to_json(self.fold.below), "blocks": blocks}
        return {**vars(self), "gradient_below": number_to_json(self.gradient_below), "fold": fold}

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Self:
        """Return what `to_json` was called on; with None, as under another search, a request that wants no gradient."""
        if data is None:
            return cls(gradient_below=-math.inf)
        fold = None
        if data["fold"] is not None:
            blocks = tuple(float(loss) for loss in data["fold"].get("blocks", ()))
            fold = Fold(**{**data["fold"], "below": float(data["fold"]["below"]), "blocks": blocks})
        return cls(**{**data, "gradient_below": float(data["gradient_below"]), "fold": fold})

    @property
    def attempt(self) -> Attempt:
        """What the trial attempts, as `AskTell.ask` is told of it while the trial is under way."""
        return Attempt(self.parent, self.variant)

    @property
    def left_out(self) -> int:
        """The fold that the gradient leaves out, where one is held back."""
        return 0 if self.fold is None else self.fold.index

    def wants_gradient(self, value: float) -> bool:
        """Return whether the search would use the gradient of a trial whose objective came out as `value`.

        It is False where `value` is not finite, since such a trial has failed.
        """
        try:
            value = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"wants_gradient: value must be a number, got {shown(value)}") from None
        return math.isfinite(value) and (-value if self.maximise else value) < self.gradient_below

    def held_back(self, space: Space) -> Fold | None:
        """Return the fold to hold back; None where no number of the user's space has a `lift`.

        Without a lift there are too few hyperparameters to fit the validation set.
        """
        return self.fold if any(parameter.lift for parameter in floats(space).values()) else None


@dataclass(frozen=True)
class Suggestion:
    """The next trial.

    - `moved`: the floats to which a step gives new values, as numbers and arrays in natural units. All other
      hyperparameters must be the same as the parent's, to the bit. `moved` is empty where the parent is evaluated
      again, and None where the explorer chooses everything.
    - `levels`: one number for each of these floats: the level of an array, and the value of a number.
    - `centre`: whether the trial is at the centre of the space, unless the user has chosen the explorer.
    - `wanted`: what is wanted of the trial.
    """

    moved: dict[str, Any] | None
    levels: dict[str, float]
    wanted: Wanted
    centre: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a trial reported, in the host's own terms; None for what it did not report.

    `gradient` is the derivative of the objective itself, and may lack names. `status` is that of an evaluation. Each
    field may be anything that a user reports: what is not a number, or not a list of losses, is ignored.
    `deterministic` tells whether the same hyperparameters are known to give the same value again.
    """

    value: Any = None
    gradient: Mapping[str, Any] | None = None
    cost: Any = None
    held_back: Any = None
    blocks: Any = None
    cross_validated: Any = None
    refined: Mapping[str, Any] | None = None
    status: Any = None
    deterministic: Any = None
    trust: Any = None


@dataclass(frozen=True)
class AskTell:
    """A search with its history so far, as the strategy's `state`; `begin` makes the first one.

    `has_gradients` tells whether any trial has reported a usable gradient.
    """

    strategy: Strategy[Any]
    space: Space
    maximise: bool
    state: Any
    has_gradients: bool = False

    @classmethod
    def begin(cls, space: Space, strategy: Strategy[Any] | None = None, *, maximise: bool = False) -> Self:
        """Return a search without a history; the strategy is `ExploreDescend()` by default.

        Raises `ValueError` where `strategy` is not a `Strategy`.
        """
        if strategy is None:
            strategy = ExploreDescend()
        if not isinstance(strategy, Strategy):
            raise ValueError(f"strategy must be a Strategy such as ExploreDescend(), got {strategy!r}")
        return cls(strategy, space, maximise, strategy.init(space))

    def ask(self, running: Collection[Attempt]) -> Suggestion:
        """Return what to try next; `running` holds what each trial under way attempts."""
        return self._suggest(self._checked(self.strategy.propose(self.state, running), "propose"))

    def explore(self) -> Suggestion:
        """Return the suggestion for a trial whose point the user has chosen; it says what is wanted of the trial."""
        return self._suggest(self._checked(self.strategy.explore(self.state), "explore"))

    @property
    def parents(self) -> Collection[str] | None:
        """The trials that may still become parents, whose hyperparameters a host must keep; None for all of them."""
        return self.strategy.parents(self.state)

    @property
    def goes_on(self) -> bool:
        """Whether a chain is left to extend."""
        return self.strategy.goes_on(self.state)

    def read(self, begun: Observation, outcome: Outcome) -> Observation:
        """Return the observation of a trial that has reported `outcome`.

        A value that is not finite is a failed step, and so is one whose status is "overfitted", whatever the value.
        A trial that does not report its cost counts as 1, or as 4 where it reported a gradient. The derivatives that a
        gradient lacks are 0. A gradient that is not finite, or does not fit the space, is ignored.
        """
        reported = {n: g for n, g in (outcome.gradient or {}).items() if g is not None and n in floats(self.space)}
        gradient, ignored = self._gradient(reported) if reported else (None, "")
        return replace(
            begun,
            value=math.inf if outcome.status == OVERFITTED else self.loss(outcome.value),
            gradient=gradient,
            ignored=ignored,
            cost=cost_of(outcome.cost, has_gradient=bool(reported)),
            held_back=_losses(outcome.held_back),
            blocks=_blocks(outcome.blocks),
            cross_validated=_number(outcome.cross_validated),
            refined=self._refined(outcome.refined),
            deterministic=outcome.deterministic is True,
            trust=_shares(outcome.trust, floats(self.space)),
        )

    def tell(self, observation: Observation) -> Self:
        """Return the search after one more observation."""
        return replace(
            self,
            state=self.strategy.fold(self.state, observation),
            has_gradients=self.has_gradients or observation.gradient is not None,
        )

    def loss(self, value: Any) -> float:
        """Return an objective's value as something to minimise; infinite where it is not a finite number."""
        number = _number(value)
        if number is None:
            return math.inf
        return -number if self.maximise else number

    def _checked(self, proposal: Proposal, source: str) -> Proposal:
        """Return a proposal that fits the space; raise `ValueError` where a strategy of a user's own is wrong."""
        name = f"{type(self.strategy).__name__}.{source}"
        if not isinstance(proposal, Proposal):
            raise ValueError(f"{name} must return a Proposal, got {shown(proposal)}")
        length = dimension(self.space)
        if proposal.point is not None and (
            np.shape(proposal.point) != (length,) or not np.isfinite(proposal.point).all()
        ):
            raise ValueError(
                f"{name} must return a point of {length} finite numbers in the unit box, got {shown(proposal.point)}"
            )
        return proposal

    def _suggest(self, proposal: Proposal) -> Suggestion:
        moved: dict[str, Any] | None = None
        if proposal.point is not None:
            moved = {} if proposal.again else from_unit(self.space, proposal.point)
        wanted = Wanted(
            parent=proposal.parent,
            again=proposal.again,
            gradient_below=proposal.gradient_below,
            fold=proposal.fold,
            maximise=self.maximise,
            variant=proposal.variant,
        )
        levels = {n: level(p, moved[n]) if p.shape else moved[n] for n, p in floats(self.space).items() if moved}
        return Suggestion(moved, levels, wanted, proposal.centre)

    def _gradient(self, reported: Mapping[str, Any]) -> tuple[dict[str, np.ndarray] | None, str]:
        """Return the gradient of the loss, or None and why the reported one is ignored."""
        gradient = {}
        for name, parameter in floats(self.space).items():
            derivative = _array(reported.get(name, np.zeros(parameter.shape)))
            if derivative is None or derivative.shape != parameter.shape:
                return (
                    None,
                    f"gradient[{name!r}] must be numbers of shape {parameter.shape}, got {shown(reported[name])}",
                )
            infinite = int(np.sum(~np.isfinite(derivative)))
            if infinite:
                return None, f"{infinite} of the {derivative.size} numbers of gradient[{name!r}] are NaN or infinite"
            gradient[name] = -derivative if self.maximise else derivative
        return gradient, ""

    def _refined(self, reported: Mapping[str, Any] | None) -> dict[str, Any] | None:
        differentiable = floats(self.space)
        if not reported or not differentiable or any(reported.get(name) is None for name in differentiable):
            return None
        return {name: np.asarray(reported[name]) for name in differentiable}


class MissingGradients:
    """The warning, given once, that a search gets no gradients, so that its explorer alone decides."""

    def __init__(self, search: str, subject: str, explorer: object, remedy: str) -> None:
        alone = f"this search is {type(explorer).__name__}'s alone"
        self._message = f"{search}: the {subject} reported no gradient, so {alone}; {remedy}{see('no-gradient')}"
        self._warned = False

    def check(self, mind: AskTell, value: Any, *, reported: bool) -> None:
        """Warn where a trial has ended without a gradient; `reported` tells whether it gave one, or its cost."""
        if reported or mind.has_gradients or self._warned or _number(value) is None:
            return
        self._warned = True
        warnings.warn(self._message, stacklevel=3)


def same_model(space: Space, some: Hyperparameters, others: Hyperparameters) -> bool:
    """Return whether all integers and categoricals agree, so that a checkpoint of the one fits the other."""
    missing = object()
    names = space.keys() - floats(space).keys()
    return all(name in some and some[name] == others.get(name, missing) for name in names)


def cost_of(reported: Any, *, has_gradient: bool) -> float:
    """Return the cost of a trial: what it reported, or else 4 where it has a gradient and 1 where it has none."""
    cost = _number(reported)
    if cost is None:
        return float(VALUE_AND_GRADIENT) if has_gradient else 1.0
    return cost


def levels(space: Space) -> dict[str, Any]:
    """Return the space that an explorer sees: one number, the level, for each array."""
    return {name: replace(p, shape=(), lift=None) if isinstance(p, Float) else p for name, p in space.items()}


def spread(space: Space, chosen: Hyperparameters) -> dict[str, Any]:
    """Return the hyperparameters that an explorer chose in `levels(space)`; an array has its level at each element."""
    return {
        name: np.full(p.shape, chosen[name]) if isinstance(p, Float) and p.shape else chosen[name]
        for name, p in space.items()
    }


def collect(space: Space, hyperparameters: Hyperparameters) -> dict[str, Any]:
    """Return hyperparameters as an explorer is told of them: each array is one number, its level."""
    return {
        name: level(p, hyperparameters[name]) if isinstance(p, Float) else hyperparameters[name]
        for name, p in space.items()
    }


def _number(value: Any) -> float | None:
    """Return `value` as a finite number, or None where it is not one."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _shares(values: Any, names: Collection[str]) -> dict[str, float] | None:
    """Return the numbers from 0 to 1 that `values` has for some of the names; None where it has none."""
    if not isinstance(values, Mapping):
        return None
    numbers = {name: _number(values.get(name)) for name in names}
    return {name: x for name, x in numbers.items() if x is not None and 0 <= x <= 1} or None


def _losses(values: Any) -> tuple[float, ...] | None:
    """Return losses, with infinity for each that is not a finite number; None where `values` is not a list of any."""
    if not isinstance(values, list | tuple | np.ndarray) or not np.size(values):
        return None
    numbers = map(_number, values)
    return tuple(math.inf if number is None else number for number in numbers)


def _blocks(values: Any) -> tuple[tuple[float, ...], ...] | None:
    """Return the losses of each fold's blocks; None where `values` is not a list of such lists."""
    folds = [_losses(losses) for losses in values] if isinstance(values, list | tuple | np.ndarray) else []
    return tuple(losses for losses in folds if losses is not None) if folds and None not in folds else None


def _array(values: Any) -> np.ndarray | None:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return None
