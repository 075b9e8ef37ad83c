"""`save_to_dashboard`: a study's pictures and notes in Optuna Dashboard."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial

from hypergrad_optuna import arrays, attributes
from hypergrad_optuna.best import best_trial
from hypergrad_optuna.hyperparameters import hyperparameters_of
from hypergrad_optuna.objective import Objective
from hypergrad_optuna.sampler import store_of
from hypergrad_optuna.visualization.arguments import check_names, check_objective, check_study
from hypergrad_optuna.visualization.drawing import plotly
from hypergrad_optuna.visualization.plot_array import plot_array
from hypergrad_optuna.visualization.plot_chains import plot_chains
from hypergrad_optuna.visualization.plot_cost_shares import plot_cost_shares
from hypergrad_optuna.visualization.plot_held_back import plot_held_back
from hypergrad_optuna.visualization.plot_schedules import plot_schedules
from hypergrad_optuna.visualization.plot_trust import plot_trust
from hypergrad_optuna.visualization.steps import Kind, cost_of_trial, kinds_of
from hypergrad_search.hosting import described

#: What is written into notes begins with this line, and replaces what was written before; the user's words above stay.
HEADING = "## Found by hypergrad-search"

#: Larger arrays get no picture: the dashboard reads all pictures of a study whenever it looks for new trials.
MOST_NUMBERS = 10_000


def save_to_dashboard(study: optuna.Study, objective: Objective, *, artifact_store: Any | None = None) -> list[str]:
    """Save a study's pictures and two notes, so that Optuna Dashboard shows them.

    The pictures are those of `hypergrad_optuna.visualization` that there is something to draw for, each array of up to
    10,000 numbers included; the dashboard shows them among the study's plots. A note of the study says what was found:
    the best value and what was held back of it, which numbers became arrays, and how trials ended. A note of the best
    trial says its hyperparameters. Call it again when more trials have ended: it replaces what it has saved, and keeps
    what you have written above it. Another trial that was the best one then loses what was saved of it. The best trial
    is evaluated once more, as `plot_trust` does.

    Args:
        study: the study, whose storage the dashboard reads.
        objective: the study's objective.
        artifact_store: the store that holds the arrays, if the study's sampler was given one; by default that one.

    Returns:
        The ids of the pictures, such as "hypergrad-chains".

    Raises:
        ImportError: Optuna Dashboard or Plotly is missing.
        ValueError: no trial is complete, the study has several objectives, `objective` is that of another study, or an
            argument is of another kind.

    Example:
        >>> from hypergrad_optuna.visualization import save_to_dashboard
        >>> saved = save_to_dashboard(study, objective)  # then run: optuna-dashboard sqlite:///study.db
        >>> "hypergrad-chains" in saved
        True
    """
    plotly("save_to_dashboard")
    try:
        from optuna_dashboard import (  # type: ignore[import-untyped]  # it has no py.typed
            get_note,
            save_note,
            save_plotly_graph_object,
        )
    except ImportError as error:
        raise ImportError(
            "save_to_dashboard needs Optuna Dashboard: pip install 'hypergrad-search[dashboard]'"
        ) from error
    check_study("save_to_dashboard", study)
    check_objective("save_to_dashboard", objective)
    trial, store = best_trial(study), store_of(study, artifact_store)
    check_names("save_to_dashboard", objective, hyperparameters_of(trial, artifact_store=store))
    saved = []
    for name, draw in _pictures(study, objective, trial, store):
        try:
            figure = draw()
        except ValueError:  # there is nothing to draw, as the docstring of each function says
            continue
        figure.update_layout(height=None)  # the dashboard's own; it cuts off what is higher
        saved.append(save_plotly_graph_object(study, figure, graph_object_id=f"hypergrad-{name}"))
    for owner, found in ((study, _of_study(study, trial)), *_of_trials(study, trial, store)):
        own, heading, _ = get_note(owner).partition(HEADING)
        if heading or found:
            parts = [own.rstrip(), *([HEADING, found] if found else [])]
            save_note(owner, "\n\n".join(part for part in parts if part))
    return saved


def _pictures(
    study: optuna.Study, objective: Objective, trial: FrozenTrial, store: Any | None
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the name of each picture, and what draws it."""
    yield "chains", partial(plot_chains, study)
    yield "cost-shares", partial(plot_cost_shares, study)
    yield "held-back", partial(plot_held_back, study)
    yield "schedules", partial(plot_schedules, study, objective, artifact_store=store)
    yield "trust", partial(plot_trust, study, objective, artifact_store=store)
    for name, shape in arrays.shapes(trial).items():
        if np.prod(shape) <= MOST_NUMBERS:
            plain_name = re.sub("[^A-Za-z0-9_.-]", "-", name)
            yield f"array-{plain_name}", partial(plot_array, study, name, artifact_store=store)


