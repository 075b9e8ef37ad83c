"""The reproductions of the hypernetworks' paper at tiny sizes, and the closed forms behind them."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from jax.flatten_util import ravel_pytree
from rich.console import Console

from hypergrad_search import sgd
from hypergrad_search.hypergradient import Linear
from hypergrad_search.space import from_unit
from hypergrad_studies.cli import cli
from hypergrad_studies.networks import network
from hypergrad_studies.papers.hypernetworks import (
    hypernet_1d,
    hypernet_10,
    hypernet_7850,
    hypernet_depth,
    hypernet_predict,
    penalised,
    race,
    searches,
    splits,
)

Row = dict[str, Any]
TIMED = race.Timed(seed=0, method="random", seconds=1.0, value=1.0, test=1.0, status="ok")


def run(name: str, folder: Path, seeds: int = 1) -> tuple[list[Row], dict[str, Row]]:
    """Run a study, and return its records and its results by quantity."""
    done = CliRunner().invoke(cli, ["reproduce", name, "--seeds", str(seeds), "--out", str(folder)])
    assert done.exit_code == 0, done.output
    assert "</svg>" in (folder / f"{name}.svg").read_text()
    results = json.loads((folder / "results.json").read_text())
    assert {(row["study"], row["seeds"], row["paper"]) for row in results} == {(f"{name} (small)", seeds, None)}
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()], {
        row["quantity"]: row for row in results
    }


def curve(*values: float, seconds: Callable[[int], float] = float) -> list[race.Timed]:
    return [replace(TIMED, seconds=seconds(i), value=value) for i, value in enumerate(values)]


@pytest.mark.slow
def test_7850(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hypernet_7850.SETUPS, "small", replace(hypernet_7850.SETUPS["small"], seconds=0.5))
    records, results = run("hypernet-7850", tmp_path / "hypernet-7850")
    assert {row["method"] for row in records} == {*hypernet_7850.HYPERNETS, "random", "reversible"}
    assert all(row["seconds"] > 0 and 0 < row["value"] < 1 for row in records if row["status"] == "ok")
    assert 0.02 < results["hypernet: validation"]["ours"] < results["random: validation"]["ours"]
    assert results["hypernet: validation, trained from scratch"]["ours"] < results["random: validation"]["ours"]
    assert results["hypernet: time to random search's loss, in units of its time"]["ours"] > 0


@pytest.mark.slow
def test_10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hypernet_10.SETUPS, "small", replace(hypernet_10.SETUPS["small"], seconds=0.5))
    records, results = run("hypernet-10", tmp_path / "hypernet-10")
    assert {row["method"] for row in records} == {*hypernet_10.HYPERNETS, "random", "tpe"}
    assert all(row["seconds"] > 0 and 0 < row["value"] < 1 for row in records if row["status"] == "ok")
    assert all(0.02 < row["ours"] < 0.1 for row in results.values())


@pytest.mark.slow
def test_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(hypernet_predict.SETUPS["small"], held_out=20, hypernet_steps=2000)
    monkeypatch.setitem(hypernet_predict.SETUPS, "small", tiny)
    records, results = run("hypernet-predict", tmp_path / "hypernet-predict")
    assert len(records) == 20 * len(hypernet_predict.PAPER)
    assert all(0.02 < row["true"] < 0.1 for row in records)
    for method in hypernet_predict.PAPER:
        error, lowest, highest = (
            results[f"{method}: {what}"]["ours"] for what in ("mean absolute error", "lowest error", "highest error")
        )
        assert 0 < error <= max(-lowest, highest) < 0.02
    assert results["hypernet, stochastic: rank correlation"]["ours"] > 0.8


@pytest.mark.slow
def test_1d(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hypernet_1d.SETUPS, "small", hypernet_1d.Setup(64, points=13, hypernet_steps=10_000))
    records, results = run("hypernet-1d", tmp_path / "hypernet-1d")
    assert {row["curve"] for row in records} == {"trained", "global", "local", "search"}
    true, learned, ended = (row["ours"] for row in results.values())
    assert abs(learned - true) <= 1.0
    assert hypernet_1d.LOW < ended < hypernet_1d.START - 1.0


@pytest.mark.slow
def test_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hypernet_depth.SETUPS, "small", hypernet_depth.Setup(((64, 10), (64, 5, 10)), steps=500))
    records, results = run("hypernet-depth", tmp_path / "hypernet-depth")
    per_network = len(hypernet_depth.GRID) + 2 * len(hypernet_depth.NETWORKS)
    assert [row["network"] for row in records] == ["64-10"] * per_network + ["64-5-10"] * per_network
    assert all(0.005 < row["ours"] < 0.1 for row in results.values())
    by_hand = [row["value"] for row in records if (row["network"], row["method"]) == ("64-10", "hand-tuned")]
    assert results["64-10, hand-tuned: validation"]["ours"] == min(by_hand)


def test_a_hypernetwork_on_one_setting_learns_what_training_finds_there() -> None:
    problem = penalised.problem(
        splits.small(), (64, 10), optimizer=sgd(0.1, 0.97, dampening=True), steps=2000, batch=1000
    )
    point = jnp.linspace(-1.0, 1.0, 10)
    predict = hypernet_predict.on_settings(problem, Linear(), point[None], steps=2000, seed=0)
    true = searches.train(problem, {"l2_weights_0": jnp.exp(point)}, seed=0).value
    assert float(predict(point[None])[0]) == pytest.approx(true, rel=1e-3)


def test_the_best_response_of_a_linear_model_is_ridge_regression() -> None:
    data = splits.small()
    problem = penalised.problem(data, (64, 10), optimizer=sgd(0.1, 0.97, dampening=True), steps=3000, batch=1000)
    l2 = 0.5
    found = searches.train(problem, {"l2_weights_0": l2, "l2_biases_0": l2}, seed=0)
    inputs, valid = (np.c_[part.images, np.ones(len(part.images))] for part in (data.train, data.valid))
    normal = inputs.T @ inputs / len(inputs) + l2 * penalised.OUTPUTS / penalised.PRECISION * np.eye(65)
    weights = np.linalg.solve(normal, inputs.T @ np.eye(10)[data.train.labels] / len(inputs))
    assert found.value == pytest.approx(np.mean((valid @ weights - np.eye(10)[data.valid.labels]) ** 2), rel=1e-4)


def test_penalties_have_the_order_of_the_weights() -> None:
    space = penalised.penalties((3, 2, 4), 0.1, 1.0)
    params = network(jax.random.key(0), (3, 2, 4), [1.0, 1.0])
    flat, _ = ravel_pytree(params)
    l2 = from_unit(space, np.linspace(0, 1, flat.size))
    by_hand = jnp.sum(0.1 * 10 ** jnp.linspace(0, 1, flat.size) * flat**2)
    assert float(jax.jit(penalised.penalty)(params, l2)) == pytest.approx(float(by_hand), rel=1e-5)


def test_losses_of_the_paper_as_squared_errors() -> None:
    squares = np.array([0.0, 0.04, 0.01])
    losses = squares / (2 * 0.1**2) + math.log(0.1) + math.log(2 * math.pi) / 2
    assert penalised.squared_error(float(losses.mean())) == pytest.approx(squares.mean())


def test_a_race_ends_with_the_time_but_never_before_the_first_evaluation(tmp_path: Path) -> None:
    def search(seed: int) -> Iterator[searches.Attempt]:
        for value in (math.nan, 1.0, 0.5):
            yield searches.Attempt({}, value, value, "ok")

    for seconds, values in ((100.0, [math.nan, 1.0, 0.5]), (0.0, [math.nan])):
        path = tmp_path / "race" / "records.jsonl"
        path.parent.mkdir(exist_ok=True)
        raced = race.race({"random": search}, 2, seconds, path, Console(quiet=True))
        assert [timed.seed for timed, _ in raced] == [seed for seed in (0, 1) for _ in values]
        np.testing.assert_array_equal([found.value for _, found in raced], 2 * values)
        assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == [t.seed for t, _ in raced]


def test_only_what_is_better_than_all_before() -> None:
    evaluations = curve(math.inf, 3, 2, math.nan, 4, 1)
    assert [timed.value for timed in race.best(evaluations, "random", 0)] == [3, 2, 1]
    assert race.best(evaluations[:1], "random", 0) == evaluations[:1]


@pytest.mark.parametrize(
    ("one", "other", "second"),
    [
        ([5, 4, 1], [3, 2.5, 2], 2),
        ([1, 0.5], [3, 2], 0),
        ([3, 2], [1, 0.5], math.inf),
        ([5, 1, 0.5], [3, 2, 0.8], 1),
        ([5, 1, 0.5], [3, 2, 0.5], math.inf),
    ],
)
def test_when_one_search_overtakes_another_for_good(one: list[float], other: list[float], second: float) -> None:
    assert hypernet_7850.overtakes(curve(*one), curve(*other)) == second


def test_when_a_value_is_reached() -> None:
    assert hypernet_7850.reaches(curve(3, 2, 1), 2) == 1
    assert hypernet_7850.reaches(curve(3, 2, 1), 0) == math.inf
