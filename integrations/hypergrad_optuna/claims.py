"""Claims: processes that share a study agree by them which process takes which step.

A process writes into its own trial which step the trial takes, and then reads the other trials again. Of two processes
that claim the same step at once, at least one sees the other's claim, and chooses anew.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import optuna
from optuna.trial import FrozenTrial, TrialState

from hypergrad_optuna import arrays, attributes
from hypergrad_search.search import Attempt
from hypergrad_search.search.ask_tell import Suggestion, Wanted

#: A trial that has been running for more than twice as long as the longest one so far, and for at least this long, is
#: taken to be dead, and its step is given to the next process that asks.
PATIENCE = timedelta(seconds=5)


def claim(
    study: optuna.Study,
    trial: FrozenTrial,
    ask: Callable[[Sequence[FrozenTrial], list[Attempt]], Suggestion],
    longest: Callable[[], timedelta],
    settled: Callable[[], int],
) -> tuple[list[FrozenTrial], Suggestion]:
    """Return all trials, and a suggestion that no other process is working on.

    `ask` is called with the trials and what others are attempting; `longest` returns how long the longest
    finished trial took, and `settled` a number below which all trials are known to have finished.
    """
    while True:
        trials = read(study)
        suggestion = ask(trials, _running(trials[settled() :], trial, longest()))
        attributes.want(study, trial, suggestion.wanted)
        attempt = suggestion.wanted.attempt
        if attempt.parent is None or attempt not in _running(read(study)[settled() :], trial, longest()):
            return trials, suggestion


def read(study: optuna.Study) -> list[FrozenTrial]:
    """Return all trials as storage holds them now, including those of other Hyperband brackets."""
    return study._get_trials(deepcopy=False, use_cache=False)


def lost_step(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> Wanted | None:
    """Return what was wanted of the dead trial that `trial` runs once more, if that was a step that nobody has taken.

    It is None too where the dead trial had not got all its parameters, so that `trial` gets others.
    """
    first = (trial.system_attrs.get(attributes.WANTED) or {}).get("trial")
    lost = trials[first] if first is not None and first < len(trials) else trial
    step = attributes.wanted(lost)
    if first not in trial.system_attrs.get("retry_history", []) or lost.state != TrialState.FAIL or step.parent is None:
        return None
    parent = trials[int(step.parent)]
    complete = parent.params.keys() <= trial.params.keys() and arrays.shapes(parent) == arrays.shapes(trial)
    taken = any(
        attributes.wanted(t).parent == step.parent and t.params == trial.params and t.state != TrialState.FAIL
        for t in trials
    )
    return step if complete and not taken else None


def _running(trials: Sequence[FrozenTrial], own: FrozenTrial, longest: timedelta) -> list[Attempt]:
    """Return what the trials that other processes are running attempt."""
    earliest = datetime.now() - max(2 * longest, PATIENCE)
    return [
        attributes.wanted(t).attempt
        for t in trials
        if t.state == TrialState.RUNNING
        and attributes.own(t)
        and t.number != own.number
        and (t.datetime_start is None or t.datetime_start > earliest)
    ]
