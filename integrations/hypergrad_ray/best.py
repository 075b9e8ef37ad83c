"""The result of a run: hyperparameters that are ready for `evaluate`."""

import math
from collections.abc import Mapping
from typing import Any

from ray.tune import ExperimentAnalysis, ResultGrid
from ray.tune.experiment import Trial

from hypergrad_ray.config import check_names, join
from hypergrad_ray.domains import own_space
from hypergrad_ray.large_array import read_from
from hypergrad_ray.trial_errors import reasons
from hypergrad_search.checks import shown
from hypergrad_search.nesting import flat
from hypergrad_search.search.ask_tell import OVERFITTED
from hypergrad_search.trouble import see

LOSSES = ("loss", "test_loss")  # the metrics in a result of `trainable` that are minimised
SIGNS = {"gradient_evaluations", "status"}  # the keys by which a result of `trainable` is known


def best_hyperparameters(results: ResultGrid | ExperimentAnalysis, space: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters of a run's best trial, ready for `hypergrad_search.evaluate`.

    Use it in place of the best config, which may hold a key of `HypergradSearch`, and may have one key for each
    coordinate of an array. Trials whose status is "overfitted" are passed over, unlike in Ray's best result. Where the
    evaluation itself moved the hyperparameters, as with `Hypernet`, the result holds the values where it ended.

    Args:
        results: the return value of `Tuner.fit` or `tune.run`, with a metric and a mode.
        space: the space of the searcher and the trainable. Where it is nested, names are paths, such as `"opt/rate"`.

    Raises:
        ValueError: an argument does not fit, the run has no metric or mode, or maximises the loss of `trainable`, no
            trial has a finite metric, or the best trial's config does not fit the space.
    """
    own = own_space(space)
    check_names(own)
    analysis = results._experiment_analysis if isinstance(results, ResultGrid) else results
    if not isinstance(analysis, ExperimentAnalysis):
        raise ValueError(
            f"best_hyperparameters: results must be what Tuner.fit or tune.run returned, got {shown(results)}"
        )
    best = _best_trial(analysis)
    if best.storage is not None:
        read_from(best.storage.storage_filesystem, best.storage.experiment_fs_path)
    return join(own, {**flat(best.config), **flat(best.last_result.get("refined", {}))})


def _best_trial(analysis: ExperimentAnalysis) -> Trial:
    """Return the best trial that has not overfitted, and the best of all where every trial has."""
    metric, mode = analysis.default_metric, analysis.default_mode
    if metric is None or mode is None:
        raise ValueError(
            f"best_hyperparameters: the run has metric={metric!r} and mode={mode!r}; give both to tune.run or "
            "tune.TuneConfig"
        )
    if mode == "max" and metric in LOSSES and any((t.last_result or {}).keys() >= SIGNS for t in analysis.trials):
        raise ValueError(
            f"best_hyperparameters: the run has metric={metric!r} and mode='max', and trainable reports a loss, of "
            f"which the largest is the worst; give mode='min' to tune.run or tune.TuneConfig{see('direction')}"
        )
    sign = -1 if mode == "max" else 1
    losses = [(sign * _last(trial, metric), trial) for trial in analysis.trials]
    finite = [(loss, trial) for loss, trial in losses if math.isfinite(loss)]
    if not finite:
        raise ValueError(f"best_hyperparameters: no trial has a finite {metric!r}; {reasons(analysis.trials)}")
    sound = [(loss, trial) for loss, trial in finite if trial.last_result.get("status") != OVERFITTED]
    return min(sound or finite, key=lambda pair: pair[0])[1]


def _last(trial: Trial, metric: str) -> float:
    value = trial.metric_analysis.get(metric, {}).get("last", math.nan)
    return float(value)
