"""Real runs on a small local Ray."""

import json
import os
import pickle
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.schedulers.pb2 import PB2
from ray.tune.search.optuna import OptunaSearch

from hypergrad_ray import HypergradSearch, best_hyperparameters, param_space, trainable, wants_gradient
from hypergrad_search import Float, Hypernet, Space, TrainingProblem, evaluate, from_function, sgd
from hypergrad_search.hypergradient import Linear

SPACE: Space = {"target": Float(-1.0, 1.0, shape=(2,)), "rate": Float(1e-2, 0.3, log=True)}
OF_RAY: dict[str, Any] = {"target": [tune.uniform(-1.0, 1.0)] * 2, "rate": tune.loguniform(1e-2, 0.3)}


def problem() -> TrainingProblem:
    """Return a problem whose weights are drawn to `target` and ought to be at 0.25; its functions travel by value."""
    return TrainingProblem(
        init=lambda key, h: jnp.ones(2),
        train_loss=lambda p, h, batch, key: jnp.sum((p - h["target"]) ** 2),
        valid_loss=lambda p, h: jnp.sum((p - 0.25) ** 2),
        batches=lambda step: None,
        optimizer=sgd("rate", 0.5),
        steps=20,
    )


def function() -> Callable[[Any], Any]:
    """Return the same training as a Python loop over NumPy batches; it travels by value."""

    @jax.jit
    def step(weights: Any, rate: Any, target: Any, batch: Any) -> Any:
        return weights - rate * jax.grad(lambda w: jnp.mean((batch @ (w - target)) ** 2))(weights)

    def train(h: Any) -> Any:
        weights, drawn = jnp.ones(2), np.random.default_rng(0)
        for _ in range(10):
            weights = step(weights, h["rate"], h["target"], drawn.normal(size=(8, 2)).astype(np.float32))
        return jnp.sum((weights - 0.25) ** 2)

    return train


def bowl(config: dict[str, Any]) -> None:
    """Report a gain to maximise and its gradient, as a trainable of somebody else's may do."""
    offset = np.asarray(config["target"]) - 0.25
    gain = -float(offset @ offset)
    result: dict[str, Any] = {"gain": gain}
    if wants_gradient(config, gain):
        result["gradient"] = {"target": -2 * offset}
    tune.report(result)


@pytest.fixture(scope="module", autouse=True)
def _small_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # the processes of all trials share what one of them has compiled
    workers = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled"))}
    workers["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"os.fork\(\) was called")  # Ray's children leave JAX alone
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100_000_000,
            log_to_driver=False,
            runtime_env={"env_vars": workers},
        )
    yield
    ray.shutdown()


def plain(config: dict[str, Any] | None) -> str:
    """Return the config as text, without the parent's name, which Ray draws at random."""
    assert config is not None
    wanted = {**config["hypergrad"], "parent": None}
    return json.dumps({**config, "hypergrad": wanted}, default=np.ndarray.tolist)


def fitted(tuner: tune.Tuner) -> Any:
    """Return the results of a run; Ray's types do not say that they can be iterated."""
    return tuner.fit()


def tuned(train: Any, folder: Path, param_space: dict[str, Any] | None = None, **config: Any) -> Any:
    """Return the results of a run whose trials share their processes; `config` is for `tune.TuneConfig`."""
    return fitted(
        tune.Tuner(
            train,
            param_space=param_space,
            tune_config=tune.TuneConfig(reuse_actors=True, **config),
            run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
        )
    )


def searcher_of(tuner: tune.Tuner) -> HypergradSearch:
    """Return the searcher of a run; Ray makes a copy when it restores one."""
    local: Any = tuner._local_tuner
    searcher = local._tune_config.search_alg
    assert isinstance(searcher, HypergradSearch)
    return searcher


def test_tune_run_descends(tmp_path: Path) -> None:
    analysis = tune.run(
        trainable(problem(), SPACE),
        search_alg=HypergradSearch(SPACE, metric="loss", mode="min", seed=0),
        metric="loss",
        mode="min",
        num_samples=16,
        max_concurrent_trials=1,
        reuse_actors=True,
        storage_path=str(tmp_path),
        verbose=0,
    )
    results = [trial.last_result for trial in analysis.trials]
    assert analysis.best_result["loss"] < 0.02
    assert {result["gradient_evaluations"] for result in results} == {20, 80}
    assert all(("gradient" in result) == (result["gradient_evaluations"] == 80) for result in results)
    found = best_hyperparameters(analysis, SPACE)
    assert (list(found), found["target"].shape) == (["target", "rate"], (2,))
    assert evaluate(problem(), found, key=jax.random.key(0)).value == analysis.best_result["loss"]


