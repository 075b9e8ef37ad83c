"""The searcher alone, without a cluster: what it asks for, and what it makes of every kind of result."""

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import tune
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Repeater, Searcher
from ray.tune.search.optuna import OptunaSearch

import hypergrad_ray
from hypergrad_ray import HypergradSearch, param_space, wants_gradient
from hypergrad_search import Categorical, Float, Int, Space

SPACE: Space = {
    "bend": Float(-2.0, 2.0, shape=(2, 2)),
    "layers": Int(1, 4),
    "rate": Float(1e-3, 1.0, log=True),
    "kind": Categorical(["tanh", None, True]),
}
FLOATS: Space = {"x": Float(-1.0, 1.0, shape=(3,)), "y": Float(-1.0, 1.0)}
BEST = np.array([0.3, -0.2, 0.7])

Config = dict[str, Any]


def bowl(config: Config) -> tuple[float, dict[str, Any]]:
    """A quadratic of `FLOATS` and its gradient; its minimum is 0, at x = BEST, y = 0.5."""
    x, y = config["x"] - BEST, config["y"] - 0.5
    return float(x @ x + y * y), {"x": 2 * x, "y": 2 * y}


def result(loss: Any, gradient: Config | None = None, **others: Any) -> Config:
    """What Ray hands to a searcher: a flat dict."""
    flat = {f"gradient/{name}": derivative for name, derivative in (gradient or {}).items()}
    return {"loss": loss, "training_iteration": 1, **flat, **others}


def evaluate(config: Config) -> Config:
    loss, gradient = bowl(config)
    return result(loss, gradient if wants_gradient(config, loss) else None)


def play(
    searcher: Searcher, trials: int, evaluate: Callable[[Config], Config] = evaluate, start: int = 0
) -> list[Config]:
    """Run trials one after another, as Ray does; their configs."""
    configs = []
    for number in range(start, start + trials):
        config = searcher.suggest(trial_id=str(number))
        assert isinstance(config, dict)
        configs.append(config)
        outcome = evaluate(config)
        searcher.on_trial_result(str(number), outcome)
        searcher.on_trial_complete(str(number), result=outcome)
    return configs


def parents(searcher: HypergradSearch) -> list[str | None]:
    """What the finished trials followed: None where the explorer chose."""
    return [trial.parent for trial in searcher._observations.values()]


def same(some: list[Config], others: list[Config]) -> bool:
    return json.dumps(some, default=np.ndarray.tolist) == json.dumps(others, default=np.ndarray.tolist)


# what it asks for


def test_config_holds_the_hyperparameters_and_one_reserved_key() -> None:
    config = HypergradSearch(SPACE, seed=0).suggest(trial_id="a")
    assert config is not None
    assert list(config) == [*SPACE, "hypergrad"]
    assert config["bend"].shape == (2, 2)
    assert config["bend"].dtype == np.float64
    assert type(config["layers"]) is int
    assert type(config["rate"]) is float
    assert config["kind"] in ("tanh", None, True)
    assert wants_gradient(config, 1e300)
    json.dumps(config["hypergrad"], allow_nan=False)


def test_descends_where_the_explorer_alone_cannot_follow() -> None:
    ours, theirs = HypergradSearch(FLOATS, seed=0), OptunaSearch(seed=0)
    theirs.set_search_properties("loss", "min", param_space(FLOATS))
    best = min(bowl(config)[0] for config in play(ours, 40))
    split = [
        {"x": np.array([c[f"x[{i}]"] for i in range(3)]), "y": c["y"]}
        for c in play(theirs, 160, lambda c: result(sum(v**2 for v in c.values())))
    ]
    assert best < 1e-3 < min(bowl(config)[0] for config in split)


