"""What a search keeps of large arrays, in memory, in its saved state and in Ray's logs; without a cluster."""

import copy
import io
import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ray.air._internal.json import SafeFallbackEncoder

from hypergrad_ray import HypergradSearch, finished, trainable, wants_gradient
from hypergrad_ray.large_array import LARGE, LargeArray, in_short
from hypergrad_search import Float, Int, Space, from_function
from hypergrad_search.search import ExploreDescend, Observation, Strategy, explore_descend

SIZE = 20_000
BYTES = 8 * SIZE  # of one array
SPACE: Space = {"x": Float(1e-3, 1.0, log=True, shape=(SIZE,)), "layers": Int(1, 2)}
BEST = np.geomspace(0.01, 0.5, SIZE)

Config = dict[str, Any]


def made(strategy: Strategy[Any] | None = None) -> HypergradSearch:
    return HypergradSearch(SPACE, metric="loss", mode="min", seed=0, strategy=strategy)


def result(config: Config, luck: float = 0.0, **others: Any) -> Config:
    offset = np.log(config["x"] / BEST)
    loss = float(np.mean(offset**2)) + config["layers"] + luck
    found = {
        "loss": loss,
        "training_iteration": 1,
        "config/x": config["x"],
        "config/layers": config["layers"],
        **others,
    }
    if wants_gradient(config, loss):
        found["gradient/x"] = 2 * offset / config["x"] / SIZE
    return found


def ask(searcher: HypergradSearch, trial: str) -> Config:
    config = searcher.suggest(trial)
    assert config is not None
    return config


def play(searcher: HypergradSearch, trials: range, noise: float = 0.0) -> list[Config]:
    configs = []
    for number in trials:
        configs.append(ask(searcher, str(number)))
        luck = noise * np.random.default_rng(number).standard_normal()
        searcher.on_trial_complete(str(number), result=result(configs[-1], luck))
    return configs


def saved(searcher: HypergradSearch, folder: Path) -> bytes:
    searcher.save(str(folder / "state"))
    return (folder / "state").read_bytes()


def kept(searcher: HypergradSearch) -> set[str]:
    """Return the trials whose arrays are still there."""
    return {name for name, trial in searcher._observations.items() if "x" in trial.hyperparameters}


def test_only_the_arrays_that_a_chain_can_come_back_to_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explore_descend, "PASSED_NUMBERS", 2 * SIZE)
    searcher = made()
    play(searcher, range(40))
    assert kept(searcher) == set(searcher._mind.state.chains)
    assert len(searcher._observations) == 40
    assert all(trial.hyperparameters["layers"] in (1, 2) for trial in searcher._observations.values())
    for trials in (range(0), range(40, 80), range(80, 120)):
        play(searcher, trials)
        state = searcher._mind.state
        assert len(saved(searcher, tmp_path)) < BYTES * (1 + 8 * len(state.chains) + 5 * len(state.passed))
        assert len(state.passed) <= 2


