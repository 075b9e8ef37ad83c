"""`Strategy`: an immutable value that folds the history into a state, and proposes what to try next."""

import abc
from collections.abc import Collection
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from hypergrad_search.fold import Fold
from hypergrad_search.search.observation import Attempt, Observation
from hypergrad_search.space import Space

State = TypeVar("State")


@dataclass(frozen=True)
class Proposal:
    """The next evaluation.

    - `point`: the floats of the space, as one vector in the unit box; all other hyperparameters are the parent's. It is
      None where the host's explorer chooses everything.
    - `parent`: the trial whose chain this step extends. It is None where `point` is None, and only there.
    - `gradient_below`: the gradient is wanted only if the value comes out below this.
    - `fold`: the part of the validation set that the gradient leaves out, and the loss that the part which
      judges must stay below; None to hold nothing back. Hosts hold back only where the space has a `lift`.
    - `centre`: whether the trial is at the centre of the space, with the middle of all numbers and the first of all
      choices, unless the user has chosen the explorer. A host may learn only in this trial what the space is.
    - `variant`: which of the steps from the parent it is, where several may be taken at the same time.
    - `again`: whether the parent is evaluated once more. The host then takes the parent's own hyperparameters, to the
      bit, instead of `point`. The parent may be a trial that another search ran.

    Raises `ValueError` where only one of `point` and `parent` is None.
    """

    point: np.ndarray | None
    parent: str | None
    gradient_below: float
    fold: Fold | None = None
    again: bool = False
    centre: bool = False
    variant: int = 0

    def __post_init__(self) -> None:
        if (self.point is None) != (self.parent is None):
            raise ValueError(
                f"Proposal: a point needs a parent, whose other hyperparameters it keeps, and a parent needs a point; "
                f"got point={self.point!r} and parent={self.parent!r}"
            )


class Strategy(abc.ABC, Generic[State]):
    """How a search spends its budget.

    A strategy is a frozen dataclass whose fields are its settings. All that it learns is in a state, which is immutable
    too, so that many processes can share a study, and a process that is killed loses nothing: any other can fold the
    same history. `hypergrad_search.search` has all that it takes to write one.

    Example:
        >>> from hypergrad_search.search import ExploreDescend
        >>> strategy = ExploreDescend()
        >>> strategy.propose(strategy.init(space), running=()).centre
        True
    """

    @abc.abstractmethod
    def init(self, space: Space) -> State:
        """Return the state before the first observation; `space` may hold no floats, or nothing at all."""

    @abc.abstractmethod
    def fold(self, state: State, observation: Observation) -> State:
        """Return the state after one more observation."""

    @abc.abstractmethod
    def propose(self, state: State, running: Collection[Attempt]) -> Proposal:
        """Return what to try next.

        `running` holds what each trial under way attempts. No two trials may take a step from the same parent with the
        same `variant` at once: a host whose processes share a study asks again until the attempt is not among them.
        """

    @abc.abstractmethod
    def explore(self, state: State) -> Proposal:
        """Return what is wanted of a point that the explorer or the user chooses: a proposal whose `point` is None."""

    def parents(self, state: State) -> Collection[str] | None:
        """Return the trials that later proposals may name as parents, so that a host may forget the arrays of others.

        None, the default, says that it may be any of them.
        """
        return None

    def goes_on(self, state: State) -> bool:
        """Return whether a chain is left to extend, so that a host goes on though its explorer has nothing left."""
        return self.propose(state, ()).parent is not None
