"""The search in Ray's own domains, without a cluster."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from ray import tune
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.tune.utils import flatten_dict, merge_dicts

from hypergrad_ray import HypergradSearch, wants_gradient
from hypergrad_ray.domains import Domains
from hypergrad_ray.results import config_of
from hypergrad_search import Categorical, Float, Int

Config = dict[str, Any]


def relu() -> None:
    """Stand for a function that a config holds."""


def everything() -> Config:
    """Return a param_space with every kind of domain and of constant."""
    return {
        "rate": tune.loguniform(1e-4, 1.0),
        "net": {
            "dropout": tune.uniform(0.0, 0.9),
            "widths": [tune.randint(8, 64), 32, tune.lograndint(8, 64)],
            "activation": tune.choice([relu, None, {"leaky": [0.1, True]}, 1, True]),
            "depth": {"coarse": tune.quniform(0.0, 1.0, 0.1), "fine": 3},
        },
        "pair": (tune.uniform(-1.0, 1.0), "kept"),
        "batch": tune.qrandint(10, 55, 10),
        "steps": tune.qlograndint(3, 100, 5),
        "decay": tune.qloguniform(1e-3, 1.0, 1e-3),
        "shift": tune.randn(5.0, 2.0),
        "noise": tune.qrandn(0.0, 1.0, 0.5),
        "array": Float(0.0, 1.0, shape=(2, 2)),
        "seeds": [1, 2, 3],
        "data": {"path": "/somewhere", "table": {1: "one"}},
    }


FLOATS = ["rate", "net.dropout", "pair.0", "shift", "array"]


def in_ray(searcher: Searcher, param_space: Config, metric: str | None = "loss", mode: str | None = "min") -> Config:
    """Give a searcher what Ray gives it before a run, and return the config that Ray merges each suggestion into."""
    spec = copy.deepcopy(param_space)
    assert searcher.set_search_properties(metric, mode, spec, num_samples=10)
    return spec


def play(
    searcher: Searcher, spec: Config, trials: int, train: Callable[[Config], Config], start: int = 0
) -> list[Config]:
    """Run trials one after another, as Ray does, and return their configs."""
    configs = []
    for number in range(start, start + trials):
        suggested = searcher.suggest(trial_id=str(number))
        assert isinstance(suggested, dict)
        config = merge_dicts(copy.deepcopy(spec), copy.deepcopy(suggested))
        configs.append(config)
        result = flatten_dict({**train(config), "training_iteration": 1, "config": config})
        searcher.on_trial_complete(str(number), result=result)
    return configs


def bowl(config: Config) -> Config:
    """Return a loss and its gradient, nested as the config is."""
    offsets = {
        "rate": np.log(config["rate"] / 0.01),
        "net": {"dropout": config["net"]["dropout"] - 0.3},
        "pair": [config["pair"][0] - 0.5, None],
        "shift": config["shift"] - 4.0,
        "array": config["array"] - np.array([[0.1, 0.9], [0.4, 0.6]]),
    }
    parts = [offsets["rate"], offsets["net"]["dropout"], offsets["pair"][0], offsets["shift"]]
    loss = float(sum(part**2 for part in parts) + np.sum(offsets["array"] ** 2))
    gradient: Config = {
        "rate": 2 * offsets["rate"] / config["rate"],
        "net": {"dropout": 2 * offsets["net"]["dropout"]},
        "pair": [2 * offsets["pair"][0]],
        "shift": 2 * offsets["shift"],
        "array": 2 * offsets["array"],
    }
    return {"loss": loss, **({"gradient": gradient} if wants_gradient(config, loss) else {})}


def negative(gradient: Any) -> Any:
    if isinstance(gradient, dict):
        return {name: negative(part) for name, part in gradient.items()}
    if isinstance(gradient, list):
        return [negative(part) for part in gradient]
    return None if gradient is None else -gradient


def without(config: Config) -> str:
    """Return a config as text, but for the searcher's request."""
    return repr({name: value for name, value in config.items() if name != "hypergrad"})


