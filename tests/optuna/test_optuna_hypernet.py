"""Joint methods in Optuna: a trial is a stretch, and a chain goes on with its network, across processes too."""

import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore
from optuna.trial import FrozenTrial, TrialState

from hypergrad_optuna import (
    HypergradSampler,
    Objective,
    arrays,
    attributes,
    best_hyperparameters,
    best_model,
    hyperparameters_of,
)
from hypergrad_optuna.objective import read_checkpoint
from hypergrad_search import Categorical, Float, Hypernet, Space, TrainingProblem, evaluate, sgd
from hypergrad_search.hypergradient import Linear

KEY = jax.random.key(0)
SCRIPT = Path(__file__).with_name("hypernet_problem.py")


@pytest.fixture(scope="module")
def ridge() -> Any:
    namespace: Any = ModuleType("hypernet_problem")
    exec(compile(SCRIPT.read_text(), SCRIPT, "exec"), namespace.__dict__)
    problem = namespace.problem()
    namespace.problem = lambda: problem  # which compiles once
    return namespace


def run(ridge: Any, trials: int, **sampler: Any) -> optuna.Study:
    study = optuna.create_study(sampler=HypergradSampler(seed=0, **sampler))
    study.optimize(Objective(ridge.problem(), ridge.SPACE, method=ridge.METHOD), n_trials=trials)
    return study


def parent_of(trial: FrozenTrial) -> int:
    """Return the number of the trial that this one goes on from; -1 where the explorer chose."""
    return int(attributes.wanted(trial).parent or -1)


