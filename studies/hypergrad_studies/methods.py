"""The registries of methods: name -> what searches, for each host. All get the same budget unless one says otherwise.

A search by hypergradients with another `Strategy` or `Method` is one entry in `GRADIENT_METHODS`, for both hosts; a
rival is one entry in `OPTUNA` or `RAY`.
"""

import functools
import importlib.util
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from hypergrad_optuna import HypergradSampler
from hypergrad_ray import HypergradSearch
from hypergrad_search import Hypernet, Method, Space, TrainingProblem, Unrolled
from hypergrad_search.hosting import DEFAULT_METHOD
from hypergrad_search.optax_optimizers import OptaxOptimizer
from hypergrad_search.search import ExploreDescend, Strategy
from hypergrad_search.search.ask_tell import levels
from hypergrad_search.space import dimension, floats
from hypergrad_studies import problems, untuned
from hypergrad_studies.first_epoch import FirstEpochPruner, FirstEpochSampler, first_epoch
from hypergrad_studies.outside import OutsideSampler
from hypergrad_studies.problems import NOISY, can_lift, middle
from hypergrad_studies.tried.gradient_gp import Explore, GradientGp
from hypergrad_studies.tried.half_horizon import HalfHorizon, LastHalf
from hypergrad_studies.tried.halving import HalvingPruner, HalvingTpe, quarter
from hypergrad_studies.tried.virtual import VirtualTpe

HYPERNET = Hypernet()
REDUCTION_FACTOR = 3  # the default of the authors of Hyperband and ASHA
RUNGS = 3
FULL_COVARIANCE = 100  # in more dimensions CMA-ES learns the diagonal alone, which is better there and far faster

#: the packages that some rivals need, and the extras of this package that bring them
EXTRAS = {"torch": "gp", "smac": "rivals", "nevergrad": "rivals"}


