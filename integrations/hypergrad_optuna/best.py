"""The result of a study: hyperparameters that are ready for `evaluate`, and the parameters trained with them."""

import math
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hypergrad_optuna import attributes
from hypergrad_optuna.hyperparameters import hyperparameters_of
from hypergrad_optuna.objective import Objective, read_checkpoint
from hypergrad_optuna.sampler import store_of
from hypergrad_search.search.ask_tell import OVERFITTED
from hypergrad_search.space import as_given

_logger = optuna.logging.get_logger("optuna.hypergrad")


def best_trial(study: optuna.Study) -> FrozenTrial:
    """Return the trial that a study has found, which need not be `study.best_trial`.

    It is the trial with the best value of those whose status is not "overfitted": where parts of the validation set
    are held back, each step to it has lowered the loss on the part that it left out, by more than a standard error.
    Its value has been seen by the search nevertheless; the attribute `hypergrad:cross_validated` is what the held-back
    parts alone say. Where no array is better than plain numbers, the result has plain numbers (the same number at all
    elements), and a message of Optuna's log says so.

    Raises `ValueError` where no trial is complete, or none has a finite value.

    Example:
        >>> from hypergrad_optuna import best_trial
        >>> best_trial(study).state.name
        'COMPLETE'
    """
    attributes.check_study("best_trial", study)
    lowest = study.best_trial
    sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    finite = [t for t in complete if math.isfinite(t.value or 0.0)]
    sound = [t for t in finite if not _overfitted(t) and all(c <= 0 for c in t.constraints.values())]
    best = min(sound, key=lambda t: sign * (t.value or 0.0), default=lowest)
    if best not in finite:
        said = best.user_attrs.get(attributes.MESSAGE, "its value is not finite")
        raise ValueError(f"no trial of this study has a finite value; trial {best.number}: {said}")
    held_back = [t for t in complete if attributes.HELD_BACK in t.user_attrs]
    steps = sum(attributes.wanted(t).parent is not None for t in held_back)
    if steps and best in held_back and attributes.wanted(best).parent is None:
        _logger.info(
            f"Trial {best.number} is best although its arrays have one number for all elements: none of the {steps} "
            "trials with more numbers has a lower loss that the examples held back confirm."
        )
    return best


def best_hyperparameters(study: optuna.Study, *, artifact_store: Any | None = None) -> dict[str, Any]:
    """Return the hyperparameters of a study's best trial, ready for `hypergrad_search.evaluate`.

    Use it in place of `study.best_params`, which holds one number in place of each array. The trial is that of
    `best_trial`. `hyperparameters_of` says more about the result. `artifact_store` is by default that of the study's
    sampler.

    Raises `ValueError` where no trial is complete with a finite value, or a store is needed and missing.

    Example:
        >>> from hypergrad_optuna import best_hyperparameters
        >>> found = best_hyperparameters(study)  # the rate was lifted, and has become a schedule
        >>> found["rate"].shape
        (1, 20)
    """
    attributes.check_study("best_hyperparameters", study)
    return hyperparameters_of(best_trial(study), artifact_store=store_of(study, artifact_store))


def best_model(study: optuna.Study, objective: Objective, *, artifact_store: Any | None = None) -> Any:
    """Return the parameters that the trial of `best_hyperparameters` trained, as a pytree like that of `init`.

    They are trained once more, or read from the trial's checkpoint where its method keeps one. `objective` must have
    the same arguments as the study's own objective. `artifact_store` is by default that of the study's sampler.

    Raises `ValueError` where no trial is complete with a finite value, a store is needed and missing, or the objective
    is of `from_function`, which knows the loss alone.

    Example:
        >>> from hypergrad_optuna import best_model
        >>> best_model(study, objective).shape
        (3,)
    """
    attributes.check_study("best_model", study)
    if not isinstance(objective, Objective):
        raise ValueError(f"best_model: objective must be an Objective, got {objective!r}")
    trial, store, hosted = best_trial(study), store_of(study, artifact_store), objective.hosted
    found = hyperparameters_of(trial, artifact_store=store)
    return hosted.method.params(
        hosted.problem,
        found,
        key=objective.key_of(trial),
        space=as_given(hosted.liftable, found),
        checkpoint=read_checkpoint(trial, store) if hosted.method.continues else None,
    )


def _overfitted(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get(attributes.STATUS) == OVERFITTED
