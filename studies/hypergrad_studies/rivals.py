"""The rivals of a comparison: what searches, for Optuna, for Ray Tune or for both.

All get the same budget unless one says otherwise. A new rival, or a search by hypergradients with another `Strategy` or
`Method`, is one entry in `RIVALS` or `BY_METHOD`; a user's own is made by `of_factory`.
"""

import functools
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, Searcher
from ray.tune.search.optuna import OptunaSearch

from hypergrad_optuna import HypergradSampler
from hypergrad_ray import HypergradSearch
from hypergrad_search import (
    DrMAD,
    Forward,
    Hypernet,
    Implicit,
    Method,
    OnePass,
    Persistent,
    RealTime,
    Smoothed,
    Space,
    TrainingProblem,
    Unrolled,
)
from hypergrad_search.checks import shown
from hypergrad_search.hosting import DEFAULT_METHOD
from hypergrad_search.hypergradient import ConjugateGradients, Identity, Neumann
from hypergrad_search.nesting import nested
from hypergrad_search.optax_optimizers import OptaxOptimizer
from hypergrad_search.search import ExploreDescend, Strategy
from hypergrad_search.search.ask_tell import levels
from hypergrad_studies import untuned
from hypergrad_studies.first_epoch import FirstEpochPruner, FirstEpochSampler, first_epoch
from hypergrad_studies.freeze_thaw import FreezeThawSampler, StretchPruner, stretch
from hypergrad_studies.outside import OutsideSampler
from hypergrad_studies.spending import GRADIENT_EVALUATIONS, Budget
from hypergrad_studies.tasks import TrainingTask
from hypergrad_studies.tried.gradient_gp import Explore, GradientGp
from hypergrad_studies.tried.half_horizon import HalfHorizon, LastHalf
from hypergrad_studies.tried.halving import HalvingPruner, HalvingTpe, quarter
from hypergrad_studies.tried.virtual import VirtualTpe

BACKENDS = ("optuna", "ray")

HYPERNET = Hypernet()
REDUCTION_FACTOR = 3  # the default of the authors of Hyperband and ASHA
RUNGS = 3
FULL_COVARIANCE = 100  # in more dimensions CMA-ES learns the diagonal alone, which is better there and far faster
UNKNOWN_TRIALS = 100  # for rivals that plan their trials beforehand, where a budget does not tell how many there are

#: the packages that some rivals need, and the extras of this package that bring them
EXTRAS = {"torch": "gp", "smac": "rivals", "nevergrad": "rivals"}


