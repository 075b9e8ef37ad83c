"""One finished evaluation, as a search sees it: plain data, the same whether read from memory or storage."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np


@dataclass(frozen=True)
class Observation:
    """What was tried, why, and what came of it.

    `trial` identifies it; `parent` is the trial whose gradient it followed, None where a global sampler chose it.
    `hyperparameters` and `gradient` (None where there is none) are in natural units and hold the floats of the
    space alone. `value` is minimised, and infinite where the trial failed or was pruned. `cost` is in any unit, the
    same for all. `held_back` is the loss on what of the validation set no gradient sees, None where nothing is held
    back. `refined` are hyperparameters that the evaluation itself moved to, and that `value` is the loss at; None where
    it moved nowhere.
    """

    trial: str
    parent: str | None
    hyperparameters: Mapping[str, Any]
    value: float
    gradient: Mapping[str, Any] | None
    cost: float
    held_back: float | None = None
    refined: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: arrays as lists; an infinite value, or a gradient that is not finite, as None."""
        result = asdict(self)
        result["hyperparameters"] = _lists(self.hyperparameters)
        result["refined"] = None if self.refined is None else _lists(self.refined)
        usable = self.gradient is not None and all(np.isfinite(g).all() for g in self.gradient.values())
        result["gradient"] = _lists(self.gradient) if self.gradient is not None and usable else None
        result["value"] = self.value if math.isfinite(self.value) else None
        return result

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(**{**data, "value": math.inf if data["value"] is None else data["value"]})


def _lists(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(value, dtype=float).tolist() for name, value in values.items()}
