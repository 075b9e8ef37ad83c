"""Outer loops: how the studies of reversible learning tune hyperparameters, and go on where they were cut off.

Two kinds. `Descent` follows the hypergradient with an optimizer of optax, as the papers do. `Sampled` is an Optuna
study, which `HypergradSampler` or any other sampler leads. Each keeps its state in a file for each seed, from which all
that it has done is read again, so that a study that is run twice computes nothing twice.
"""

import abc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from rich.console import Console
from rich.progress import track

from hypergrad_optuna import Objective, best_arrays
from hypergrad_search import Float, Method, Reversible, TrainingProblem, Unrolled, evaluate
from hypergrad_studies.papers.results import Row, line, parse

FloatSpace = Mapping[str, Float]


@dataclass(frozen=True)
class Iteration:
    """One training run of an outer loop: 0 is the start.

    `value` is the outer loss, `test` the test loss (NaN where training failed), `gradient_evaluations` and `seconds`
    what this one took.
    """

    search: str
    seed: int
    iteration: int
    value: float
    test: float
    status: str
    gradient_evaluations: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Search(abc.ABC):
    """An outer loop of `iterations` training runs after the one at the start, where an array has `start` everywhere.

    Hyperparameters stay within `space`, which has no logarithms: they are the paper's own, log rates and the like. With
    `reseed` each training run has initial parameters and batches of its own, else all of a seed have the same. A
    problem that trains several `networks` at once is charged for each.
    """

    problem: TrainingProblem
    space: FloatSpace
    start: Mapping[str, float]
    iterations: int
    reseed: bool = False
    networks: int = 1

    def beginning(self) -> dict[str, np.ndarray]:
        """The hyperparameters at the start."""
        return {name: np.full(array.shape, self.start[name], np.float32) for name, array in self.space.items()}

    @abc.abstractmethod
    def run(self, name: str, seed: int, folder: Path) -> Iterator[Iteration]:
        """All iterations, those first that `folder` knows."""

    @abc.abstractmethod
    def end(self, iterations: Sequence[Iteration]) -> Iteration:
        """The iteration that a run has come to."""

    @abc.abstractmethod
    def found(self, name: str, seed: int, folder: Path) -> dict[str, np.ndarray]:
        """The hyperparameters that a run has come to."""


