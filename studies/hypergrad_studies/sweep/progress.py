"""How far a study is, from its storage alone, whoever works on it."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from hypergrad_optuna import attributes, best_trial
from hypergrad_search.checks import shown
from hypergrad_studies.spending import SECONDS, Budget
from hypergrad_studies.sweep.plan import Limits
from hypergrad_studies.sweep.storages import open_storage

FEW = 20  # so many hyperparameters are shown


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    - `states`: the number of trials in each state.
    - `taken_over`: the number of trials whose process died, and whose hyperparameters another trial has taken over.
    - `evaluations`: the gradient evaluations that trials say they cost.
    - `seconds`: the seconds that trials took, added up.
    - `best`: the best trial, None where none is sound.
    """

    states: Counter[TrialState]
    taken_over: int
    evaluations: float
    seconds: float
    best: FrozenTrial | None

    @property
    def done(self) -> int:
        """The number of trials that have ended; one that another has taken over does not count."""
        ended = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        return sum(self.states[state] for state in ended) - self.taken_over

    @property
    def running(self) -> int:
        """The number of trials under way, or taken to be."""
        return self.states[TrialState.RUNNING]

    def reached(self, limits: Limits, *, with_running: bool = False) -> bool:
        """Return whether a limit is reached; `with_running` counts the trials under way as ended."""
        if limits.budget is not None and self.spent(limits.budget) >= limits.budget.amount:
            return True
        return limits.trials is not None and self.done + with_running * self.running >= limits.trials

    def left(self, limits: Limits) -> float:
        """Return the number of trials until the limit, those under way not counted; infinite where there is none."""
        return math.inf if limits.trials is None else limits.trials - self.done

    @property
    def says_costs(self) -> bool:
        """Whether the trials that are complete say what they cost, as far as there are any."""
        return bool(self.evaluations) or not self.states[TrialState.COMPLETE]

    def spent(self, budget: Budget) -> float:
        """Return what the trials have cost, in the budget's unit."""
        return self.seconds if budget.unit == SECONDS else self.evaluations


def progress(study: optuna.Study) -> Progress:
    """Return how far a study is."""
    trials = study.get_trials(deepcopy=False)
    return Progress(
        Counter(trial.state for trial in trials),
        len({number for trial in trials for number in trial.system_attrs.get("retry_history", ())}),
        sum(trial.user_attrs.get(attributes.COST, 0) for trial in trials),
        sum(trial.duration.total_seconds() for trial in trials if trial.duration is not None),
        _best(study, trials),
    )


def _best(study: optuna.Study, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    if all(trial.state is not TrialState.COMPLETE for trial in trials):
        return None
    try:
        return best_trial(study)
    except ValueError:  # no trial is sound
        return None


def table(study: optuna.Study) -> Table:
    """Return what `hypergrad sweep status` shows."""
    found = progress(study)
    view = Table(title=study.study_name, box=None, show_header=False)
    view.add_column(justify="right")
    view.add_column(overflow="fold")
    for state in TrialState:
        if found.states[state]:
            view.add_row(f"{found.states[state]:,}", state.name.lower())
    if found.taken_over:
        view.add_row(f"{found.taken_over:,}", "of the failed ones were taken over, since their process died")
    if found.evaluations:
        view.add_row(f"{found.evaluations:,.0f}", "gradient evaluations")
    view.add_row(f"{found.seconds:,.1f}", "seconds of trials")
    if found.best is None:
        view.add_row("none", "is the best trial yet")
        return view
    add_best(
        view, f"{found.best.value:.6g}", f"is the best value, of trial {found.best.number}, with", found.best.params
    )
    return view


def add_best(view: Table, value: str, words: str, hyperparameters: Mapping[str, Any]) -> None:
    """Add the best value to a table, and the first of its hyperparameters."""
    view.add_row(value, words)
    for name, chosen in list(hyperparameters.items())[:FEW]:
        view.add_row(_brief(chosen), name)
    if len(hyperparameters) > FEW:
        view.add_row("...", f"{len(hyperparameters) - FEW} more")


def _brief(value: Any) -> str:
    if isinstance(value, np.ndarray):
        low, high = f"{value.min():.4g}", f"{value.max():.4g}"
        return f"{low if low == high else f'{low} to {high}'} in {'x'.join(map(str, value.shape))}"
    return f"{value:.6g}" if isinstance(value, float) else shown(value)


def find(storage: str, name: str) -> optuna.Study:
    """Return the study of a name. Raises `ValueError` where the storage has none, or is none."""
    opened = open_storage(storage)
    names = optuna.get_all_study_names(opened)
    if name not in names:
        raise ValueError(f"{storage} has no study {name!r}; it has {', '.join(names) or 'none'}")
    return optuna.load_study(study_name=name, storage=opened)
