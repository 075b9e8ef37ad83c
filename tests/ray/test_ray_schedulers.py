"""Ray's schedulers, in real runs on a small local Ray: those that stop trials work, and the others are refused."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    HyperBandForBOHB,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from hypergrad_ray import HypergradSearch, wants_gradient

# `test_ray_runs.py` has a scheduler that stops trials and some that are refused, in a Ray that runs already.
pytestmark = pytest.mark.slow

EPOCHS = 8


def epochs(config: dict[str, Any]) -> None:
    """Report the loss of each epoch, which nears its limit, and with the last one the gradient."""
    offset = config["x"] - 0.3
    for epoch in range(1, EPOCHS):
        tune.report({"loss": offset**2 + 1 / epoch, "status": "running"})
    loss = offset**2 + 1 / EPOCHS
    tune.report({"loss": loss, "status": "ok", "gradient": {"x": 2 * offset} if wants_gradient(config, loss) else None})


@pytest.fixture(scope="module", autouse=True)
def _small_ray() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"os.fork\(\) was called")  # Ray's children leave JAX alone
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def _no_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # a run that is refused leaves their files open


def run(searcher: HypergradSearch, scheduler: TrialScheduler, folder: Path) -> Any:
    return tune.Tuner(
        epochs,
        param_space={"x": tune.uniform(-1.0, 1.0)},
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            metric="loss",
            mode="min",
            num_samples=16,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
    ).fit()


@pytest.mark.parametrize(
    "scheduler",
    [
        ASHAScheduler(max_t=EPOCHS, grace_period=1, reduction_factor=2),
        MedianStoppingRule(time_attr="training_iteration", grace_period=1, min_samples_required=2),
        HyperBandScheduler(max_t=EPOCHS, reduction_factor=2),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_schedulers_that_stop_trials(scheduler: TrialScheduler, tmp_path: Path) -> None:
    searcher = HypergradSearch(seed=0, points_to_evaluate=[{"x": x} for x in (0.0, 0.9, -0.9, 0.95, -0.95, 1.0, -1.0)])
    results = run(searcher, scheduler, tmp_path)
    assert results.num_errors == 0
    assert not searcher._running
    last = {result.metrics["trial_id"]: result.metrics for result in results}
    finished = {name for name, metrics in last.items() if metrics["status"] == "ok"}
    assert 0 < len(finished) < len(last) == 16
    for name, trial in searcher._observations.items():
        assert trial.value == (last[name]["loss"] if name in finished else np.inf)
    assert results.get_best_result().metrics["loss"] < 1 / EPOCHS + 0.01
    told: Any = searcher._explorer.searcher
    stopped = [trial for trial in told._ot_study.trials if trial.state.name == "PRUNED"]
    assert len(stopped) == 16 - len(finished)
    losses = sorted(max(trial.intermediate_values.items())[1] for trial in stopped)
    assert losses == sorted(metrics["loss"] for name, metrics in last.items() if name not in finished)


def test_bohb_is_refused_with_what_to_use_instead(tmp_path: Path) -> None:
    with pytest.raises(
        Exception, match="HyperBandForBOHB works with TuneBOHB alone; use ASHAScheduler or HyperBandSch"
    ):
        run(HypergradSearch(seed=0), HyperBandForBOHB(max_t=EPOCHS), tmp_path)