@dataclass(frozen=True, eq=False)
class Descent(Search):
    """Gradient descent on the hyperparameters; an iteration whose gradient is not finite moves nothing.

    It has come to where its last step led. As in the papers it follows exploded gradients too, as long as they are
    finite: their size is the optimizer's matter.
    """

    optimizer: optax.GradientTransformation = optax.adam(0.04)  # noqa: RUF009 (functions alone)
    method: Method = Reversible(fallback=Unrolled())  # noqa: RUF009 (frozen)

    def run(self, name: str, seed: int, folder: Path) -> Iterator[Iteration]:
        """See `Search`."""
        path = _checkpoint(name, seed, folder)
        key = jax.random.key(seed)
        here = self.beginning()
        state: tuple[Any, Any] = (here, self.optimizer.init(here))
        done: list[Iteration] = []
        trajectory = {n: [x] for n, x in here.items()}
        if path.exists():
            state, done, trajectory = self._load(path, state)
        yield from done
        for i in range(len(done), self.iterations + 1):
            started = time.perf_counter()
            last = i == self.iterations
            evaluation = evaluate(
                self.problem,
                state[0],
                method=self.method,
                key=jax.random.fold_in(key, i) if self.reseed else key,
                gradient_below=-math.inf if last else math.inf,
            )
            done.append(
                Iteration(
                    name,
                    seed,
                    i,
                    evaluation.value,
                    _number(evaluation.diagnostics["test_loss"]),
                    str(evaluation.status),
                    self.networks * float(evaluation.cost.gradient_evaluations),
                    time.perf_counter() - started,
                )
            )
            if not last:
                state = self._step(state, evaluation.gradient)
                trajectory = {n: [*before, state[0][n]] for n, before in trajectory.items()}
            self._save(path, state, done, trajectory)
            yield done[-1]

    def _step(self, state: tuple[Any, Any], gradient: Mapping[str, Any] | None) -> tuple[Any, Any]:
        if gradient is None:
            return state
        updates, optimizer_state = self.optimizer.update({n: gradient[n] for n in self.space}, state[1], state[0])
        moved = optax.apply_updates(state[0], updates)
        return {n: np.clip(moved[n], p.low, p.high) for n, p in self.space.items()}, optimizer_state

    def _save(self, path: Path, state: Any, done: Sequence[Iteration], trajectory: Mapping[str, Any]) -> None:
        """All at once: a kill in the midst of this leaves the file before."""
        arrays = {f"state:{i}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
        arrays |= {f"trajectory:{n}": np.stack(x) for n, x in trajectory.items()}
        arrays["done"] = np.array("".join(map(line, done)))
        new = path.with_suffix(".new.npz")
        np.savez(new, allow_pickle=False, **arrays)
        new.replace(path)

    def _load(self, path: Path, like: Any) -> tuple[Any, list[Iteration], dict[str, list[np.ndarray]]]:
        with np.load(path) as file:
            leaves = [file[f"state:{i}"] for i in range(len(jax.tree.leaves(like)))]
            done = [parse(text, Iteration) for text in str(file["done"]).splitlines()]
            trajectory = {n: list(file[f"trajectory:{n}"]) for n in self.space}
        return jax.tree.unflatten(jax.tree.structure(like), leaves), done, trajectory

    def end(self, iterations: Sequence[Iteration]) -> Iteration:
        """See `Search`."""
        return iterations[-1]

    def found(self, name: str, seed: int, folder: Path) -> dict[str, np.ndarray]:
        """See `Search`."""
        return {n: path[-1] for n, path in self.trajectory(name, seed, folder).items()}

    def trajectory(self, name: str, seed: int, folder: Path) -> dict[str, np.ndarray]:
        """The hyperparameters at every iteration: a run's arrays of shape `(iterations + 1, *shape)`."""
        with np.load(_checkpoint(name, seed, folder)) as file:
            return {n: file[f"trajectory:{n}"] for n in self.space}


@dataclass(frozen=True, eq=False)
class Sampled(Search):
    """An Optuna study that begins at the start. It has come to its best trial."""

    sampler: Callable[[int], optuna.samplers.BaseSampler] = optuna.samplers.RandomSampler

    def run(self, name: str, seed: int, folder: Path) -> Iterator[Iteration]:
        """See `Search`."""
        study = self._resumed(name, seed, folder)
        objective = Objective(self.problem, self.space, key=jax.random.key(seed), reseed=self.reseed)
        done = _finished(study)
        if not done:
            study.enqueue_trial(dict(self.start))
        else:  # not the same draws once more
            (again,) = np.random.SeedSequence([seed, len(done)]).generate_state(1)
            study.sampler = self.sampler(int(again))
        for i in range(self.iterations + 1):
            if i == len(done):
                study.optimize(objective, n_trials=1)
                done = _finished(study)
            trial = done[i]
            duration = trial.duration
            yield Iteration(
                name,
                seed,
                i,
                math.inf if trial.value is None else trial.value,
                _number(trial.user_attrs.get("hypergrad:test_loss")),
                trial.user_attrs.get("hypergrad:status", "ok"),
                self.networks * float(trial.user_attrs["hypergrad:cost"]),
                0.0 if duration is None else duration.total_seconds(),
            )

    def end(self, iterations: Sequence[Iteration]) -> Iteration:
        """See `Search`."""
        return min(iterations, key=lambda i: i.value)

    def found(self, name: str, seed: int, folder: Path) -> dict[str, np.ndarray]:
        """See `Search`."""
        study = self._study(name, seed, folder)
        found = {**study.best_params, **best_arrays(study)}
        return {n: np.asarray(found[n], np.float32) for n in self.space}

    def _resumed(self, name: str, seed: int, folder: Path) -> optuna.Study:
        """The study as if a trial that was cut off had never begun: else its step would count as taken, or failed."""
        study = self._study(name, seed, folder)
        finished = _finished(study)
        if len(finished) < len(study.get_trials(deepcopy=False)):
            path = _journal(name, seed, folder)
            new = path.with_suffix(".new")
            new.unlink(missing_ok=True)
            optuna.create_study(storage=_storage(new), study_name=name).add_trials(finished)
            new.replace(path)
            study = self._study(name, seed, folder)
        return study

    def _study(self, name: str, seed: int, folder: Path) -> optuna.Study:
        storage = _storage(_journal(name, seed, folder))
        return optuna.create_study(storage=storage, study_name=name, sampler=self.sampler(seed), load_if_exists=True)


#: the iterations of each search, by name and seed
Runs = dict[str, list[list[Iteration]]]


def run(searches: Mapping[str, Search], seeds: int, folder: Path, console: Console) -> Runs:
    """Each search with each seed: its iterations by name and seed, which are lines of `folder/records.jsonl` too."""
    with (folder / "records.jsonl").open("w") as file:

        def keep(iteration: Iteration) -> None:
            file.write(line(iteration))
            file.flush()

        return complete(searches, seeds, folder, console, keep)


def complete(
    searches: Mapping[str, Search],
    seeds: int,
    folder: Path,
    console: Console,
    keep: Callable[[Iteration], None] = lambda iteration: None,
) -> Runs:
    """As `run`, with something else done with each iteration."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    total = seeds * sum(search.iterations + 1 for search in searches.values())
    done: Runs = {name: [[] for _ in range(seeds)] for name in searches}
    iterations = (
        iteration
        for seed in range(seeds)
        for name, search in searches.items()
        for iteration in search.run(name, seed, folder)
    )
    for iteration in track(iterations, folder.name, total=total, console=console):
        done[iteration.search][iteration.seed].append(iteration)
        keep(iteration)
    return done


class Reported(NamedTuple):
    """What the paper has: the outer loss at the start and the end, the test loss there, after how many iterations."""

    start: float
    end: float
    test: float
    iterations: int


def ends(searches: Mapping[str, Search], done: Runs, loss: str, reported: Reported | None) -> list[Row]:
    """How each search began and ended, and how soon it was where the paper's ended: as reported, and with each seed.

    `reported` is None at a scale of which the paper has nothing; the paper's own search is the first.
    """
    rows = []
    first = next(iter(searches))
    papers = [searches[first].end(mine).value for mine in done[first]]
    for name, search in searches.items():
        last = [search.end(mine) for mine in done[name]]
        values = [i.value for i in last]
        rows += [
            Row(f"{name}: {loss} at the start", reported and reported.start, [mine[0].value for mine in done[name]]),
            Row(f"{name}: {loss} after {search.iterations} iterations", reported and reported.end, values),
            Row(f"{name}: the same, worst seed", None, [max(values)] * len(values)),
            Row(f"{name}: test loss there", reported and reported.test, [i.test for i in last]),
        ]
        targets = {f"first iteration at {reported.end:g} or below": [reported.end] * len(values)} if reported else {}
        if name != first:
            targets[f"first iteration where {first} ends"] = papers
        for label, losses in targets.items():
            soon = [reached(mine, value) for mine, value in zip(done[name], losses, strict=True)]
            spent = [cost(mine, until) for mine, until in zip(done[name], soon, strict=True)]
            rows.append(Row(f"{name}: {label}", reported and reported.iterations, soon))
            rows.append(Row(f"{name}: gradient evaluations until then", None, spent))
        failures = [float(sum(math.isinf(i.value) for i in mine)) for mine in done[name]]
        rows.append(Row(f"{name}: iterations that failed", None, failures))
    return rows


def reached(iterations: Sequence[Iteration], value: float) -> float:
    """The first iteration whose outer loss is `value` or below; inf where none is."""
    return next((float(i.iteration) for i in iterations if i.value <= value), math.inf)


def cost(iterations: Sequence[Iteration], until: float) -> float:
    """The gradient evaluations of all iterations up to this one, itself included; inf where it is."""
    return sum(i.gradient_evaluations for i in iterations if i.iteration <= until) if until < math.inf else math.inf


def seconds(done: Runs) -> float:
    """What all iterations took."""
    return sum(i.seconds for runs in done.values() for mine in runs for i in mine)


def _checkpoint(name: str, seed: int, folder: Path) -> Path:
    return folder / f"{name}-{seed}.npz"


def _journal(name: str, seed: int, folder: Path) -> Path:
    return folder / f"{name}-{seed}.log"


def _storage(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path)))


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