def _of_study(study: optuna.Study, best: FrozenTrial) -> str:
    """Return in words what a study has found, as Markdown."""
    kinds = kinds_of(study)
    count = Counter(kind for _, kind in kinds)
    statuses = Counter(trial.user_attrs.get(attributes.STATUS) or trial.state.name.lower() for trial, _ in kinds)
    spent = sum(cost_of_trial(trial) for trial, _ in kinds)
    shapes, lowest = arrays.shapes(best), study.best_trial
    lines = [
        f"- **Best:** trial {best.number}, {_losses(best)}.",
        *([] if lowest == best else [_why_not(lowest)]),
        f"- **Trials:** {len(kinds)} finished: {count[Kind.EXPLORED]} explored, {count[Kind.KEPT]} kept as steps, "
        f"{count[Kind.REFUSED]} refused, {count[Kind.AGAIN]} evaluated again.",
        f"- **Statuses:** {', '.join(f'{status} {number}' for status, number in statuses.most_common())}.",
        f"- **Cost:** {spent:,.0f} gradient evaluations.",
    ]
    if shapes:
        sizes = ", ".join(f"`{name}` ({' x '.join(map(str, shape))})" for name, shape in shapes.items())
        lines.append(f"- **Arrays:** {sizes}.")
    lines.append("- `best_hyperparameters(study)` returns what was found; `study.best_params` has one number an array.")
    return "\n".join(lines)


def _why_not(lowest: FrozenTrial) -> str:
    """Return in words why the trial that the dashboard calls the best one is not."""
    return (
        f"- Trial {lowest.number} has the best value, {lowest.value:.6g}, but its status is "
        f"{lowest.user_attrs.get(attributes.STATUS)}, so that the search does not go on from it."
    )


def _of_trials(study: optuna.Study, best: FrozenTrial, store: Any | None) -> Iterator[tuple[optuna.Trial, str]]:
    """Yield each trial that has a note or gets one, and what it gets: nothing unless it is the best one."""
    # The dashboard takes a `Trial`, which calls its study's sampler when it is made. The study's own may fail then, as
    # the trial has finished; this one does nothing.
    view = optuna.Study(study.study_name, study._storage, sampler=RandomSampler())
    known = study._storage.get_study_system_attrs(study._study_id)  # `get_note` would read all of it for each trial
    for trial in study.get_trials(deepcopy=False):
        if trial.number == best.number:
            yield optuna.Trial(view, trial._trial_id), _of_trial(best, store)
        elif f"dashboard:{trial._trial_id}:note_ver" in known:
            yield optuna.Trial(view, trial._trial_id), ""


def _of_trial(trial: FrozenTrial, store: Any | None) -> str:
    """Return in words what a trial is, as Markdown."""
    parent, message = attributes.wanted(trial).parent, trial.user_attrs.get(attributes.MESSAGE)
    lines = [
        "This is the study's best trial" + ("." if parent is None else f", a step from trial {parent}."),
        f"- {_losses(trial).capitalize()}.",
        *([f"- {message}."] if message else []),
    ]
    for name, value in hyperparameters_of(trial, artifact_store=store).items():
        if np.ndim(value):
            lines.append(f"- `{name}`: {described(np.asarray(value))}.")
        else:
            lines.append(f"- `{name}`: {value:.6g}." if isinstance(value, float) else f"- `{name}`: {value}.")
    return "\n".join(lines)


def _losses(trial: FrozenTrial) -> str:
    held_back, test_loss = trial.user_attrs.get(attributes.CROSS_VALIDATED), trial.user_attrs.get(attributes.TEST_LOSS)
    parts = [f"value {trial.value:.6g}"]
    parts += [] if held_back is None else [f"held-back loss {held_back:.6g}"]
    parts += [] if test_loss is None else [f"test loss {float(test_loss):.6g}"]
    return ", ".join(parts)
