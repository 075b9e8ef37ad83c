"""What each trial was to the search: a point that it explored, a step that it kept or refused, or a second look."""

from enum import StrEnum

import optuna
from optuna.trial import FrozenTrial, TrialState

from hypergrad_optuna import attributes
from hypergrad_optuna.visualization.drawing import GREEN, GREY, ORANGE, VERMILION, hover
from hypergrad_search.search.ask_tell import OVERFITTED, cost_of


class Kind(StrEnum):
    """What a trial was to the search.

    `EXPLORED`: the explorer, the user or another sampler chose the point. `KEPT`: a step along a gradient that became
    the head of its chain. `REFUSED`: one that did not. `AGAIN`: the parent's own hyperparameters once more.
    """

    EXPLORED = "explored"
    KEPT = "step, kept"
    REFUSED = "step, refused"
    AGAIN = "evaluated again"


#: The colour of each kind, the same in all pictures.
COLOUR_OF = {Kind.EXPLORED: GREY, Kind.KEPT: GREEN, Kind.REFUSED: VERMILION, Kind.AGAIN: ORANGE}


def kind_of(trial: FrozenTrial) -> Kind:
    """Return what a finished trial was to the search.

    A step was kept if it is better than its parent was to the search when the search asked for the step. Where values
    vary, that is the average of all evaluations of the parent so far, and need not be the parent's own value.
    """
    wanted, reported = attributes.wanted(trial), trial.user_attrs
    if wanted.parent is None:
        return Kind.EXPLORED
    if wanted.again:
        return Kind.AGAIN
    if trial.state != TrialState.COMPLETE or reported.get(attributes.STATUS) == OVERFITTED or trial.value is None:
        return Kind.REFUSED
    if reported.get(attributes.REFINED):  # the evaluation moved by itself
        return Kind.KEPT
    has_gradient = reported.get(attributes.GRADIENT) is not None
    return Kind.KEPT if has_gradient and wanted.wants_gradient(trial.value) else Kind.REFUSED


def kinds_of(study: optuna.Study) -> list[tuple[FrozenTrial, Kind]]:
    """Return the finished trials of a study with what each was to the search."""
    return [(trial, kind_of(trial)) for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def cost_of_trial(trial: FrozenTrial) -> float:
    """Return the cost of a finished trial as the search counts it, in gradient evaluations."""
    reported = trial.user_attrs
    return cost_of(reported.get(attributes.COST), has_gradient=reported.get(attributes.GRADIENT) is not None)


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