def test_configs_have_values_of_every_domain_s_kind_and_the_constants_as_they_were() -> None:
    searcher, space = HypergradSearch(seed=0), everything()
    spec = in_ray(searcher, space)
    seen: dict[str, set[Any]] = {name: set() for name in ("batch", "steps", "activation", "coarse", "noise")}
    for config in play(searcher, spec, 60, bowl):
        net = config["net"]
        assert type(config["rate"]) is type(net["dropout"]) is type(config["shift"]) is float
        assert type(net["depth"]["coarse"]) is type(config["decay"]) is type(config["noise"]) is float
        assert type(net["widths"][0]) is type(config["batch"]) is type(config["steps"]) is int
        assert 1e-4 <= config["rate"] <= 1.0
        assert -1.0 <= config["shift"] <= 11.0
        assert 8 <= net["widths"][0] < 64 > net["widths"][2] >= 8
        assert (type(config["array"]), config["array"].shape) == (np.ndarray, (2, 2))
        assert config["decay"] == round(config["decay"] / 1e-3) * 1e-3 >= 1e-3
        assert (net["widths"][1], net["depth"]["fine"], config["pair"][1]) == (32, 3, "kept")
        assert type(config["pair"]) is tuple
        assert config["seeds"] == [1, 2, 3]
        assert config["data"] == space["data"]
        seen["coarse"].add(net["depth"]["coarse"])
        seen["activation"].add(repr(net["activation"]))
        for name in ("batch", "steps", "noise"):
            seen[name].add(config[name])
    assert seen["batch"] <= {10, 20, 30, 40, 50}
    assert seen["steps"] <= set(range(5, 101, 5))
    assert seen["coarse"] <= {k * 0.1 for k in range(11)}
    assert seen["noise"] <= {k * 0.5 for k in range(-6, 7)}
    assert all(len(values) > 2 for values in seen.values())
    assert seen["activation"] <= {repr(relu), "None", "{'leaky': [0.1, True]}", "1", "True"}


def test_floats_follow_gradients_and_all_else_stays_along_a_chain() -> None:
    searcher, space = HypergradSearch(seed=0), everything()
    assert Domains.of(space).space.keys() >= set(FLOATS)
    configs = play(searcher, in_ray(searcher, space), 60, bowl)
    assert min(bowl(config)["loss"] for config in configs) < 1e-3
    steps = 0
    for number, trial in enumerate(searcher._observations.values()):
        if trial.parent is not None:
            some, parent = copy.deepcopy(configs[number]), copy.deepcopy(configs[int(trial.parent)])
            for config in (some, parent):
                config["pair"] = config["pair"][1:]
                for name in ("rate", "shift", "array", "hypergrad"):
                    del config[name]
                del config["net"]["dropout"]
            assert some == parent
            steps += 1
    assert steps > 20


@pytest.mark.parametrize(
    ("domain", "parameter", "last"),
    [
        (tune.uniform(-1, 2), Float(-1, 2), 2.0),
        (tune.loguniform(1e-3, 2), Float(1e-3, 2, log=True), 2.0),
        (tune.randn(5, 2), Float(-1, 11), 11.0),
        (tune.quniform(0, 0.7, 0.1), Int(0, 7), 0.7),
        (tune.qloguniform(0.1, 0.7, 0.1), Int(1, 7, log=True), 0.7),
        (tune.qrandn(0, 1, 0.7), Int(-4, 4), 2.8),
        (tune.randint(1, 5), Int(1, 4), 4),
        (tune.lograndint(1, 5), Int(1, 4, log=True), 4),
        (tune.qrandint(10, 55, 10), Int(1, 5), 50),
        (tune.qrandint(10, 50, 1), Int(10, 49), 49),
        (tune.qlograndint(3, 100, 5), Int(1, 20, log=True), 100),
        (tune.choice(["a", "b"]), Categorical([0, 1]), "b"),
    ],
)
def test_each_domain_has_its_parameter(domain: Any, parameter: Any, last: Any) -> None:
    """A quantised one is a whole number of units, in which Ray leaves out the upper bound where the unit is 1."""
    domains = Domains.of({"x": domain})
    assert domains.space == {"x": parameter}
    highest = parameter.choices[-1] if isinstance(parameter, Categorical) else parameter.high
    assert domains.config({"x": highest}) == {"x": pytest.approx(last, rel=1e-15) if last != "b" else "b"}
    assert domains.hyperparameters(domains.config({"x": highest})) == {"x": highest}


def test_a_space_of_ray_s_domains_may_be_given_to_the_searcher_itself() -> None:
    ours, theirs = HypergradSearch(seed=0), HypergradSearch(everything(), metric="loss", mode="min", seed=0)
    some, others = play(ours, in_ray(ours, everything()), 30, bowl), play(theirs, {}, 30, bowl)
    assert [without(config) for config in some] == [without(config) for config in others]


def test_constants_are_the_user_s_own_objects() -> None:
    space: Config = {"x": tune.uniform(0, 1), "data": object(), "nested": {"y": tune.uniform(0, 1), "kept": object()}}
    config = HypergradSearch(space, metric="loss", mode="min").suggest("a")
    assert config is not None
    assert config["data"] is space["data"]
    assert config["nested"]["kept"] is space["nested"]["kept"]