@dataclass(frozen=True)
class Setting:
    """What a method in Optuna may know of its run beforehand.

    - `dimensions`: how many numbers it searches.
    - `steps`: the number of training steps, which is what a trial without a gradient costs.
    - `budget`: how many gradient evaluations the run may spend.
    """

    seed: int
    dimensions: int
    steps: int
    budget: int

    @property
    def trials(self) -> int:
        """The number of whole trials without a gradient that the budget pays for."""
        return max(self.budget // self.steps, 1)


@dataclass(frozen=True)
class OptunaMethod:
    """A method in Optuna.

    - `sampler`: makes the sampler.
    - `pruner`: makes the pruner.
    - `budget_factor`: how many times the budget of the comparison it gets.
    - `report_every`: makes, from the number of training steps, the number of steps between two reports of the loss to
      the pruner; None for no reports.
    - `lifts`: whether it gets the space with its lifts; False for a method that could use them and shall not, and None
      for one that has no use for them.
    - `tied`: whether it searches one number for each array; the problem has this number everywhere in the array.
    - `centre`: whether the first trial is at the centre of the space.
    - `least`: how many numbers the sampler needs to do what its name says.
    - `needs`: the package, of those in `EXTRAS`, that must be installed.
    - `optimizer`: makes, from the number of training steps, what trains in place of the problem's own optimizer.
    - `trials`: the number of trials after which it ends, even if budget is left.
    - `how`: how the problem is trained, and differentiated where the sampler wants a gradient.
    - `retrains`: whether a trial's value is that of training anew, from the start, at the hyperparameters that the
      trial refined; this is paid for too.
    """

    sampler: Callable[[Setting], BaseSampler]
    pruner: Callable[[Setting], BasePruner] = lambda setting: NopPruner()
    budget_factor: int = 1
    report_every: Callable[[int], int | None] = lambda steps: None
    lifts: bool | None = None
    tied: bool = False
    centre: bool = False
    least: int = 1
    needs: str | None = None
    optimizer: Callable[[int], OptaxOptimizer] | None = None
    trials: float = math.inf
    how: Method = DEFAULT_METHOD
    retrains: bool = False

    def posed(self, name: str) -> tuple[TrainingProblem, Space]:
        """Return a problem and its space as the method gets them, the same objects each time."""
        problem, space = problems.posed(name, lifts=bool(self.lifts))
        return problem if self.optimizer is None else _trained_by(self.optimizer, problem), space

    def searched(self, space: Space) -> Space:
        """Return the space that the sampler sees."""
        return levels(space) if self.tied else space


@dataclass(frozen=True)
class RayMethod:
    """A method in Ray Tune.

    - `searcher`: makes the searcher from a space and a seed.
    - `own_space`: whether the searcher knows the space, so that Ray must not give it one.
    - `scheduler`: makes the scheduler from the number of training steps; None where every trial trains to its end.
    - The others are as in `OptunaMethod`; `report_every` is for the scheduler.
    """

    searcher: Callable[[Space, int], Any]
    own_space: bool = False
    scheduler: Callable[[int], TrialScheduler] | None = None
    budget_factor: int = 1
    report_every: Callable[[int], int | None] = lambda steps: None
    lifts: bool | None = None
    how: Method = DEFAULT_METHOD


@dataclass(frozen=True)
class GradientMethod:
    """A search by hypergradients: its strategy, and the rest as in `OptunaMethod`."""

    strategy: Strategy[Any] = ExploreDescend()  # noqa: RUF009 (frozen)
    how: Method = DEFAULT_METHOD
    lifts: bool | None = None
    retrains: bool = False

    def in_optuna(self) -> OptunaMethod:
        """Return the method as Optuna runs it."""
        return OptunaMethod(
            lambda setting: HypergradSampler(seed=setting.seed, strategy=self.strategy),
            lifts=self.lifts,
            how=self.how,
            retrains=self.retrains,
        )

    def in_ray(self) -> RayMethod:
        """Return the method as Ray Tune runs it, where nothing can be retrained."""
        return RayMethod(
            lambda space, seed: HypergradSearch(space, metric="loss", mode="min", seed=seed, strategy=self.strategy),
            own_space=True,
            lifts=self.lifts,
            how=self.how,
        )


GRADIENT_METHODS: dict[str, GradientMethod] = {
    "hypergrad": GradientMethod(lifts=True),
    "hypergrad-unlifted": GradientMethod(lifts=False),
    "hypernet": GradientMethod(how=HYPERNET),
    "hypernet-retrained": GradientMethod(how=HYPERNET, retrains=True),
}


def shortest(steps: int) -> int:
    """Return how many steps every training run gets before it can be stopped early, which is the first rung."""
    times: int = REDUCTION_FACTOR**RUNGS  # a whole training run is this many times as long
    return max(steps // times, 1)


def _random(setting: Setting) -> BaseSampler:
    return RandomSampler(seed=setting.seed)


def _tpe(setting: Setting) -> BaseSampler:
    return TPESampler(seed=setting.seed)  # multivariate, as it is by default since Optuna 5.0


def _cmaes(setting: Setting) -> BaseSampler:
    # CMA-ES leaves categoricals to random search, and would warn of each of them
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # use_separable_cma may change in the future
        return CmaEsSampler(
            seed=setting.seed, use_separable_cma=setting.dimensions > FULL_COVARIANCE, warn_independent_sampling=False
        )


def _gp(setting: Setting) -> BaseSampler:
    return GPSampler(seed=setting.seed)


def _smac(setting: Setting) -> BaseSampler:
    from hypergrad_studies.smac import Smac  # of an extra

    return OutsideSampler(setting.seed, functools.partial(Smac, seed=setting.seed, trials=setting.trials))


def _nevergrad(setting: Setting) -> BaseSampler:
    from hypergrad_studies.nevergrad import Nevergrad  # of an extra

    return OutsideSampler(setting.seed, functools.partial(Nevergrad, seed=setting.seed, trials=setting.trials))


def _hyperband(setting: Setting) -> BasePruner:
    steps = setting.steps
    return HyperbandPruner(min_resource=shortest(steps), max_resource=steps, reduction_factor=REDUCTION_FACTOR)


def _untuned(optimizer: Callable[[int], OptaxOptimizer]) -> OptunaMethod:
    """Return the method that trains once, by an optimizer at its defaults, and with all else at the centre."""
    return OptunaMethod(_random, centre=True, optimizer=optimizer, trials=1, how=Unrolled())


@functools.cache
def _trained_by(optimizer: Callable[[int], OptaxOptimizer], problem: TrainingProblem) -> TrainingProblem:
    return replace(problem, optimizer=optimizer(problem.steps))


def _ray_random(space: Space, seed: int) -> BasicVariantGenerator:
    return BasicVariantGenerator(random_state=seed)


def _asha(steps: int) -> TrialScheduler:
    return ASHAScheduler(
        time_attr="steps",
        grace_period=shortest(steps),
        max_t=steps,
        reduction_factor=REDUCTION_FACTOR,
    )


def _explored_by(explorer: Callable[[Setting], BaseSampler], strategy: Strategy[Any] | None = None) -> OptunaMethod:
    """Return the search without lifts by another explorer, which starts at the centre too."""
    return OptunaMethod(
        lambda setting: HypergradSampler(explorer=explorer(setting), strategy=strategy), lifts=False, centre=True
    )


def _virtual(setting: Setting) -> BaseSampler:
    return VirtualTpe(setting.seed, reach=0.05)


def _gradient_gp(setting: Setting) -> BaseSampler:
    return GradientGp(setting.seed)


def _halved(explorer: OptunaMethod) -> OptunaMethod:
    return replace(explorer, pruner=lambda setting: HalvingPruner(setting.steps), report_every=quarter)


EQUAL_SHARES = ExploreDescend(smallest_share=0.5)

#: ideas that `docs/tried.md` judges; they run where they are named, and not by default
TRIED: dict[str, OptunaMethod] = {
    "tried-chance": _explored_by(lambda setting: TPESampler(seed=setting.seed + 1000)),
    "tried-equal": _explored_by(_tpe, EQUAL_SHARES),
    "tried-virtual": _explored_by(_virtual),
    "tried-virtual-far": _explored_by(lambda setting: VirtualTpe(setting.seed, reach=0.2)),
    "tried-virtual-alone": _explored_by(_virtual, Explore(share=0.25)),
    "tried-virtual-equal": _explored_by(_virtual, EQUAL_SHARES),
    "tried-gp": _explored_by(_gradient_gp, Explore(share=0.25)),
    "tried-gp-rare": _explored_by(_gradient_gp, Explore(share=0.05)),
    "tried-gp-values": _explored_by(_gradient_gp, Explore(share=0.0)),
    "tried-gp-explorer": _explored_by(_gradient_gp),
    "tried-gp-explorer-values": _explored_by(lambda setting: GradientGp(setting.seed, gradients=False)),
    "tried-gp-equal": _explored_by(_gradient_gp, EQUAL_SHARES),
    "tried-halving": _halved(_explored_by(lambda setting: HalvingTpe(seed=setting.seed))),
    "tried-halving-equal": _halved(_explored_by(lambda setting: HalvingTpe(seed=setting.seed), EQUAL_SHARES)),
    "tried-half-horizon": GradientMethod(how=HalfHorizon(), lifts=False).in_optuna(),
    "tried-last-half": GradientMethod(how=LastHalf(), lifts=False).in_optuna(),
}

OPTUNA: dict[str, OptunaMethod] = {
    "random": OptunaMethod(_random),
    "random-2x": OptunaMethod(_random, budget_factor=2),
    "random-tied": OptunaMethod(_random, tied=True),
    "random-centre": OptunaMethod(_random, centre=True),
    "tpe": OptunaMethod(_tpe),
    "tpe-2x": OptunaMethod(_tpe, budget_factor=2),
    "tpe-tied": OptunaMethod(_tpe, tied=True),
    "tpe-centre": OptunaMethod(_tpe, centre=True),
    "tpe-tied-centre": OptunaMethod(_tpe, tied=True, centre=True),
    "cmaes": OptunaMethod(_cmaes, least=2),  # it draws its first generation around the centre
    "cmaes-tied": OptunaMethod(_cmaes, tied=True, least=2),
    "gp": OptunaMethod(_gp, needs="torch"),
    "gp-centre": OptunaMethod(_gp, needs="torch", centre=True),
    "smac": OptunaMethod(_smac, needs="smac"),
    "nevergrad": OptunaMethod(_nevergrad, needs="nevergrad"),
    "hyperband": OptunaMethod(_tpe, pruner=_hyperband, report_every=shortest),
    "first-epoch": OptunaMethod(
        lambda setting: FirstEpochSampler(setting.seed, setting.budget),
        pruner=lambda setting: FirstEpochPruner(setting.budget),
        report_every=first_epoch,
    ),
    "prodigy": _untuned(untuned.prodigy),
    "dog": _untuned(untuned.dog),
    "dowg": _untuned(untuned.dowg),
    "schedule-free": _untuned(untuned.schedule_free_adamw),
    "schedule-free-sgd": _untuned(untuned.schedule_free_sgd),
    **{name: method.in_optuna() for name, method in GRADIENT_METHODS.items()},
    **TRIED,
}

RAY: dict[str, RayMethod] = {
    "random": RayMethod(_ray_random),
    "random-2x": RayMethod(_ray_random, budget_factor=2),
    "asha": RayMethod(_ray_random, scheduler=_asha, report_every=shortest),
    "optuna": RayMethod(lambda space, seed: OptunaSearch(seed=seed)),
    **{name: method.in_ray() for name, method in GRADIENT_METHODS.items() if not method.retrains},
}

REGISTRIES: dict[str, dict[str, Any]] = {"optuna": OPTUNA, "ray": RAY}

BACKENDS: dict[str, list[str]] = {backend: list(registry) for backend, registry in REGISTRIES.items()}


def method(backend: str, name: str) -> OptunaMethod | RayMethod:
    """Return a method of a backend by its name."""
    found: OptunaMethod | RayMethod = REGISTRIES[backend][name]
    return found


def obstacle(backend: str, name: str, problem: str) -> str | None:
    """Return why a method cannot run on a problem here, and what to do instead; None where it can."""
    if backend == "ray" and problem in NOISY:
        return f"{problem} needs a new seed each trial; choose --backend optuna"
    chosen = method(backend, name)
    needs = chosen.needs if isinstance(chosen, OptunaMethod) else None
    if needs is not None and importlib.util.find_spec(needs) is None:
        return f"{name} needs {needs}: pip install 'hypergrad-search[{EXTRAS[needs]}]'"
    if chosen.lifts is False and not can_lift(problem):
        return f"{name} finds nothing to leave unlifted in {problem}; leave out one of them"
    training, space = problems.posed(problem)
    if isinstance(chosen, OptunaMethod):
        if chosen.tied and not any(parameter.shape for parameter in floats(space).values()):
            return f"tied methods find no array in {problem}; leave out one of them"
        if dimension(chosen.searched(space)) < chosen.least:
            return f"{name} needs at least {chosen.least} numbers, and {problem} has fewer; leave out one of them"
        if chosen.optimizer is not None and training.steps == 1:
            return f"{name} needs more than one training step, and {problem} has no more; leave out one of them"
    if isinstance(chosen.how, Hypernet):
        try:
            chosen.how.check(training, middle(space), space=space)
        except ValueError as refusal:
            return f"on {problem}, {refusal}"
    return None
