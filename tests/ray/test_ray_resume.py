"""Trials that are lost with their process or node, or paused, go on from where they reported last."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ray
from ray import tune
from ray.cluster_utils import Cluster
from ray.tune.schedulers import HyperBandScheduler

from hypergrad_ray import HypergradSearch, trainable
from hypergrad_search import Float, HostBatches, Hypernet, Space, TrainingProblem, evaluate, sgd
from hypergrad_search.hypergradient import Linear

# Ray's children leave JAX alone.
pytestmark = pytest.mark.filterwarnings(r"ignore:os.fork\(\) was called")

STEPS, EVERY = 60, 10
SPACE: Space = {"target": Float(-1.0, 1.0, shape=(2,)), "rate": Float(1e-2, 0.3, log=True)}


def problem(**changes: Any) -> TrainingProblem:
    """Return a problem whose functions travel by value, and whose momentum spills bits every 12 steps."""
    parts: dict[str, Any] = {
        "init": lambda key, h: jax.random.normal(key, (2,)),
        "train_loss": lambda p, h, batch, key: jnp.sum((p - h["target"]) ** 2),
        "valid_loss": lambda p, h: jnp.sum((p - 0.25) ** 2),
        "batches": lambda step: None,
        "optimizer": sgd("rate", 0.6),
        "steps": STEPS,
    }
    return TrainingProblem(**{**parts, **changes})


def noting(folder: Path) -> TrainingProblem:
    """Return a problem that notes which steps are trained, and that waits in the middle until its trial is lost."""

    def load(step: int) -> Any:
        with (folder / "steps").open("a") as file:
            file.write(f"{step}\n")
        started = time.monotonic()
        while step >= 45 and not (folder / "lost").exists() and time.monotonic() < started + 120:
            time.sleep(0.05)
        return np.random.default_rng(step).normal(size=2).astype(np.float32)

    return problem(
        batches=HostBatches(load), train_loss=lambda p, h, batch, key: jnp.sum((p - h["target"] + 0.1 * batch) ** 2)
    )


class AtStep(tune.Callback):
    """Calls a function once, with the result of a trial whose checkpoint of a step Ray has noted."""

    def __init__(self, step: int, do: Callable[[dict[str, Any]], None]) -> None:
        self.step, self.do, self.done = step, do, False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "do": None}  # Ray pickles callbacks, and a cluster cannot be

    def on_checkpoint(self, iteration: int, trials: list[Any], trial: Any, checkpoint: Any, **_: Any) -> None:
        if trial.last_result["steps"] == self.step and not self.done:
            self.done = True
            self.do(trial.last_result)


@pytest.fixture(scope="module", autouse=True)
def _small_ray(ray_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # the processes of all trials share what one of them has compiled
    workers = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled"))}
    workers["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    ray.init(address=ray_cluster.address, log_to_driver=False, runtime_env={"env_vars": workers})
    yield
    ray.shutdown()


def run(train: Any, folder: Path, searcher: Any, *callbacks: tune.Callback, keep: int = 1, **config: Any) -> Any:
    return tune.Tuner(
        train,
        tune_config=tune.TuneConfig(search_alg=searcher, metric="loss", mode="min", **config),
        run_config=tune.RunConfig(
            name="run",
            storage_path=str(folder),
            verbose=0,
            callbacks=list(callbacks),
            failure_config=tune.FailureConfig(max_failures=1),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=keep),
        ),
    ).fit()


def one_trial(folder: Path, lose: Callable[[dict[str, Any]], None], **resources: float) -> tuple[Any, Counter[int]]:
    """Return the result of one trial that something happens to after 30 steps, and how often each step was loaded."""
    folder.mkdir()

    def do(result: dict[str, Any]) -> None:
        (folder / "lost").touch()
        lose(result)

    train = tune.with_resources(trainable(noting(folder), SPACE, report_every=EVERY), {"cpu": 1, **resources})
    (result,) = run(train, folder, HypergradSearch(SPACE, seed=0, metric="loss", mode="min"), AtStep(30, do))
    return result, Counter(map(int, (folder / "steps").read_text().split()))


def assert_it_went_on(found: Any, loads: Counter[int], undisturbed: Any, undisturbed_loads: Counter[int]) -> None:
    assert found.error is None
    assert found.metrics_dataframe["steps"].tolist() == list(range(EVERY, STEPS + 1, EVERY))
    metrics, other = found.metrics, undisturbed.metrics
    assert metrics["exact"] is True
    assert metrics["loss"] == other["loss"]
    assert metrics["gradient"]["target"].tobytes() == other["gradient"]["target"].tobytes()
    assert metrics["gradient"]["rate"] == other["gradient"]["rate"]
    assert metrics["gradient_evaluations"] == other["gradient_evaluations"] == 4 * STEPS
    # Steps are loaded once on the way there and once on the way back. The first ones are loaded ahead once more in each
    # process, and so are those after step 30, where the trial was lost.
    assert [undisturbed_loads[step] for step in range(9, STEPS - 1)] == [2] * 50
    assert [loads[step] for step in range(9, 33)] == [2] * 21 + [3] * 3
    (kept,) = Path(found.path).glob("checkpoint_*")
    assert [file.name for file in kept.iterdir() if not file.name.startswith(".")] == ["snapshot"]


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_goes_on_from_its_last_report(tmp_path: Path) -> None:
    undisturbed = one_trial(tmp_path / "undisturbed", lambda result: None)
    killed = one_trial(tmp_path / "killed", lambda result: os.kill(result["pid"], signal.SIGKILL))
    assert_it_went_on(*killed, *undisturbed)


@pytest.mark.slow
def test_a_trial_whose_node_is_lost_goes_on_elsewhere(ray_cluster: Cluster, tmp_path: Path) -> None:
    away: Any = partial(ray_cluster.add_node, num_cpus=1, resources={"away": 1}, object_store_memory=100_000_000)
    node = away()

    def lose(result: dict[str, Any]) -> None:
        ray_cluster.remove_node(node, allow_graceful=False)
        away()

    undisturbed = one_trial(tmp_path / "undisturbed", lambda result: None, away=1)
    assert_it_went_on(*one_trial(tmp_path / "lost", lose, away=1), *undisturbed)


class Restored(tune.Callback):
    """Notes the trials that went on after a pause."""

    def __init__(self) -> None:
        self.trials: list[str] = []

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.trials.append(trial.trial_id)


@pytest.mark.slow
def test_hyperband_pauses_trials_that_go_on(tmp_path: Path) -> None:
    started = Restored()
    training = problem()
    results = run(
        trainable(training, SPACE, report_every=EVERY),
        tmp_path,
        HypergradSearch(SPACE, seed=0, metric="loss", mode="min"),
        started,
        scheduler=HyperBandScheduler(max_t=STEPS // EVERY, reduction_factor=2),
        num_samples=8,
        reuse_actors=True,
    )
    assert results.num_errors == 0
    paused = {trial for trial, times in Counter(started.trials).items() if times > 1}
    ended = [result for result in results if result.metrics["status"] == "ok"]
    assert paused.intersection(result.metrics["trial_id"] for result in ended)
    assert len(ended) < 8
    for result in results:
        steps = result.metrics_dataframe["steps"].tolist()
        assert steps == list(range(EVERY, steps[-1] + 1, EVERY))
    for result in ended:
        h = {name: result.config[name] for name in SPACE}
        expected = evaluate(training, h, key=jax.random.key(0), space=SPACE)
        assert expected.gradient is not None
        assert result.metrics["loss"] == expected.value
        if "gradient" in result.metrics:
            assert result.metrics["gradient"]["target"].tobytes() == expected.gradient["target"].tobytes()


def test_a_chain_of_stretches_that_report_keeps_its_checkpoints(tmp_path: Path) -> None:
    space: Space = {"target": Float(-1.0, 1.0, shape=(2,))}
    results = run(
        trainable(problem(optimizer=sgd(0.1, 0.6)), space, method=Hypernet(network=Linear(), steps=20), report_every=5),
        tmp_path,
        HypergradSearch(space, seed=0, metric="loss", mode="min"),
        num_samples=3,
        max_concurrent_trials=1,
        reuse_actors=True,
    )
    assert results.num_errors == 0
    for result in results:
        assert result.metrics["status"] == "ok"
        assert [file.name for file in Path(result.checkpoint.path).glob("[a-z]*")] == ["checkpoint"]
