"""What a run has found: hyperparameters that are ready for `evaluate`."""

from typing import Any

from ray.tune import ExperimentAnalysis, ResultGrid

from hypergrad_ray.param_space import join
from hypergrad_search import Space


def best_hyperparameters(results: ResultGrid | ExperimentAnalysis, space: Space) -> dict[str, Any]:
    """Return the hyperparameters of a run's best trial, ready for `hypergrad_search.evaluate`.

    Use it in place of the best config, in which arrays may come one number a coordinate, and a key of
    `HypergradSearch` may be left. Where the evaluation itself moved the hyperparameters, as `Hypernet` does, they are
    those that it moved to.

    Args:
        results: what `Tuner.fit` or `tune.run` returned, with a metric and a mode.
        space: that of the searcher and the trainable.

    Raises:
        ValueError: the best trial's config does not fit the space.
    """
    if isinstance(results, ResultGrid):
        best = results.get_best_result()
        config, metrics = best.config, best.metrics
    else:
        config, metrics = results.best_config, results.best_result
    return join(space, {**(config or {}), **(metrics or {}).get("refined", {})})
