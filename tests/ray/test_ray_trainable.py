"""The trainable, and the space in Ray's terms; without a cluster."""

import dataclasses
import json
import math
import re
import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ray.tune import ExperimentAnalysis
from ray.tune.search.sample import Categorical as Choice
from ray.tune.search.sample import Float as RealDomain
from ray.tune.search.sample import Integer

from hypergrad_ray import HypergradSearch, best_hyperparameters, param_space, trainable, wants_gradient
from hypergrad_ray.config import join
from hypergrad_search import (
    Categorical,
    Cost,
    Evaluation,
    Float,
    Int,
    Space,
    Status,
    TrainingProblem,
    Unrolled,
    evaluate,
    from_function,
    hosting,
    lift_settings,
    sgd,
)
from hypergrad_search.search.ask_tell import Wanted
from hypergrad_search.space import floats

SPACE: Space = {
    "target": Float(-1.0, 1.0, shape=(2,)),
    "rate": Float(1e-3, 0.3, log=True),
    "scale": Int(1, 3),
    "kind": Categorical(["plain", None]),
}
CONFIG = {"target": np.array([0.5, -0.5]), "rate": 0.1, "scale": 2, "kind": None}

Results = list[dict[str, Any]]


def problem(**changes: Any) -> TrainingProblem:
    parts: dict[str, Any] = {
        "init": lambda key, h: 0.1 * jax.random.normal(key, (2,)),
        "train_loss": lambda p, h, batch, key: jnp.sum((p - h["target"]) ** 2) / h["scale"],
        "valid_loss": lambda p, h: jnp.sum((p - 0.25) ** 2),
        "test_loss": lambda p, h: jnp.sum((p - 0.2) ** 2),
        "batches": lambda step: None,
        "optimizer": sgd("rate", 0.5),
        "steps": 20,
    }
    return TrainingProblem(**{**parts, **changes})


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> Results:
    """Return what a trainable that is called in this process reports."""
    reported: Results = []
    monkeypatch.setattr("ray.tune.report", lambda result, checkpoint=None: reported.append(result))
    monkeypatch.setattr("ray.tune.get_checkpoint", lambda: None)
    return reported


def wanting(gradient_below: float = math.inf, mode: str = "min") -> dict[str, Any]:
    return {**CONFIG, "hypergrad": Wanted(gradient_below=gradient_below, maximise=mode == "max").to_json()}


# the trainable


def test_it_reports_what_evaluate_finds(results: Results) -> None:
    training = problem()
    trainable(training, SPACE)(wanting())
    (result,) = results
    expected = evaluate(training, CONFIG, key=jax.random.key(0))
    assert expected.gradient is not None
    assert result["loss"] == expected.value
    assert result["test_loss"] == expected.test_loss
    assert (result["status"], result["steps"], result["gradient_evaluations"]) == ("ok", 20, 80)
    assert list(result["gradient"]) == ["target", "rate"]
    assert isinstance(result["gradient"]["target"], np.ndarray)
    np.testing.assert_array_equal(result["gradient"]["target"], expected.gradient["target"])
    assert type(result["gradient"]["rate"]) is float
    assert result["gradient"]["rate"] == float(expected.gradient["rate"])


def test_key_and_method_are_used(results: Results) -> None:
    training, key = problem(), jax.random.key(7)
    trainable(training, SPACE, key=key, method=Unrolled())(wanting())
    expected = evaluate(training, CONFIG, key=key, method=Unrolled())
    assert results[0]["loss"] == expected.value
    assert results[0]["gradient_evaluations"] == expected.cost.gradient_evaluations


def test_a_function_of_the_user_s_own_reports_likewise(results: Results) -> None:
    calls = []

    def function(h: dict[str, Any]) -> Any:
        calls.append((isinstance(h["rate"], jax.core.Tracer), h["scale"], h["kind"]))
        return jnp.sum(h["target"] ** 2) * h["scale"] + h["rate"]

    train = trainable(from_function(function), SPACE)
    train(wanting())
    train(wanting(-1.0))
    train(CONFIG)
    assert calls == [(True, 2, None), (False, 2, None), (False, 2, None)]
    assert {result["loss"] for result in results} == {float(np.float32(1.1))}
    assert [result["gradient_evaluations"] for result in results] == [4, 1, 1]
    assert {(result["status"], result["steps"]) for result in results} == {("ok", 1)}
    assert results[0]["gradient"]["target"].tolist() == [2.0, -2.0]
    assert results[0]["gradient"]["rate"] == 1.0
    assert all("gradient" not in result for result in results[1:])


