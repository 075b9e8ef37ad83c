"""Spaces of Ray's own domains, and nested ones, in a trainable and in real runs."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ray
from ray import tune

from hypergrad_ray import HypergradSearch, best_hyperparameters, param_space, trainable
from hypergrad_ray.domains import own_space
from hypergrad_search import Categorical, Float, Int, TrainingProblem, evaluate, sgd
from hypergrad_search.search.ask_tell import Wanted
from hypergrad_search.space import NestedSpace

DOMAINS = {
    "opt": {"rate": tune.loguniform(1e-3, 0.3), "steps": tune.randint(5, 9)},
    "model": {"kind": tune.choice(["plain", None]), "target": Float(-1.0, 1.0, shape=(2,))},
    "l2": tune.uniform(0.0, 1.0),
}
OURS: NestedSpace = {
    "opt": {"rate": Float(1e-3, 0.3, log=True), "steps": Int(5, 8)},
    "model": {"kind": Categorical(["plain", None]), "target": Float(-1.0, 1.0, shape=(2,))},
    "l2": Float(0.0, 1.0),
}
CONFIG = {
    "opt": {"rate": 0.1, "steps": 6},
    "model": {"kind": None, "target": np.array([0.5, -0.5])},
    "l2": 0.25,
}


def problem() -> TrainingProblem:
    def train_loss(params: Any, h: Any, batch: Any, key: Any) -> Any:
        scale = 2.0 if h["model"]["kind"] is None else 1.0
        return scale * jnp.sum((params - h["model"]["target"]) ** 2) + h["l2"] * jnp.sum(params**2)

    return TrainingProblem(
        init=lambda key, h: jnp.zeros(2),
        train_loss=train_loss,
        valid_loss=lambda p, h: jnp.sum((p - 0.25) ** 2),
        batches=lambda step: None,
        optimizer=sgd("opt/rate", 0.5),
        steps="opt/steps",
    )


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return what a trainable that is called in this process reports."""
    reported: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.tune.report", lambda result, checkpoint=None: reported.append(result))
    monkeypatch.setattr("ray.tune.get_checkpoint", lambda: None)
    return reported


def test_rays_domains_are_taken_for_ours() -> None:
    assert own_space(DOMAINS) == own_space(OURS)
    assert list(own_space(DOMAINS)) == ["opt/rate", "opt/steps", "model/kind", "model/target", "l2"]


@pytest.mark.parametrize("space", [DOMAINS, OURS], ids=["domains", "ours"])
def test_it_reports_what_evaluate_finds(results: list[dict[str, Any]], space: Any) -> None:
    posed = problem()
    trainable(posed, space)({**CONFIG, "hypergrad": Wanted(gradient_below=math.inf).to_json()})
    expected = evaluate(posed, CONFIG, space=OURS, key=jax.random.key(0))
    (result,) = results
    assert result["loss"] == expected.value
    assert expected.gradient is not None
    assert result["gradient"]["opt"]["rate"] == pytest.approx(float(expected.gradient["opt"]["rate"]))
    np.testing.assert_array_equal(result["gradient"]["model"]["target"], expected.gradient["model"]["target"])


@pytest.mark.parametrize(
    "config",
    [
        {"opt/rate": 0.1, "opt/steps": 6, "model/kind": None, "model/target": np.array([0.5, -0.5]), "l2": 0.25},
        {**CONFIG, "model": {"kind": None, "target[0]": 0.5, "target[1]": -0.5}},
    ],
    ids=["flat", "coordinates"],
)
def test_configs_of_other_searchers_may_be_flat(results: list[dict[str, Any]], config: dict[str, Any]) -> None:
    posed = problem()
    train = trainable(posed, DOMAINS)
    train(dict(config))
    train(dict(CONFIG))
    assert results[0]["loss"] == results[1]["loss"]


def test_param_space_is_nested_alike() -> None:
    domains = param_space(OURS)
    assert domains.keys() == {"opt", "model", "l2"}
    assert domains["model"].keys() == {"kind", "target[0]", "target[1]"}
    assert (domains["opt"]["steps"].lower, domains["opt"]["steps"].upper) == (5, 9)


def test_param_space_takes_ray_s_own_domains() -> None:
    domains = param_space({**DOMAINS, "width": tune.randn(1.0, 2.0)})
    assert own_space(domains) == own_space(param_space({**OURS, "width": Float(-5.0, 7.0)}))
    assert (domains["opt"]["steps"].lower, domains["opt"]["steps"].upper) == (5, 9)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"opt": {"rate": tune.quniform(0.0, 1.0, 0.1)}},
            r"'opt/rate'\]: a quantised domain has no gradient; leave q out",
        ),
        ({"a": tune.choice([(1, 2), (3, 4)])}, r"'a'\]: .*each choice must be .*tune.choice of their names"),
        ({"a": tune.sample_from(lambda _: 1)}, r"'a'\]: sample_from cannot be searched; compute it in the trainable"),
        ({"opt": {"rate": 0.1}}, r"'opt/rate'\] must be a Float"),
        (
            {"a": tune.grid_search([0.1, 0.2])},
            r"space\['a'\]: grid_search cannot be searched; use tune.choice, or run",
        ),
        ({"opt": {"rate": {"eval": "1"}}}, r"space\['opt/rate'\]: eval cannot be searched; compute it in the train"),
    ],
)
def test_a_space_that_cannot_be_translated_is_refused(space: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainable(problem(), space)
    with pytest.raises(ValueError, match=message):
        param_space(space)


@pytest.fixture
def ray_of_two_workers() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"os.fork\(\) was called")  # Ray's children leave JAX alone
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("own", [True, False], ids=["HypergradSearch", "random"])
def test_a_run_with_a_nested_space(tmp_path: Path, ray_of_two_workers: None, own: bool) -> None:
    posed = problem()
    search = HypergradSearch(DOMAINS, metric="loss", mode="min", seed=0) if own else None
    results: Any = tune.Tuner(
        trainable(posed, DOMAINS),
        param_space={} if own else param_space(OURS),
        tune_config=tune.TuneConfig(
            metric="loss", mode="min", search_alg=search, num_samples=8, max_concurrent_trials=1, reuse_actors=True
        ),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    ).fit()
    best = best_hyperparameters(results, DOMAINS)
    found = evaluate(posed, best, space=OURS, key=jax.random.key(0))
    losses = [result.metrics["loss"] for result in results]
    assert found.value == min(losses)
    if own:
        assert search is not None
        observations = [o for o in search._observations.to_state()[0] if o.gradient is not None]
        assert observations
        assert any(o.parent is not None for o in search._observations.to_state()[0])
        assert set(observations[0].gradient or {}) == {"opt.rate", "model.target", "l2"}
