"""The attributes of a trial by which sampler and objective exchange data; they work in every storage."""

from typing import Any

import optuna
from optuna.trial import FrozenTrial

from hypergrad_search.search.ask_tell import Wanted

PREFIX = "hypergrad:"
#: the facts of an evaluation that are kept, each in its own user attribute
FACTS = ("cost", "status", "message", "test_loss", "exact", "held_back", "refined", "checkpoint")
COST, STATUS, MESSAGE, TEST_LOSS, EXACT, HELD_BACK, REFINED, CHECKPOINT = (PREFIX + name for name in FACTS)
GRADIENT = PREFIX + "gradient"
WANTED = PREFIX + "wanted"  # a system attribute: what the sampler wants of the trial


def want(study: optuna.Study, trial: FrozenTrial, wanted: Wanted) -> None:
    """Write what is wanted of a trial, before it runs."""
    study._storage.set_trial_system_attr(trial._trial_id, WANTED, wanted.to_json())


def wanted(trial: optuna.Trial | FrozenTrial) -> Wanted:
    """Return what the sampler wants of a trial; under any but `HypergradSampler` no gradient is wanted."""
    attributes: dict[str, Any] = (
        trial.system_attrs if isinstance(trial, FrozenTrial) else trial.storage.get_trial_system_attrs(trial._trial_id)
    )
    return Wanted.from_json(attributes.get(WANTED))


def parent(trial: optuna.Trial) -> FrozenTrial | None:
    """Return the trial whose chain this one extends; None where the explorer or the user chose its point."""
    number = wanted(trial).parent
    if number is None:
        return None
    return trial.storage.get_trial(
        trial.storage.get_trial_id_from_study_id_trial_number(trial.study._study_id, int(number))
    )
