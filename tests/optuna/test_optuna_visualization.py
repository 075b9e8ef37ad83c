"""Pictures of what a study has found: what they show is what the study has."""

import importlib
import math
import sys
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest

from hypergrad_optuna import (
    HypergradSampler,
    Objective,
    best_hyperparameters,
    best_trial,
    report_gradient,
    suggest_array,
)
from hypergrad_optuna.visualization import (
    plot_array,
    plot_chains,
    plot_cost_shares,
    plot_held_back,
    plot_schedules,
    plot_trust,
    save_to_dashboard,
    to_matplotlib,
)
from hypergrad_search import Float, Fold, TrainingProblem, Unrolled, adamw, evaluate, from_function, sgd
from hypergrad_search.search import ExploreDescend
from hypergrad_search.search.ask_tell import Wanted

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
SPACE = {"rate": Float(1e-3, 0.3, log=True), "b1": Float(0.5, 0.95), "decay": Float(1e-4, 1.0, log=True)}


def objective(optimizer: Any = None, **arguments: Any) -> Objective:
    def losses(params: Any) -> Any:
        return jnp.square(jnp.tanh(jnp.asarray(X) @ params["w"]) * params["v"][None] - 0.3).sum(axis=1)

    problem = TrainingProblem(
        init=lambda key, h: {"v": jnp.ones(2), "w": jnp.ones((3, 2))},
        train_loss=lambda params, h, batch, key: losses(params)[:20].mean(),
        valid_loss=lambda params, h: losses(params)[20:],
        batches=lambda step: None,
        optimizer=optimizer or adamw("rate", "b1", weight_decay="decay"),
        steps=12,
    )
    return Objective(problem, SPACE, **arguments)


def study_of(objective: Callable[[Any], float], n_trials: int = 8, **arguments: Any) -> optuna.Study:
    study = optuna.create_study(sampler=HypergradSampler(seed=0), **arguments)
    study.optimize(objective, n_trials=n_trials)
    return study


@pytest.fixture(scope="module")
def made() -> Objective:
    return objective()


@pytest.fixture(scope="module")
def study(made: Objective) -> optuna.Study:
    return study_of(made, 16)


def bowl(shape: tuple[int, ...], *, log: bool = True) -> Callable[[Any], float]:
    """Return an objective whose array is best at numbers that all differ."""
    best = np.linspace(0.1, 5.0, math.prod(shape)).reshape(shape)

    def of(trial: Any) -> float:
        x = suggest_array(trial, "x", shape, 0.01, 10.0, log=log)
        report_gradient(trial, {"x": 2 * (x - best)})
        return float(np.sum((x - best) ** 2))

    return of


def points(figure: Any) -> dict[int, tuple[str, float]]:
    """Return by trial the kind and value of each point."""
    return {
        number: (trace.name, value)
        for trace in figure.data
        if trace.mode == "markers"
        for number, value in zip(trace.x, trace.y, strict=True)
    }


def test_each_leaf_has_a_line_in_the_panel_of_each_schedule(study: optuna.Study, made: Objective) -> None:
    found = best_hyperparameters(study)
    figure = plot_schedules(study, made)
    lines = {(trace.name, trace.yaxis): np.asarray(trace.y) for trace in figure.data}
    layout = figure.layout
    assert [axis.title.text for axis in figure.select_yaxes()] == ["rate", "b1"]  # a decay is no schedule
    for panel, name in (("y", "rate"), ("y2", "b1")):
        for row, leaf in zip(found[name], ("['v']", "['w']"), strict=True):
            assert np.array_equal(lines[leaf, panel], row)
    assert lines["nearest warm-up and cosine", "y"].shape == (12,)
    assert len(lines) == 5
    assert (layout.yaxis.type, layout.yaxis2.type) == ("log", "linear")
    assert layout.xaxis2.title.text == "step of training"
    assert layout.title.text.startswith(f"Schedules of trial {best_trial(study).number}")


