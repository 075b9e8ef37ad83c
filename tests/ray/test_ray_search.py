"""The searcher alone, without a cluster: what it asks for, and what it makes of every kind of result."""

import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial
from ray import tune
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Searcher
from ray.tune.search.optuna import OptunaSearch

import hypergrad_ray
from hypergrad_ray import HypergradSearch, param_space, wants_gradient
from hypergrad_search import Categorical, Float, Int, Space
from hypergrad_search.search import ExploreDescend
from hypergrad_search.search.ask_tell import collect
from hypergrad_search.search.sign_steps import SignRegion
from hypergrad_search.space import centre, level, lifted

SPACE: Space = {
    "bend": Float(-2.0, 2.0, shape=(2, 2)),
    "layers": Int(1, 4),
    "rate": Float(1e-3, 1.0, log=True),
    "kind": Categorical(["tanh", None, True]),
}
FLOATS: Space = {"x": Float(-1.0, 1.0, shape=(3,)), "y": Float(-1.0, 1.0)}
BEST = np.array([0.3, -0.2, 0.7])
LIFTED: Space = {
    "decay": Float(1e-6, 1e-1, log=True, shape=(2, 2)),
    "rate": Float(1e-3, 1.0, log=True, lift=(5,)),
    "pull": Float(0.0, 3.0, lift=(1,)),
    "layers": Int(1, 4),
    "kind": Categorical(["tanh", None, True]),
}

Config = dict[str, Any]


def minimising(space: Space, **others: Any) -> HypergradSearch:
    return HypergradSearch(space, metric="loss", mode="min", **others)


def bowl(config: Config) -> tuple[float, dict[str, Any]]:
    """Return a quadratic of `FLOATS` and its gradient; the minimum is 0, at x = BEST, y = 0.5."""
    x, y = config["x"] - BEST, config["y"] - 0.5
    return float(x @ x + y * y), {"x": 2 * x, "y": 2 * y}


def result(loss: Any, gradient: Config | None = None, **others: Any) -> Config:
    """Return what Ray hands to a searcher: a flat dict."""
    flat = {f"gradient/{name}": derivative for name, derivative in (gradient or {}).items()}
    return {"loss": loss, "training_iteration": 1, **flat, **others}


def evaluate(config: Config) -> Config:
    loss, gradient = bowl(config)
    return result(loss, gradient if wants_gradient(config, loss) else None)


def play(
    searcher: Searcher, trials: int, evaluate: Callable[[Config], Config] = evaluate, start: int = 0
) -> list[Config]:
    """Run trials one after another, as Ray does, and return their configs."""
    configs = []
    for number in range(start, start + trials):
        config = searcher.suggest(trial_id=str(number))
        assert isinstance(config, dict)
        configs.append(config)
        outcome = evaluate(config)
        searcher.on_trial_result(str(number), outcome)
        searcher.on_trial_complete(str(number), result=outcome)
    return configs


def slope(config: Config) -> tuple[float, dict[str, Any]]:
    """Return a function of `LIFTED` and its gradient. At its minimum of 0, arrays are not the same everywhere."""
    loss, gradient = 0.0, {}
    for name, best in {"decay": [[1e-5, 1e-4], [1e-3, 1e-2]], "rate": np.geomspace(0.01, 0.5, 5)}.items():
        offset = np.log(config[name] / np.array(best))
        loss, gradient[name] = loss + float(np.sum(offset**2)), 2 * offset / config[name]
    return loss + float(np.sum((config["pull"] - 1) ** 2)), {**gradient, "pull": 2 * (config["pull"] - 1)}


def grains(config: Config, number: int) -> Config:
    """Return the result of a trial of `slope` where each trial has its own luck."""
    loss, gradient = slope(config)
    loss += 5 * np.random.default_rng(number).standard_normal()
    return result(loss, gradient if wants_gradient(config, loss) else None)


def play_grains(searcher: HypergradSearch, trials: int, start: int = 0) -> list[Config]:
    numbers = iter(range(start, start + trials))
    return play(searcher, trials, lambda config: grains(config, next(numbers)), start)


def bits(config: Config) -> dict[str, Any]:
    """Return the hyperparameters in a config, to the bit, with type and shape."""
    values = {name: value for name, value in config.items() if name != "hypergrad"}
    return {n: (type(v), np.shape(v), np.asarray(v).dtype.str, np.asarray(v).tolist()) for n, v in values.items()}


