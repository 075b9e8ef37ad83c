"""What the processes of a sweep must know: all of it by name, so that any machine can join."""

import json
import secrets
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import optuna
from optuna.samplers import BaseSampler

from hypergrad_optuna import Objective
from hypergrad_search.space import dimension
from hypergrad_studies.loading import load
from hypergrad_studies.obstacles import obstacle
from hypergrad_studies.posing import named
from hypergrad_studies.rivals import BY_METHOD, DEAR, RIVALS, Rival, Setting, of_factory
from hypergrad_studies.spending import GRADIENT_EVALUATIONS, Budget
from hypergrad_studies.sweep.storages import open_storage
from hypergrad_studies.tasks import ObjectiveTask, Task, TrainingTask


@dataclass(frozen=True)
class Limits:
    """When a study is done: after so many trials, or when they have cost so much; None for no limit."""

    trials: int | None = None
    budget: Budget | None = None

    @property
    def counts(self) -> bool:
        """Whether gradient evaluations are limited."""
        return self.budget is not None and self.budget.unit == GRADIENT_EVALUATIONS


@dataclass(frozen=True)
class Plan:
    """A sweep: its problem and its method as the command line names them, its study, its limits, and its engine.

    `metric` is what counts of the result of a trainable of Ray Tune. `batch` is the number of trials that a process
    trains at once.
    """

    problem: str
    storage: str
    study: str
    method: str
    direction: Literal["minimize", "maximize"]
    limits: Limits
    engine: Literal["optuna", "ray"] = "optuna"
    metric: str = "loss"
    batch: int = 1

    def to_json(self) -> str:
        """Return text that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the plan that `to_json` wrote."""
        data = json.loads(text)
        limits, budget = data.pop("limits"), None
        if limits["budget"] is not None:
            budget = Budget(**limits["budget"])
        return cls(**data, limits=Limits(limits["trials"], budget))

    @property
    def maximises(self) -> bool:
        """Whether higher values are better."""
        return self.direction == "maximize"

    def task(self) -> Task:
        """Return what is tuned. Raises `ValueError` as `posing.named`."""
        return named(self.problem, maximise=self.maximises, metric=self.metric)

    def rival(self) -> Rival:
        """Return what searches, a rival of the registry or a user's own. Raises `ValueError` where it is neither."""
        if self.method in RIVALS | DEAR | BY_METHOD:
            return (RIVALS | DEAR | BY_METHOD)[self.method]
        if ":" not in self.method:
            known = ", ".join(name for name, rival in RIVALS.items() if rival.runs_in(self.engine))
            raise ValueError(f"{self.method!r} is not one of {known}; name one of your own by module:factory")
        return of_factory(self.method, load(self.method))

    def check(self) -> None:
        """Raise `ValueError` where the method cannot search the problem, in one line that says what to do."""
        task, rival = self.task(), self.rival()
        reason = obstacle(rival, task, self.engine, self.limits.budget or Budget(1))
        if reason is None and rival.optimizer is not None:
            reason = f"{rival.name} trains once, and searches nothing; choose another method"
        if reason is None and (rival.tied or rival.resumes):
            reason = f"{rival.name} is for comparisons alone; choose another method"
        if reason is not None:
            raise ValueError(reason)
        if self.batch > 1:
            if self.engine != "optuna" or not isinstance(task, TrainingTask):
                raise ValueError("--batch needs --engine optuna and a training problem; leave it out")
            if self.limits.budget is not None and not self.limits.counts:
                raise ValueError("--batch needs a --budget in gradient evaluations, since its trials share their time")
            self.objective().hosted.check_batches("--batch")

    def join(self, sampler: BaseSampler | None = None) -> optuna.Study:
        """Return the study, which is made where it is not there yet.

        Raises `ValueError` where the storage's name is none, or the study there has another direction.
        """
        study = optuna.create_study(
            storage=open_storage(self.storage),
            study_name=self.study,
            direction=self.direction,
            sampler=sampler,
            load_if_exists=True,
        )
        if study.direction.name.lower() != self.direction:
            raise ValueError(
                f"study {self.study!r} in {self.storage} has the direction {study.direction.name.lower()}, and not "
                f"{self.direction}; choose another --study"
            )
        return study

    def sampler(self) -> BaseSampler:
        """Return a new sampler, with a seed of its own, so that processes do not draw the same points."""
        task, rival = self.task(), self.rival()
        assert rival.sampler is not None
        seed, budget = secrets.randbelow(2**32), self.limits.budget or Budget(1)
        if isinstance(task, TrainingTask):
            return rival.sampler(Setting(seed, budget, dimension(task.space), task.problem.steps))
        return rival.sampler(Setting(seed, budget))

    def objective(self) -> Any:
        """Return what Optuna calls with each trial."""
        task, rival = self.task(), self.rival()
        if isinstance(task, ObjectiveTask):
            return task.objective
        assert isinstance(task, TrainingTask)
        problem, space = task.posed(lifts=bool(rival.lifts))
        return Objective(problem, space, method=rival.how, reseed=task.reseed)