@pytest.mark.parametrize(
    ("shape", "given", "wanted"),
    [
        ((8, 2), None, {"": (8, 2)}),
        ((64,), None, {"": (8, 8)}),
        ((6,), None, {"": (1, 6)}),
        ((6,), (2, 3), {"": (2, 3)}),
        ((6, 2), (3, 2), {":, 0": (3, 2), ":, 1": (3, 2)}),
        ((2, 6), (2, 3), {"0, :": (2, 3), "1, :": (2, 3)}),
        ((2, 3, 2), None, {":, :, 0": (2, 3), ":, :, 1": (2, 3)}),
        ((2, 3, 2), (3, 4), {"": (3, 4)}),
    ],
)
def test_an_array_is_an_image_or_several(shape: tuple[int, ...], given: Any, wanted: dict[str, Any]) -> None:
    study = study_of(bowl(shape))
    found = best_hyperparameters(study)["x"]
    assert np.ptp(found) > 0
    figure = plot_array(study, "x", shape=given)
    images = {place: np.array(trace.customdata) for place, trace in zip(wanted, figure.data, strict=True)}
    titles = [note.text for note in figure.layout.annotations]
    assert titles == ([f"[{place}]" for place in wanted] if len(wanted) > 1 else [])
    for place, size in wanted.items():
        index = tuple(slice(None) if part == ":" else int(part) for part in place.split(", ")) if place else ...
        assert np.array_equal(images[place], found[index].reshape(size)), place
    for trace in figure.data:
        assert np.array_equal(trace.z, np.log10(trace.customdata))
    bar = figure.layout.coloraxis.colorbar
    assert np.allclose([float(text) for text in bar.ticktext], 10.0 ** np.array(bar.tickvals), rtol=1e-2)
    assert len(bar.tickvals) > 1
    assert figure.layout.coloraxis.cmin == math.log10(found.min())
    assert figure.layout.coloraxis.cmax == math.log10(found.max())


def test_an_array_of_plain_numbers_has_linear_colours() -> None:
    study = study_of(bowl((3, 3), log=False))
    found = best_hyperparameters(study)["x"]
    figure = plot_array(study, "x")
    assert np.array_equal(figure.data[0].z, found)
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (found.min(), found.max())
    assert figure.layout.coloraxis.colorbar.tickvals is None


def test_arrays_of_other_samplers_are_drawn_too() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(bowl((2, 3)), n_trials=3)
    (image,) = plot_array(study, "x").data
    assert np.array_equal(image.customdata, best_hyperparameters(study)["x"])
    assert np.array_equal(image.z, np.log10(image.customdata))


def test_more_images_than_fit_are_counted() -> None:
    figure = plot_array(study_of(bowl((2, 2, 40))), "x")
    assert len(figure.data) == 36
    assert "the first 36 of 40 images" in figure.layout.title.text


def test_each_trial_is_a_point_and_kept_steps_are_lines(study: optuna.Study) -> None:
    figure = plot_chains(study)
    drawn = points(figure)
    assert {number: value for number, (_, value) in drawn.items()} == {t.number: t.value for t in study.trials}
    parents = {}
    for trial in study.trials:
        wanted, reported = trial.system_attrs["hypergrad:wanted"], trial.user_attrs
        kind = drawn[trial.number][0]
        assert (wanted["parent"] is None) == (kind == "explored")
        assert wanted["again"] == (kind == "evaluated again")
        if wanted["parent"] is not None:
            parents[trial.number] = int(wanted["parent"])
        if reported["hypergrad:status"] == "overfitted":
            assert kind == "step, refused"
    assert {kind for kind, _ in drawn.values()} >= {"explored", "step, kept", "step, refused"}
    # What a later step set out from was kept, or explored.
    assert {drawn[parent][0] for parent in parents.values()} <= {"explored", "step, kept", "evaluated again"}
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    for line in lines:
        first, *rest = line.x
        assert drawn[first][0] == "explored"
        assert line.y == tuple(study.trials[number].value for number in line.x)
        for number in rest:
            assert drawn[number][0] == "step, kept"
            assert parents[number] in line.x
    kept = [number for number, (kind, _) in drawn.items() if kind == "step, kept"]
    assert sorted(number for line in lines for number in line.x[1:]) == kept
    marked = [trace for trace in figure.data if trace.mode == "markers"]
    hovers = {n: text for trace in marked for n, text in zip(trace.x, trace.text, strict=True)}
    best = best_trial(study)
    assert f"trial {best.number}" in hovers[best.number]
    assert f"held-back loss {best.user_attrs['hypergrad:cross_validated']:.6g}" in hovers[best.number]