def value_of(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


def test_a_chain_is_one_long_joint_optimisation(ridge: Any) -> None:
    study = run(ridge, 12)
    first = next(t for t in study.trials if parent_of(t) >= 0)
    founder = study.trials[parent_of(first)]
    start = hyperparameters_of(founder)
    np.testing.assert_allclose(arrays.read(first, "penalty", None), start["penalty"], rtol=1e-12)
    # this is the second of the same two stretches, without a host
    kept = read_checkpoint(founder, None)
    again = evaluate(ridge.problem(), start, method=ridge.METHOD, key=KEY, space=ridge.SPACE, checkpoint=kept)
    assert first.value == pytest.approx(again.value, rel=1e-6)
    assert value_of(first) < value_of(founder)
    assert study.best_value < 0.8 * min(value_of(t) for t in study.trials if parent_of(t) < 0)
    assert all(t.user_attrs[attributes.COST] == 150 * 4 for t in study.trials)


def test_the_best_can_be_read_back(ridge: Any) -> None:
    study = run(ridge, 8)
    found, start = best_hyperparameters(study), arrays.read(study.best_trial, "penalty", None)
    assert not np.array_equal(found["penalty"], start)
    model = best_model(study, Objective(ridge.problem(), ridge.SPACE, method=ridge.METHOD))
    assert float(ridge.problem().valid_loss(model, found)) == pytest.approx(study.best_value, rel=1e-5)


def test_checkpoints_may_be_artifacts(ridge: Any, tmp_path: Path) -> None:
    store = FileSystemArtifactStore(tmp_path)
    kept, plain = run(ridge, 6, artifact_store=store), run(ridge, 6)
    assert [t.value for t in kept.trials] == [t.value for t in plain.trials]
    assert all("base64" not in t.user_attrs[attributes.CHECKPOINT] for t in kept.trials)
    assert read_checkpoint(kept.best_trial, store) == read_checkpoint(plain.best_trial, None)
    objective = Objective(ridge.problem(), ridge.SPACE, method=ridge.METHOD)
    np.testing.assert_array_equal(*(best_model(study, objective) for study in (kept, plain)))
    kept.sampler = optuna.samplers.RandomSampler()
    np.testing.assert_array_equal(*(best_model(kept, objective, artifact_store=store), best_model(plain, objective)))
    for read in (lambda: best_hyperparameters(kept), lambda: best_model(kept, objective)):
        with pytest.raises(ValueError, match="give the artifact_store"):
            read()


def test_other_samplers_choose_where_each_stretch_starts(ridge: Any) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(Objective(ridge.problem(), ridge.SPACE, method=ridge.METHOD), n_trials=3)
    assert best_hyperparameters(study)["penalty"].shape == (ridge.SIZE,)


def test_pruners_see_the_validation_loss_on_the_way(ridge: Any) -> None:
    study = optuna.create_study(sampler=HypergradSampler(seed=0), pruner=optuna.pruners.ThresholdPruner(upper=0.0))
    study.optimize(Objective(ridge.problem(), ridge.SPACE, method=ridge.METHOD, report_every=40), n_trials=2)
    for trial in study.trials:
        assert trial.state == TrialState.PRUNED
        assert list(trial.intermediate_values) == [40]
        assert trial.user_attrs[attributes.COST] == 40 * 4


def test_what_has_no_gradient_in_this_mode_is_refused_by_name(ridge: Any) -> None:
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    objective = Objective(ridge.problem(), {**ridge.SPACE, "rate": Float(1e-3, 1.0)}, method=ridge.METHOD)
    with pytest.raises(ValueError, match="cannot tune rate"):
        study.optimize(objective, n_trials=1)


@pytest.mark.filterwarnings("ignore:PartialFixedSampler is experimental")
def test_another_architecture_does_not_take_over_a_network(ridge: Any) -> None:
    """The sampler proposes to go on along a chain, but the user has since fixed another kind of model."""

    def init(key: jax.Array, h: dict[str, Any]) -> dict[str, jax.Array]:
        return {h["kind"]: jnp.zeros(2 if h["kind"] == "a" else 3)}

    problem = TrainingProblem(
        init=init,
        train_loss=lambda p, h, batch, key: jnp.sum((p[h["kind"]] - 1) ** 2 + h["l2"] * p[h["kind"]] ** 2),
        valid_loss=lambda p, h: jnp.sum((p[h["kind"]] - 0.5) ** 2),
        batches=lambda step: None,
        optimizer=sgd(0.1, 0.9),
        steps=20,
    )
    space: Space = {"l2": Float(1e-2, 10.0, log=True), "kind": Categorical(["a", "b"])}
    objective, study = Objective(problem, space, method=Hypernet(network=Linear())), optuna.create_study()
    sampler = HypergradSampler(seed=0)
    for kind in ("a", "b"):
        study.sampler = optuna.samplers.PartialFixedSampler({"kind": kind}, sampler)
        study.optimize(objective, n_trials=5)
    assert [t.params["kind"] for t in study.trials] == ["a"] * 5 + ["b"] * 5
    assert all(t.state == TrialState.COMPLETE for t in study.trials)
    crossed = [t for t in study.trials[5:] if 0 <= parent_of(t) < 5]
    assert crossed


def test_where_nothing_is_refined_the_parameters_are_the_hyperparameters() -> None:
    study = optuna.create_study()
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert best_hyperparameters(study) == study.best_params


def test_divergence_is_a_failed_stretch(ridge: Any) -> None:
    import optax

    method = Hypernet(network=Linear(), steps=60, optimizer=optax.sgd(1e4))
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(Objective(ridge.problem(), ridge.SPACE, method=method), n_trials=4)
    assert all(t.value == float("inf") and parent_of(t) < 0 for t in study.trials)
    assert {t.user_attrs["hypergrad:status"] for t in study.trials} <= {"nan", "diverged"}


def test_a_killed_study_goes_on_from_its_last_finished_trial(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"

    def worker(trials: int) -> subprocess.Popen[bytes]:
        folder = tmp_path / "artifacts"
        folder.mkdir(exist_ok=True)
        command = [sys.executable, str(SCRIPT), storage, "killed", str(folder), str(trials)]
        return subprocess.Popen(command, stdin=subprocess.PIPE)

    study = optuna.create_study(study_name="killed", storage=storage)
    victim, survivor = worker(10_000), worker(6)
    assert victim.stdin is not None
    victim.stdin.write(b"go\n")
    victim.stdin.flush()
    while sum(parent_of(t) >= 0 for t in study.get_trials(states=[TrialState.COMPLETE])) < 3:
        assert victim.poll() is None
        time.sleep(0.05)
    victim.kill()
    victim.communicate()
    before = study.get_trials()
    finished = [t for t in before if t.state == TrialState.COMPLETE]
    longest = max(t.duration for t in finished if t.duration is not None)
    time.sleep(max(2 * longest, timedelta(seconds=0.5)).total_seconds())  # as long as the worker waits
    survivor.communicate(b"go\n", timeout=300)
    assert survivor.returncode == 0
    later = study.get_trials()[len(before) :]
    assert [t.state for t in later] == [TrialState.COMPLETE] * 6
    continued = [t for t in later if 0 <= parent_of(t) < len(before)]
    heads = {t.number for t in finished} - {parent_of(t) for t in finished}  # the last trials of chains
    lowest = min((before[n] for n in heads), key=value_of)
    assert lowest.number in {parent_of(t) for t in continued}, "the best chain was not taken over"
    store = FileSystemArtifactStore(tmp_path / "artifacts")
    for trial in continued:
        start = hyperparameters_of(before[parent_of(trial)], artifact_store=store)
        np.testing.assert_allclose(arrays.read(trial, "penalty", store), start["penalty"], rtol=1e-12)
    assert min(value_of(t) for t in later) <= min(value_of(t) for t in finished) * 1.01
