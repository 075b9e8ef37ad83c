"""Ray's contract with a searcher: every order of calls, and every kind of result, alone and within Ray's wrappers.

Ray calls `suggest`, `on_trial_result` and `on_trial_complete`; results may be NaN, infinite, late, duplicate or
missing, and trials may fail, be stopped or killed, or never end.
"""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from ray.tune.search import ConcurrencyLimiter, Repeater, Searcher
from ray.tune.search.optuna import OptunaSearch

from hypergrad_ray import HypergradSearch, wants_gradient
from hypergrad_search import Float, Int, Space

SPACE: Space = {"x": Float(-1.0, 1.0, shape=(2,)), "y": Float(0.1, 10.0, log=True), "layers": Int(1, 3)}

Config = dict[str, Any]

WRAPPERS: dict[str, Callable[[Searcher], Searcher]] = {
    "alone": lambda searcher: searcher,
    "limited": lambda searcher: ConcurrencyLimiter(searcher, max_concurrent=4),
    "in batches": lambda searcher: ConcurrencyLimiter(searcher, max_concurrent=1, batch=True),
}
wrapped = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
either_way = pytest.mark.parametrize("mode", ["min", "max"])


def made(mode: str = "min", explorer: Searcher | None = None, seed: int | None = 0) -> HypergradSearch:
    return HypergradSearch(SPACE, metric="loss", mode=mode, explorer=explorer, seed=None if explorer else seed)


def result(loss: Any, iteration: int = 1, **others: Any) -> Config:
    return {"loss": loss, "training_iteration": iteration, **others}


def slope(config: Config, mode: str = "min") -> Config:
    """Return the result of a good trial, with a gradient where one is wanted."""
    sign = 1.0 if mode == "min" else -1.0
    x, y = config["x"] - 0.25, np.log(config["y"])
    value = sign * float(x @ x + y * y + config["layers"])
    if not wants_gradient(config, value):
        return result(value)
    return result(value, **{"gradient/x": sign * 2 * x, "gradient/y": sign * 2 * y / config["y"]})


def ask(searcher: Searcher, trial: str) -> Config:
    config = searcher.suggest(trial)
    assert isinstance(config, dict)
    return config


def play(searcher: Searcher, trials: int, start: int = 0, mode: str = "min") -> None:
    for number in map(str, range(start, start + trials)):
        good = slope(ask(searcher, number), mode)
        searcher.on_trial_result(number, good)
        searcher.on_trial_complete(number, result=good)


def told_to(explorer: OptunaSearch) -> list[optuna.trial.FrozenTrial]:
    study: optuna.Study | None = explorer._ot_study
    assert study is not None
    return study.trials


def kept(searcher: HypergradSearch) -> list[tuple[str, float, bool, float]]:
    """Return the name, the value, whether it has a gradient, and the cost of each finished trial."""
    return [(t.trial, t.value, t.gradient is not None, t.cost) for t in searcher._observations.values()]


# what a trial may say, and how it may end

GRADIENT: Config = {"gradient/x": np.ones(2), "gradient/y": 1.0}
Calls = list[tuple[str, Config | None]]  # "result", "end" or "failure", each with a result


def call(searcher: Searcher, trial: str, calls: Calls) -> None:
    for kind, brought in calls:
        if kind == "result":
            searcher.on_trial_result(trial, brought or {})
        else:
            searcher.on_trial_complete(trial, result=brought, error=kind == "failure")