def test_a_study_that_maximises_keeps_steps_that_go_up() -> None:
    def hill(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -10.0, 10.0)
        report_gradient(trial, {"x": -2 * (x - 2)})
        return -((x - 2) ** 2)

    study = study_of(hill, 10, direction="maximize")
    drawn = points(plot_chains(study))
    for trial in study.trials:
        parent = trial.system_attrs["hypergrad:wanted"]["parent"]
        if parent is not None:
            assert (drawn[trial.number][0] == "step, kept") == (drawn[trial.number][1] > drawn[int(parent)][1])
    assert "step, kept" in {kind for kind, _ in drawn.values()}


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_steps_are_held_against_what_the_search_knows_of_their_parent(
    direction: Literal["minimize", "maximize"],
) -> None:
    """A lucky value is averaged with those of later looks at its point, and steps must beat the average."""
    sign = -1 if direction == "maximize" else 1
    after_the_look = iter([2.5, 1.5])  # the average is 2

    def noisy(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -10.0, 10.0)
        report_gradient(trial, {"x": sign})
        wanted = trial.study._storage.get_trial_system_attrs(trial._trial_id)["hypergrad:wanted"]
        if wanted["parent"] is None:
            loss = 1.0 if trial.number == 0 else 9.0
        elif wanted["again"]:
            loss = 3.0
        else:
            looked = any(t.system_attrs["hypergrad:wanted"]["again"] for t in trial.study.trials[: trial.number])
            loss = next(after_the_look, 0.01 * x) if looked else 4.0
        return sign * loss

    strategy = ExploreDescend(smallest_share=0.0)
    study = optuna.create_study(sampler=HypergradSampler(seed=0, strategy=strategy), direction=direction)
    study.optimize(noisy, n_trials=20)
    drawn = points(plot_chains(study))
    of_value = {sign * value: (number, kind) for number, (kind, value) in drawn.items()}
    assert of_value[3.0][1] == "evaluated again"
    assert of_value[2.5][1] == "step, refused"
    number, kind = of_value[1.5]
    assert kind == "step, kept"
    parents = {trial.system_attrs["hypergrad:wanted"]["parent"] for trial in study.trials}
    assert str(number) in parents, "the search has gone on from it"
    assert str(of_value[2.5][0]) not in parents


def test_trials_that_move_by_themselves_are_kept_unless_they_overfitted() -> None:
    study = optuna.create_study()
    for number, status in enumerate(["ok", "ok", "overfitted"]):
        wanted = Wanted(parent=str(number - 1) if number else None).to_json()
        trial = optuna.create_trial(
            value=3.0 - number,
            user_attrs={"hypergrad:status": status, "hypergrad:refined": {"x": 0.5}},
            system_attrs={"hypergrad:wanted": {**wanted, "trial": number}},
        )
        study.add_trial(trial)
    drawn = points(plot_chains(study))
    assert drawn == {0: ("explored", 3.0), 1: ("step, kept", 2.0), 2: ("step, refused", 1.0)}


def test_trials_without_a_value_are_counted(study: optuna.Study) -> None:
    others = optuna.create_study()
    others.add_trials(study.trials)
    others.add_trial(optuna.create_trial(value=math.inf))
    others.add_trial(optuna.create_trial(state=optuna.trial.TrialState.FAIL))
    figure = plot_chains(others)
    assert "2 trials without a finite value are not drawn" in figure.layout.title.text
    assert len(points(figure)) == len(study.trials)


