"""Claims: processes that share a study agree by them which process takes which step.

A process writes into its own trial which chain the trial extends, and then reads the other trials again. Of two
processes that claim the same step at once, at least one sees the other's claim, and chooses anew.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import optuna
from optuna.trial import FrozenTrial, TrialState

from hypergrad_optuna import attributes
from hypergrad_search.search.ask_tell import Suggestion

#: A trial that has been running for more than twice as long as the longest one so far, and for at least this long, is
#: taken to be dead, and its step is given to the next process that asks.
PATIENCE = timedelta(seconds=5)


def claim(
    study: optuna.Study,
    trial: FrozenTrial,
    ask: Callable[[Sequence[FrozenTrial], list[str | None]], Suggestion],
    longest: Callable[[], timedelta],
) -> tuple[list[FrozenTrial], Suggestion]:
    """Return all trials, and a suggestion that no other process is working on.

    `ask` is called with the trials and the parents that others are extending; `longest` returns how long the longest
    finished trial took.
    """
    while True:
        trials = read(study)
        suggestion = ask(trials, _running(trials, trial, longest()))
        attributes.want(study, trial, suggestion.wanted)
        parent = suggestion.wanted.parent
        if parent is None or parent not in _running(read(study), trial, longest()):
            return trials, suggestion


def read(study: optuna.Study) -> list[FrozenTrial]:
    """Return all trials as storage holds them now, including those of other Hyperband brackets."""
    return study._get_trials(deepcopy=False, use_cache=False)


def _running(trials: Sequence[FrozenTrial], own: FrozenTrial, longest: timedelta) -> list[str | None]:
    """Return the parents of the trials that other processes are running, None for a trial that explores."""
    earliest = datetime.now() - max(2 * longest, PATIENCE)
    return [
        attributes.wanted(t).parent
        for t in trials
        if t.state == TrialState.RUNNING
        and attributes.WANTED in t.system_attrs
        and t.number != own.number
        and (t.datetime_start is None or t.datetime_start > earliest)
    ]