def test_few_heads_that_were_replaced_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    for numbers, most in ((SIZE // 2, 1), (3 * SIZE, 3)):
        monkeypatch.setattr(explore_descend, "PASSED_NUMBERS", numbers)
        searcher = made()
        play(searcher, range(30))
        assert len(searcher._mind.state.passed) == most


def test_a_trial_with_few_numbers_is_kept_whole() -> None:
    space: Space = {"x": Float(-1.0, 1.0, shape=(LARGE // 2,))}
    searcher = HypergradSearch(space, metric="loss", mode="min", seed=0)
    for number in range(12):
        config = ask(searcher, str(number))
        gradient = {"gradient/x": np.sign(config["x"])}
        searcher.on_trial_complete(str(number), {"loss": float(np.sum(np.abs(config["x"]))), **gradient})
    assert all(trial.gradient is not None and "x" in trial.hyperparameters for trial in searcher._observations.values())


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_restored_search_of_large_arrays_goes_on_to_the_bit(noise: float, tmp_path: Path) -> None:
    """Where values are noisy, it looks again at points, which must be the same to the bit."""
    patient = ExploreDescend(tolerance=0.0)
    original, restored = made(patient), made(patient)
    play(original, range(30), noise)
    config = ask(original, "waiting")
    original.save(str(tmp_path / "state"))
    restored.restore(str(tmp_path / "state"))
    for searcher in (original, restored):
        searcher.on_trial_complete("waiting", result=result(config))
    some, others = (play(searcher, range(30, 60), noise) for searcher in (original, restored))
    for one, other in zip(some, others, strict=True):
        assert one["x"].tobytes() == other["x"].tobytes()
    assert any(trial.parent for trial in list(restored._observations.values())[30:])
    assert any(trial.again for trial in list(restored._observations.values())[30:]) == bool(noise)


@pytest.mark.parametrize("name", ["broken", "anew"])
@pytest.mark.parametrize("restored", [False, True])
def test_a_failed_trial_whose_arrays_are_forgotten_can_run_again(name: str, restored: bool, tmp_path: Path) -> None:
    searcher = made()
    play(searcher, range(5))
    config = ask(searcher, "broken")
    searcher.on_trial_complete("broken", error=True)
    assert "broken" not in kept(searcher)
    if restored:
        searcher.save(str(tmp_path / "state"))
        searcher = made()
        searcher.restore(str(tmp_path / "state"))
    with pytest.warns(UserWarning, match="which is not running, was ignored"):
        searcher.on_trial_complete("stranger", result({**config, "x": np.nextafter(config["x"], 1.0)}))
    searcher.on_trial_complete(name, result(config))
    assert searcher._observations[name].value == result(config)["loss"]
    assert len(searcher._observations) == 6
    assert math.isfinite(sum(trial.value for trial in searcher._observations.values()))


def test_a_strategy_that_does_not_say_where_it_comes_back_to_loses_nothing() -> None:
    class Silent(ExploreDescend):
        parents = Strategy.parents  # type: ignore[assignment]  # it says less than that of `ExploreDescend`

    searcher = made(Silent())
    play(searcher, range(20))
    assert kept(searcher) == {str(number) for number in range(20)}


def test_digests_tell_hyperparameters_apart_to_the_bit() -> None:
    one: Config = {"x": np.linspace(0.1, 0.9, SIZE), "layers": 1}
    same = {"layers": 1, "x": one["x"].tolist()}
    assert finished.digest(SPACE, one) == finished.digest(SPACE, same)
    changed = one["x"].copy()
    changed[-1] = np.nextafter(changed[-1], 1.0)
    others = [{**one, "x": changed}, {**one, "layers": 2}]
    assert len({finished.digest(SPACE, each) for each in [one, *others]}) == 3


def test_what_is_forgotten_is_large() -> None:
    trial = Observation("a", None, {"x": np.ones(SIZE), "layers": 1}, gradient={"x": np.ones(SIZE)})
    assert finished.is_large(trial)
    light = finished.forgotten(SPACE, trial)
    assert light == replace(trial, hyperparameters={"layers": 1}, gradient=None)
    assert not finished.is_large(light)


# Ray's logs


def test_large_arrays_in_a_config_are_ndarrays_that_are_logged_in_short() -> None:
    config = ask(made(), "a")
    assert isinstance(config["x"], np.ndarray)
    assert (config["x"].dtype, config["x"].shape) == (np.float64, (SIZE,))
    written = io.StringIO()
    json.dump(config, written, cls=SafeFallbackEncoder)  # as Ray's JsonLoggerCallback does
    assert len(written.getvalue()) < 1000
    assert "..." in json.loads(written.getvalue())["x"]


def test_trainables_report_large_gradients_in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Config] = []
    monkeypatch.setattr("ray.tune.report", reported.append)
    trainable(from_function(lambda h: jnp.sum(h["x"]) * h["layers"]), SPACE)(ask(made(), "a"))
    written = io.StringIO()
    json.dump(reported[0], written, cls=SafeFallbackEncoder)
    assert reported[0]["gradient"]["x"].shape == (SIZE,)
    assert len(written.getvalue()) < 1000


def test_a_large_array_is_an_ndarray_for_numpy_and_jax() -> None:
    plain = np.random.default_rng(0).random((50, 100))
    large = in_short(plain)
    assert type(large) is type(in_short({"x": jnp.asarray(plain)})["x"]) is LargeArray
    for computed, expected in (
        (large - 1, plain - 1),
        (large @ large.T, plain @ plain.T),
        (large == plain, large >= 0),
    ):
        assert type(computed) is np.ndarray
        np.testing.assert_array_equal(computed, expected)
    assert type(large.sum()) is type(large[0, 0]) is np.float64
    assert large.sum() == plain.sum()
    assert jnp.asarray(large).sum() == jnp.asarray(plain).sum()
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda x: jnp.sum(x**2)))(large), 2 * plain.astype(np.float32))
    for moved in (pickle.loads(pickle.dumps(large, protocol=5)), copy.deepcopy(large)):
        assert type(moved) is LargeArray
        np.testing.assert_array_equal(moved, plain)


@pytest.mark.parametrize("value", [0.5, None, "text", np.ones(LARGE)])
def test_what_is_not_large_stays_as_it_is(value: Any) -> None:
    assert in_short(value) is value