def test_the_costs_of_both_add_up(study: optuna.Study) -> None:
    figure = plot_cost_shares(study)
    costs = np.array([trial.user_attrs["hypergrad:cost"] for trial in study.trials])
    explores = np.array([trial.system_attrs["hypergrad:wanted"]["parent"] is None for trial in study.trials])
    lines = {(trace.name, trace.yaxis): np.array(trace.y) for trace in figure.data}
    assert np.array_equal(lines["exploring", "y"], np.cumsum(np.where(explores, costs, 0)))
    assert np.array_equal(lines["descending", "y"], np.cumsum(np.where(explores, 0, costs)))
    np.testing.assert_allclose(lines["exploring", "y2"] + lines["descending", "y2"], 100)
    np.testing.assert_allclose(lines["exploring", "y2"], 100 * lines["exploring", "y"] / np.cumsum(costs))
    assert figure.layout.yaxis.title.text == "gradient evaluations"


def test_a_trial_that_reports_no_cost_counts_as_the_search_counts_it() -> None:
    def of(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -1.0, 1.0)
        if trial.number % 2:
            report_gradient(trial, {"x": 2 * x})
        return x**2

    study = optuna.create_study()
    study.optimize(of, n_trials=4)
    assert plot_cost_shares(study).data[0].y == (1.0, 5.0, 6.0, 10.0)


def test_held_back_losses_stand_against_those_on_the_whole(study: optuna.Study) -> None:
    figure = plot_held_back(study)
    drawn = {(x, y) for trace in figure.data if trace.mode == "markers" for x, y in zip(trace.x, trace.y, strict=True)}
    known = {
        (float(t.value or 0.0), t.user_attrs["hypergrad:cross_validated"])
        for t in study.trials
        if t.user_attrs["hypergrad:status"] == "ok"
    }
    assert drawn == known
    assert any(x != y for x, y in known)
    both = [loss for pair in known for loss in pair]
    equal, layout = figure.data[0], figure.layout
    assert equal.x == equal.y
    assert (equal.x[0], equal.x[-1]) == (min(both), max(both))
    assert layout.xaxis.type == layout.yaxis.type


@pytest.mark.parametrize("wide", ["whole", "held back"])
@pytest.mark.parametrize(("losses", "kind"), [([0.5, 40.0], "log"), ([0.5, 2.0], "linear"), ([-0.5, 40.0], "linear")])
def test_both_losses_have_the_same_axis(losses: list[float], kind: str, wide: str) -> None:
    study = optuna.create_study()
    for loss in losses:
        whole, held_back = (loss, 1.0) if wide == "whole" else (1.0, loss)
        study.add_trial(optuna.create_trial(value=whole, user_attrs={"hypergrad:cross_validated": held_back}))
    study.add_trial(optuna.create_trial(value=1.0, user_attrs={"hypergrad:cross_validated": math.inf}))
    figure = plot_held_back(study)
    equal, layout = figure.data[0], figure.layout
    assert (layout.xaxis.type, layout.yaxis.type) == (kind, kind)
    assert equal.x == equal.y
    assert (equal.x[0], equal.x[-1]) == (min(losses), max(losses))
    # No two neighbours are far from one another on this axis.
    gaps = np.diff(np.log(equal.x) if kind == "log" else equal.x)
    assert len(gaps) > 10
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-6)


def test_the_growth_of_the_adjoint_is_that_of_an_evaluation(study: optuna.Study, made: Objective) -> None:
    best = best_trial(study)
    fold = best.system_attrs["hypergrad:wanted"]["fold"]
    hosted = made.hosted
    found = evaluate(
        hosted.problem, best_hyperparameters(study), key=jax.random.key(0), fold=Fold(fold["index"], fold["of"])
    )
    norms = np.array(found.diagnostics["adjoint_norms"])
    figure = plot_trust(study, made)
    growth, harmless, most = figure.data
    assert growth.x == tuple(range(13))
    assert np.array_equal(growth.y, norms / norms[-1])
    assert (harmless.y, most.y) == ((100, 100), (1000, 1000))
    assert found.trust is not None
    said = f"largest growth {max(norms) / norms[-1]:.3g}, trust {min(found.trust.values()):.2f}"
    assert said in figure.layout.title.text