def second_looks(searcher: HypergradSearch, configs: list[Config]) -> list[int]:
    """Return the trials that repeated the one that they followed."""
    following = [(number, parent) for number, parent in enumerate(parents(searcher)) if parent is not None]
    return [number for number, parent in following if bits(configs[number]) == bits(configs[int(parent)])]


PATIENT = ExploreDescend(tolerance=0.0)  # it goes on where little is left to gain, and so comes to doubts


def until_second_look(searcher: HypergradSearch) -> list[Config]:
    """Play until a trial is about to be repeated."""
    configs: list[Config] = []
    while not searcher._mind.ask([]).wanted.again:
        assert len(configs) < 200
        configs += play_grains(searcher, 1, start=len(configs))
    return configs


def told_to(explorer: OptunaSearch) -> list[FrozenTrial]:
    """Return the trials that an explorer knows of."""
    study: optuna.Study | None = explorer._ot_study
    assert study is not None
    return study.trials


def parents(searcher: HypergradSearch) -> list[str | None]:
    """Return the trials that the finished trials followed, or None where the explorer chose."""
    return [trial.parent for trial in searcher._observations.values()]


def same(some: Sequence[Config | None], others: Sequence[Config | None]) -> bool:
    return json.dumps(some, default=np.ndarray.tolist) == json.dumps(others, default=np.ndarray.tolist)


# what it asks for


def test_config_holds_the_hyperparameters_and_one_reserved_key() -> None:
    config = minimising(SPACE, seed=0).suggest(trial_id="a")
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
    ours, theirs = minimising(FLOATS, seed=0), OptunaSearch(seed=0)
    theirs.set_search_properties("loss", "min", param_space(FLOATS))
    best = min(bowl(config)[0] for config in play(ours, 40))
    coordinatewise = [
        {"x": np.array([c[f"x[{i}]"] for i in range(3)]), "y": c["y"]}
        for c in play(theirs, 160, lambda c: result(sum(v**2 for v in c.values())))
    ]
    assert best < 1e-3 < min(bowl(config)[0] for config in coordinatewise)


def test_gradient_is_wanted_only_below_the_chain_it_would_extend() -> None:
    searcher = minimising(FLOATS, seed=0)
    play(searcher, 6)
    values = {trial.trial: trial.value for trial in searcher._observations.values()}
    explored = [trial.value for trial in searcher._observations.values() if trial.parent is None]
    for number in range(6, 40):
        config = searcher.suggest(trial_id=str(number))
        assert config is not None
        parent = searcher._running[str(number)].parent
        threshold = min(explored) if parent is None else values[parent]
        assert wants_gradient(config, np.nextafter(threshold, -math.inf))
        assert not wants_gradient(config, threshold)
        outcome = evaluate(config)
        searcher.on_trial_complete(str(number), result=outcome)
        values[str(number)] = outcome["loss"]
        explored += [outcome["loss"]] if parent is None else []
    assert None in parents(searcher)[6:]
    assert any(parents(searcher)[6:])


def test_integers_and_categoricals_stay_as_they_are_along_a_chain() -> None:
    def loss(config: Config) -> Config:
        bend, rate = config["bend"], config["rate"]
        value = float(np.sum(bend**2) + math.log(rate) ** 2 + config["layers"])
        return result(value, {"bend": 2 * bend, "rate": 2 * math.log(rate) / rate})

    searcher = minimising(SPACE, seed=1)
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
def test_no_step_is_taken_twice_at_a_time(finished: int) -> None:
    searcher = minimising(FLOATS, seed=0)
    play(searcher, finished)
    for number in range(finished, finished + 8):
        searcher.suggest(trial_id=str(number))
    steps = [trial.attempt for trial in searcher._running.values() if trial.parent is not None]
    assert len(steps) == len(set(steps)) > 1


def test_maximising_mirrors_minimising() -> None:
    def mirrored(config: Config) -> Config:
        loss, gradient = bowl(config)
        gain = {name: -derivative for name, derivative in gradient.items()}
        return result(None, gain if wants_gradient(config, -loss) else None, gain=-loss)

    down = play(minimising(FLOATS, seed=0), 25)
    up = play(HypergradSearch(FLOATS, metric="gain", mode="max", seed=0), 25, mirrored)
    for config in (*down, *up):
        config.pop("hypergrad")
    assert same(down, up)