@pytest.mark.parametrize("wrap", [lambda searcher: searcher, lambda searcher: ConcurrencyLimiter(searcher, 1)])
def test_restored_without_arguments_it_goes_on_as_if_nothing_had_happened(wrap: Any, tmp_path: Path) -> None:
    """So Ray restores a run: it knows the searcher as it was before the run, and passes nothing on."""
    original, killed, restored = (HypergradSearch(seed=seed) for seed in (0, 0, 9))
    spec = in_ray(wrap(original), everything(), "gain", "max")
    in_ray(wrap(killed), everything(), "gain", "max")

    def gain(config: Config) -> Config:
        result = bowl(config)
        return {"gain": -result["loss"], "gradient": negative(result.get("gradient"))}

    for searcher in (original, killed):
        play(searcher, spec, 9, gain)
        searcher.suggest("waiting")
    killed.save(str(tmp_path / "state"))
    restored.restore(str(tmp_path / "state"))
    for searcher in (original, restored):
        searcher.on_trial_complete("waiting", error=True)
    assert (restored.metric, restored.mode) == ("gain", "max")
    some, others = (play(searcher, spec, 25, gain, start=9) for searcher in (original, restored))
    assert [without(config) for config in some] == [without(config) for config in others]
    assert any(trial.parent for trial in list(restored._observations.values())[9:])


# metric and mode


def test_metric_and_mode_of_the_run_reach_a_searcher_with_a_param_space() -> None:
    searcher = HypergradSearch(seed=0)
    in_ray(searcher, {"x": tune.uniform(0, 1)}, "gain", "max")
    assert (searcher.metric, searcher.mode, searcher._mind.maximise) == ("gain", "max", True)


def test_a_number_that_a_function_returns_is_the_metric_where_none_has_a_name() -> None:
    searcher = HypergradSearch(seed=0)
    spec = in_ray(searcher, {"x": tune.uniform(0, 1)}, None, "max")
    with pytest.warns(UserWarning, match="reported no gradient"):
        play(searcher, spec, 3, lambda config: {"_metric": config["x"]})
    assert [-trial.value for trial in searcher._observations.values()] == [
        trial.hyperparameters["x"] for trial in searcher._observations.values()
    ]


def test_without_any_space_the_first_trial_says_what_to_do() -> None:
    searcher = HypergradSearch(metric="loss", mode="min")
    assert not searcher.set_search_properties("loss", "min", {"constant": 1})
    with pytest.raises(RuntimeError, match="there is no space to search; make it as HypergradSearch") as caught:
        searcher.suggest("a")
    assert "\n" not in str(caught.value)


def test_the_same_searcher_runs_again_without_the_ghosts_of_its_first_run() -> None:
    """A time budget ends a run, whose trials never end for the searcher."""
    searcher = HypergradSearch(seed=0)
    spec = in_ray(searcher, everything())
    play(searcher, spec, 12, bowl)
    _, head = min((region.value, name) for name, region in searcher._mind.state.chains.items())
    ghosts = [searcher.suggest(f"ghost {number}") for number in range(3)]
    assert head in [config["hypergrad"]["parent"] for config in ghosts if config is not None]
    in_ray(searcher, everything())
    play(searcher, spec, 4, bowl, start=12)
    assert head in [trial.parent for trial in list(searcher._observations.values())[12:]]


# points that the user knows


POINTS = [{"x": 0.25, "net": {"y": 2}, "array": 0.5}, {"x": 0.75, "net": {"y": 3}, "array": np.array([0.1, 0.9])}]


def small() -> Config:
    return {"x": tune.uniform(0.0, 1.0), "net": {"y": tune.randint(1, 5)}, "array": Float(0.0, 1.0, shape=(2,))}


def line(config: Config) -> Config:
    gradient = {"x": 1.0, "array": np.ones(2)} if wants_gradient(config, config["x"]) else None
    return {"loss": config["x"] + float(np.sum(config["array"])), "gradient": gradient}


def told_to(explorer: OptunaSearch) -> list[Any]:
    study: optuna.Study | None = explorer._ot_study
    assert study is not None
    return [(trial.params["x"], trial.params["net.y"], trial.params["array"], trial.value) for trial in study.trials]


def test_the_user_s_points_come_first_and_found_chains() -> None:
    explorer = OptunaSearch(seed=0)
    searcher = HypergradSearch(explorer=explorer, points_to_evaluate=POINTS)
    configs = play(searcher, in_ray(searcher, small()), 10, line)
    assert [(c["x"], c["net"]["y"], c["array"].tolist()) for c in configs[:2]] == [
        (0.25, 2, [0.5, 0.5]),
        (0.75, 3, [0.1, 0.9]),
    ]
    assert any(trial.parent == "0" for trial in searcher._observations.values())
    assert told_to(explorer)[0] == (0.25, 2, 0.5, 1.25)
    assert told_to(explorer)[1] == pytest.approx((0.75, 3, 0.5, 1.75))