def test_an_exploded_gradient_is_drawn() -> None:
    problem = TrainingProblem(
        init=lambda key, h: jnp.float32(1e-3),
        train_loss=lambda w, h, batch, key: -0.5 * w**2 * h["curvature"],
        valid_loss=lambda w, h: 1e-6 * w**2,
        batches=lambda step: None,
        optimizer=sgd(1.0, 0.5),
        steps=10,
    )
    made = Objective(problem, {"curvature": Float(1.0, 8.0)})
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.enqueue_trial({"curvature": 2.0})
    study.optimize(made, n_trials=1)
    assert study.trials[0].user_attrs["hypergrad:status"] == "exploded"
    growth = plot_trust(study, made, trial=study.trials[0]).data[0]
    # A step is `v = v / 2 + 2 * w; w += v`, and this takes the adjoints of w and v back by one step.
    back = np.array([[1 + 2, 2], [0.5, 0.5]])
    adjoint, norms = np.array([1.0, 0.0]), [1.0]
    for _ in range(10):
        adjoint = back @ adjoint
        norms.append(adjoint[0])
    np.testing.assert_allclose(growth.y, norms[::-1], rtol=1e-5)


def test_matplotlib_draws_the_same_numbers(study: optuna.Study, made: Objective) -> None:
    figures = [plot_chains(study), plot_cost_shares(study), plot_held_back(study), plot_trust(study, made)]
    for figure in [*figures, plot_schedules(study, made)]:
        drawn = to_matplotlib(figure)
        lines = [line.get_xydata() for axes in drawn.axes for line in axes.get_lines()]
        axes = [trace.yaxis or "y" for trace in figure.data]
        in_order = [trace for name in dict.fromkeys(axes) for trace in figure.data if (trace.yaxis or "y") == name]
        for trace, line in zip(in_order, lines, strict=True):
            assert np.array_equal(line, np.array([trace.x, trace.y], float).T, equal_nan=True)
        assert figure.layout.title.text.startswith(drawn.texts[0].get_text())
        drawn.canvas.draw()


def test_matplotlib_draws_the_same_images() -> None:
    figure = plot_array(study_of(bowl((4, 3, 2))), "x")
    drawn = to_matplotlib(figure)
    images = [np.asarray(axes.get_images()[0].get_array()) for axes in drawn.axes if axes.get_images()]
    assert np.array_equal(images, [trace.z for trace in figure.data])
    assert [text.get_text() for text in drawn.texts][-2:] == ["[:, :, 0]", "[:, :, 1]"]
    bar = figure.layout.coloraxis.colorbar
    assert [label.get_text() for label in drawn.axes[-1].get_yticklabels()] == list(bar.ticktext)
    drawn.canvas.draw()


@pytest.mark.filterwarnings("ignore:nothing in this problem reads")
def test_what_cannot_be_drawn_is_refused(study: optuna.Study, made: Objective) -> None:
    numbers, empty = objective(adamw(0.1, weight_decay="decay")), optuna.create_study()
    with pytest.raises(ValueError, match="plot_schedules: no setting of the optimizer uses a hyperparameter"):
        plot_schedules(study_of(numbers), numbers)
    with pytest.raises(ValueError, match="plot_schedules: objective must be an Objective, got 3"):
        plot_schedules(empty, 3)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match="plot_trust: objective must be an Objective, got 3"):
        plot_trust(study, 3)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match=r"plot_trust: trial must be a finished trial such as .*, got 3"):
        plot_trust(study, made, trial=3)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match=r"with Unrolled has no norms of an adjoint.*method=Reversible\(\)"):
        plot_trust(study, objective(method=Unrolled()))
    function = Objective(from_function(lambda h: h["x"] ** 2), {"x": Float(-1.0, 2.0)})
    with pytest.raises(ValueError, match="plot_trust: a function has no adjoint by steps"):
        plot_trust(study_of(function), function)
    with pytest.raises(ValueError, match=r"plot_array: name must be .*\['b1', 'decay', 'rate'\], got 'lr'.*lift="):
        plot_array(study, "lr")
    with pytest.raises(ValueError, match=r"plot_array: shape must be that of 15 pixels .* shape is \(2, 12\)"):
        plot_array(study, "rate", shape=(3, 5))
    with pytest.raises(ValueError, match="plot_array: shape must be the height and width of an image, got 3"):
        plot_array(study, "rate", shape=3)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match=r"plot_chains: no trial has a finite value; run study\.optimize"):
        plot_chains(empty)
    with pytest.raises(ValueError, match=r"plot_cost_shares: no trial has finished; run study\.optimize"):
        plot_cost_shares(empty)
    with pytest.raises(ValueError, match="plot_held_back: no trial has a held-back loss; return the losses"):
        plot_held_back(study_of(bowl((2,))))
    with pytest.raises(ValueError, match="to_matplotlib: figure must be what plot_chains and its like return, got 3"):
        to_matplotlib(3)


