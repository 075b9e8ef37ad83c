"""Slow runs on two nodes, one of them with a driver that is killed outright."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
import ray
from ray import tune
from ray.cluster_utils import Cluster

from hypergrad_ray import HypergradSearch, trainable
from hypergrad_search import Float, Space, TrainingProblem, sgd

pytestmark = pytest.mark.slow

SPACE: Space = {"target": Float(-1.0, 1.0, shape=(2,)), "rate": Float(1e-2, 0.3, log=True)}


def problem() -> TrainingProblem:
    return TrainingProblem(
        init=lambda key, h: jnp.ones(2),
        train_loss=lambda p, h, batch, key: jnp.sum((p - h["target"]) ** 2),
        valid_loss=lambda p, h: jnp.sum((p - 0.25) ** 2),
        batches=lambda step: None,
        optimizer=sgd("rate", 0.5),
        steps=20,
    )


def test_trials_descend_on_two_nodes(ray_cluster: Cluster, tmp_path: Path) -> None:
    searcher = HypergradSearch(SPACE, metric="loss", mode="min", seed=0)
    train, nodes = trainable(problem(), SPACE), tmp_path / "nodes"
    nodes.mkdir()

    def noting_its_node(config: dict[str, Any]) -> None:
        (nodes / ray.get_runtime_context().get_node_id()).touch()
        started = time.monotonic()
        while len(list(nodes.iterdir())) < 2 and time.monotonic() < started + 60:
            time.sleep(0.1)
        train(config)

    ray.init(address=ray_cluster.address, log_to_driver=False)
    try:
        analysis = tune.run(
            noting_its_node,
            search_alg=searcher,
            metric="loss",
            mode="min",
            num_samples=16,
            reuse_actors=True,
            resources_per_trial={"cpu": 1},
            storage_path=str(tmp_path),
            verbose=0,
        )
    finally:
        ray.shutdown()
    assert len(list(nodes.iterdir())) == 2
    assert all(trial.last_result["status"] == "ok" for trial in analysis.trials)
    assert len(searcher._observations) == 16
    assert any(trial.parent for trial in searcher._observations.values())


@pytest.mark.parametrize("space", [(), ("of-ray",)])
def test_killed_driver_goes_on_where_it_was(space: tuple[str, ...], ray_cluster: Cluster, tmp_path: Path) -> None:
    def drive(name: str, *orders: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable,
                Path(__file__).with_name("driver.py"),
                ray_cluster.address,
                tmp_path,
                name,
                *orders,
                *space,
            ],
            env={**os.environ, "TUNE_GLOBAL_CHECKPOINT_S": "0"},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def configs(done: subprocess.CompletedProcess[str]) -> Any:
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    whole = configs(drive("whole"))
    assert drive("cut", "kill").returncode == -signal.SIGKILL
    assert configs(drive("cut", "restore")) == whole