@pytest.mark.parametrize("mode", ["min", "max"])
def test_points_whose_value_is_known_are_not_run_but_for_the_gradient_of_the_best(mode: str) -> None:
    explorer = OptunaSearch(seed=0)
    searcher = HypergradSearch(explorer=explorer, points_to_evaluate=POINTS, evaluated_rewards=[1.25, 1.75])
    config = play(searcher, in_ray(searcher, small(), "loss", mode), 1, line)[0]
    best = POINTS[0] if mode == "min" else POINTS[1]
    assert (config["x"], config["net"]) == (best["x"], best["net"])
    assert wants_gradient(config, 0.0)
    sign = 1 if mode == "min" else -1
    assert [row[-1] for row in told_to(explorer)] == [sign * 1.25, sign * 1.75, sign * line(config)["loss"]]


def test_what_was_evaluated_elsewhere_can_be_told() -> None:
    explorer = OptunaSearch(seed=0)
    searcher = HypergradSearch(small(), metric="loss", mode="min", explorer=explorer)
    searcher.add_evaluated_point(POINTS[0], 1.25)
    searcher.add_evaluated_point({**POINTS[1], "hypergrad": None, "constant": 1}, 1.75)
    searcher.add_evaluated_point(POINTS[1], None, error=True)
    searcher.add_evaluated_point(POINTS[1], 3.0, pruned=True, intermediate_values=[4.0, 3.0])
    study: optuna.Study | None = explorer._ot_study
    assert study is not None
    assert [(trial.state.name, trial.value) for trial in study.trials] == [
        ("COMPLETE", 1.25),
        ("COMPLETE", 1.75),
        ("FAIL", None),
        ("PRUNED", 3.0),
    ]
    assert max(study.trials[-1].intermediate_values.items()) == (2, 3.0)
    config = searcher.suggest("a")
    assert config is not None
    assert (config["x"], config["net"]) == (0.25, {"y": 2})


def test_a_state_keeps_the_points_that_are_left() -> None:
    searcher, restored = HypergradSearch(points_to_evaluate=POINTS), HypergradSearch(points_to_evaluate=POINTS)
    play(searcher, in_ray(searcher, small()), 1, line)
    restored.set_state(pickle.loads(pickle.dumps(searcher.get_state())))
    config = restored.suggest("next")
    assert config is not None
    assert config["x"] == 0.75


def test_points_are_checked_as_soon_as_the_space_is_known() -> None:
    searcher = HypergradSearch(points_to_evaluate=[{"x": 0.5}])
    with pytest.raises(
        ValueError, match=r"points_to_evaluate\[0\] does not fit the space: 'net/y' and 'array' are missing; give"
    ):
        searcher.set_search_properties("loss", "min", small())


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (
            {"x": 0.5, "array": 0.5, "net": {"z": 2}},
            "'net/y' is missing; 'net/z' is not in the space; give a value for",
        ),
        ({"xx": 0.5, "yy": 2, "array": 0.5}, "'x' and 'net/y' are missing; 'xx' and 'yy' are not in the space"),
        ({"net/y": 2, "array": 0.5, "hypergrad": {"again": False}, "kind": {"of": 1}}, "'x' is missing; give a value"),
    ],
)
def test_a_point_with_a_wrong_name_says_both_names(point: Config, message: str) -> None:
    space = {**small(), "kind": {"of": 1}}
    with pytest.raises(ValueError, match=r"points_to_evaluate\[0\] does not fit the space: " + message):
        HypergradSearch(space, metric="loss", mode="min", points_to_evaluate=[point])


# reading configs back


def test_what_is_written_is_read_again() -> None:
    domains = Domains.of(everything())
    searcher = HypergradSearch(everything(), metric="loss", mode="min", seed=0)
    for number in range(20):
        config = searcher.suggest(str(number))
        assert config is not None
        result = flatten_dict({"config": config})
        for written in (config, config_of(result)):
            read = domains.hyperparameters(written)
            assert without(domains.config(read)) == without({k: v for k, v in config.items() if k != "hypergrad"})


def test_our_own_parameters_may_stand_among_ray_s() -> None:
    space = {"a": [Int(1, 3), Categorical(["x", None])], "b": tune.choice(["x", "y"])}
    assert Domains.of(space).space == {"a.0": Int(1, 3), "a.1": Categorical(["x", None]), "b": Categorical([0, 1])}
