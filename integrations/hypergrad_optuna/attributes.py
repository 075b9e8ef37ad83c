"""The attributes of a trial through which sampler and objective talk; they work in every storage."""

from typing import Any

import optuna
from optuna.trial import FrozenTrial

from hypergrad_search.search.ask_tell import Wanted

PREFIX = "hypergrad:"
#: what is kept of an evaluation, each in a user attribute of its own
FACTS = ("cost", "status", "message", "test_loss", "exact", "held_back", "refined", "checkpoint")
COST, STATUS, MESSAGE, TEST_LOSS, EXACT, HELD_BACK, REFINED, CHECKPOINT = (PREFIX + name for name in FACTS)
GRADIENT = PREFIX + "gradient"
WANTED = PREFIX + "wanted"  # a system attribute: what the sampler wants of the trial


def want(study: optuna.Study, trial: FrozenTrial, wanted: Wanted) -> None:
    """Note what a trial is for, before it runs."""
    study._storage.set_trial_system_attr(trial._trial_id, WANTED, wanted.to_json())


def wanted(trial: optuna.Trial | FrozenTrial) -> Wanted:
    """Return what the sampler wants of a trial: nothing, if it is no `HypergradSampler`."""
    attributes: dict[str, Any] = (
        trial.system_attrs if isinstance(trial, FrozenTrial) else trial.storage.get_trial_system_attrs(trial._trial_id)
    )
    return Wanted.from_json(attributes.get(WANTED))


def parent(trial: optuna.Trial) -> FrozenTrial | None:
    """Return the trial whose chain this one extends; None where the explorer or the user chose it."""
    number = wanted(trial).parent
    if number is None:
        return None
    return trial.storage.get_trial(
        trial.storage.get_trial_id_from_study_id_trial_number(trial.study._study_id, int(number))
    )