def test_a_run_by_name_in_ray_s_own_space(tmp_path: Path) -> None:
    """Space, metric and mode are known to Ray alone, and the function returns its only result."""

    def train(config: dict[str, Any]) -> dict[str, Any]:
        offset, slope = config["net"]["x"] - 0.25, np.log(config["rates"][0] / 0.1)
        loss = float(offset**2 + slope**2 + config["layers"])
        gradient = {"net": {"x": 2 * offset}, "rates": [2 * slope / config["rates"][0]]}
        assert config["constants"] == {"kept": [1, (2,)]}
        assert config["rates"][1] == 7
        assert config["twice"] == 2 * config["net"]["x"]
        assert config["activation"] in (np.tanh, None)
        return {"loss": loss, "gradient": gradient if wants_gradient(config, loss) else None}

    results = tuned(
        train,
        tmp_path,
        param_space={
            "net": {"x": tune.uniform(-1.0, 1.0)},
            "rates": [tune.loguniform(1e-3, 1.0), 7],
            "layers": tune.randint(1, 3),
            "constants": {"kept": [1, (2,)]},
            "twice": tune.sample_from(lambda config: 2 * config["net"]["x"]),  # Ray computes it from what was chosen
            "activation": tune.choice([np.tanh, None]),
        },
        search_alg="hypergrad",
        metric="loss",
        mode="min",
        num_samples=25,
        max_concurrent_trials=1,
    )
    assert results.num_errors == 0
    best = results.get_best_result()
    assert best.metrics["loss"] < 1.001
    assert best.config["layers"] == 1


def test_a_problem_s_space_in_ray_s_terms_descends(tmp_path: Path) -> None:
    """So Ray itself passes metric and mode on; an array is one number for each coordinate."""
    searcher = HypergradSearch(seed=0)
    results = tuned(
        trainable(problem(), SPACE),
        tmp_path,
        param_space=param_space(SPACE),
        search_alg=searcher,
        metric="loss",
        mode="min",
        num_samples=16,
        max_concurrent_trials=1,
    )
    assert results.get_best_result().metrics["loss"] < 0.02
    assert sum(trial.parent is not None for trial in searcher._observations.values()) > 8
    assert best_hyperparameters(results, SPACE)["target"].shape == (2,)


def test_a_function_that_returns_a_number(tmp_path: Path) -> None:
    """A number has no gradient and no name, so the explorer minimises what Ray calls it."""
    searcher = HypergradSearch(seed=0)
    with pytest.warns(UserWarning, match="reported no gradient"):
        results = tuned(
            lambda config: config["x"] ** 2 + 1.0,
            tmp_path,
            param_space={"x": tune.uniform(-1.0, 1.0)},
            search_alg=searcher,
            mode="min",
            num_samples=4,
        )
    values = {result.metrics["trial_id"]: result.metrics["_metric"] for result in results}
    assert {trial.trial: trial.value for trial in searcher._observations.values()} == values


@pytest.mark.slow
def test_a_function_of_the_user_s_own_descends(tmp_path: Path) -> None:
    problem = from_function(function())
    analysis = tune.run(
        trainable(problem, SPACE),
        search_alg=HypergradSearch(SPACE, metric="loss", mode="min", seed=0),
        metric="loss",
        mode="min",
        num_samples=16,
        max_concurrent_trials=1,
        reuse_actors=True,
        storage_path=str(tmp_path),
        verbose=0,
    )
    results = [trial.last_result for trial in analysis.trials]
    assert analysis.best_result["loss"] < 0.05
    costs = {"gradient" in result: result["gradient_evaluations"] for result in results}
    assert costs[False] == 1 < costs[True]
    found = best_hyperparameters(analysis, SPACE)
    assert evaluate(problem, found, space=SPACE).value == pytest.approx(analysis.best_result["loss"], rel=1e-5)