def test_gradient_is_wanted_only_below_the_chain_it_would_extend() -> None:
    searcher = HypergradSearch(FLOATS, seed=0)
    play(searcher, 6)
    values = {trial.trial: trial.value for trial in searcher._observations.values()}
    for number in range(6, 20):
        config = searcher.suggest(trial_id=str(number))
        assert config is not None
        parent = searcher._running[str(number)].parent
        explored = [values[n] for n, p in zip(values, parents(searcher), strict=True) if p is None]
        threshold = min(explored) if parent is None else values[parent]
        assert wants_gradient(config, np.nextafter(threshold, -1))
        assert not wants_gradient(config, threshold)
        searcher.on_trial_complete(str(number), result=evaluate(config))
        values[str(number)] = bowl(config)[0]


def test_integers_and_categoricals_stay_as_they_are_along_a_chain() -> None:
    def loss(config: Config) -> Config:
        bend, rate = config["bend"], config["rate"]
        value = float(np.sum(bend**2) + math.log(rate) ** 2 + config["layers"])
        return result(value, {"bend": 2 * bend, "rate": 2 * math.log(rate) / rate})

    searcher = HypergradSearch(SPACE, seed=1)
    held = {}
    steps = 0
    for number in range(30):
        config = searcher.suggest(trial_id=str(number))
        assert config is not None
        parent = searcher._running[str(number)].parent
        held[str(number)] = (config["layers"], config["kind"])
        if parent is not None:
            steps += 1
            assert held[str(number)] == held[parent]
        searcher.on_trial_complete(str(number), result=loss(config))
    assert steps > 10


@pytest.mark.parametrize("finished", range(6, 12))
def test_chains_are_not_extended_twice_at_a_time(finished: int) -> None:
    searcher = HypergradSearch(FLOATS, seed=0)
    play(searcher, finished)
    for number in range(finished, finished + 8):
        searcher.suggest(trial_id=str(number))
    extended = [trial.parent for trial in searcher._running.values() if trial.parent is not None]
    assert len(extended) == len(set(extended))


def test_maximising_mirrors_minimising() -> None:
    def mirrored(config: Config) -> Config:
        loss, gradient = bowl(config)
        gain = {name: -derivative for name, derivative in gradient.items()}
        return result(None, gain if wants_gradient(config, -loss) else None, gain=-loss)

    down = play(HypergradSearch(FLOATS, seed=0), 25)
    up = play(HypergradSearch(FLOATS, metric="gain", mode="max", seed=0), 25, mirrored)
    for config in (*down, *up):
        config.pop("hypergrad")
    assert same(down, up)


def test_explorer_learns_from_every_trial() -> None:
    explorer = OptunaSearch(sampler=None, seed=0)
    searcher = HypergradSearch(SPACE, explorer=explorer)

    def loss(config: Config) -> Config:
        return result(float(np.sum(config["bend"] ** 2)), {"bend": 2 * config["bend"]})

    configs = play(searcher, 20, loss)
    told = [trial.params for trial in explorer._ot_study.trials]
    assert len(told) == 20
    assert any(parents(searcher))
    for config, params in zip(configs, told, strict=True):
        assert params["bend"] == pytest.approx(config["bend"].mean())
        assert params["layers"] == config["layers"]
        assert params["kind"] == config["kind"]


class Centre(Searcher):
    """An explorer that knows one point, and cannot be told of others'."""

    def __init__(self, trials: int) -> None:
        super().__init__()
        self.left = trials

    def set_search_properties(self, metric: Any, mode: Any, config: Config, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        self.left -= 1
        return dict.fromkeys(["x", "y"], 0.0) if self.left >= 0 else self.FINISHED

    def on_trial_complete(self, trial_id: str, result: Config | None = None, error: bool = False) -> None:
        pass


def test_any_searcher_can_explore_until_it_has_finished() -> None:
    searcher = HypergradSearch(FLOATS, explorer=Centre(4))
    trials = 0
    while (config := searcher.suggest(trial_id=str(trials))) != Searcher.FINISHED:
        assert config is not None
        searcher.on_trial_complete(str(trials), result=evaluate(config))
        trials += 1
    assert parents(searcher).count(None) == 4
    assert trials > 4


def test_explorer_that_waits_is_waited_for() -> None:
    searcher = HypergradSearch(FLOATS, explorer=ConcurrencyLimiter(OptunaSearch(), max_concurrent=1))
    assert searcher.suggest(trial_id="a") is not None
    assert searcher.suggest(trial_id="b") is None
    assert list(searcher._running) == ["a"]


# what it makes of results


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, "many", np.ones(2)])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_bad_values_are_failed_steps(bad: Any, mode: str) -> None:
    searcher = HypergradSearch(FLOATS, metric="loss", mode=mode, seed=0)
    play(searcher, 12, lambda config: result(bad, {"y": 1.0}))
    assert [trial.value for trial in searcher._observations.values()] == [math.inf] * 12
    assert searcher._state.chains == {}
    assert searcher._state.best_value == math.inf