def test_explorer_learns_from_every_trial() -> None:
    explorer = OptunaSearch(sampler=None, seed=0)
    searcher = minimising(SPACE, explorer=explorer)

    def loss(config: Config) -> Config:
        return result(float(np.sum(config["bend"] ** 2)), {"bend": 2 * config["bend"]})

    configs = play(searcher, 20, loss)
    told = [trial.params for trial in told_to(explorer)]
    assert len(told) == 20
    assert any(parents(searcher))
    for config, params in zip(configs, told, strict=True):
        assert list(params) == list(SPACE)
        assert params["bend"] == pytest.approx(config["bend"].mean(), abs=1e-12)
        assert params["rate"] == pytest.approx(config["rate"], rel=1e-12)
        assert params["layers"] == config["layers"]
        assert params["kind"] == config["kind"]


# arrays, and numbers that may become arrays


def test_explorer_sees_one_number_for_each_array() -> None:
    explorer = Centre(1)
    minimising(LIFTED, explorer=explorer)
    numbers = {name: replace(p, shape=(), lift=None) if isinstance(p, Float) else p for name, p in LIFTED.items()}
    expected = param_space(numbers)
    assert list(explorer.domains) == list(LIFTED)
    for name, domain in explorer.domains.items():
        assert type(domain) is type(expected[name])
        assert vars(domain).keys() == vars(expected[name]).keys()
        if isinstance(LIFTED[name], Float):
            assert (domain.lower, domain.upper) == (expected[name].lower, expected[name].upper)
            assert type(domain.get_sampler()) is type(expected[name].get_sampler())


def test_exploring_gives_arrays_of_one_number() -> None:
    explorer = OptunaSearch(seed=0)
    searcher = minimising(LIFTED, explorer=explorer)
    configs = play(searcher, 30, lambda config: result(*slope(config)))
    told = [trial.params for trial in told_to(explorer)]
    assert len(told) == 30
    for config, params, parent in zip(configs, told, parents(searcher), strict=True):
        for name, shape in {"decay": (2, 2), "rate": (5,), "pull": (1,)}.items():
            assert (type(config[name]), config[name].dtype, config[name].shape) == (np.ndarray, np.float64, shape)
            if parent is None:
                assert set(config[name].ravel()) == {params[name]}
    assert any(len(set(config["rate"])) > 1 for config in configs)


def test_chains_of_lifted_numbers_go_where_one_number_cannot() -> None:
    numbers = {name: replace(p, shape=(), lift=None) if isinstance(p, Float) else p for name, p in LIFTED.items()}
    best = min(slope(config)[0] for config in play(minimising(LIFTED, seed=0), 60, lambda c: result(*slope(c))))
    alone = play(minimising(numbers, seed=0), 60, lambda c: result(slope(c)[0], gradient_evaluations=1.0))
    assert best < 1.0 < min(slope(config)[0] for config in alone)


@pytest.mark.parametrize("shape", [(), (1,), (3, 2)])
def test_explorer_is_told_levels_within_bounds(shape: tuple[int, ...]) -> None:
    """Optuna refuses a value that misses a bound by one bit."""
    space: Space = {
        "up": Float(1e-7, 0.3, log=True, shape=shape),
        "down": Float(0.1, 0.7, shape=shape),
        "fixed": Float(0.3, 0.3, log=True, shape=shape),
    }
    explorer = OptunaSearch(seed=0)
    searcher = minimising(space, explorer=explorer)

    def outwards(config: Config) -> Config:
        value = float(np.sum(config["down"]) - np.sum(np.log(config["up"])))
        return result(value, {"up": -1 / config["up"], "down": np.ones(shape)})

    configs = play(searcher, 40, outwards)
    assert any(np.all(config["up"] == 0.3) and np.all(config["down"] == 0.1) for config in configs)
    told = told_to(explorer)
    assert len(told) == 40
    for config, trial in zip(configs, told, strict=True):
        for name, parameter in space.items():
            assert isinstance(parameter, Float)
            assert parameter.low <= trial.params[name] <= parameter.high
            assert trial.params[name] == pytest.approx(level(parameter, config[name]), rel=1e-12)
    ends = [t.params for t, c in zip(told, configs, strict=True) if np.all(c["up"] == 0.3) and np.all(c["down"] == 0.1)]
    assert {(params["up"], params["down"], params["fixed"]) for params in ends} == {(0.3, 0.1, 0.3)}