def test_no_gradient_where_none_is_wanted(results: Results) -> None:
    train = trainable(problem(), SPACE)
    train(wanting(-1.0))
    train(CONFIG)
    train({**CONFIG, "target[0]": 0.5, "target[1]": -0.5})
    for result in results:
        assert "gradient" not in result
        assert result["gradient_evaluations"] == 20
    assert len({result["loss"] for result in results}) == 1


def test_gradient_has_the_shape_that_the_config_has(results: Results) -> None:
    space: Space = {**SPACE, "rate": Float(1e-3, 0.3, log=True, lift=(20,))}
    train = trainable(problem(), space)
    train(wanting())
    train({**wanting(), "rate": np.full(20, 0.1)})
    number, array = (result["gradient"]["rate"] for result in results)
    assert type(number) is float
    assert (type(array), array.shape) == (np.ndarray, (20,))
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-5)
    assert array.sum() == pytest.approx(number, rel=1e-4)


def test_lifted_rates_descend(results: Results) -> None:
    space: Space = {"target": Float(-1.0, 1.0, shape=(2,)), "rate": Float(1e-3, 0.3, log=True, lift=(20,))}
    train = trainable(problem(train_loss=lambda p, h, batch, key: jnp.sum((p - h["target"]) ** 2)), space)
    searcher = HypergradSearch(space, metric="loss", mode="min", seed=0)
    for trial in range(16):
        config = searcher.suggest(trial_id=str(trial))
        assert config is not None
        assert config["rate"].shape == (20,)
        train(config)
        flat = {f"gradient/{name}": value for name, value in results[-1].get("gradient", {}).items()}
        searcher.on_trial_complete(str(trial), result={**results[-1], **flat})
    best = min(searcher._observations.values(), key=lambda trial: trial.value)
    assert best.value < 0.02
    assert len(set(best.hyperparameters["rate"])) > 1


def test_settings_that_are_lifted_descend_and_are_judged(results: Results) -> None:
    wishes = jnp.asarray([0.3, 0.4, 0.5, 0.6, 0.35, 0.45, 0.55, 0.65])
    training = problem(
        train_loss=lambda p, h, batch, key: jnp.sum((p - h["target"]) ** 2),
        valid_loss=lambda p, h: jnp.stack([jnp.sum((p - wish) ** 2) for wish in wishes]),
    )
    space = lift_settings(training, {"target": SPACE["target"], "rate": SPACE["rate"]})
    assert {name: p.lift for name, p in floats(space).items() if p.lift}.keys() == {"rate"}
    train, searcher = trainable(training, space), HypergradSearch(space, metric="loss", mode="min", seed=0)
    for trial in range(10):
        config = searcher.suggest(trial_id=str(trial))
        assert config is not None
        train(config)
        flat = {f"gradient/{name}": value for name, value in results[-1].get("gradient", {}).items()}
        searcher.on_trial_complete(str(trial), result={**results[-1], **flat})
    steps = [trial for trial in searcher._observations.values() if trial.parent and math.isfinite(trial.value)]
    assert steps
    assert all(trial.blocks is not None and list(map(len, trial.blocks)) == [2, 2, 2, 2] for trial in steps)
    first = searcher._observations["0"]
    assert first.cross_validated == first.value
    assert all(trial.cross_validated is not None and trial.cross_validated < first.value for trial in steps)


def test_failed_training_is_an_infinite_loss_that_says_why(results: Results) -> None:
    trainable(problem(valid_loss=lambda p, h: jnp.sum(p) * jnp.nan), SPACE)(wanting())
    assert (results[0]["loss"], results[0]["status"]) == (math.inf, "nan")
    assert results[0]["message"]
    assert "gradient" not in results[0]


