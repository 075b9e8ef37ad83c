"""Each way to the gradient searches in Ray Tune by one argument of the trainable, in this process."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_ray import HypergradSearch, trainable
from hypergrad_search import (
    DrMAD,
    Float,
    Forward,
    Implicit,
    Method,
    OnePass,
    Persistent,
    RealTime,
    Smoothed,
    Space,
    TrainingProblem,
    sgd,
)

RNG = np.random.default_rng(0)
X, X_VALID = np.float32(RNG.normal(size=(20, 5))), np.float32(RNG.normal(size=(30, 5)))
TRUTH = np.array([1.0, 0.0, -1.0, 0.0, 0.5], np.float32)
Y, Y_VALID = X @ TRUTH + np.float32(RNG.normal(size=20)), X_VALID @ TRUTH
SPACE: Space = {"penalty": Float(1e-3, 10.0, log=True, shape=(5,))}
PROBLEM = TrainingProblem(
    init=lambda key, h: jnp.zeros(5),
    train_loss=lambda p, h, b, k: jnp.mean((X @ p - Y) ** 2) + jnp.sum(h["penalty"] * p**2),
    valid_loss=lambda p, h: (X_VALID @ p - Y_VALID) ** 2,
    batches=lambda step: None,
    optimizer=sgd(0.1, 0.5),
    steps=30,
)


def flat(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result as Ray hands it to a searcher."""
    parts = {name: part for name, part in result.items() if isinstance(part, dict)}
    inner = {f"{name}/{key}": value for name, part in parts.items() for key, value in part.items()}
    return {name: value for name, value in result.items() if name not in parts} | inner


@pytest.mark.parametrize("method", [Implicit(), Forward(), DrMAD(), Smoothed()], ids=lambda x: type(x).__name__)
def test_it_searches_by_each_method(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.tune.report", reported.append)
    searcher, run = HypergradSearch(SPACE, metric="loss", mode="min", seed=0), trainable(PROBLEM, SPACE, method=method)
    for number in range(8):
        config = searcher.suggest(str(number))
        assert isinstance(config, dict)
        run(config)
        searcher.on_trial_complete(str(number), flat({**reported[-1], "training_iteration": 1}))
    assert {result["status"] for result in reported} <= {"ok", "overfitted"}
    assert any(trial.parent is not None for trial in searcher._observations.values())
    assert min(result["loss"] for result in reported) < 0.97 * reported[0]["loss"]


@pytest.mark.parametrize("method", [OnePass(), Persistent(), RealTime()], ids=lambda x: type(x).__name__)
def test_it_goes_on_by_each_method_from_what_the_parent_left(
    method: Method, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reported: list[dict[str, Any]] = []

    def context() -> Any:
        now = SimpleNamespace(trial_dir_name=str(len(reported)), experiment_fs_path=tmp_path, storage_filesystem=None)
        return SimpleNamespace(get_storage=lambda: now)

    def report(result: dict[str, Any], checkpoint: Any) -> None:
        shutil.copytree(checkpoint.path, tmp_path / str(len(reported)) / "checkpoint")
        reported.append({**result, "checkpoint_dir_name": "checkpoint"})

    monkeypatch.setattr("ray.tune.report", report)
    monkeypatch.setattr("ray.tune.get_context", context)
    searcher, run = HypergradSearch(SPACE, metric="loss", mode="min", seed=0), trainable(PROBLEM, SPACE, method=method)
    for number in range(8):
        config = searcher.suggest(str(number))
        assert isinstance(config, dict)
        run(config)
        searcher.on_trial_complete(str(number), flat({**reported[-1], "training_iteration": 1}))
    assert {result["status"] for result in reported} <= {"ok", "overfitted"}
    continued = [trial for trial in searcher._observations.values() if trial.parent is not None]
    assert continued
    better = [reported[int(trial.trial)]["loss"] < reported[int(trial.parent or 0)]["loss"] for trial in continued]
    assert sum(better) > len(better) / 2
    assert min(result["loss"] for result in reported) < 0.97 * reported[0]["loss"]