ENDS: dict[str, tuple[Calls, float, bool]] = {  # the calls after `suggest`, the loss, and whether it has a gradient
    "one result, twice": ([("result", result(2.0)), ("end", result(2.0))], 2.0, False),
    "no result but at the end": ([("end", result(2.0, **GRADIENT))], 2.0, True),
    "a result, and nothing at the end": ([("result", result(2.0, **GRADIENT)), ("end", None)], 2.0, True),
    "several results, of which the last counts": (
        [*(("result", result(9.0 - i, i, **GRADIENT)) for i in (1, 2, 3)), ("end", result(5.0, 4))],
        5.0,
        False,
    ),
    "the same result many times": ([*(("result", result(2.0)) for _ in range(3)), ("end", result(2.0))], 2.0, False),
    "results on the way": (
        [
            *(("result", result(9.0 - i, i, status="running")) for i in (1, 2)),
            ("end", result(2.0, 3, status="ok", **GRADIENT)),
        ],
        2.0,
        True,
    ),
    "NaN": ([("end", result(math.nan))], math.inf, False),
    "infinite": ([("end", result(math.inf))], math.inf, False),
    "infinite, the other way": ([("end", result(-math.inf))], math.inf, False),
    "None": ([("end", result(None))], math.inf, False),
    "text": ([("end", result("low"))], math.inf, False),
    "an array": ([("end", result(np.ones(2)))], math.inf, False),
    "a number of numpy": ([("end", result(np.float32(2.0)))], 2.0, False),
    "NaN, and then nothing": ([("result", result(math.nan)), ("end", None)], math.inf, False),
    "nothing": ([("end", None)], math.inf, False),
    "an empty result": ([("end", {})], math.inf, False),
    "the metric is missing": ([("end", {"training_iteration": 1})], math.inf, False),
    "it fails at once": ([("failure", None)], math.inf, False),
    "it fails with its last result": ([("failure", result(2.0))], math.inf, False),
    "it is killed after a result": ([("result", result(2.0, **GRADIENT)), ("failure", None)], math.inf, False),
    "a rung stops it": ([("end", result(2.0, status="running"))], math.inf, False),
}


@wrapped
@pytest.mark.parametrize(("calls", "loss", "has_gradient"), ENDS.values(), ids=ENDS)
def test_every_end_is_learned_from_once(
    wrap: Callable[[Searcher], Searcher], calls: Calls, loss: float, has_gradient: bool
) -> None:
    inner = made()
    searcher = wrap(inner)
    ask(searcher, "a")
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r"HypergradSearch: (the trainable reported no gradient|'loss' is mis)"
        )
        call(searcher, "a", calls)
    ((name, value, gradient, _),) = kept(inner)
    assert (name, value, gradient) == ("a", loss, has_gradient)
    assert not inner._running
    play(searcher, 12, start=1)
    assert len(inner._observations) == 13
    assert any(trial.parent for trial in inner._observations.values())


@pytest.mark.parametrize("again", ["result", "end", "failure"])
@pytest.mark.parametrize("trial", ["1", "unknown"])
def test_what_comes_after_the_end_changes_nothing(again: str, trial: str) -> None:
    searcher = made()
    play(searcher, 3)
    before, state = kept(searcher), searcher._mind.state
    with pytest.warns(UserWarning, match=f"of trial '{trial}', which is not running, was ignored"):
        call(searcher, trial, [(again, result(-9.0))])
    assert kept(searcher) == before
    assert searcher._mind.state is state


@either_way
def test_results_may_come_in_any_order(mode: str) -> None:
    """Of trials at the same time, each may end before those that began earlier."""
    searcher = made(mode)
    play(searcher, 4, mode=mode)
    configs = {name: ask(searcher, name) for name in "abcde"}
    for name in "cebda":
        searcher.on_trial_complete(name, result=slope(configs[name], mode))
    sign = 1 if mode == "min" else -1
    values = {name: sign * slope(config, mode)["loss"] for name, config in configs.items()}
    assert {name: value for name, value, _, _ in kept(searcher)[4:]} == values
    assert not searcher._running


@pytest.mark.parametrize("repeat", [1, 3])
def test_repeater_is_refused_in_its_first_trial(repeat: int) -> None:
    """It passes on the mean of the values, and no gradient."""
    config = ask(Repeater(made(), repeat=repeat), "a")
    with pytest.raises(ValueError, match=r"cannot be used inside ray.tune.search.Repeater, which drops grad") as caught:
        wants_gradient(config, 1.0)
    assert "\n" not in str(caught.value)