def test_intermediate_losses_say_that_it_is_running(results: Results) -> None:
    trainable(problem(), SPACE, report_every=5)(wanting())
    assert [result["steps"] for result in results] == [5, 10, 15, 20]
    assert [result["status"] for result in results] == ["running"] * 3 + ["ok"]
    assert [result["gradient_evaluations"] for result in results] == [5, 10, 15, 80]
    assert "gradient" not in results[0]


def test_results_are_plain_values_and_arrays(results: Results) -> None:
    trainable(problem(), SPACE, report_every=10)(wanting())
    json.dumps(results, default=np.ndarray.tolist)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"space": {"scale": Int(1, 3)}}, "rate"),
        ({"problem": lambda config: 1.0}, "problem must be a TrainingProblem"),
        ({"space": {**SPACE, "hypergrad": Int(1, 3)}}, "'hypergrad' is reserved"),
        ({"report_every": 0}, "trainable: report_every must be a whole number from 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trainable(**{"problem": problem(), "space": SPACE, **arguments})


def test_maximising_a_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="search with mode='min'"):
        trainable(problem(), SPACE)(wanting(mode="max"))


@pytest.mark.parametrize("metric", ["loss", "test_loss", None])
def test_gradients_are_those_of_the_loss(results: Results, metric: str | None) -> None:
    searcher = HypergradSearch(SPACE, metric=metric or "loss", mode="min", seed=0)
    config = searcher.suggest("a")
    assert config is not None
    assert config["hypergrad"]["metric"] == (metric or "loss")
    if metric is None:  # as in a config of an older search
        del config["hypergrad"]["metric"]
    if metric == "test_loss":
        with pytest.raises(ValueError, match=r"gradients are those of 'loss', so search with .* not 'test_loss'"):
            trainable(problem(), SPACE)(config)
    else:
        trainable(problem(), SPACE)(config)
        assert "gradient" in results[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rate", 0.31),
        ("rate", 9.9e-4),
        ("rate", -0.1),
        ("target", np.array([0.0, 1.001])),
        ("target", np.array([-1.001, 0.0])),
        ("scale", 4),
    ],
)
def test_values_out_of_the_trainable_s_bounds_are_refused_under_our_search(
    results: Results, name: str, value: Any
) -> None:
    train = trainable(problem(), SPACE)
    with pytest.raises(ValueError, match=f"has '{name}' = .*, out of the bounds of .*trainable the same space"):
        train({**wanting(), name: value})
    train({**CONFIG, name: value})  # other searchers may have bounds of their own
    assert len(results) == 1


@pytest.mark.parametrize("end", ["low", "high"])
def test_values_at_the_bounds_are_not_refused(results: Results, end: str) -> None:
    of_floats = {name: np.full(p.shape, getattr(p, end), np.float32) for name, p in floats(SPACE).items()}
    trainable(problem(), SPACE)({**wanting(), **of_floats, "scale": 1 if end == "low" else 3})
    assert len(results) == 1


def test_missing_hyperparameter_is_named() -> None:
    with pytest.raises(ValueError, match="config lacks 'scale'; search with HypergradSearch"):
        trainable(problem(), SPACE)({"target": np.zeros(2), "rate": 0.1})