def test_level_of_an_uneven_array_is_its_mean_in_the_unit_box() -> None:
    space: Space = {"x": Float(1e-4, 1.0, log=True, shape=(2,)), "y": Float(0.0, 8.0, lift=(2,))}
    told = collect(lifted(space), {"x": np.array([1e-3, 1e-1]), "y": np.array([1.0, 2.0])})
    assert told == pytest.approx({"x": 1e-2, "y": 1.5})


def test_plain_values_come_of_an_explorer_that_works_in_numpy() -> None:
    chosen = {"decay": np.float32(0.01), "rate": 1, "pull": np.int64(1), "layers": np.int64(2), "kind": np.str_("tanh")}
    searcher = minimising(LIFTED, explorer=Centre(3, chosen))
    config = searcher.suggest(trial_id="a")
    assert config is not None
    assert [type(config[name]) for name in LIFTED] == [np.ndarray] * 3 + [int, str]
    assert {config[name].dtype for name in ("decay", "rate", "pull")} == {np.dtype(np.float64)}
    json.dumps(searcher._running["a"].to_json())


# a second look at a point where every trial has its own luck


def test_second_look_is_at_the_same_hyperparameters_to_the_bit() -> None:
    searcher = minimising(LIFTED, seed=0)
    configs = []
    looked_at = 0
    for number in range(80):
        again = searcher._mind.ask([]).wanted.again
        configs += play_grains(searcher, 1, start=number)
        if again:
            parent = parents(searcher)[-1]
            assert parent is not None
            assert bits(configs[number]) == bits(configs[int(parent)])
            assert wants_gradient(configs[number], 1e300)
            assert searcher._mind.state.noisy
            assert searcher._mind.state.chains[parent].looks > 1
            looked_at += 1
    assert looked_at > 1


def test_one_second_look_is_enough_where_values_do_not_vary() -> None:
    def uphill(config: Config) -> Config:
        loss, gradient = slope(config)
        return result(loss, {name: -derivative for name, derivative in gradient.items()})

    searcher = minimising(LIFTED, seed=0)
    with pytest.warns(UserWarning, match="is the sign right"):
        configs = play(searcher, 80, uphill)
    assert len(second_looks(searcher, configs)) == 1
    assert searcher._mind.state.noisy is False


@pytest.mark.parametrize("under_way", [False, True])
def test_restored_in_the_middle_of_a_second_look(under_way: bool, tmp_path: Path) -> None:
    original, killed = (minimising(LIFTED, seed=3, strategy=PATIENT) for _ in range(2))
    before, number = until_second_look(original), len(until_second_look(killed))
    parent = original._mind.ask([]).wanted.parent
    assert parent is not None
    restored = minimising(LIFTED, seed=99, strategy=PATIENT)
    if under_way:
        expected, config = original.suggest(trial_id=str(number)), killed.suggest(trial_id=str(number))
        killed.save(str(tmp_path / "state"))
        restored.restore(str(tmp_path / "state"))
    else:
        killed.save(str(tmp_path / "state"))
        restored.restore(str(tmp_path / "state"))
        expected, config = original.suggest(trial_id=str(number)), restored.suggest(trial_id=str(number))
    assert expected is not None
    assert config is not None
    assert bits(config) == bits(expected) == bits(before[int(parent)])
    for searcher in (original, restored):
        searcher.on_trial_complete(str(number), result=grains(config, number))
        assert searcher._mind.state.chains[parent].looks == 2
        assert searcher._mind.state.noisy
    some, others = (play_grains(searcher, 40, start=number + 1) for searcher in (original, restored))
    assert [bits(config) for config in some] == [bits(config) for config in others]
    assert any(second_look > number for second_look in second_looks(restored, [*before, config, *others]))


@pytest.mark.parametrize("end", [{"error": True}, {"result": None}, {"result": result(math.nan)}])
def test_second_look_that_fails_leaves_the_point_as_it_was(end: Config) -> None:
    explorer = OptunaSearch(seed=8)
    searcher = minimising(LIFTED, explorer=explorer, strategy=PATIENT)
    number = len(until_second_look(searcher))
    parent = searcher._mind.ask([]).wanted.parent
    assert parent is not None
    before = searcher._mind.state.chains[parent]
    searcher.suggest(trial_id=str(number))
    searcher.on_trial_complete(str(number), **end)
    after = searcher._mind.state.chains[parent]
    assert (after.value, after.looks, after.rejections) == (before.value, 1, before.rejections + 1)
    assert searcher._mind.state.noisy is None
    rate = LIFTED["rate"]
    assert isinstance(rate, Float)
    before_it = level(rate, searcher._observations[parent].hyperparameters["rate"])
    assert told_to(explorer)[-1].params["rate"] == pytest.approx(before_it, rel=1e-12)


