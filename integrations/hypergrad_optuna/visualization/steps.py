"""What each trial was to the search: a point that it explored, a step that it kept or refused, or a second look."""

from collections.abc import Sequence
from enum import StrEnum

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hypergrad_optuna import attributes
from hypergrad_optuna.visualization.drawing import hover
from hypergrad_search.search.ask_tell import OVERFITTED


class Kind(StrEnum):
    """What a trial was to the search.

    `EXPLORED`: the explorer, the user or another sampler chose the point. `KEPT`: a step along a gradient that became
    the head of its chain. `REFUSED`: one that did not. `AGAIN`: the parent's own hyperparameters once more.
    """

    EXPLORED = "explored"
    KEPT = "step, kept"
    REFUSED = "step, refused"
    AGAIN = "evaluated again"


def kind_of(trial: FrozenTrial, trials: Sequence[FrozenTrial], *, maximise: bool) -> Kind:
    """Return what a finished trial was to the search; `trials` are all of the study, by number."""
    wanted, reported = attributes.wanted(trial), trial.user_attrs
    if wanted.parent is None:
        return Kind.EXPLORED
    if wanted.again:
        return Kind.AGAIN
    if trial.state != TrialState.COMPLETE or reported.get(attributes.STATUS) == OVERFITTED or trial.value is None:
        return Kind.REFUSED
    if reported.get(attributes.REFINED):  # the evaluation moved by itself
        return Kind.KEPT
    before = trials[int(wanted.parent)].value
    gained = before is not None and (trial.value > before if maximise else trial.value < before)
    return Kind.KEPT if gained and reported.get(attributes.GRADIENT) is not None else Kind.REFUSED


def kinds_of(study: optuna.Study) -> list[tuple[FrozenTrial, Kind]]:
    """Return the finished trials of a study with what each was to the search."""
    trials = study.get_trials(deepcopy=False)
    maximise = study.direction == StudyDirection.MAXIMIZE
    return [(trial, kind_of(trial, trials, maximise=maximise)) for trial in trials if trial.state.is_finished()]


def hover_of(trial: FrozenTrial, kind: Kind) -> str:
    """Return the text that appears over a trial's point."""
    reported, parent = trial.user_attrs, attributes.wanted(trial).parent
    status, cost = reported.get(attributes.STATUS), reported.get(attributes.COST)
    held_back, test_loss = reported.get(attributes.CROSS_VALIDATED), reported.get(attributes.TEST_LOSS)
    trust = reported.get(attributes.TRUST)
    return hover(
        [
            f"<b>trial {trial.number}</b>: {kind}" + ("" if parent is None else f" from trial {parent}"),
            "" if trial.value is None else f"value {trial.value:.6g}",
            "" if held_back is None else f"held-back loss {held_back:.6g}",
            "" if test_loss is None else f"test loss {float(test_loss):.6g}",
            "" if status is None else f"status {status}",
            "" if not trust else f"least trust of its gradient {min(trust.values()):.2f}",
            "" if cost is None else f"cost {cost:,.0f} gradient evaluations",
        ]
    )