def test_matplotlib_refuses_figures_of_others(study: optuna.Study) -> None:
    go = importlib.import_module("plotly.graph_objects")
    others = [
        go.Figure(),
        go.Figure(go.Scatter(x=[1, 2], y=[3, 4], mode="markers"), layout={"title": "one of mine"}),
        optuna.visualization.plot_optimization_history(study),
    ]
    for figure in others:
        with pytest.raises(ValueError, match="to_matplotlib: figure must be what plot_chains and its like return, got"):
            to_matplotlib(figure)
    to_matplotlib(go.Figure(plot_chains(study).to_dict()))  # a copy is the same picture
    with pytest.raises(ValueError, match="figure must have lines, points and images alone, got a bar"):
        to_matplotlib(plot_chains(study).add_bar(x=[1], y=[2]))
    for marks in ({}, {"marker": {"size": 8, "symbol": "star"}}, {"marker": {"size": [1, 2]}}):
        with pytest.raises(ValueError, match="figure must have the points that plot_chains and its like draw"):
            to_matplotlib(plot_chains(study).add_scatter(x=[1, 2], y=[2, 3], mode="markers", **marks))


@pytest.mark.parametrize("name", ["plot_schedules", "plot_trust", "save_to_dashboard"])
def test_the_objective_of_another_study_is_refused(name: str, made: Objective) -> None:
    other = study_of(bowl((2,)), 2)
    match = rf"{name}: objective must be that of the study, .* are \['x'\], got .* has \['b1', 'decay', 'rate'\]"
    with pytest.raises(ValueError, match=match):
        PICTURES[name](other, made)


PICTURES: dict[str, Callable[[Any, Any], Any]] = {
    "plot_array": lambda study, objective: plot_array(study, "rate"),
    "plot_chains": lambda study, objective: plot_chains(study),
    "plot_cost_shares": lambda study, objective: plot_cost_shares(study),
    "plot_held_back": lambda study, objective: plot_held_back(study),
    "plot_schedules": plot_schedules,
    "plot_trust": plot_trust,
    "save_to_dashboard": save_to_dashboard,
}


@pytest.mark.parametrize("name", PICTURES)
def test_each_asks_for_plotly_and_for_a_study(
    name: str, study: optuna.Study, made: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=f"{name}: study must be a study of Optuna, got 3"):
        PICTURES[name](3, made)
    several = optuna.create_study(directions=["minimize", "maximize"])
    several.add_trial(optuna.create_trial(values=[1.0, 2.0]))
    with pytest.raises(ValueError, match=f"{name}: study must have one objective, got one with 2"):
        PICTURES[name](several, made)
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ImportError, match=rf"{name} needs Plotly: pip install 'hypergrad-search\[visualization\]'"):
        PICTURES[name](study, made)


def test_the_others_say_what_they_lack(study: optuna.Study, made: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="to_matplotlib needs Matplotlib: pip install matplotlib"):
        to_matplotlib(plot_chains(study))
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(ImportError, match=r"save_to_dashboard needs .*: pip install 'hypergrad-search\[dashboard\]'"):
        save_to_dashboard(study, made)