def test_thousands_of_hyperparameters() -> None:
    space: Space = {"rate": Float(1e-3, 1.0, log=True, lift=(50, 100)), "y": Float(-1.0, 1.0)}
    best = np.geomspace(0.01, 0.5, 5000).reshape(50, 100)

    def loss(config: Config) -> Config:
        offset = np.log(config["rate"] / best)
        value = float(np.mean(offset**2)) + config["y"] ** 2
        return result(value, {"rate": 2 * offset / config["rate"] / 5000, "y": 2 * config["y"]})

    explorer = OptunaSearch(seed=0)
    searcher = minimising(space, explorer=explorer)
    play(searcher, 60, loss)
    assert {frozenset(trial.params) for trial in told_to(explorer)} == {frozenset(space)}
    assert all(isinstance(region, SignRegion) for region in searcher._mind.state.chains.values())
    assert searcher._mind.state.best_value < 0.2 < searcher._mind.state.best_explored


# other explorers


class Centre(Searcher):
    """An explorer that knows one point, and cannot be told of others'."""

    def __init__(self, trials: int, point: Config | None = None) -> None:
        super().__init__()
        self.left = trials
        self.point = {"x": 0, "y": 0.0} if point is None else point

    def set_search_properties(self, metric: Any, mode: Any, config: Config, **spec: Any) -> bool:
        self.domains = config
        return True

    def suggest(self, trial_id: str) -> Any:
        self.left -= 1
        return self.point if self.left >= 0 else self.FINISHED

    def on_trial_complete(self, trial_id: str, result: Config | None = None, error: bool = False) -> None:
        pass


def test_any_searcher_can_explore_until_it_has_finished() -> None:
    searcher = minimising(FLOATS, explorer=Centre(4))
    trials = 0
    while (config := cast(Any, searcher.suggest(trial_id=str(trials)))) != Searcher.FINISHED:
        searcher.on_trial_complete(str(trials), result=evaluate(config))
        trials += 1
    assert parents(searcher).count(None) == 4
    assert trials > 4


def test_explorer_that_waits_is_waited_for() -> None:
    searcher = minimising(FLOATS, explorer=ConcurrencyLimiter(OptunaSearch(), max_concurrent=1))
    assert searcher.suggest(trial_id="a") is not None
    assert searcher.suggest(trial_id="b") is None
    assert list(searcher._running) == ["a"]


# what it makes of results


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, "many", np.ones(2)])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_bad_values_are_failed_steps(bad: Any, mode: str) -> None:
    searcher = HypergradSearch(FLOATS, metric="loss", mode=mode, seed=0)
    with pytest.warns(UserWarning, match="all of the first 5 trials have failed"):
        play(searcher, 12, lambda config: result(bad, {"y": 1.0}))
    assert [trial.value for trial in searcher._observations.values()] == [math.inf] * 12
    assert searcher._mind.state.chains == {}
    assert searcher._mind.state.best_value == math.inf


def test_missing_metric_is_a_failed_step_with_one_warning() -> None:
    searcher = minimising(FLOATS, seed=0)
    with pytest.warns(UserWarning, match="'loss' is missing from a result") as caught:
        play(searcher, 3, lambda config: {"training_iteration": 1, "other": 1.0})
    assert len(caught) == 1
    assert [trial.value for trial in searcher._observations.values()] == [math.inf] * 3


def test_failed_step_shortens_the_next() -> None:
    searcher = minimising({"y": Float(-1.0, 1.0)}, seed=0)
    lengths = []
    for number in range(30):
        config = searcher.suggest(trial_id=str(number))
        assert config is not None
        parent = searcher._running[str(number)].parent
        if parent is None:
            outcome = result(config["y"], {"y": 1.0}) if number < 3 else result(9.0)
            searcher.on_trial_complete(str(number), result=outcome)
        else:
            start = searcher._observations[parent]
            length = abs(config["y"] - start.hyperparameters["y"])
            if length:
                lengths.append((parent, length))
                searcher.on_trial_complete(str(number), error=True)
            else:  # the second look at the start
                searcher.on_trial_complete(str(number), result=result(start.value, {"y": 1.0}))
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
    searcher = minimising(FLOATS, seed=0)
    searcher.suggest(trial_id="a")
    if brought:
        searcher.on_trial_result("a", brought)
    searcher.on_trial_complete("a", error=True)
    (trial,) = searcher._observations.values()
    assert (trial.value, trial.gradient, trial.cost) == (math.inf, None, 7.0 if brought else 1.0)


