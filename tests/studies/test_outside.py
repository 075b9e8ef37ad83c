"""Optimizers of other packages search Optuna's spaces: what they are told, and what they return."""

import importlib
import math
from collections.abc import Mapping
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hypergrad_studies.outside import Distributions, Outside, OutsideSampler

SPACE: Distributions = {
    "x[0,1]": FloatDistribution(-5.0, 5.0),
    "rate": FloatDistribution(1e-4, 1.0, log=True),
    "width": IntDistribution(1, 30, log=True),
    "depth": IntDistribution(-3, 3),
    "kind": CategoricalDistribution((None, "a", 2.5)),
}
POINT = {"x[0,1]": 1.25, "rate": 0.01, "width": 7, "depth": -2, "kind": 2.5}


class Countdown(Outside[dict[str, Any]]):
    """An optimizer that asks for -1, -2, ... and notes what it is told."""

    def __init__(self, space: Distributions) -> None:
        self.space = space
        self.asked = 0
        self.told: list[tuple[float, float]] = []

    def ask(self) -> dict[str, Any]:
        self.asked += 1
        return {"x": -float(self.asked)}

    def tell(self, point: dict[str, Any], loss: float) -> None:
        self.told.append((point["x"], loss))

    def values(self, point: dict[str, Any]) -> dict[str, Any]:
        return point

    def point(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return dict(values)


def test_all_trials_are_told_once_and_failed_ones_as_the_worst() -> None:
    made: list[Countdown] = []

    def make(space: Distributions) -> Countdown:
        made.append(Countdown(space))
        return made[0]

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("constant", 1.0, 1.0)
        x = trial.suggest_float("x", -10.0, 10.0)
        return {4.0: math.inf, -1.0: 7.0, -2.0: math.inf, -3.0: math.nan}.get(x, 1.0)

    study = optuna.create_study(sampler=OutsideSampler(0, make))
    study.enqueue_trial({"x": 4.0})
    study.optimize(objective, n_trials=6)
    (outside,) = made
    assert outside.space == {"x": FloatDistribution(-10.0, 10.0)}
    assert [trial.params["x"] for trial in study.trials] == [4.0, -1.0, -2.0, -3.0, -4.0, -5.0]
    assert outside.told == [(4.0, 7.0), (-1.0, 7.0), (-2.0, 7.0), (-3.0, 7.0), (-4.0, 1.0)]


@pytest.fixture(params=[("smac", "Smac"), ("nevergrad", "Nevergrad")], ids=["smac", "nevergrad"])
def adapter(request: pytest.FixtureRequest) -> Any:
    """Return the adapter of a package, where it is installed."""
    name, adapter = request.param
    pytest.importorskip(name)
    return getattr(importlib.import_module(f"hypergrad_studies.{name}"), adapter)


@pytest.fixture
def outside(adapter: Any) -> Outside[Any]:
    made: Outside[Any] = adapter(SPACE, seed=0, trials=20)
    return made


def test_points_are_translated_both_ways(outside: Outside[Any]) -> None:
    values = outside.values(outside.point(POINT))
    assert values == pytest.approx(POINT)
    assert {name: type(value) for name, value in values.items()} == {name: type(v) for name, v in POINT.items()}


def test_what_is_asked_for_is_in_the_space(outside: Outside[Any]) -> None:
    outside.tell(outside.point(POINT), 3.0)
    seen = []
    for _ in range(25):  # beyond the budget too
        point = outside.ask()
        values = outside.values(point)
        seen.append(values)
        outside.tell(point, abs(values["x[0,1]"]) + values["width"])
    for name, distribution in SPACE.items():
        assert all(distribution._contains(distribution.to_internal_repr(values[name])) for values in seen)
        assert len({values[name] for values in seen}) > 1


def test_a_kind_that_is_unknown_is_refused(adapter: Any) -> None:
    with pytest.raises(ValueError, match="'x' must be a float, an int or a categorical, got None"):
        adapter({"x": None}, seed=0, trials=20)
