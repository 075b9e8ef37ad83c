"""What all pictures ask of their arguments."""

from collections.abc import Iterable
from typing import Any

from hypergrad_optuna import attributes
from hypergrad_optuna.objective import Objective


def check_study(owner: str, study: Any) -> None:
    """Raise `ValueError` unless `study` is a study of Optuna with one objective."""
    attributes.check_study(owner, study)
    if len(study.directions) > 1:
        raise ValueError(f"{owner}: study must have one objective, got one with {len(study.directions)}")


def check_objective(owner: str, objective: Any) -> None:
    """Raise `ValueError` unless `objective` is an `Objective`."""
    if not isinstance(objective, Objective):
        raise ValueError(f"{owner}: objective must be an Objective, got {objective!r}")


def check_names(owner: str, objective: Objective, found: Iterable[str]) -> None:
    """Raise `ValueError` where the hyperparameters of a trial lack one of the objective, which is of another study."""
    lacking = sorted({*objective.hosted.space} - {*found})
    if lacking:
        raise ValueError(
            f"{owner}: objective must be that of the study, whose hyperparameters are {sorted(found)}, got one that "
            f"also has {lacking}"
        )