@pytest.mark.parametrize("end", [None, result(0.1, {"y": 1.0}, status="running", gradient_evaluations=5.0)])
def test_trial_stopped_early_is_a_failed_step_and_keeps_its_cost(end: Config | None) -> None:
    searcher = minimising(FLOATS, seed=0)
    searcher.suggest(trial_id="a")
    searcher.on_trial_result("a", result(0.2, status="running", gradient_evaluations=5.0))
    searcher.on_trial_complete("a", result=end)
    (trial,) = searcher._observations.values()
    assert (trial.value, trial.gradient, trial.cost) == (math.inf, None, 5.0)


def test_last_result_counts_though_the_trial_ends_without_one() -> None:
    """HyperBand does this: it pauses a trial on its last result, and then ends it."""
    searcher = minimising(FLOATS, seed=0)
    searcher.suggest(trial_id="a")
    searcher.on_trial_result("a", result(0.2, {"y": 1.0}, status="ok", gradient_evaluations=80.0))
    searcher.on_trial_complete("a", result=None)
    (trial,) = searcher._observations.values()
    assert (trial.value, trial.cost) == (0.2, 80.0)
    assert trial.gradient is not None


def test_explorer_hears_how_its_trials_ended() -> None:
    explorer = OptunaSearch(seed=0)
    searcher = minimising(FLOATS, explorer=explorer)
    for trial in "abcd":
        searcher.suggest(trial_id=trial)
    searcher.on_trial_result("a", result(0.4, status="running"))
    searcher.on_trial_complete("a", result=None)
    searcher.on_trial_complete("b", error=True)
    searcher.on_trial_complete("c", result=result(math.nan))
    searcher.on_trial_complete("d", result=result(0.5, gradient_evaluations=1.0))
    told = [(trial.state.name, trial.value) for trial in told_to(explorer)]
    assert told == [("PRUNED", 0.4), ("FAIL", None), ("COMPLETE", math.inf), ("COMPLETE", 0.5)]


def test_explorer_hears_how_steps_along_a_gradient_ended() -> None:
    explorer = OptunaSearch(seed=0)
    searcher = minimising(FLOATS, explorer=explorer)
    ends: list[Config] = [{"error": True}, {"result": None}, {"result": result(math.nan)}, {"result": result(9.0)}]
    expected = [("FAIL", None), ("PRUNED", math.inf), ("COMPLETE", math.inf), ("COMPLETE", 9.0)]
    steps: list[int] = []
    for number in range(40):
        config = searcher.suggest(trial_id=str(number))
        assert config is not None
        if searcher._running[str(number)].parent is None or len(steps) == 4:
            searcher.on_trial_complete(str(number), result=evaluate(config))
        else:
            searcher.on_trial_complete(str(number), **ends[len(steps)])
            steps.append(number)
    told = told_to(explorer)
    assert len(told) == 40
    assert [(told[step].state.name, told[step].value) for step in steps] == expected


def test_late_and_unknown_results_are_ignored_with_a_warning() -> None:
    searcher = minimising(FLOATS, seed=0)
    play(searcher, 2)
    for trial in ("0", "unknown"):
        with pytest.warns(UserWarning, match=f"a result of trial '{trial}', which is not running"):
            searcher.on_trial_result(trial, result(0.0))
        with pytest.warns(UserWarning, match=f"the end of trial '{trial}', which is not running"):
            searcher.on_trial_complete(trial, result=result(0.0))
    assert len(searcher._observations) == 2


def test_without_gradients_it_is_the_explorer_and_warns_once() -> None:
    ours, theirs = minimising(SPACE, seed=3), OptunaSearch(seed=3)
    theirs.set_search_properties("loss", "min", param_space({**SPACE, "bend": Float(-2.0, 2.0)}))
    with pytest.warns(UserWarning, match="reported no gradient, so this search is OptunaSearch's") as caught:
        configs = play(ours, 20, lambda config: result(config["rate"]))
    assert len(caught) == 1
    first = centre(SPACE)
    assert bits(configs[0]) == bits(first)
    theirs.add_evaluated_point(collect(SPACE, first), first["rate"])
    for config, alone in zip(configs[1:], play(theirs, 19, lambda c: result(c["rate"])), strict=True):
        assert config["bend"].ravel().tolist() == [alone["bend"]] * 4
        assert [config[name] for name in ("layers", "rate", "kind")] == [
            alone[name] for name in ("layers", "rate", "kind")
        ]


