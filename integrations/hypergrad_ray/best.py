"""The result of a run: hyperparameters that are ready for `evaluate`."""

from typing import Any

from ray.tune import ExperimentAnalysis, ResultGrid

from hypergrad_ray.param_space import join
from hypergrad_search import Space


def best_hyperparameters(results: ResultGrid | ExperimentAnalysis, space: Space) -> dict[str, Any]:
    """Return the hyperparameters of a run's best trial, ready for `hypergrad_search.evaluate`.

    Use it in place of the best config, which may hold a key of `HypergradSearch`, and may have one key for each
    coordinate of an array. Where the evaluation itself moved the hyperparameters, as with `Hypernet`, the result holds
    the values where it ended.

    Args:
        results: the return value of `Tuner.fit` or `tune.run`, with a metric and a mode.
        space: the space of the searcher and the trainable.

    Raises:
        ValueError: no trial has a finite metric, or the best trial's config does not fit the space.
    """
    try:
        if isinstance(results, ResultGrid):
            best = results.get_best_result()
            config, metrics = best.config, best.metrics
        else:
            config, metrics = results.best_config, results.best_result
    except (RuntimeError, AttributeError) as error:  # Ray's, where no trial has a finite metric
        raise ValueError("best_hyperparameters: no trial has a finite metric; look at the trials' errors") from error
    return join(space, {**(config or {}), **(metrics or {}).get("refined", {})})