def test_a_chain_of_stretches_keeps_its_network(tmp_path: Path) -> None:
    space: Space = {"target": SPACE["target"]}
    method = Hypernet(network=Linear(), steps=400, optimizer=optax.sgd(0.2))  # with Adam it takes longer to settle
    searcher = HypergradSearch(space, metric="loss", mode="min", seed=0)
    results = tuned(
        trainable(replace(problem(), optimizer=sgd(0.1, 0.5)), space, method=method),
        tmp_path,
        search_alg=searcher,
        metric="loss",
        mode="min",
        num_samples=8,
        max_concurrent_trials=1,
    )
    by_trial = {result.metrics["trial_id"]: result for result in results if result.metrics is not None}
    assert len(by_trial) == len(searcher._checkpoints) == 8
    for path in searcher._checkpoints.values():  # relative, so that the experiment's folder can be moved
        assert (Path(results.experiment_path) / path / "checkpoint").is_file()
        assert not Path(path).is_absolute()
    assert all(set(result.config or {}) == {"target"} for result in results)
    continued = [trial for trial in searcher._observations.values() if trial.parent is not None]
    assert continued
    for trial in continued:
        result, parent = by_trial[trial.trial], by_trial[trial.parent or ""]
        np.testing.assert_allclose(result.config["target"], parent.metrics["refined"]["target"], rtol=1e-12)
        assert result.metrics["loss"] != parent.metrics["loss"]
    best, found = results.get_best_result(), best_hyperparameters(results, space)
    assert best.metrics["loss"] < 1e-3
    assert list(found) == ["target"]
    np.testing.assert_array_equal(found["target"], best.metrics["refined"]["target"])
    np.testing.assert_allclose(found["target"], [0.25, 0.25], atol=0.05)
    restored = HypergradSearch(space, metric="loss", mode="min", seed=0)
    restored.set_state(pickle.loads(pickle.dumps(searcher.get_state())))
    assert restored.suggest("next") is not None
    assert restored._checkpoints == searcher._checkpoints


def test_other_searchers_train_without_gradients(tmp_path: Path) -> None:
    results = tuned(
        trainable(problem(), SPACE),
        tmp_path,
        param_space=param_space(SPACE),
        search_alg=OptunaSearch(seed=0),
        metric="loss",
        mode="min",
        num_samples=2,
    )
    for result in results:
        assert result.metrics is not None
        assert result.metrics["gradient_evaluations"] == 20
        assert "gradient" not in result.metrics
    found = best_hyperparameters(results, SPACE)
    assert (list(found), found["target"].shape) == (["target", "rate"], (2,))
    assert evaluate(problem(), found, key=jax.random.key(0)).value == results.get_best_result().metrics["loss"]


def test_tuner_with_a_scheduler_that_stops_trials(tmp_path: Path) -> None:
    searcher = HypergradSearch(SPACE, metric="loss", mode="min", seed=0)
    results = tuned(
        trainable(problem(), SPACE, report_every=5),
        tmp_path,
        search_alg=searcher,
        scheduler=ASHAScheduler(time_attr="steps", max_t=20, grace_period=5, reduction_factor=2),
        metric="loss",
        mode="min",
        num_samples=12,
        max_concurrent_trials=1,
    )
    metrics = [result.metrics for result in results if result.metrics is not None]
    stopped = [m for m in metrics if m["status"] == "running"]
    finished = [m for m in metrics if m["status"] == "ok"]
    assert stopped
    assert len(stopped) + len(finished) == 12
    assert all(m["steps"] < 20 for m in stopped)
    assert all(m["steps"] == 20 for m in finished)
    assert sum(np.isinf(trial.value) for trial in searcher._observations.values()) == len(stopped)
    spent = sum(trial.cost for trial in searcher._observations.values())
    assert spent == sum(m["gradient_evaluations"] for m in metrics)


@pytest.mark.slow
def test_errors_and_constants_do_no_harm(tmp_path: Path) -> None:
    def moody(config: dict[str, Any]) -> None:
        if config["target"][0] > 0.3:
            raise RuntimeError(config["mood"])
        bowl(config)

    searcher = HypergradSearch(SPACE, seed=0)
    analysis = tune.run(
        moody,
        config={"mood": "bad"},
        search_alg=searcher,
        metric="gain",
        mode="max",
        num_samples=12,
        max_concurrent_trials=1,
        reuse_actors=True,
        raise_on_failed_trial=False,
        storage_path=str(tmp_path),
        verbose=0,
    )
    failed = [trial for trial in analysis.trials if trial.status == "ERROR"]
    assert 0 < len(failed) < 12
    assert sum(np.isinf(trial.value) for trial in searcher._observations.values()) == len(failed)
    assert analysis.best_result["gain"] > -0.05
    assert searcher.mode == "max"