def test_trainable_that_drops_an_exploded_gradient_is_not_silent() -> None:
    searcher = minimising(FLOATS, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        play(searcher, 6, lambda config: result(1.0, status="exploded", gradient_evaluations=80.0))


def test_floats_without_a_derivative_stay_along_a_chain() -> None:
    def loss(config: Config) -> Config:
        return result(config["y"] ** 2, {"y": 2 * config["y"]})

    searcher = minimising(FLOATS, seed=0)
    configs = play(searcher, 15, loss)
    steps = [number for number, parent in enumerate(parents(searcher)) if parent is not None]
    repeated = second_looks(searcher, configs)
    assert len(steps) > len(repeated)
    for number in steps:
        start = configs[int(parents(searcher)[number] or 0)]
        np.testing.assert_allclose(configs[number]["x"], start["x"], rtol=1e-12)
        assert (configs[number]["y"] == start["y"]) == (number in repeated)


@pytest.mark.parametrize("bad", [np.ones(2), 1.0, "steep", {"a": 1}])
def test_gradient_that_does_not_fit_is_ignored_with_a_warning(bad: Any) -> None:
    searcher = minimising(FLOATS, seed=0)
    with pytest.warns(UserWarning, match=r"gradient\['x'\] must be numbers of shape \(3,\)") as caught:
        play(searcher, 3, lambda config: result(1.0, {"x": bad}))
    assert len(caught) == 1
    assert [(trial.value, trial.gradient) for trial in searcher._observations.values()] == [(1.0, None)] * 3


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"gradient/typo": 1.0, "gradient/y": 2.0}, r"gradient\['typo'\] was ignored: the floats of the space are"),
        ({"gradient/x/a": 1.0, "gradient/y": 2.0}, r"gradient\['x/a'\] was ignored"),
        ({"gradient": 3, "gradient/y": 2.0}, r"must be a dict \{name: array\}, got 3"),
        ({"gradient": np.ones(3), "gradient/y": 2.0}, r"must be a dict \{name: array\}, got array"),
    ],
)
def test_what_is_wrong_in_a_gradient_is_said_once_and_the_rest_is_used(wrong: Config, words: str) -> None:
    searcher = minimising(FLOATS, seed=0)
    with pytest.warns(UserWarning, match=words) as caught:
        play(searcher, 3, lambda config: {**result(1.0), **wrong})
    assert len(caught) == 1
    for trial in searcher._observations.values():
        assert trial.gradient is not None
        assert trial.gradient["y"] == 2.0
        assert trial.gradient["x"].tolist() == [0.0] * 3


def test_derivatives_that_are_none_are_not_there() -> None:
    searcher = minimising(FLOATS, seed=0)
    with pytest.warns(UserWarning, match="reported no gradient"):
        play(searcher, 2, lambda config: {**result(1.0, {"x": None, "typo": None}), "gradient": None})


def test_an_overfitted_step_has_failed_and_keeps_its_true_loss() -> None:
    explorer = OptunaSearch(seed=0)
    searcher = minimising(FLOATS, explorer=explorer)
    play(searcher, 4)
    chains = searcher._mind.state.chains
    head = min(chains, key=lambda trial: chains[trial].value)
    for number in map(str, range(4, 20)):
        config = searcher.suggest(trial_id=number)
        assert config is not None
        before = searcher._mind.state
        searcher.on_trial_complete(number, result=result(-1.0, status="overfitted", gradient_evaluations=1.0))
        assert searcher._observations[number].value == math.inf
        assert searcher._mind.state.best_value == before.best_value
        assert (told_to(explorer)[-1].value, told_to(explorer)[-1].state.name) == (-1.0, "COMPLETE")
        parent = config["hypergrad"]["parent"]
        if parent in searcher._mind.state.chains:
            assert searcher._mind.state.chains[parent].rejections == before.chains[parent].rejections + 1
    assert {None, head} <= set(parents(searcher)[4:])


