"""What joint methods such as `Hypernet` leave behind: the hyperparameters that they moved to, and a checkpoint.

The value of such a trial is the loss at its refined hyperparameters; its parameters are where it started.
"""

from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from hypergrad_optuna import arrays
from hypergrad_search import Evaluation

HYPERPARAMETERS = "hypergrad:refined"
CHECKPOINT = "hypergrad:checkpoint"


class Refined(NamedTuple):
    """Hyperparameters, and what `Hypernet.params` or the next evaluation needs beside them."""

    hyperparameters: dict[str, Any]
    checkpoint: bytes


def keep(trial: optuna.Trial, evaluation: Evaluation, store: Any | None) -> None:
    """Write what an evaluation refined, if it did, to its trial."""
    if evaluation.refined is None or evaluation.checkpoint is None:
        return
    values = {
        name: arrays.encode(x, "<f8", trial, store) if isinstance(x, np.ndarray) else x
        for name, x in evaluation.refined.items()
    }
    trial.set_user_attr(HYPERPARAMETERS, values)
    trial.set_user_attr(CHECKPOINT, arrays.encode(np.frombuffer(evaluation.checkpoint, "|u1"), "|u1", trial, store))


def hyperparameters(trial: optuna.Trial | FrozenTrial, store: Any | None) -> dict[str, Any] | None:
    """Where a trial's evaluation moved its hyperparameters; None where it moved none."""
    values = trial.user_attrs.get(HYPERPARAMETERS)
    return None if values is None else arrays.decode_all(values, store)


def checkpoint(trial: FrozenTrial, store: Any | None) -> bytes | None:
    """What the next evaluation of a trial's chain goes on from; None where each starts anew."""
    kept = trial.user_attrs.get(CHECKPOINT)
    return None if kept is None else arrays.decode(kept, store).tobytes()


def best_refined(study: optuna.Study, *, artifact_store: Any | None = None) -> Refined:
    """The hyperparameters that a study's best trial moved to, and its checkpoint.

    Args:
        study: a study whose `Objective` has a method that refines, such as `Hypernet`.
        artifact_store: where arrays and checkpoints are, if the sampler was given one.

    Raises:
        ValueError: no trial is complete; the best has refined nothing; or the store is needed and missing.
    """
    trial = study.best_trial
    values, kept = hyperparameters(trial, artifact_store), checkpoint(trial, artifact_store)
    if values is None or kept is None:
        raise ValueError(
            f"best_refined: trial {trial.number} refined no hyperparameters; use Objective(..., method=Hypernet()), or "
            "study.best_params"
        )
    return Refined(values, kept)