@pytest.mark.parametrize("known", [{}, {"metric": "gain"}, {"mode": "max"}])
def test_what_ray_does_not_pass_on_is_asked_for(known: dict[str, Any], tmp_path: Path) -> None:
    """Without constants in `param_space`, a searcher never hears of the run's metric and mode."""
    with pytest.raises(
        RuntimeError, match=r"have not been set.*HypergradSearch\(space, metric=\"loss\", mode=\"min\"\)"
    ):
        tune.run(
            bowl,
            search_alg=HypergradSearch(SPACE, seed=0, **known),
            metric="gain",
            mode="max",
            num_samples=2,
            storage_path=str(tmp_path),
            verbose=0,
        )


def test_tuner_that_contradicts_the_searcher_is_refused(tmp_path: Path) -> None:
    searcher = HypergradSearch(SPACE, metric="gain", mode="min", seed=0)
    with pytest.raises(Exception, match="made with mode='min', and Ray has mode='max' for the metric 'gain'"):
        tuned(bowl, tmp_path, {"mood": "bad"}, search_alg=searcher, metric="gain", mode="max", num_samples=2)


@pytest.mark.parametrize(
    "scheduler",
    [
        PopulationBasedTraining(hyperparam_mutations={"rate": tune.loguniform(1e-2, 0.3)}),
        PB2(hyperparam_bounds={"rate": [1e-2, 0.3]}),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_schedulers_that_change_running_trials_are_refused_by_ray_itself(
    scheduler: TrialScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # a run that is refused leaves their files open
    name = type(scheduler).__name__
    with pytest.raises(Exception, match=f"Search algorithms cannot be used with {name} schedulers. Please remove"):
        tuned(
            bowl, tmp_path, OF_RAY, search_alg=HypergradSearch(seed=0), scheduler=scheduler, metric="gain", mode="max"
        )


class PowerCut(tune.Callback):
    """Ends the driver while its last trial is running, once, after a snapshot that knows the trial."""

    def __init__(self, flag: Path, trials: int = 7) -> None:
        self.flag, self.trials = flag, trials

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if len(trials) == self.trials and trials[-1].status == "RUNNING" and not self.flag.exists():
            self.flag.touch()
            # Ray copies its snapshots in the background; the cut comes between two of them, and not within one.
            storage = trials[-1].storage
            shutil.copytree(
                storage.experiment_driver_staging_path,
                storage.experiment_fs_path,
                ignore=shutil.ignore_patterns("tmp-*", ".tmp*", "bowl_*", "train_*"),
                dirs_exist_ok=True,
            )
            raise SystemExit("power cut")


@pytest.mark.parametrize("of_ray", [pytest.param(False, marks=pytest.mark.slow), True])
def test_restored_run_is_the_run_that_was_not_interrupted(
    of_ray: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a `param_space`, Ray restores the searcher as it was before it knew space, metric and mode."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # they leave files open
    small = tune.with_resources(bowl, {"cpu": 0.1})  # a run that is cut leaves its actor behind for a while

    def tuner(name: str, *callbacks: tune.Callback) -> tune.Tuner:
        searcher = HypergradSearch(seed=0) if of_ray else HypergradSearch(SPACE, metric="gain", mode="max", seed=0)
        goal: dict[str, Any] = {"metric": "gain", "mode": "max"} if of_ray else {}
        return tune.Tuner(
            small,
            param_space=OF_RAY if of_ray else None,
            tune_config=tune.TuneConfig(
                **goal,
                search_alg=searcher,
                num_samples=14,
                max_concurrent_trials=1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(name=name, storage_path=str(tmp_path), verbose=0, callbacks=list(callbacks)),
        )

    whole = fitted(tuner("whole"))
    with pytest.raises(SystemExit, match="power cut"):
        fitted(tuner("cut", PowerCut(tmp_path / "happened")))
    halved = fitted(tune.Tuner.restore(str(tmp_path / "cut"), small))
    assert [result.error for result in halved] == [None] * 14
    # Ray puts the trials in another order when it restores them
    assert sorted(plain(result.config) for result in halved) == sorted(plain(result.config) for result in whole)


@pytest.mark.slow
def test_a_chain_of_stretches_goes_on_in_a_folder_that_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself moves along only the trials that it knows; those that begin later would still write to the old one."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # they leave files open
    space: Space = {"target": SPACE["target"]}
    method = Hypernet(network=Linear(), steps=400, optimizer=optax.sgd(0.2))
    train = trainable(replace(problem(), optimizer=sgd(0.1, 0.5)), space, method=method)
    small = tune.with_resources(train, {"cpu": 0.1})  # a run that is cut leaves its actor behind for a while
    tuner = tune.Tuner(
        small,
        tune_config=tune.TuneConfig(
            search_alg=HypergradSearch(space, metric="loss", mode="min", seed=0),
            metric="loss",
            mode="min",
            num_samples=2,
            max_concurrent_trials=1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="here", storage_path=str(tmp_path), verbose=0, callbacks=[PowerCut(tmp_path / "happened", trials=2)]
        ),
    )
    with pytest.raises(SystemExit, match="power cut"):
        fitted(tuner)
    shutil.move(tmp_path / "here", tmp_path / "there")
    restored = tune.Tuner.restore(str(tmp_path / "there"), small)
    results = fitted(restored)
    assert (len(results), results.num_errors) == (2, 0)
    assert all(Path(result.path).is_relative_to(tmp_path / "there") for result in results)
    last = list(searcher_of(restored)._observations.values())[-1]
    assert last.parent is not None
    assert last.refined is not None


def healing(folder: Path) -> Callable[[dict[str, Any]], None]:
    """Return a trainable that fails on one side, up to the centre of the space, until there is a file in a folder."""

    def train(config: dict[str, Any]) -> None:
        if config["target"][0] <= 0 and not (folder / "healed").exists():
            raise RuntimeError("broken")
        bowl(config)

    return train


@pytest.mark.parametrize(
    ("how", "limit"),
    [
        pytest.param({"restart_errored": True}, 2, marks=pytest.mark.slow),
        pytest.param({"resume_errored": True}, None, marks=pytest.mark.slow),
    ],
)
def test_failed_trials_that_are_run_again_count(how: dict[str, Any], limit: int | None, tmp_path: Path) -> None:
    tuner = tune.Tuner(
        healing(tmp_path),
        tune_config=tune.TuneConfig(
            search_alg=HypergradSearch(SPACE, metric="gain", mode="max", seed=0),
            num_samples=8,
            max_concurrent_trials=limit,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(name="run", storage_path=str(tmp_path), verbose=0),
    )
    failed = fitted(tuner).num_errors
    (tmp_path / "healed").touch()
    restored = tune.Tuner.restore(str(tmp_path / "run"), healing(tmp_path), **how)
    results = fitted(restored)
    searcher = searcher_of(restored)
    assert 0 < failed < 8 == len(results)
    assert results.num_errors == 0
    assert not searcher._running
    gains = {result.metrics["trial_id"]: result.metrics["gain"] for result in results}
    assert {name: -trial.value for name, trial in searcher._observations.items()} == gains


class ControlC(tune.Callback):
    """Interrupts a run as a user does, once, while a trial is running."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if len(trials) == 7 and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_skipped_trials_do_not_hold_up_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # they leave files open
    tuner = tune.Tuner(
        bowl,
        tune_config=tune.TuneConfig(
            search_alg=HypergradSearch(SPACE, metric="gain", mode="max", seed=0), num_samples=20, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            name="cut", storage_path=str(tmp_path), verbose=0, callbacks=[ControlC(tmp_path / "happened")]
        ),
    )
    assert len(fitted(tuner)) < 20
    restored = tune.Tuner.restore(str(tmp_path / "cut"), bowl, resume_unfinished=False)
    assert len(fitted(restored)) == 20
    searcher = searcher_of(restored)
    assert searcher._running
    assert set(searcher._running) == searcher._race.lost(time.monotonic() + 60)


@pytest.mark.slow
@pytest.mark.parametrize("of_ray", [False, True])
def test_a_searcher_is_used_again_after_a_time_budget(
    of_ray: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray ends the trials that are running then without a word to the searcher."""
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # they leave files open

    def slow(config: dict[str, Any]) -> None:
        if config["patience"]:
            time.sleep(60)
        bowl(config)

    searcher = HypergradSearch(seed=0) if of_ray else HypergradSearch(SPACE, metric="gain", mode="max", seed=0)

    def run(patience: bool, budget: float | None) -> Any:
        return tuned(
            slow,
            tmp_path,
            param_space={**(OF_RAY if of_ray else {}), "patience": patience},
            search_alg=searcher,
            metric="gain",
            mode="max",
            num_samples=8,
            time_budget_s=budget,
        )

    run(patience=True, budget=3.0)
    assert searcher._running
    again = run(patience=False, budget=None)
    assert not searcher._running
    assert {result.metrics["trial_id"] for result in again} == set(searcher._observations)
    assert any(trial.parent for trial in searcher._observations.values())