def test_gradient_that_is_not_finite_founds_no_chain() -> None:
    searcher = minimising(FLOATS, seed=0)
    with pytest.warns(UserWarning, match="3 of the 3 numbers of .*'x'.* are NaN or infinite") as caught:
        play(searcher, 6, lambda config: result(1.0, {"x": np.full(3, np.nan), "y": 1.0}))
    assert len(caught) == 1
    assert parents(searcher) == [None] * 6


def test_cost_is_what_the_trainable_says_else_four_for_a_gradient() -> None:
    searcher = minimising(FLOATS, seed=0)
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
        searcher = minimising(SPACE, seed=5)
        play(searcher, after, loss)
        return searcher

    original, killed = begin(), begin()
    waiting = [searcher.suggest(trial_id="waiting") for searcher in (original, killed)]
    for searcher in (original, killed):
        searcher.on_trial_result("waiting", result(9.0, status="running", gradient_evaluations=3.0))
    killed.save(str(tmp_path / "state"))
    restored = minimising(SPACE, seed=99)
    restored.restore(str(tmp_path / "state"))
    for searcher in (original, restored):
        searcher.on_trial_complete("waiting", result=None)
    assert restored._observations["waiting"].cost == 3.0
    assert same(waiting[:1], waiting[1:])
    assert same(play(original, 25, loss, start=after), play(restored, 25, loss, start=after))
    assert any(parents(restored)[after:])


# construction


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"space": [("x", Float(0.0, 1.0))]}, "space must be a dict"),
        ({"space": {}}, "space must be a dict"),
        ({"space": {"x": Float}}, r"space\['x'\] must be a Float"),
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
    assert searcher.metric is None
    assert searcher.mode is None
    assert not searcher.set_search_properties("accuracy", "max", {"constant": 1}, stop=None)
    assert (searcher.metric, searcher.mode) == ("accuracy", "max")
    assert searcher._mind.maximise


@pytest.mark.parametrize(
    ("own", "of_the_run", "known"),
    [
        (("loss", "min"), ("loss", "min"), ("loss", "min")),
        (("loss", "min"), ("accuracy", "max"), ("loss", "min")),  # by which Ray reports the best trial
        (("loss", None), ("loss", "max"), ("loss", "max")),
        (("loss", None), ("accuracy", "max"), ("loss", None)),  # the direction of another metric
        ((None, "max"), ("accuracy", None), ("accuracy", "max")),
        (("loss", None), (None, "max"), ("loss", "max")),
        (("loss", "min"), (None, None), ("loss", "min")),
    ],
)
def test_own_metric_and_mode_come_first(own: Sequence[Any], of_the_run: Sequence[Any], known: Sequence[Any]) -> None:
    searcher = HypergradSearch(FLOATS, metric=own[0], mode=own[1])
    searcher.set_search_properties(of_the_run[0], of_the_run[1], {"constant": 1})
    assert (searcher.metric, searcher.mode) == tuple(known)
    if None in known:
        with pytest.raises(RuntimeError, match=r"metric \(loss\) or mode \(None\) have not been set"):
            searcher.suggest(trial_id="a")
    else:
        assert searcher.suggest(trial_id="a") is not None
        assert searcher._mind.maximise == (searcher.mode == "max")


@pytest.mark.parametrize(("own", "metric"), [("loss", "loss"), (None, "loss"), ("loss", None)])
def test_two_directions_of_one_metric_are_refused(own: str | None, metric: str | None) -> None:
    searcher = HypergradSearch(FLOATS, metric=own, mode="min")
    with pytest.raises(ValueError, match="made with mode='min', and Ray has mode='max' for the metric 'loss'"):
        searcher.set_search_properties(metric, "max", {"constant": 1})


@pytest.mark.parametrize("known", [{}, {"metric": "loss"}, {"mode": "min"}])
def test_unknown_direction_is_asked_for_and_not_guessed(known: Config) -> None:
    with pytest.raises(RuntimeError, match=r"have not been set\. Pass both when instantiating") as caught:
        HypergradSearch(FLOATS, **known).suggest(trial_id="a")
    assert "\n" not in str(caught.value)


def test_it_can_be_made_by_name() -> None:
    searcher = tune.create_searcher("hypergrad", space=FLOATS, metric="gain", mode="max", seed=0)
    assert isinstance(searcher, hypergrad_ray.HypergradSearch)
    assert (searcher.metric, searcher.mode) == ("gain", "max")