def test_missing_metric_is_a_failed_step_with_a_warning() -> None:
    searcher = HypergradSearch(FLOATS, seed=0)
    with pytest.warns(UserWarning, match="'loss' is missing from a result"):
        play(searcher, 3, lambda config: {"training_iteration": 1, "other": 1.0})
    assert [trial.value for trial in searcher._observations.values()] == [math.inf] * 3


def test_failed_step_shortens_the_next() -> None:
    searcher = HypergradSearch({"y": Float(-1.0, 1.0)}, seed=0)
    lengths = []
    for number in range(30):
        config = searcher.suggest(trial_id=str(number))
        assert config is not None
        parent = searcher._running[str(number)].parent
        if parent is None:
            searcher.on_trial_complete(str(number), result=result(config["y"], {"y": 1e-9}))
        else:
            start = next(t for t in searcher._observations.values() if t.trial == parent)
            lengths.append((parent, abs(config["y"] - start.hyperparameters["y"])))
            searcher.on_trial_complete(str(number), error=True)
    first = [length for parent, length in lengths if parent == lengths[0][0]]
    assert len(first) > 3
    assert first == sorted(first, reverse=True)
    assert first[-1] < first[0] / 4


@pytest.mark.parametrize(
    "brought",
    [
        result(1.0, status="running", gradient_evaluations=7.0),
        result(1.0, {"y": 1.0}, status="ok", gradient_evaluations=7.0),
        None,
    ],
)
def test_error_is_a_failed_step_and_keeps_its_cost(brought: Config | None) -> None:
    searcher = HypergradSearch(FLOATS, seed=0)
    searcher.suggest(trial_id="a")
    if brought:
        searcher.on_trial_result("a", brought)
    searcher.on_trial_complete("a", error=True)
    (trial,) = searcher._observations.values()
    assert (trial.value, trial.gradient, trial.cost) == (math.inf, None, 7.0 if brought else 1.0)


@pytest.mark.parametrize("end", [None, result(0.1, {"y": 1.0}, status="running", gradient_evaluations=5.0)])
def test_trial_stopped_early_is_a_failed_step_and_keeps_its_cost(end: Config | None) -> None:
    searcher = HypergradSearch(FLOATS, seed=0)
    searcher.suggest(trial_id="a")
    searcher.on_trial_result("a", result(0.2, status="running", gradient_evaluations=5.0))
    searcher.on_trial_complete("a", result=end)
    (trial,) = searcher._observations.values()
    assert (trial.value, trial.gradient, trial.cost) == (math.inf, None, 5.0)


def test_last_result_counts_though_the_trial_ends_without_one() -> None:
    """As under HyperBand, which pauses a trial on its last result and then ends it."""
    searcher = HypergradSearch(FLOATS, seed=0)
    searcher.suggest(trial_id="a")
    searcher.on_trial_result("a", result(0.2, {"y": 1.0}, status="ok", gradient_evaluations=80.0))
    searcher.on_trial_complete("a", result=None)
    (trial,) = searcher._observations.values()
    assert (trial.value, trial.cost) == (0.2, 80.0)
    assert trial.gradient is not None


