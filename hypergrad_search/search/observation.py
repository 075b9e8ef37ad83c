"""`Observation`: a finished evaluation as a search sees it, in plain data that a host can store."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np


@dataclass(frozen=True)
class Attempt:
    """What a trial under way attempts: a step from `parent`, or to explore where that is None.

    `variant` tells apart the steps that several workers may take from one parent at the same time. 0 is the step that a
    worker alone would take, and a second look at the parent too.
    """

    parent: str | None = None
    variant: int = 0


@dataclass(frozen=True)
class Observation:
    """A trial, the reason for it, and its result.

    - `trial`: the name by which the host knows the trial.
    - `parent`: the trial whose chain this one extends; None where the host's explorer chose the point.
    - `hyperparameters`: all hyperparameters of the trial, in natural units. A strategy reads those of its space alone.
    - `value`: the loss to be minimised; infinite where the trial failed or was pruned.
    - `gradient`: the finite derivatives of the value, one for each float of the space, in natural units; or None.
    - `trust`: for some of the floats, how far their derivatives can be believed, from 0 to 1.
    - `cost`: the cost of the trial, in any unit that is the same for all trials.
    - `held_back`: the loss on each fold of the validation set, where one was held back; else None.
    - `blocks`: the losses on the blocks of each fold, where one was held back; else None.
    - `cross_validated`: the loss that counts each example where its fold was held back; None where it is not known.
    - `left_out`: the fold that the gradient leaves out, where one was held back.
    - `refined`: the hyperparameters that the evaluation itself moved to; `value` is the loss at them. It is None where
      the evaluation moved none.
    - `variant`: which of the steps from its parent the trial took; 0 where it took none.
    - `again`: whether the trial evaluated its parent's own hyperparameters once more.
    - `deterministic`: whether the same hyperparameters are known to give the same value again.
    - `unasked`: whether no gradient was ever wanted of the trial, as of one that another search ran.
    - `centre`: whether the trial is at the centre of the space, and not the explorer's.
    - `ignored`: why a gradient that was reported is ignored; "" where none was, or it is used.

    Example:
        >>> from hypergrad_search.search import ExploreDescend, Observation
        >>> strategy = ExploreDescend()
        >>> first = Observation("0", None, point, value=0.7, gradient={"rate": 2.5, "l2": -5.0})
        >>> strategy.propose(strategy.fold(strategy.init(space), first), running=()).parent
        '0'
    """

    trial: str
    parent: str | None
    hyperparameters: Mapping[str, Any]
    value: float = math.inf
    gradient: Mapping[str, Any] | None = None
    cost: float = 1.0
    held_back: tuple[float, ...] | None = None
    refined: Mapping[str, Any] | None = None
    again: bool = False
    unasked: bool = False
    ignored: str = ""
    left_out: int = 0
    blocks: tuple[tuple[float, ...], ...] | None = None
    cross_validated: float | None = None
    deterministic: bool = False
    centre: bool = False
    variant: int = 0
    trust: Mapping[str, float] | None = None

    @property
    def attempt(self) -> Attempt:
        """What the trial attempts, as `Strategy.propose` is told of it while the trial is under way."""
        return Attempt(self.parent, self.variant)

    def to_json(self) -> dict[str, Any]:
        """Return a dict that is strict JSON, with arrays as lists."""
        return {
            **asdict(self),
            "hyperparameters": _lists(self.hyperparameters),
            "value": number_to_json(self.value),
            "gradient": None if self.gradient is None else _lists(self.gradient),
            "held_back": None if self.held_back is None else [number_to_json(loss) for loss in self.held_back],
            "refined": None if self.refined is None else _lists(self.refined),
            "blocks": None if self.blocks is None else [[number_to_json(loss) for loss in x] for x in self.blocks],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return what `to_json` was called on; arrays stay lists."""
        held_back = data["held_back"]
        held_back = None if held_back is None else tuple(float(loss) for loss in held_back)
        blocks = data.get("blocks")
        blocks = None if blocks is None else tuple(tuple(float(loss) for loss in losses) for losses in blocks)
        return cls(**{**data, "value": float(data["value"]), "held_back": held_back, "blocks": blocks})


def number_to_json(number: float) -> float | str:
    """Return a number that `float` reads back; an infinite one is text, since JSON has no infinity."""
    return number if math.isfinite(number) else str(number)


def _lists(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(value).tolist() for name, value in values.items()}
