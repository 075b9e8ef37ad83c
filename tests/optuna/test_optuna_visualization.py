"""Pictures of what a study has found."""

import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import optuna
import pytest

from hypergrad_optuna import HypergradSampler, Objective, best_hyperparameters
from hypergrad_optuna.visualization import plot_schedules
from hypergrad_search import Float, TrainingProblem, adamw

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
SPACE = {"rate": Float(1e-3, 0.3, log=True), "b1": Float(0.5, 0.95), "decay": Float(1e-4, 1.0, log=True)}


def objective(optimizer: Any = None) -> Objective:
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
    return Objective(problem, SPACE)


def study_of(objective: Objective) -> optuna.Study:
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(objective, n_trials=8)
    return study


def test_each_leaf_has_a_line_in_the_panel_of_each_schedule() -> None:
    made = objective()
    study = study_of(made)
    found = best_hyperparameters(study)
    figure = plot_schedules(study, made)
    lines = {(trace.name, trace.yaxis): np.asarray(trace.y) for trace in figure.data}
    assert [title.text for title in figure.layout.annotations] == ["rate", "b1"]  # a decay is no schedule
    for panel, name in (("y", "rate"), ("y2", "b1")):
        for row, leaf in zip(found[name], ("['v']", "['w']"), strict=True):
            assert np.array_equal(lines[leaf, panel], row)
    assert lines["warm-up and cosine", "y"].shape == (12,)
    assert len(lines) == 5
    assert (figure.layout.yaxis.type, figure.layout.yaxis2.type) == ("log", "linear")


def test_what_cannot_be_drawn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = objective(adamw(0.1, weight_decay="decay"))
    with pytest.raises(ValueError, match="plot_schedules: no setting of the optimizer uses a hyperparameter"):
        plot_schedules(study_of(numbers), numbers)
    with pytest.raises(ValueError, match="plot_schedules: objective must be an Objective, got 3"):
        plot_schedules(optuna.create_study(), 3)  # type: ignore[arg-type]  # wrong on purpose
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ImportError, match=r"pip install 'hypergrad-search\[visualization\]'"):
        plot_schedules(optuna.create_study(), numbers)