def test_repeater_that_does_not_say_so_leaves_the_search_to_the_explorer_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="reported no gradient.*Repeater drops gradients"):
        play(Repeater(made(), repeat=2, set_index=False), 4)


# what schedulers do


def test_the_explorer_learns_from_rungs_that_stopped_its_trials() -> None:
    explorer = OptunaSearch(seed=0)
    searcher = made(explorer=explorer)
    for name in ("a", "b"):
        ask(searcher, name)
        searcher.on_trial_result(name, result(4.0, 1, status="running"))
    searcher.on_trial_complete("a", result(3.0, 2, status="running"))  # the last one comes at the end alone
    searcher.on_trial_complete("b")
    told = [(trial.state.name, trial.intermediate_values) for trial in told_to(explorer)]
    assert told == [("PRUNED", {1: 4.0, 2: 3.0}), ("PRUNED", {1: 4.0})]


@either_way
@pytest.mark.parametrize("restored", [False, True])
def test_the_explorer_learns_from_rungs_that_stopped_steps_along_a_gradient(mode: str, restored: bool) -> None:
    explorer = OptunaSearch(seed=0)
    searcher = made(mode, explorer=explorer)
    play(searcher, 3, mode=mode)
    step = next(name for name in map(str, range(3, 20)) if ask(searcher, name)["hypergrad"]["parent"])
    sign = 1 if mode == "min" else -1
    searcher.on_trial_result(step, result(sign * 4.0, 1, status="running"))
    if restored:
        state, explorer = searcher.get_state(), OptunaSearch()
        searcher = made(mode, explorer=explorer)
        searcher.set_state(state)
    searcher.on_trial_complete(step, result(sign * 3.0, 2, status="running"))
    told = told_to(explorer)[-1]
    assert told.state.name == "PRUNED"
    assert told.intermediate_values == {0: 4.0, 1: 4.0, 2: 3.0}  # Ray's list of them begins with 0


def test_trials_that_rungs_stopped_are_no_failures() -> None:
    searcher = made()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in map(str, range(8)):
            ask(searcher, name)
            searcher.on_trial_complete(name, result(3.0, status="running"))
    for name in map(str, range(8, 12)):
        ask(searcher, name)
        searcher.on_trial_complete(name, error=True)
    ask(searcher, "last")
    with pytest.warns(UserWarning, match="all of the first 5 trials have failed"):
        searcher.on_trial_complete("last", error=True)


# saving and restoring, in the middle of everything


@wrapped
@either_way
@pytest.mark.parametrize("before", [0, 1, 7])
def test_a_restored_searcher_goes_on_to_the_bit(
    wrap: Callable[[Searcher], Searcher], mode: str, before: int, tmp_path: Path
) -> None:
    def begun() -> tuple[HypergradSearch, Searcher]:
        inner = made(mode)
        searcher = wrap(inner)
        play(searcher, before, mode=mode)
        return inner, searcher

    original, killed, (restored, within) = begun(), begun(), (made(mode, seed=9), wrap(made()))
    configs = [ask(searcher, "waiting") for _, searcher in (original, killed)]
    for _, searcher in (original, killed):
        searcher.on_trial_result("waiting", result(9.0, 1, status="running", gradient_evaluations=3.0))
    killed[1].save(str(tmp_path / "state"))
    within = wrap(restored)
    within.restore(str(tmp_path / "state"))
    if isinstance(within, ConcurrencyLimiter):
        within.set_state(killed[1].get_state())
    assert repr(restored.get_state()["strategy"]) == repr(original[0].get_state()["strategy"])
    for searcher in (original[1], within):
        searcher.on_trial_complete("waiting", result=slope(configs[0], mode))
        play(searcher, 20, start=before, mode=mode)
    assert kept(restored) == kept(original[0])
    assert any(trial.parent for trial in restored._observations.values())
    for some, other in zip(restored._observations.values(), original[0]._observations.values(), strict=True):
        assert some.parent == other.parent
        np.testing.assert_array_equal(some.hyperparameters["x"], other.hyperparameters["x"])