def test_explorer_hears_how_its_trials_ended() -> None:
    explorer = OptunaSearch(seed=0)
    searcher = HypergradSearch(FLOATS, explorer=explorer)
    for trial in "abcd":
        searcher.suggest(trial_id=trial)
    searcher.on_trial_result("a", result(0.4, status="running"))
    searcher.on_trial_complete("a", result=None)
    searcher.on_trial_complete("b", error=True)
    searcher.on_trial_complete("c", result=result(math.nan))
    searcher.on_trial_complete("d", result=result(0.5))
    told = [(trial.state.name, trial.value) for trial in explorer._ot_study.trials]
    assert told == [("PRUNED", 0.4), ("FAIL", None), ("COMPLETE", math.inf), ("COMPLETE", 0.5)]


def test_explorer_hears_how_steps_along_a_gradient_ended() -> None:
    explorer = OptunaSearch(seed=0)
    searcher = HypergradSearch(FLOATS, explorer=explorer)
    ends: list[Config] = [{"error": True}, {"result": None}, {"result": result(math.nan)}, {"result": result(9.0)}]
    expected = [("FAIL", None), ("PRUNED", math.inf), ("COMPLETE", math.inf), ("COMPLETE", 9.0)]
    steps = []
    for number in range(40):
        config = searcher.suggest(trial_id=str(number))
        assert config is not None
        if searcher._running[str(number)].parent is None or len(steps) == 4:
            searcher.on_trial_complete(str(number), result=evaluate(config))
        else:
            searcher.on_trial_complete(str(number), **ends[len(steps)])
            steps.append(number)
    told = explorer._ot_study.trials
    assert len(told) == 40
    assert [(told[step].state.name, told[step].value) for step in steps] == expected


def test_late_and_unknown_results_are_ignored_with_a_warning() -> None:
    searcher = HypergradSearch(FLOATS, seed=0)
    play(searcher, 2)
    for trial in ("0", "unknown"):
        with pytest.warns(UserWarning, match=f"a result of trial '{trial}', which is not running"):
            searcher.on_trial_result(trial, result(0.0))
        with pytest.warns(UserWarning, match=f"the end of trial '{trial}', which is not running"):
            searcher.on_trial_complete(trial, result=result(0.0))
    assert len(searcher._observations.values()) == 2


def test_without_gradients_it_is_the_explorer_and_warns_once() -> None:
    ours, theirs = HypergradSearch(SPACE, seed=3), OptunaSearch(seed=3)
    theirs.set_search_properties("loss", "min", param_space({**SPACE, "bend": Float(-2.0, 2.0)}))
    with pytest.warns(UserWarning, match="reported no gradient, so this search is OptunaSearch's") as caught:
        configs = play(ours, 20, lambda config: result(config["rate"]))
    assert len(caught) == 1
    for config, alone in zip(configs, play(theirs, 20, lambda c: result(c["rate"])), strict=True):
        assert config["bend"].ravel().tolist() == [alone["bend"]] * 4
        assert [config[name] for name in ("layers", "rate", "kind")] == [
            alone[name] for name in ("layers", "rate", "kind")
        ]


