"""Outer loops that an Optuna sampler leads."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from hypergrad_optuna import Objective, best_hyperparameters
from hypergrad_optuna.attributes import COST, STATUS, TEST_LOSS
from hypergrad_studies.papers.reversible_learning.outer import Iteration, OuterLoop


@dataclass(frozen=True, eq=False)
class Sampled(OuterLoop):
    """An Optuna study whose first trial is at the start. Its outcome is its best trial.

    `sampler` makes the sampler from a seed.
    """

    sampler: Callable[[int], optuna.samplers.BaseSampler] = optuna.samplers.RandomSampler

    def run(self, name: str, seed: int, folder: Path) -> Iterator[Iteration]:
        """See `OuterLoop`."""
        study = self._resumed(name, seed, folder)
        objective = Objective(self.problem, self.space, key=jax.random.key(seed), reseed=self.reseed)
        done = _finished(study)
        if not done:
            study.enqueue_trial(dict(self.start))
        else:  # with the same seed the sampler would draw the same points again
            (again,) = np.random.SeedSequence([seed, len(done)]).generate_state(1)
            study.sampler = self.sampler(int(again))
        for i in range(self.iterations + 1):
            if i == len(done):
                study.optimize(objective, n_trials=1)
                done = _finished(study)
            yield self._iteration(done[i], name, seed, i)

    def outcome(self, iterations: Sequence[Iteration]) -> Iteration:
        """See `OuterLoop`."""
        return min(iterations, key=lambda i: i.value)

    def found(self, name: str, seed: int, folder: Path) -> dict[str, np.ndarray]:
        """See `OuterLoop`."""
        found = best_hyperparameters(self._study(name, seed, folder))
        return {n: np.asarray(found[n], np.float32) for n in self.space}

    def _iteration(self, trial: FrozenTrial, name: str, seed: int, number: int) -> Iteration:
        test, duration = trial.user_attrs.get(TEST_LOSS), trial.duration
        return Iteration(
            search=name,
            seed=seed,
            iteration=number,
            value=math.inf if trial.value is None else trial.value,
            test=math.nan if test is None else float(test),
            status=trial.user_attrs[STATUS],
            gradient_evaluations=self.networks * float(trial.user_attrs[COST]),
            seconds=0.0 if duration is None else duration.total_seconds(),
        )

    def _resumed(self, name: str, seed: int, folder: Path) -> optuna.Study:
        """Return the study without a trial that was cut off, whose step the sampler would count as taken or failed."""
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


def _journal(name: str, seed: int, folder: Path) -> Path:
    return folder / f"{name}-{seed}.log"


def _storage(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path)))


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
