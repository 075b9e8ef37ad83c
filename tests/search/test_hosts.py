"""Both hosts make the same search of the same history, and take a strategy or a method that is not ours."""

import functools
import math
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from ray.tune.search import Searcher

import hypergrad_optuna
import hypergrad_ray
from hypergrad_optuna import HypergradSampler, Objective, claims, suggest_array
from hypergrad_ray import HypergradSearch, trainable
from hypergrad_search import (
    Categorical,
    Cost,
    Evaluation,
    Float,
    Fold,
    Int,
    Method,
    Space,
    Status,
    TrainingProblem,
    evaluate,
    sgd,
    train,
)
from hypergrad_search.hypergradient import OuterLosses, Progress, Request, finite_or_none, judge, outer_losses
from hypergrad_search.search import (
    Attempt,
    ExploreDescend,
    Observation,
    Proposal,
    SignSteps,
    Strategy,
    from_unit,
    gradient_to_unit,
    to_unit,
)
from hypergrad_search.space import floats, lifted

# sorted by name, which is the order in which Optuna knows what all trials have in common
SPACE: Space = {
    "array": Float(-1.0, 2.0, shape=(2, 2)),
    "kind": Categorical(["plain", None, True]),
    "layers": Int(1, 4),
    "number": Float(0.0, 1.0),
    "rate": Float(1e-3, 1.0, log=True, lift=(5,)),
}
PROBLEM = TrainingProblem(
    init=lambda key, h: jnp.zeros(1),
    train_loss=lambda p, h, batch, key: jnp.sum(p),
    valid_loss=lambda p, h: jnp.sum(p),
    batches=lambda step: None,
    optimizer=sgd(0.1, 0.5),
    steps=10,
)
BEST = {"array": np.array([[0.1, 0.7], [1.3, -0.4]]), "number": 0.4, "rate": np.geomspace(0.01, 0.5, 5)}


class Broken(RuntimeError):
    """What a trial may die of."""


@dataclass(frozen=True, eq=False)
class Scripted(Method):
    """A method whose evaluations follow a script, and that keeps what was asked of it: the host's proposals."""

    noise: float = 0.0
    continues: bool = False
    asked: list[Any] = field(default_factory=list)

    def evaluate(self, problem: TrainingProblem, h: Any, key: jax.Array, request: Request) -> Evaluation:
        number = len(self.asked)
        bits = {name: (np.shape(value), np.asarray(value).tolist()) for name, value in h.items()}
        self.asked.append((bits, request.gradient_below, request.fold, request.checkpoint))
        if number % 13 == 6:
            raise Broken
        offsets = {name: h[name] - best for name, best in BEST.items() if name != "rate"}
        offsets["rate"] = np.log(h["rate"] / BEST["rate"])
        value = sum(float(np.sum(offset**2)) for offset in offsets.values()) + h["layers"] + (h["kind"] is None)
        value += self.noise * np.random.default_rng(number).standard_normal()
        if number % 11 == 5:
            value = math.inf
        if request.report is not None:
            request.report(Progress(2, math.nan if number % 9 == 4 else value))
        ours = Evaluation(value, None, Status.OK, Cost(10.0, 0.0))
        if request.fold is not None:
            held_back = tuple(value + 0.1 * part + 0.02 * (number % 5) for part in range(request.fold.of))
            ours = replace(ours, held_back=held_back)
            if not request.fold.accepts(held_back):
                return replace(ours, status=Status.OVERFITTED)
        if self.continues:
            nearer = {name: h[name] - 0.3 * (h[name] - best) for name, best in BEST.items()}
            kept = f"after {number}".encode()
            return replace(ours, refined={**h, **nearer}, checkpoint=kept) if value < math.inf else ours
        if not value < request.gradient_below:
            return ours
        slopes = {name: 2 * offset for name, offset in offsets.items()}
        slopes["rate"] = slopes["rate"] / h["rate"]
        # in float32, in which Optuna's adapter keeps arrays
        gradient = {n: np.float32(g) if np.shape(g) else float(g) for n, g in slopes.items()}
        if number % 7 == 3:
            return replace(ours, gradient=gradient, status=Status.EXPLODED, cost=Cost(40.0, 0.0))
        trust = {"array": 0.5, "rate": 0.25 if number % 3 else 1.0}
        return replace(ours, gradient=gradient, cost=Cost(40.0, 0.0), trust=trust)


