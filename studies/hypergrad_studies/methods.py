"""The registries of methods: name -> what searches, for each host. All get the same budget but where it says so."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optuna.pruners import BasePruner, HyperbandPruner, NopPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from hypergrad_optuna import HypergradSampler
from hypergrad_ray import HypergradSearch
from hypergrad_search import Hypernet, Method, Reversible, Space, Unrolled
from hypergrad_studies.problems import NOISY, can_lift, middle, posed

EXACT = Reversible(fallback=Unrolled())
HYPERNET = Hypernet()
REDUCTION_FACTOR = 3  # of Hyperband and ASHA, their authors' default
RUNGS = 3
FULL_COVARIANCE = 100  # dimensions; beyond, CMA-ES does better to learn the diagonal alone, and is far faster


@dataclass(frozen=True)
class OptunaMethod:
    """A sampler (from a seed and the number of dimensions) and a pruner (from the number of training steps).

    `lifts` tells that it gets the space with its lifts, and the problem with its fitted and held-back losses. `how` is
    the way to a value; with `retrains` the value is that of training anew at the hyperparameters that it refined, which
    is paid for too.
    """

    sampler: Callable[[int, int], BaseSampler]
    pruner: Callable[[int], BasePruner] = lambda steps: NopPruner()
    budget_factor: int = 1
    report_every: Callable[[int], int | None] = lambda steps: None
    lifts: bool = False
    how: Method = EXACT
    retrains: bool = False


@dataclass(frozen=True)
class RayMethod:
    """A searcher (from a space and a seed) and a scheduler (from the number of training steps).

    `own_space` tells that the searcher knows the space, and Ray is not to give it one; `lifts` and `how` are as in
    `OptunaMethod`.
    """

    searcher: Callable[[Space, int], Any]
    own_space: bool = False
    scheduler: Callable[[int], TrialScheduler] = lambda steps: FIFOScheduler()
    budget_factor: int = 1
    report_every: Callable[[int], int | None] = lambda steps: None
    lifts: bool = False
    how: Method = EXACT


def shortest(steps: int) -> int:
    """The first rung: how many steps every training run gets before one can be stopped early."""
    return max(steps // REDUCTION_FACTOR**RUNGS, 1)


def _hyperband(steps: int) -> BasePruner:
    return HyperbandPruner(min_resource=shortest(steps), max_resource=steps, reduction_factor=REDUCTION_FACTOR)


def _asha(steps: int) -> TrialScheduler:
    return ASHAScheduler(
        time_attr="steps",
        grace_period=shortest(steps),
        max_t=steps,
        reduction_factor=REDUCTION_FACTOR,
    )


OPTUNA: dict[str, OptunaMethod] = {
    "random": OptunaMethod(lambda seed, n: RandomSampler(seed=seed)),
    "random-2x": OptunaMethod(lambda seed, n: RandomSampler(seed=seed), budget_factor=2),
    # multivariate, as it is by default since Optuna 5.0
    "tpe": OptunaMethod(lambda seed, n: TPESampler(seed=seed)),
    "tpe-2x": OptunaMethod(lambda seed, n: TPESampler(seed=seed), budget_factor=2),
    "cmaes": OptunaMethod(
        lambda seed, n: CmaEsSampler(
            seed=seed, use_separable_cma=n > FULL_COVARIANCE, warn_independent_sampling=False
        )  # it would warn of every categorical, which it leaves to random search
    ),
    "gp": OptunaMethod(lambda seed, n: GPSampler(seed=seed)),
    "hyperband": OptunaMethod(lambda seed, n: TPESampler(seed=seed), pruner=_hyperband, report_every=shortest),
    "hypergrad": OptunaMethod(lambda seed, n: HypergradSampler(seed=seed)),
    "hypergrad-lifted": OptunaMethod(lambda seed, n: HypergradSampler(seed=seed), lifts=True),
    "hypernet": OptunaMethod(lambda seed, n: HypergradSampler(seed=seed), how=HYPERNET),
    "hypernet-retrained": OptunaMethod(lambda seed, n: HypergradSampler(seed=seed), how=HYPERNET, retrains=True),
}

RAY: dict[str, RayMethod] = {
    "random": RayMethod(lambda space, seed: BasicVariantGenerator(random_state=seed)),
    "random-2x": RayMethod(lambda space, seed: BasicVariantGenerator(random_state=seed), budget_factor=2),
    "asha": RayMethod(
        lambda space, seed: BasicVariantGenerator(random_state=seed), scheduler=_asha, report_every=shortest
    ),
    "optuna": RayMethod(lambda space, seed: OptunaSearch(seed=seed)),
    "hypergrad": RayMethod(lambda space, seed: HypergradSearch(space, seed=seed), own_space=True),
    "hypergrad-lifted": RayMethod(lambda space, seed: HypergradSearch(space, seed=seed), own_space=True, lifts=True),
    "hypernet": RayMethod(lambda space, seed: HypergradSearch(space, seed=seed), own_space=True, how=HYPERNET),
}

BACKENDS: dict[str, list[str]] = {"optuna": list(OPTUNA), "ray": list(RAY)}


def method(backend: str, name: str) -> OptunaMethod | RayMethod:
    """A method by its name."""
    return OPTUNA[name] if backend == "optuna" else RAY[name]


def obstacle(backend: str, name: str, problem: str) -> str | None:
    """Why a method cannot run on a problem here, and what to do instead; None where it can."""
    if name == "gp" and importlib.util.find_spec("torch") is None:
        return "gp needs torch: pip install 'hypergrad-search[gp]'"
    if method(backend, name).lifts and not can_lift(problem):
        return f"{name} finds nothing to lift in {problem}; leave out one of them"
    if isinstance(how := method(backend, name).how, Hypernet):
        training, space = posed(problem)
        try:
            how.check(training, middle(space), space=space)
        except ValueError as refusal:
            return f"on {problem}, {refusal}"
    if backend == "ray" and problem in NOISY:
        return f"{problem} needs a new seed each trial; choose --backend optuna"
    return None
