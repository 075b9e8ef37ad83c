"""The attributes of a trial by which sampler and objective exchange data; they work in every storage."""

from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import BaseTrial, FixedTrial, FrozenTrial

from hypergrad_search.nesting import flat
from hypergrad_search.search.ask_tell import Wanted

PREFIX = "hypergrad:"
#: the facts of an evaluation that are kept, each in its own user attribute; None where a trial's life before left one
FACTS = (
    "cost",
    "status",
    "message",
    "test_loss",
    "exact",
    "deterministic",
    "held_back",
    "blocks",
    "cross_validated",
    "refined",
    "checkpoint",
    "trust",
)
COST, STATUS, MESSAGE, TEST_LOSS, EXACT, DETERMINISTIC = (PREFIX + name for name in FACTS[:6])
HELD_BACK, BLOCKS, CROSS_VALIDATED, REFINED, CHECKPOINT, TRUST = (PREFIX + name for name in FACTS[6:])
GRADIENT = PREFIX + "gradient"
REPORTED = (*(PREFIX + name for name in FACTS), GRADIENT)
WANTED = PREFIX + "wanted"  # a system attribute: what the sampler wants of the trial, and the trial's own number

AnyTrial = optuna.Trial | FrozenTrial | FixedTrial


def check_trial(owner: str, trial: Any) -> None:
    """Raise `ValueError` unless `trial` is a trial of Optuna, with or without a study."""
    if not isinstance(trial, BaseTrial):
        raise ValueError(f"{owner}: trial must be a trial of Optuna, got {trial!r}")


def check_study(owner: str, study: Any) -> None:
    """Raise `ValueError` unless `study` is a study of Optuna."""
    if not isinstance(study, optuna.Study):
        raise ValueError(f"{owner}: study must be a study of Optuna, got {study!r}")


def want(study: optuna.Study, trial: FrozenTrial | optuna.Trial, wanted: Wanted) -> None:
    """Write what is wanted of a trial, before it runs."""
    study._storage.set_trial_system_attr(trial._trial_id, WANTED, {**wanted.to_json(), "trial": trial.number})


def want_of(trial: FixedTrial, wanted: Wanted) -> None:
    """Write what is wanted of a trial that has no study."""
    trial._system_attrs[WANTED] = {**wanted.to_json(), "trial": trial.number}


def wanted(trial: AnyTrial) -> Wanted:
    """Return what the sampler wants of a trial; nothing where the trial is a copy, or another sampler ran it."""
    data = dict(_system_attributes(trial).get(WANTED) or {})
    return Wanted.from_json(data if data.pop("trial", None) == trial.number else None)


def own(trial: FrozenTrial) -> bool:
    """Return whether `HypergradSampler` ran a trial, which is not the copy of another."""
    return (trial.system_attrs.get(WANTED) or {}).get("trial") == trial.number


def parent(trial: AnyTrial) -> FrozenTrial | None:
    """Return the trial whose chain this one extends; None where the explorer or the user chose its point."""
    number = wanted(trial).parent
    if number is None or not isinstance(trial, optuna.Trial):
        return None
    return trial.storage.get_trial(
        trial.storage.get_trial_id_from_study_id_trial_number(trial.study._study_id, int(number))
    )


def forget(storage: BaseStorage, trial: optuna.Trial | FrozenTrial) -> None:
    """Clear what a trial reported in a life before, as a copy of one that died."""
    reported = trial.user_attrs
    for key in REPORTED:
        if reported.get(key) is not None:
            storage.set_trial_user_attr(trial._trial_id, key, None)
            reported[key] = None  # a finished trial's own attributes; of a running one they are a copy


def flatten_given(trial: AnyTrial) -> None:
    """Give what the user has enqueued or fixed, which may be nested, the names that the trial has for it."""
    if isinstance(trial, optuna.Trial):
        trial._fixed_params = flat(trial._fixed_params)
    elif isinstance(trial, FixedTrial):
        trial._params = flat(trial._params)


def _system_attributes(trial: AnyTrial) -> dict[str, Any]:
    if isinstance(trial, optuna.Trial):
        return trial.storage.get_trial_system_attrs(trial._trial_id)
    return trial.system_attrs