def chosen(space: Space, number: int) -> dict[str, Any]:
    """Return what the explorer of either host chooses for a trial; arrays are one number."""
    rng = np.random.default_rng(number)
    point: dict[str, Any] = {}
    for name, parameter in sorted(space.items()):
        if isinstance(parameter, Categorical):
            point[name] = parameter.choices[int(rng.integers(len(parameter.choices)))]
        elif isinstance(parameter, Int):
            point[name] = int(rng.integers(parameter.low, parameter.high + 1))
        else:
            point[name] = from_unit({name: replace(parameter, shape=(), lift=None)}, rng.uniform(size=1))[name]
    return point


class OptunaExplorer(optuna.samplers.BaseSampler):
    def __init__(self, space: Space) -> None:
        self.space = space

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return chosen(self.space, trial.number)[param_name]


class RayExplorer(Searcher):
    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        return chosen(self.space, int(trial_id))

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass


def run_optuna(method: Scripted, strategy: Strategy[Any] | None, rounds: int, workers: int, report: int | None) -> None:
    sampler = HypergradSampler(explorer=OptunaExplorer(SPACE), strategy=strategy)
    pruner = optuna.pruners.ThresholdPruner(upper=1e6)  # prunes what is infinite
    study = optuna.create_study(sampler=sampler, pruner=pruner)
    objective = Objective(PROBLEM, SPACE, method=method, report_every=report)
    for _ in range(rounds):
        trials = [study.ask() for _ in range(workers)]
        points = [objective.suggest(trial) for trial in trials]
        for trial, point in zip(trials, points, strict=True):
            try:
                study.tell(trial, objective.evaluate(trial, point))
            except optuna.TrialPruned:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            except Broken:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)


class Stopped(Exception):
    """What Ray ends a trial by."""


@dataclass
class InProcess:
    """Ray's side of a trial, without a cluster: keeps the results and checkpoints of the trainable."""

    folder: Path
    results: list[dict[str, Any]] = field(default_factory=list)
    trial: str = ""

    def report(self, result: dict[str, Any], checkpoint: Any = None) -> None:
        flat = {**result, **{f"{k}/{n}": x for k, v in result.items() if isinstance(v, dict) for n, x in v.items()}}
        if checkpoint is not None:
            shutil.copytree(checkpoint.path, self.folder / self.trial / "kept")
            flat["checkpoint_dir_name"] = "kept"
        self.results.append(flat)
        if result["status"] == "running" and result["loss"] > 1e6:
            raise Stopped

    def get_context(self) -> Any:
        storage = SimpleNamespace(
            experiment_fs_path=str(self.folder), trial_dir_name=self.trial, storage_filesystem=None
        )
        return SimpleNamespace(get_storage=lambda: storage)


@pytest.fixture
def in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InProcess:
    here = InProcess(tmp_path)
    monkeypatch.setattr("ray.tune.report", here.report)
    monkeypatch.setattr("ray.tune.get_context", here.get_context)
    return here