@dataclass(frozen=True)
class Setting:
    """What a rival may know of its run beforehand.

    - `dimensions`: how many numbers it searches; None where the objective alone knows.
    - `steps`: the number of training steps, which is what a trial without a gradient costs; None where it is not known.
    - `metric`, `maximise`: what Ray optimises, and whether higher values are better.
    """

    seed: int
    budget: Budget
    dimensions: int | None = None
    steps: int | None = None
    metric: str = "loss"
    maximise: bool = False

    @property
    def trials(self) -> int:
        """The number of whole trials without a gradient that the budget pays for, or a guess."""
        if self.steps is None or self.budget.unit != GRADIENT_EVALUATIONS:
            return UNKNOWN_TRIALS
        return max(int(self.budget.amount // self.steps), 1)


@dataclass(frozen=True, eq=False)
class Rival:
    """A method of a comparison.

    - `name`: how tables call it.
    - `sampler`: makes the sampler for Optuna; None where there is none.
    - `searcher`: makes the searcher for Ray Tune from the space; None where there is none.
    - `own_space`: whether the searcher knows the space, so that Ray must not give it one.
    - `pruner`: makes the pruner for Optuna.
    - `scheduler`: makes the scheduler for Ray from the number of training steps; None where every trial trains to its
      end.
    - `gradients`: whether it is one of ours, which follow gradients.
    - `budget_factor`: how many times the budget of the comparison it gets.
    - `report_every`: makes, from the number of training steps, the number of steps between two reports of the loss to
      the pruner or scheduler; None for no reports.
    - `lifts`: whether it gets the space with its lifts; False for a method that could use them and shall not, and None
      for one that has no use for them.
    - `tied`: whether it searches one number for each array; the problem has this number everywhere in the array.
    - `centre`: whether the first trial is at the centre of the space, in Optuna.
    - `least`: how many numbers it needs to do what its name says.
    - `counts`: whether it plans by gradient evaluations, so that the budget must be one of them.
    - `needs`: the package, of those in `EXTRAS`, that must be installed.
    - `optimizer`: makes, from the number of training steps, what trains in place of the problem's own optimizer.
    - `trials`: the number of trials after which it ends, even if budget is left, in Optuna.
    - `how`: how the problem is trained, and differentiated where a gradient is wanted.
    - `retrains`: whether a trial's value is that of training anew, from the start, at the hyperparameters that the
      trial refined, in Optuna; this is paid for too.
    - `resumes`: whether a trial goes on where the last one with the same hyperparameters was pruned, in Optuna.
    """

    name: str
    sampler: Callable[[Setting], BaseSampler] | None = None
    searcher: Callable[[Setting, Space | None], Any] | None = None
    own_space: bool = False
    pruner: Callable[[Setting], BasePruner] = lambda setting: NopPruner()
    scheduler: Callable[[int], TrialScheduler] | None = None
    gradients: bool = False
    budget_factor: int = 1
    report_every: Callable[[int], int | None] | None = None
    lifts: bool | None = None
    tied: bool = False
    centre: bool = False
    least: int = 1
    counts: bool = False
    needs: str | None = None
    optimizer: Callable[[int], OptaxOptimizer] | None = None
    trials: float = math.inf
    how: Method = DEFAULT_METHOD
    retrains: bool = False
    resumes: bool = False

    def runs_in(self, backend: str) -> bool:
        """Return whether there is such a method for a host of `BACKENDS`."""
        return (self.sampler if backend == "optuna" else self.searcher) is not None

    @property
    def trains(self) -> bool:
        """Whether it decides how a trial is trained, so that nothing but a training problem will do."""
        own = self.report_every or self.optimizer or self.tied or self.centre or self.retrains
        return bool(own) or self.how is not DEFAULT_METHOD

    def posed(self, task: TrainingTask) -> tuple[Any, Space]:
        """Return the problem and its space as the method gets them, the same objects each time."""
        problem, space = task.posed(lifts=bool(self.lifts))
        return problem if self.optimizer is None else _trained_by(self.optimizer, problem), space

    def searched(self, space: Space) -> Space:
        """Return the space that the method sees."""
        return levels(space) if self.tied else space

    def reports(self, steps: int) -> int | None:
        """Return the number of steps between two reports in a training run of so many; None for no reports."""
        return None if self.report_every is None else self.report_every(steps)


def of_factory(name: str, factory: Any) -> Rival:
    """Return the rival of a user's own factory, which makes a sampler of Optuna or a searcher of Ray when called.

    `factory` is called with `seed=`, as the classes of Optuna's samplers can be. Raises `ValueError` where it cannot be
    called so, or makes something else.

    Example:
        >>> import optuna
        >>> from hypergrad_studies import of_factory
        >>> of_factory("qmc", optuna.samplers.QMCSampler).name
        'qmc'
    """
    if not callable(factory):
        raise ValueError(f"{name}: the factory of a method must be callable, got {shown(factory)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # it will be given when runs make theirs
            made = factory(seed=0)
    except TypeError as error:
        raise ValueError(f"{name}: the factory of a method is called with seed=, which ended in: {error}") from error
    if isinstance(made, BaseSampler):
        return Rival(
            name,
            sampler=lambda setting: factory(seed=setting.seed),
            gradients=isinstance(made, HypergradSampler),
        )
    if isinstance(made, Searcher):
        return Rival(
            name,
            searcher=lambda setting, space: factory(seed=setting.seed),
            gradients=isinstance(made, HypergradSearch),
        )
    raise ValueError(
        f"{name}: the factory of a method must make a sampler of Optuna or a searcher of Ray Tune, got {shown(made)}"
    )


def by_gradients(
    name: str,
    *,
    strategy: Strategy[Any] | None = None,
    how: Method = DEFAULT_METHOD,
    lifts: bool | None = None,
    retrains: bool = False,
) -> Rival:
    """Return a search by hypergradients; the fields are `Rival`'s. What retrains is for Optuna alone."""

    def searcher(setting: Setting, space: Space | None) -> Searcher:
        mode = "max" if setting.maximise else "min"
        in_ray = None if space is None else nested(space)  # in Ray a name with "/" is that of a nested one
        return HypergradSearch(in_ray, metric=setting.metric, mode=mode, seed=setting.seed, strategy=strategy)

    return Rival(
        name,
        sampler=lambda setting: HypergradSampler(seed=setting.seed, strategy=strategy),
        searcher=None if retrains else searcher,
        own_space=True,
        gradients=True,
        lifts=lifts,
        how=how,
        retrains=retrains,
    )


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
            seed=setting.seed,
            use_separable_cma=(setting.dimensions or 0) > FULL_COVARIANCE,
            warn_independent_sampling=False,
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
    steps = _known(setting.steps)
    return HyperbandPruner(min_resource=shortest(steps), max_resource=steps, reduction_factor=REDUCTION_FACTOR)


def _known(steps: int | None) -> int:
    assert steps is not None  # as in all training problems, to which rivals are confined that ask for it
    return steps


def _untuned(name: str, optimizer: Callable[[int], OptaxOptimizer]) -> Rival:
    """Return the method that trains once, by an optimizer at its defaults, and with all else at the centre."""
    return Rival(name, sampler=_random, centre=True, optimizer=optimizer, trials=1, how=Unrolled())


@functools.cache
def _trained_by(optimizer: Callable[[int], OptaxOptimizer], problem: TrainingProblem) -> TrainingProblem:
    return replace(problem, optimizer=optimizer(problem.steps))


def _ray_random(setting: Setting, space: Space | None) -> BasicVariantGenerator:
    return BasicVariantGenerator(random_state=setting.seed)


def _ray_tpe(setting: Setting, space: Space | None) -> Searcher:
    return OptunaSearch(seed=setting.seed)


def _asha(steps: int) -> TrialScheduler:
    return ASHAScheduler(
        time_attr="steps",
        grace_period=shortest(steps),
        max_t=steps,
        reduction_factor=REDUCTION_FACTOR,
    )


def _explored_by(name: str, explorer: Callable[[Setting], BaseSampler], strategy: Strategy[Any] | None = None) -> Rival:
    """Return the search without lifts by another explorer, which starts at the centre too."""
    return Rival(
        name,
        sampler=lambda setting: HypergradSampler(explorer=explorer(setting), strategy=strategy),
        gradients=True,
        lifts=False,
        centre=True,
    )


def _virtual(setting: Setting) -> BaseSampler:
    return VirtualTpe(setting.seed, reach=0.05)


def _gradient_gp(setting: Setting) -> BaseSampler:
    return GradientGp(setting.seed)


def _halved(explorer: Rival) -> Rival:
    return replace(explorer, pruner=lambda setting: HalvingPruner(_known(setting.steps)), report_every=quarter)


def _first_epoch_sampler(setting: Setting) -> BaseSampler:
    return FirstEpochSampler(setting.seed, int(setting.budget.amount))


def _first_epoch_pruner(setting: Setting) -> BasePruner:
    return FirstEpochPruner(int(setting.budget.amount))


def _freeze_thaw(setting: Setting) -> BaseSampler:
    return FreezeThawSampler(setting.seed, steps=_known(setting.steps), budget=setting.budget.amount)


def _by_name(rivals: Iterable[Rival]) -> dict[str, Rival]:
    return {rival.name: rival for rival in rivals}


EQUAL_SHARES = ExploreDescend(smallest_share=0.5)

RIVALS = _by_name(
    (
        Rival("random", sampler=_random, searcher=_ray_random),
        Rival("random-2x", sampler=_random, searcher=_ray_random, budget_factor=2),
        Rival("random-tied", sampler=_random, tied=True),
        Rival("random-centre", sampler=_random, centre=True),
        Rival("tpe", sampler=_tpe, searcher=_ray_tpe),
        Rival("tpe-2x", sampler=_tpe, budget_factor=2),
        Rival("tpe-tied", sampler=_tpe, tied=True),
        Rival("tpe-centre", sampler=_tpe, centre=True),
        Rival("tpe-tied-centre", sampler=_tpe, tied=True, centre=True),
        Rival("cmaes", sampler=_cmaes, least=2),  # it draws its first generation around the centre
        Rival("cmaes-tied", sampler=_cmaes, tied=True, least=2),
        Rival("gp", sampler=_gp, needs="torch"),
        Rival("gp-centre", sampler=_gp, needs="torch", centre=True),
        Rival("smac", sampler=_smac, needs="smac"),
        Rival("nevergrad", sampler=_nevergrad, needs="nevergrad"),
        Rival("hyperband", sampler=_tpe, pruner=_hyperband, report_every=shortest),
        Rival("asha", searcher=_ray_random, scheduler=_asha, report_every=shortest),
        Rival(
            "first-epoch",
            sampler=_first_epoch_sampler,
            pruner=_first_epoch_pruner,
            report_every=first_epoch,
            counts=True,
        ),
        _untuned("prodigy", untuned.prodigy),
        _untuned("dog", untuned.dog),
        _untuned("dowg", untuned.dowg),
        _untuned("schedule-free", untuned.schedule_free_adamw),
        _untuned("schedule-free-sgd", untuned.schedule_free_sgd),
        by_gradients("hypergrad", lifts=True),
        by_gradients("hypergrad-unlifted", lifts=False),
        by_gradients("hypernet", how=HYPERNET),
        by_gradients("hypernet-retrained", how=HYPERNET, retrains=True),
    )
)

#: rivals that take long to choose in many dimensions; they run where they are named, and not by default
DEAR = _by_name(
    (
        Rival(
            "freeze-thaw",
            sampler=_freeze_thaw,
            pruner=lambda setting: StretchPruner(),
            report_every=stretch,
            counts=True,
            resumes=True,
        ),
    )
)

#: our default search with another way to the gradient; they run where they are named, and not by default
BY_METHOD = _by_name(
    (
        # Networks have negative curvature where training ends, and a solver needs damping there.
        by_gradients("hypergrad:implicit", how=Implicit(solver=ConjugateGradients(damping=0.1)), lifts=True),
        by_gradients("hypergrad:neumann", how=Implicit(solver=Neumann(rate=0.5)), lifts=True),
        by_gradients("hypergrad:identity", how=Implicit(solver=Identity()), lifts=True),
        by_gradients("hypergrad:unrolled", how=Unrolled(), lifts=True),
        by_gradients("hypergrad:drmad", how=DrMAD(), lifts=True),
        by_gradients("hypergrad:forward", how=Forward()),
        by_gradients("hypergrad:smoothed", how=Smoothed()),
        by_gradients("hypergrad:one-pass", how=OnePass()),
        by_gradients("hypergrad:real-time", how=RealTime()),
        by_gradients("hypergrad:persistent", how=Persistent()),
    )
)

#: ideas that `docs/tried.md` judges; they run where they are named, and not by default
TRIED = _by_name(
    (
        _explored_by("tried-chance", lambda setting: TPESampler(seed=setting.seed + 1000)),
        _explored_by("tried-equal", _tpe, EQUAL_SHARES),
        _explored_by("tried-virtual", _virtual),
        _explored_by("tried-virtual-far", lambda setting: VirtualTpe(setting.seed, reach=0.2)),
        _explored_by("tried-virtual-alone", _virtual, Explore(share=0.25)),
        _explored_by("tried-virtual-equal", _virtual, EQUAL_SHARES),
        _explored_by("tried-gp", _gradient_gp, Explore(share=0.25)),
        _explored_by("tried-gp-rare", _gradient_gp, Explore(share=0.05)),
        _explored_by("tried-gp-values", _gradient_gp, Explore(share=0.0)),
        _explored_by("tried-gp-explorer", _gradient_gp),
        _explored_by("tried-gp-explorer-values", lambda setting: GradientGp(setting.seed, gradients=False)),
        _explored_by("tried-gp-equal", _gradient_gp, EQUAL_SHARES),
        _halved(_explored_by("tried-halving", lambda setting: HalvingTpe(seed=setting.seed))),
        _halved(_explored_by("tried-halving-equal", lambda setting: HalvingTpe(seed=setting.seed), EQUAL_SHARES)),
        replace(by_gradients("tried-half-horizon", how=HalfHorizon(), lifts=False), searcher=None),
        replace(by_gradients("tried-last-half", how=LastHalf(), lifts=False), searcher=None),
    )
)

#: all that can be named
KNOWN = RIVALS | DEAR | BY_METHOD | TRIED
