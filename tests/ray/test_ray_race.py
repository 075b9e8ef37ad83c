"""Trials that end without a word, and trials that Ray runs again; without a cluster."""

import math
import pickle
import warnings
from typing import Any

import numpy as np
import optuna
import pytest
from ray.tune.search.optuna import OptunaSearch

from hypergrad_ray import HypergradSearch, wants_gradient
from hypergrad_ray.race import ENOUGH, Race
from hypergrad_search import Categorical, Float, Int, Space

STEEPNESS = np.geomspace(1.0, 1000.0, 30)
BEST = np.random.default_rng(0).uniform(-0.7, 0.7, 30)
SPACE: Space = {"x": Float(-1.0, 1.0, shape=(30,)), "layers": Int(1, 2), "kind": Categorical(["a", None])}

Config = dict[str, Any]


def searcher() -> HypergradSearch:
    return HypergradSearch(SPACE, metric="loss", mode="min", seed=0)


def result(config: Config, **others: Any) -> Config:
    """Return what Ray hands to a searcher: a flat dict, in which the trial's config is."""
    offset = config["x"] - BEST
    loss = float(np.sum(STEEPNESS * offset**2))
    found = {"loss": loss, "training_iteration": 1, **{f"config/{name}": config[name] for name in SPACE}, **others}
    if wants_gradient(config, loss):
        found["gradient/x"] = 2 * STEEPNESS * offset
    return found


def ask(search: HypergradSearch, trial: str) -> Config:
    config = search.suggest(trial_id=trial)
    assert config is not None
    return config


def play(search: HypergradSearch, names: Any) -> None:
    for name in map(str, names):
        search.on_trial_complete(name, result=result(ask(search, name)))


def copy(search: HypergradSearch) -> HypergradSearch:
    restored = searcher()
    restored.set_state(pickle.loads(pickle.dumps(search.get_state())))
    return restored


def facts(search: HypergradSearch) -> list[Any]:
    """Return all that a search knows of its trials, but for their names."""
    names = {name: number for number, name in enumerate(search._observations)}
    return [
        (names.get(t.parent or ""), np.asarray(t.hyperparameters["x"]).tolist(), t.value, t.cost, t.again)
        for t in search._observations.values()
    ]


# who is lost


def race(*ends: str, longest: float = 1.0) -> Race:
    begun = Race(longest=longest).begin("old", 0.0)
    for number, end in enumerate(ends):
        begun = begun.begin(end, 0.1 + number).end(end, 0.2 + number)
    return begun


def test_a_trial_is_lost_when_it_takes_too_long_and_many_have_overtaken_it() -> None:
    names = [str(number) for number in range(ENOUGH)]
    assert race(*names).lost(2.0) == set()
    assert race(*names).lost(2.1) == {"old"}
    assert race(*names[1:]).lost(1e9) == set()
    assert race(*names, longest=5.0).lost(10.0) == set()
    assert race(*names).leave("old").lost(2.1) == set()


def test_only_trials_that_began_later_overtake() -> None:
    begun = Race()
    for number in range(ENOUGH):
        begun = begun.begin(f"early {number}", 0.0)
    begun = begun.begin("old", 0.0)
    for number in range(ENOUGH):
        begun = begun.end(f"early {number}", 0.1)
    assert begun.lost(1e9) == set()
    assert begun.longest == 0.1


# trials that end without a word


@pytest.mark.parametrize("restored", [False, True])
def test_chains_go_on_when_their_trials_are_lost(restored: bool) -> None:
    search = searcher()
    play(search, range(12))
    _, head = min((region.value, name) for name, region in search._mind.state.chains.items())
    for number in range(12):  # of which some take all steps from the head
        ask(search, f"lost {number}")
    assert head in [trial.parent for trial in search._running.values()]
    search = copy(search) if restored else search
    play(search, range(12, 12 + ENOUGH))
    assert head not in [trial.parent for trial in list(search._observations.values())[12:]]
    play(search, range(12 + ENOUGH, 32))
    assert head in [trial.parent for trial in list(search._observations.values())[12:]]


def test_chains_wait_for_trials_that_take_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("time.monotonic", lambda: next(clock) / 100)
    search = searcher()
    slow = ask(search, "slow")
    monkeypatch.setattr("time.monotonic", lambda: 1e3)
    search.on_trial_complete("slow", result=result(slow))
    play(search, range(12))
    _, head = min((region.value, name) for name, region in search._mind.state.chains.items())
    for number in range(12):  # of which some take all steps from the head
        ask(search, f"late {number}")
    play(search, range(12, 32))
    assert head not in [trial.parent for trial in list(search._observations.values())[13:]]