@pytest.fixture(autouse=True)
def _no_trial_is_taken_to_be_dead(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(claims, "PATIENCE", 1000 * claims.PATIENCE)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(verbosity)


def run_ray(
    ray: InProcess, method: Scripted, strategy: Strategy[Any] | None, rounds: int, workers: int, report: int | None
) -> HypergradSearch:
    searcher = HypergradSearch(SPACE, metric="loss", mode="min", explorer=RayExplorer(lifted(SPACE)), strategy=strategy)
    run: Any = trainable(PROBLEM, SPACE, method=method, report_every=report)
    for number in range(0, rounds * workers, workers):
        names = [str(number + worker) for worker in range(workers)]
        configs = [searcher.suggest(name) for name in names]
        for name, config in zip(names, configs, strict=True):
            ray.trial, ray.results = name, []
            error = False
            try:
                run(config)
            except Broken:
                error = True
            except Stopped:
                pass
            for result in ray.results:
                searcher.on_trial_result(name, result)
            ended = bool(ray.results) and ray.results[-1]["status"] != "running"
            searcher.on_trial_complete(name, result=ray.results[-1] if ended else None, error=error)
    return searcher


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    ("method", "strategy"),
    [
        ({}, None),
        ({"noise": 0.5}, None),
        ({"continues": True}, None),
        ({}, ExploreDescend(startup_trials=1, folds=2, step=SignSteps())),
    ],
    ids=["plain", "noisy", "stretches", "settings"],
)
def test_both_hosts_propose_the_same(
    method: dict[str, Any], strategy: Strategy[Any] | None, workers: int, in_process: InProcess
) -> None:
    """The history has every kind of hyperparameter and of failure: see `Scripted`."""
    ours, theirs = Scripted(**method), Scripted(**method)
    run_optuna(ours, strategy, 90 // workers, workers, report=5)
    searcher = run_ray(in_process, theirs, strategy, 90 // workers, workers, report=5)
    assert len(ours.asked) == len(theirs.asked) == 90 // workers * workers
    for number, (some, others) in enumerate(zip(ours.asked, theirs.asked, strict=True)):
        assert some == others, f"trial {number}"
    observations = list(searcher._observations.values())
    assert sum(trial.parent is not None for trial in observations) > 10
    assert sum(math.isinf(trial.value) for trial in observations) > 10
    folds = 4 if strategy is None else 2
    turns = 1 if method == {"continues": True} else folds  # stretches have the same part held back
    assert {(fold.index, fold.of) for _, _, fold, _ in ours.asked} == {(part, folds) for part in range(turns)}
    assert len({fold.below for _, _, fold, _ in ours.asked}) > 3
    if method == {"noise": 0.5}:
        assert sum(trial.again for trial in observations) > 1
    checkpoints = {checkpoint for _, _, _, checkpoint in ours.asked}
    assert len(checkpoints) > 5 if method == {"continues": True} else checkpoints == {None}


def gain(h: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Return something to maximise, and its gradient."""
    offset = np.float32(h["array"] - BEST["array"])
    return -float(np.sum(offset**2)) - h["layers"] - 0.1 * h["number"], {"array": -2 * offset}


def test_both_hosts_propose_the_same_where_a_value_is_maximised() -> None:
    """The trainables are the user's own, and their gradients lack a name."""
    space: Space = {name: SPACE[name] for name in ("array", "layers", "number")}
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []

    def objective(trial: optuna.Trial) -> float:
        h = {"array": suggest_array(trial, "array", (2, 2), -1, 2), "layers": trial.suggest_int("layers", 1, 4)}
        h["number"] = trial.suggest_float("number", 0, 1)
        ours.append(h)
        value, gradient = gain(h)
        if hypergrad_optuna.wants_gradient(trial, value):
            hypergrad_optuna.report_gradient(trial, gradient)
        return value

    study = optuna.create_study(direction="maximize", sampler=HypergradSampler(explorer=OptunaExplorer(space)))
    study.optimize(objective, n_trials=60)
    searcher = HypergradSearch(space, metric="gain", mode="max", explorer=RayExplorer(space))
    for number in range(60):
        config = searcher.suggest(str(number))
        assert config is not None
        value, gradient = gain(config)
        reported = {"gradient/array": gradient["array"]} if hypergrad_ray.wants_gradient(config, value) else {}
        theirs.append({name: config[name] for name in space})
        searcher.on_trial_complete(str(number), result={"gain": value, **reported})
    for some, others in zip(ours, theirs, strict=True):
        assert {n: np.asarray(x).tolist() for n, x in some.items()} == {
            n: np.asarray(x).tolist() for n, x in others.items()
        }
    assert sum(trial.parent is not None for trial in searcher._observations.values()) > 10


# a strategy of somebody else's


@dataclass(frozen=True)
class BestYet:
    """The best trial so far, with its gradient's signs in the unit box."""

    space: Space
    trials: int = 0
    value: float = math.inf
    trial: str | None = None
    point: Any = None
    signs: Any = None


@dataclass(frozen=True)
class Downhill(Strategy[BestYet]):
    """Explore a few points, and then step from the best yet by a fixed length, all in one file."""

    explored: int = 5
    length: float = 0.02

    def init(self, space: Space) -> BestYet:
        return BestYet(space)

    def fold(self, state: BestYet, observation: Observation) -> BestYet:
        state = replace(state, trials=state.trials + 1)
        if observation.gradient is None or not observation.value < state.value:
            return state
        slope = gradient_to_unit(state.space, observation.hyperparameters, observation.gradient)
        point = to_unit(state.space, observation.hyperparameters)
        best = {"value": observation.value, "trial": observation.trial, "point": point, "signs": np.sign(slope)}
        return replace(state, **best)

    def propose(self, state: BestYet, running: Collection[Attempt]) -> Proposal:
        if state.trials < self.explored or state.trial is None or Attempt(state.trial) in running:
            return self.explore(state)
        step = np.clip(state.point - self.length * state.signs, 0.0, 1.0)
        return Proposal(step, state.trial, state.value, Fold(state.trials % 3, 3))

    def explore(self, state: BestYet) -> Proposal:
        return Proposal(None, None, state.value, Fold(state.trials % 3, 3))


def test_a_strategy_of_somebody_else_s_runs_in_both_hosts(in_process: InProcess) -> None:
    ours, theirs = Scripted(), Scripted()
    run_optuna(ours, Downhill(), 40, 1, report=None)
    searcher = run_ray(in_process, theirs, Downhill(), 40, 1, report=None)
    assert ours.asked == theirs.asked
    assert {fold.index for _, _, fold, _ in ours.asked} == {0, 1, 2}
    parents = [trial.parent for trial in searcher._observations.values()]
    assert parents[:5] == [None] * 5
    assert sum(parent is not None for parent in parents) > 20
    best = min(trial.value for trial in searcher._observations.values())
    assert best < min(trial.value for trial in searcher._observations.values() if trial.parent is None)


@pytest.mark.parametrize("make", [lambda s: HypergradSampler(strategy=s), lambda s: HypergradSearch(SPACE, strategy=s)])
def test_what_is_no_strategy_is_refused(make: Callable[[Any], object]) -> None:
    with pytest.raises(ValueError, match="strategy must be a Strategy such as ExploreDescend"):
        make(ExploreDescend)


# a method of somebody else's, from public names alone


@functools.partial(jax.jit, static_argnums=0)
def losses_at(problem: TrainingProblem, h: Any, key: jax.Array) -> OuterLosses:
    return outer_losses(problem, train(problem, h, key), h)


@dataclass(frozen=True)
class Differences(Method):
    """Gradients by finite differences of training in floats; it says nothing but value, gradient, status and cost."""

    width: float = 1e-2

    def evaluate(self, problem: TrainingProblem, h: Any, key: jax.Array, request: Request) -> Evaluation:
        found = judge(losses_at(problem, h, key), request.fold)
        gradient = None
        if found.value < request.gradient_below:
            gradient = finite_or_none(
                {
                    name: (losses_at(problem, {**h, name: h[name] + self.width}, key).value - found.value) / self.width
                    for name in ("rate", "target")
                }
            )
        return replace(found, gradient=gradient, cost=Cost(3.0 * problem.steps if gradient else problem.steps, 0.0))


def own_problem() -> TrainingProblem:
    return TrainingProblem(
        init=lambda key, h: jnp.ones(2),
        train_loss=lambda p, h, batch, key: jnp.sum((p - h["target"]) ** 2),
        valid_loss=lambda p, h: jnp.sum((p - 0.25) ** 2),
        batches=lambda step: None,
        optimizer=sgd("rate", 0.5),
        steps=20,
    )


OWN_SPACE: Space = {"rate": Float(0.01, 0.3, log=True), "target": Float(-1.0, 1.0)}


def test_a_method_of_somebody_else_s_runs_in_both_hosts(in_process: InProcess) -> None:
    problem = own_problem()
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    objective = Objective(problem, OWN_SPACE, method=Differences())
    study.optimize(objective, n_trials=8)
    assert any(hypergrad_optuna.attributes.wanted(trial).parent for trial in study.trials)
    best = hypergrad_optuna.best_hyperparameters(study)
    found = evaluate(problem, best, method=Differences(), key=jax.random.key(0))
    assert found.value == study.best_value
    assert found.diagnostics == {}
    model = hypergrad_optuna.best_model(study, objective)
    assert float(problem.valid_loss(model, best)) == pytest.approx(study.best_value, rel=1e-4)

    searcher = HypergradSearch(OWN_SPACE, metric="loss", mode="min", seed=0)
    run: Any = trainable(problem, OWN_SPACE, method=Differences())
    for number in range(8):
        in_process.trial, in_process.results = str(number), []
        run(searcher.suggest(str(number)))
        (result,) = in_process.results
        assert (result["status"], result["steps"]) == ("ok", 20)
        searcher.on_trial_complete(str(number), result=result)
    observations = searcher._observations.values()
    assert any(trial.parent for trial in observations)
    assert set(next(iter(observations)).gradient or {}) == set(floats(OWN_SPACE))