def test_trainable_that_drops_an_exploded_gradient_is_not_silent() -> None:
    searcher = HypergradSearch(FLOATS, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        play(searcher, 6, lambda config: result(1.0, status="exploded", gradient_evaluations=80.0))


def test_floats_without_a_derivative_stay_along_a_chain() -> None:
    def loss(config: Config) -> Config:
        return result(config["y"] ** 2, {"y": 2 * config["y"]})

    searcher = HypergradSearch(FLOATS, seed=0)
    configs = play(searcher, 15, loss)
    steps = [number for number, parent in enumerate(parents(searcher)) if parent is not None]
    assert steps
    for number in steps:
        start = configs[int(parents(searcher)[number] or 0)]
        np.testing.assert_allclose(configs[number]["x"], start["x"], rtol=1e-12)
        assert configs[number]["y"] != start["y"]


@pytest.mark.parametrize("bad", [np.ones(2), 1.0, "steep", {"a": 1}])
def test_gradient_that_does_not_fit_is_ignored_with_a_warning(bad: Any) -> None:
    searcher = HypergradSearch(FLOATS, seed=0)
    with pytest.warns(UserWarning, match=r"gradient\['x'\] must be numbers of shape \(3,\)"):
        play(searcher, 1, lambda config: result(1.0, {"x": bad}))
    (trial,) = searcher._observations.values()
    assert (trial.value, trial.gradient) == (1.0, None)


def test_gradient_that_is_not_finite_founds_no_chain() -> None:
    searcher = HypergradSearch(FLOATS, seed=0)
    play(searcher, 6, lambda config: result(1.0, {"x": np.full(3, np.nan), "y": 1.0}))
    assert parents(searcher) == [None] * 6


def test_cost_is_what_the_trainable_says_else_four_for_a_gradient() -> None:
    searcher = HypergradSearch(FLOATS, seed=0)
    gradient = {"y": 1.0}
    outcomes = [result(1.0, gradient), result(1.0), result(1.0, gradient, gradient_evaluations=400)]
    outcomes.append(result(1.0, gradient_evaluations=math.nan))
    for trial, outcome in enumerate(outcomes):
        searcher.suggest(trial_id=str(trial))
        searcher.on_trial_complete(str(trial), result=outcome)
    assert [trial.cost for trial in searcher._observations.values()] == [4.0, 1.0, 400.0, 1.0]


# saving


@pytest.mark.parametrize("after", [2, 9, 17])
def test_restored_searcher_goes_on_as_if_nothing_had_happened(after: int, tmp_path: Path) -> None:
    def loss(config: Config) -> Config:
        bend, rate = config["bend"], config["rate"]
        value = float(np.sum((bend - 1) ** 2) + math.log(rate / 0.1) ** 2 + config["layers"])
        if config["kind"] == "tanh":
            return result(math.nan)
        return result(value, {"bend": 2 * (bend - 1), "rate": 2 * math.log(rate / 0.1) / rate})

    def begin() -> HypergradSearch:
        searcher = HypergradSearch(SPACE, seed=5)
        play(searcher, after, loss)
        return searcher

    original, killed = begin(), begin()
    waiting = [searcher.suggest(trial_id="waiting") for searcher in (original, killed)]
    for searcher in (original, killed):
        searcher.on_trial_result("waiting", result(9.0, status="running", gradient_evaluations=3.0))
    killed.save(str(tmp_path / "state"))
    restored = HypergradSearch(SPACE, seed=99)
    restored.restore(str(tmp_path / "state"))
    for searcher in (original, restored):
        searcher.on_trial_complete("waiting", result=None)
    assert list(restored._observations.values())[-1].cost == 3.0
    assert same(waiting[:1], waiting[1:])
    assert same(play(original, 25, loss, start=after), play(restored, 25, loss, start=after))
    assert any(parents(restored)[after:])


def test_saved_file_is_strict_json(tmp_path: Path) -> None:
    searcher = HypergradSearch(SPACE, seed=0)
    play(searcher, 3, lambda config: result(math.inf))
    searcher.suggest(trial_id="running")
    searcher.save_to_dir(str(tmp_path))
    (file,) = tmp_path.iterdir()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    state = json.loads(file.read_text(), parse_constant=refuse)
    assert [trial["value"] for trial in state["observations"]] == [None] * 3
    assert [trial["trial"] for trial in state["running"]] == ["running"]


# construction


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"space": [("x", Float(0.0, 1.0))]}, "space must be a dict"),
        ({"space": {}}, "space must be a dict"),
        ({"space": {"x": tune.uniform(0, 1)}}, r"space\['x'\] must be a Float"),
        ({"space": {"hypergrad": Float(0.0, 1.0)}}, "'hypergrad' is reserved"),
        ({"space": {"a/b": Float(0.0, 1.0)}}, "'a/b' must not contain '/'"),
        (
            {"space": {"x": Float(0.0, 1.0, shape=(2,)), "x[1]": Int(0, 1)}},
            r"'x\[1\]' is reserved, or stands for two",
        ),
        ({"mode": "lowest"}, "mode must be 'min' or 'max', got 'lowest'"),
        ({"mode": ["min", "max"]}, "mode must be 'min' or 'max'"),
        ({"metric": ["loss", "time"]}, "metric must be one name"),
        ({"explorer": "optuna"}, "explorer must be a ray.tune.search.Searcher"),
        ({"explorer": BasicVariantGenerator()}, "explorer must be a ray.tune.search.Searcher"),
        ({"explorer": OptunaSearch(), "seed": 1}, "give the seed to explorer"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(arguments: Config, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        HypergradSearch(**{"space": FLOATS, **arguments})
    assert "\n" not in str(caught.value)


def test_explorer_with_a_space_of_its_own_is_refused() -> None:
    explorer = OptunaSearch(param_space(FLOATS), metric="loss", mode="min")
    with pytest.raises(ValueError, match="explorer must be made without a space"):
        HypergradSearch(FLOATS, explorer=explorer)


def test_missing_optuna_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'hypergrad-search\[ray\]'"):
        HypergradSearch(FLOATS)
    HypergradSearch(FLOATS, explorer=Centre(1))


def test_metric_and_mode_of_the_run_count_where_none_were_given() -> None:
    searcher = HypergradSearch(FLOATS)
    assert (searcher.metric, searcher.mode) == (None, None)
    assert not searcher.set_search_properties("accuracy", "max", {"constant": 1}, stop=None)
    assert (searcher.metric, searcher.mode) == ("accuracy", "max")
    searcher = HypergradSearch(FLOATS, metric="loss", mode="min")
    searcher.set_search_properties("accuracy", "max", {"constant": 1})
    assert (searcher.metric, searcher.mode) == ("loss", "min")


def test_it_can_be_made_by_name() -> None:
    searcher = tune.create_searcher("hypergrad", space=FLOATS, metric="gain", mode="max", seed=0)
    assert isinstance(searcher, hypergrad_ray.HypergradSearch)
    assert (searcher.metric, searcher.mode) == ("gain", "max")


def test_repeater_drops_gradients_and_does_no_harm() -> None:
    searcher = HypergradSearch(FLOATS, metric="loss", mode="min", seed=0)
    with pytest.warns(UserWarning, match="reported no gradient"):
        play(Repeater(searcher, repeat=2), 4)
    assert len(searcher._observations.values()) == 2


# arrays and lifting


def test_exploring_an_array_is_a_number_and_a_chain_goes_its_own_way() -> None:
    searcher = HypergradSearch({"x": FLOATS["x"], "y": Float(-1.0, 1.0, lift=(4,))}, seed=0)

    def lifted_bowl(config: Config) -> Config:
        loss, gradient = bowl({"x": config["x"], "y": config["y"].mean()})
        return result(loss, {"x": gradient["x"], "y": np.full(4, gradient["y"] / 4)})

    configs = play(searcher, 30, lifted_bowl)
    assert {c["y"].shape for c in configs} == {(4,)}
    for config, parent in zip(configs, parents(searcher), strict=True):
        assert parent is not None or (len(set(config["x"])) == 1 and len(set(config["y"])) == 1)
    assert any(len(set(config["x"])) == 3 for config in configs)
    assert min(lifted_bowl(config)["loss"] for config in configs) < 1e-2


def test_a_point_is_looked_at_again_to_the_bit() -> None:
    """A head that turns every step down is evaluated once more, at the very same numbers."""

    def wrong(config: Config) -> Config:
        loss, gradient = bowl(config)
        return result(loss, {name: -derivative for name, derivative in gradient.items()})

    searcher = HypergradSearch(FLOATS, explorer=Centre(100))
    configs = play(searcher, 40, wrong)
    links = [(c, int(p)) for c, p in zip(configs, parents(searcher), strict=True) if p is not None]
    assert sum(all(np.array_equal(c[n], configs[p][n]) for n in FLOATS) for c, p in links) == 1  # it settled the matter
    assert searcher._state.noisy is False