def test_a_lost_trial_that_comes_back_counts() -> None:
    search = searcher()
    play(search, range(4))
    config = ask(search, "late")
    play(search, range(4, 20))
    assert "late" in search._race.lost(math.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search.on_trial_result("late", result(config, status="running", gradient_evaluations=3.0))
        search.on_trial_complete("late", result=result(config))
    assert search._observations["late"].value == result(config)["loss"]
    assert not search._running


# trials that Ray runs again


@pytest.mark.parametrize("name", ["broken", "anew"])
@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize("calls", ["result", "end", "both"])
def test_a_trial_that_runs_again_takes_the_place_of_the_one_that_failed(name: str, restored: bool, calls: str) -> None:
    """A `ConcurrencyLimiter` passes on the results of trials that it does not know, but not their ends."""
    sound, search = searcher(), searcher()
    for other in (sound, search):
        play(other, range(5))
    config = ask(search, "broken")
    assert config["hypergrad"]["parent"]
    search.on_trial_complete("broken", error=True)
    assert search._observations["broken"].value == math.inf
    search = copy(search) if restored else search
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search.on_trial_result(name, result(config, status="running", gradient_evaluations=2.0))
        assert list(search._running) == [name]
        if calls != "end":
            search.on_trial_result(name, result(config, status="ok"))
        if calls != "result":
            search.on_trial_complete(name, result=result(config, status="ok"))
    ask(sound, "sound")
    sound.on_trial_complete("sound", result=result(config, status="ok"))
    assert facts(search) == facts(sound)
    assert search._mind.state.best_value == sound._mind.state.best_value
    assert not search._running
    play(search, range(8, 20))
    play(copy(search), range(20, 22))
    assert any(trial.parent == name for trial in search._observations.values())


def test_a_trial_that_runs_again_takes_the_place_of_the_one_that_did_not_end() -> None:
    search = searcher()
    play(search, range(7))
    config = ask(search, "cut")
    first = search._running["cut"]
    search = copy(search)
    search.on_trial_result("anew", result(config))
    assert not search._running
    assert search._observations["anew"].parent == first.parent
    assert search._observations["anew"].value == result(config)["loss"]


def test_reports_without_a_status_replace_one_another() -> None:
    search = searcher()
    config = ask(search, "broken")
    search.on_trial_complete("broken", error=True)
    for loss in (3.0, 2.0):
        search.on_trial_result("anew", result(config) | {"loss": loss})
    assert {name: trial.value for name, trial in search._observations.items()} == {"anew": 2.0}
    search.on_trial_complete("anew", error=True)
    search.on_trial_complete("anew", error=True)
    assert {name: trial.value for name, trial in search._observations.items()} == {"anew": math.inf}


def test_explorer_learns_from_trials_that_run_again() -> None:
    explorer = OptunaSearch(seed=0)
    search = HypergradSearch(SPACE, metric="loss", mode="min", explorer=explorer)
    config = ask(search, "broken")
    search.on_trial_complete("broken", error=True)
    search.on_trial_complete("anew", result=result(config))
    study: optuna.Study | None = explorer._ot_study
    assert study is not None
    assert [(trial.state.name, trial.value) for trial in study.trials] == [
        ("FAIL", None),
        ("COMPLETE", result(config)["loss"]),
    ]


@pytest.mark.parametrize(
    "change", [{"config/x": np.full(30, 0.3)}, {"config/x": "many"}, {"config/layers": 7}, {"config/kind": "b"}]
)
def test_a_stranger_takes_nobody_s_place(change: Config) -> None:
    search = searcher()
    config = ask(search, "broken")
    search.on_trial_complete("broken", error=True)
    with pytest.warns(UserWarning, match="a result of trial 'stranger', which is not running, was ignored"):
        search.on_trial_result("stranger", result(config) | change)
    assert list(search._observations) == ["broken"]


# trainables of others


def test_checkpoint_without_the_trial_s_path_is_left_alone() -> None:
    search = searcher()
    config = ask(search, "a")
    search.on_trial_complete("a", result=result(config, checkpoint_dir_name="c", **{"refined/x": config["x"]}))
    assert search._observations["a"].refined is not None
    assert search._checkpoints == {}
