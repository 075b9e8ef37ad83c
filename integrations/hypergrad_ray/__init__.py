"""Hypergradient search in Ray Tune.

    tune.run(trainable(problem, space), search_alg=HypergradSearch(space, metric="loss", mode="min"), ...)

or, with a space in Ray's own domains, `tune.Tuner(..., param_space=..., tune_config=tune.TuneConfig(search_alg=...))`.

Importing it registers the name "hypergrad" for `search_alg="hypergrad"`, and for `tune.create_searcher("hypergrad",
space=space, metric="loss", mode="min")`.
"""

try:
    from ray.tune.search import SEARCH_ALG_IMPORT
except ModuleNotFoundError as error:
    raise ImportError("hypergrad_ray needs ray; pip install 'hypergrad-search[ray]'") from error

from hypergrad_ray.best import best_hyperparameters
from hypergrad_ray.large_array import in_short
from hypergrad_ray.param_space import param_space
from hypergrad_ray.search import HypergradSearch
from hypergrad_ray.trainable import trainable, wants_gradient

__all__ = ["HypergradSearch", "best_hyperparameters", "in_short", "param_space", "trainable", "wants_gradient"]

SEARCH_ALG_IMPORT["hypergrad"] = lambda: HypergradSearch