def test_one_problem_compiles_once_a_process(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    """This must hold although Ray unpickles a problem anew for each trial."""
    evaluated = []

    def spy(problem: TrainingProblem, *arguments: Any, **others: Any) -> Evaluation:
        evaluated.append(problem)
        return evaluate(problem, *arguments, **others)

    def copied(registry: Any, name: str) -> TrainingProblem:
        return dataclasses.replace(training)

    training = problem()
    train = trainable(training, SPACE)
    monkeypatch.setattr(hosting, "evaluate", spy)
    monkeypatch.setattr("ray.tune.registry._ParameterRegistry.get", copied)
    train(CONFIG)
    train(CONFIG)
    assert evaluated[0] is evaluated[1]
    trainable(training, SPACE)(CONFIG)
    assert evaluated[2] is not evaluated[0]


def test_a_process_does_not_remember_all_problems(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["hypergrad_ray.trainable"]
    monkeypatch.setattr(hosting, "evaluate", lambda *arguments, **others: Evaluation(1.0, None, Status.OK, Cost(1, 1)))
    for _ in range(2 * module.KEPT):
        trainable(problem(), SPACE)(dict(CONFIG))
    assert len(module._problems) == module.KEPT


def test_an_overfitted_trial_reports_its_true_loss(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Evaluation(1.5, None, Status.OVERFITTED, Cost(1, 1))
    monkeypatch.setattr(hosting, "evaluate", lambda *arguments, **others: found)
    trainable(problem(), SPACE)(wanting())
    assert (results[0]["loss"], results[0]["status"]) == (1.5, "overfitted")
    assert "gradient" not in results[0]


def test_what_the_searcher_wants_is_not_in_the_config_of_a_result(results: Results) -> None:
    """Ray reports the dict that the trainable was called with."""
    config = wanting()
    trainable(problem(), SPACE)(config)
    assert set(config) == set(SPACE)
    assert "gradient" in results[0]


# what was found


class Analysis(ExperimentAnalysis):
    """The result of a run that never was; trials are pairs of a config and a last result."""

    def __init__(self, *trials: tuple[dict[str, Any], dict[str, Any]], mode: str | None = "min") -> None:
        self.default_metric, self.default_mode = "loss", mode
        self.trials: list[Any] = [
            SimpleNamespace(
                storage=None,
                config=config,
                last_result=last,
                metric_analysis={n: {"last": x} for n, x in last.items()},
                get_error=lambda: None,
            )
            for config, last in trials
        ]


@pytest.mark.parametrize("apart", [False, True])
def test_best_hyperparameters_are_whole_and_nothing_else(apart: bool) -> None:
    arrays = {"target[0]": 0.5, "target[1]": -0.5} if apart else {"target": [0.5, -0.5]}
    config = {**arrays, "rate": 0.1, "scale": np.int64(2), "kind": None, "hypergrad": Wanted().to_json(), "mood": "bad"}
    last: dict[str, Any] = {"loss": 1.0}
    found = best_hyperparameters(Analysis((config, last)), SPACE)
    assert list(found) == list(SPACE)
    assert (found["target"].tolist(), found["rate"], found["scale"], found["kind"]) == ([0.5, -0.5], 0.1, 2, None)
    last["refined"] = {"target": np.zeros(2), "rate": 0.2, "scale": 2, "kind": None}
    assert best_hyperparameters(Analysis((config, last)), SPACE)["rate"] == 0.2


def rates_of(*results: dict[str, Any]) -> Any:
    return [({**CONFIG, "rate": (number + 1) / 10}, result) for number, result in enumerate(results)]


@pytest.mark.parametrize(
    ("losses", "statuses", "mode", "best"),
    [
        ([3.0, 1.0, 2.0], ["ok", "overfitted", "ok"], "min", 0.3),
        ([3.0, 1.0, 2.0], ["ok", "ok", "overfitted"], "min", 0.2),
        ([3.0, 1.0, 2.0], ["overfitted"] * 3, "min", 0.2),
        ([3.0, 1.0, 2.0], ["overfitted", "ok", None], "max", 0.3),
        ([math.nan, math.inf, 2.0], ["ok", "ok", "overfitted"], "min", 0.3),
        ([math.inf, 5.0, math.nan], [None] * 3, "max", 0.2),
    ],
)
def test_best_hyperparameters_pass_over_overfitted_trials(
    losses: list[float], statuses: list[str | None], mode: str, best: float
) -> None:
    results = [{"loss": loss, "status": status} for loss, status in zip(losses, statuses, strict=True)]
    analysis = Analysis(*rates_of({}, *results), mode=mode)
    analysis.trials = analysis.trials[1:] + analysis.trials[:1]  # one ended without a result
    assert best_hyperparameters(analysis, SPACE)["rate"] == pytest.approx(best + 0.1)


@pytest.mark.parametrize("metric", ["loss", "test_loss"])
def test_the_largest_loss_of_trainable_is_never_the_best(metric: str) -> None:
    results: list[dict[str, Any]] = [{metric: x, "status": "ok", "gradient_evaluations": 80} for x in (1.0, 2.0)]
    analysis = Analysis(*rates_of(*results), mode="max")
    analysis.default_metric = metric
    with pytest.raises(ValueError, match=f"metric='{metric}' and mode='max', and trainable reports a loss.*mode='min'"):
        best_hyperparameters(analysis, SPACE)
    analysis.default_mode = "min"
    assert best_hyperparameters(analysis, SPACE)["rate"] == 0.1


def test_without_a_finite_loss_the_last_reasons_are_given() -> None:
    failed = [{"loss": math.inf, "status": "nan", "message": f"the loss of {name} is NaN"} for name in "ab"]
    analysis = Analysis(*rates_of(*failed, {}))
    with pytest.raises(ValueError, match=r"no trial has a finite 'loss'; the last message is: the loss of b is NaN$"):
        best_hyperparameters(analysis, SPACE)
    calls = 'Traceback:\n  File "a", line 1, in f\n    call()\n    ~~~^\n'
    analysis.trials[0].get_error = lambda: f"{calls}KeyError: 'rat'\n"
    for text, short in (
        ("TypeError: no\nabout it\nuse jnp.where\n\n", "TypeError: no ... use jnp.where"),
        ("ValueError: no\n  a: (3,)\nsee the manual", "ValueError: no ... see the manual"),
        (f"TypeError: no\n{20 * '-'}\nFor simplicity, JAX has removed its internal frames.\n", "TypeError: no"),
    ):
        analysis.trials[1].get_error = lambda text=text: calls + text
        with pytest.raises(ValueError, match=re.escape(f"the last error is: {short}; the last message is: the")):
            best_hyperparameters(analysis, SPACE)
    with pytest.raises(ValueError, match="no trial has a finite 'loss'; look at the trials' errors"):
        best_hyperparameters(Analysis(*rates_of({})), SPACE)


# what is wanted


@pytest.mark.parametrize(
    ("threshold", "mode", "value", "wanted"),
    [
        (math.inf, "min", 1e300, True),
        (math.inf, "max", -1e300, True),
        (math.inf, "min", math.inf, False),
        (math.inf, "min", math.nan, False),
        (-math.inf, "min", -1e300, False),
        (0.5, "min", 0.4, True),
        (0.5, "min", 0.5, False),
        (0.5, "max", -0.4, True),
        (0.5, "max", 0.4, True),
        (0.5, "max", -0.5, False),
    ],
)
def test_gradient_is_wanted_of_better_values(threshold: float, mode: str, value: float, wanted: bool) -> None:
    assert (
        wants_gradient({"hypergrad": Wanted(gradient_below=threshold, maximise=mode == "max").to_json()}, value)
        is wanted
    )


def test_no_gradient_is_wanted_by_other_searchers() -> None:
    assert not wants_gradient(CONFIG, -math.inf)


# the space


def test_domains_have_the_space_s_bounds() -> None:
    domains = param_space({**SPACE, "width": Int(8, 64, log=True)})
    assert list(domains) == ["target[0]", "target[1]", "rate", "scale", "kind", "width"]
    kinds = [type(domain) for domain in domains.values()]
    assert kinds == [RealDomain, RealDomain, RealDomain, Integer, Choice, Integer]
    assert (domains["rate"].lower, domains["rate"].upper) == (1e-3, 0.3)
    assert {domains["scale"].sample() for _ in range(100)} == {1, 2, 3}
    assert max(domains["width"].sample() for _ in range(2000)) in range(60, 65)
    assert "log" in type(domains["rate"].get_sampler()).__name__.lower()


def test_coordinates_are_named_in_c_order() -> None:
    space: Space = {"a": Float(0.0, 9.0, shape=(2, 3))}
    assert list(param_space(space)) == ["a[0,0]", "a[0,1]", "a[0,2]", "a[1,0]", "a[1,1]", "a[1,2]"]
    apart = dict(zip(param_space(space), range(6), strict=True))
    assert apart["a[1,0]"] == 3
    np.testing.assert_array_equal(join(space, apart)["a"], np.arange(6.0).reshape(2, 3))


def test_number_that_may_be_lifted_is_one_number_for_other_searchers() -> None:
    domains = param_space({"rate": Float(1e-3, 0.3, log=True, lift=(20,))})
    assert list(domains) == ["rate"]
    assert (domains["rate"].lower, domains["rate"].upper) == (1e-3, 0.3)


@pytest.mark.parametrize("lift", [(), (1,), (2, 3)])
def test_number_may_come_lifted(lift: tuple[int, ...]) -> None:
    space: Space = {"rate": Float(1e-3, 0.3, log=True, lift=lift)}
    number = join(space, {"rate": np.float32(0.25)})["rate"]
    assert (type(number), number) == (float, 0.25)
    array = join(space, {"rate": np.full(lift, 0.25)})["rate"]
    assert type(array) is (np.ndarray if lift else float)
    assert np.shape(array) == lift


@pytest.mark.parametrize(
    ("space", "value", "shape"),
    [
        ({"rate": Float(0.1, 1.0)}, np.ones(3), r"\(3,\)"),
        ({"rate": Float(0.1, 1.0)}, np.ones(1), r"\(1,\)"),
        ({"rate": Float(0.1, 1.0, lift=(2,))}, np.ones(3), r"\(3,\)"),
        ({"rate": Float(0.1, 1.0, shape=(2, 3))}, np.ones((3, 2)), r"\(3, 2\)"),
        ({"rate": Float(0.1, 1.0, shape=(2,))}, 0.5, r"\(\)"),
    ],
)
def test_hyperparameter_of_another_space_is_refused_in_one_line(space: Space, value: Any, shape: str) -> None:
    with pytest.raises(
        ValueError, match=f"config has 'rate' of shape {shape}, the space has Float.*the same"
    ) as caught:
        join(space, {"rate": value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("one", [1, 1.0, np.int64(1), np.float32(1), np.array(1), jnp.float32(1), jnp.int32(1)])
def test_numbers_of_any_type_become_plain(one: Any) -> None:
    space: Space = {"rate": Float(0.0, 1.0), "w": Float(0.0, 1.0, shape=(2,)), "n": Int(1, 2), "kind": Categorical([1])}
    plain = join(space, {"rate": one, "w[0]": one, "w[1]": one, "n": np.asarray(one)[()], "kind": np.asarray(one)[()]})
    assert (type(plain["rate"]), plain["rate"]) == (float, 1.0)
    assert (plain["w"].dtype, plain["w"].tolist()) == (np.dtype(np.float64), [1.0, 1.0])
    assert (type(plain["n"]), plain["n"]) == (int, 1)
    assert type(plain["kind"]) in (int, float)
    assert join(space, {**plain, "w": [one, one]})["w"].dtype == np.float64


def test_whole_numbers_train_as_floats_do(results: Results) -> None:
    train = trainable(problem(), {**SPACE, "rate": Float(0.0, 1.0)})
    for rate, target in ((0.0, [1.0, 0.0]), (0, [1, 0])):
        train({**wanting(), "rate": rate, "target": target})
    for result in results:
        del result["seconds"]
    assert json.dumps(results[0], default=np.ndarray.tolist) == json.dumps(results[1], default=np.ndarray.tolist)


def test_names_that_look_like_coordinates_are_names() -> None:
    alone: Space = {"w[0]": Float(0.0, 1.0), "v[1,2]": Float(0.0, 1.0)}
    assert join(alone, {"w[0]": 0.5, "v[1,2]": 0.25}) == {"w[0]": 0.5, "v[1,2]": 0.25}
    assert list(param_space(alone)) == ["w[0]", "v[1,2]"]
    beside: Space = {"w": Float(0.0, 1.0, shape=(2,)), "w[7]": Float(0.0, 1.0)}
    found = join(beside, {"w[0]": 0.1, "w[1]": 0.2, "w[7]": 0.3})
    assert (found["w"].tolist(), found["w[7]"]) == ([0.1, 0.2], 0.3)
    searcher = HypergradSearch(beside, metric="loss", mode="min", seed=0)
    assert list(join(beside, searcher.suggest(trial_id="a") or {})) == ["w", "w[7]"]


def test_numpy_values_of_other_searchers_become_plain() -> None:
    numbers = {"target[0]": np.float64(0.5), "target[1]": 0.1, "rate": np.float32(0.25), "scale": np.int64(2)}
    plain = join(SPACE, {**numbers, "kind": np.str_("plain")})
    assert [type(plain[name]) for name in SPACE] == [np.ndarray, float, int, str]


def test_the_searcher_s_own_config_is_understood() -> None:
    config = HypergradSearch(SPACE, metric="loss", mode="min", seed=0).suggest(trial_id="a")
    assert config is not None
    assert list(join(SPACE, config)) == list(SPACE)
