"""Every file in examples/ runs as a user would run it, and its gradient is right; that of a model is exact."""

import functools
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest

from hypergrad_search import Status, TrainingProblem, Unrolled, check_gradient, evaluate
from hypergrad_studies.posing import named
from hypergrad_studies.tasks import ObjectiveTask, TrainingTask

FOLDER = Path(__file__).parents[2] / "examples"
PLAIN, LOOP, SLEEPING = (FOLDER / name for name in ("plain.py", "python_loop.py", "sleeping_bowl.py"))
EVERYDAY = sorted(path for path in FOLDER.glob("*.py") if path not in (PLAIN, LOOP, SLEEPING))
KEY = jax.random.key(0)
POINT = {
    "peak": 5e-3,
    "warmup": 10.5,
    "final": 1e-4,
    "b1": 0.9,
    "b2": 0.99,
    "decay": 0.1,
    "clip": 1.0,
    "smoothing": 0.05,
}
each_everyday = pytest.mark.parametrize("path", EVERYDAY, ids=lambda path: path.stem)


@functools.cache
def loaded(path: Path) -> dict[str, Any]:
    """Return the names that an example defines."""
    return runpy.run_path(str(path))


def in_type(path: Path, dtype: str) -> TrainingProblem:
    """Return the problem of an everyday example with all layers in one type."""
    text = path.read_text().replace("jnp.bfloat16", f"jnp.{dtype}").replace("jnp.float32", f"jnp.{dtype}")
    names: dict[str, Any] = {"__name__": path.stem}
    exec(compile(text, path, "exec"), names)
    problem: TrainingProblem = names["problem"]
    return problem


def test_there_is_one_for_each_way_to_write_a_model() -> None:
    assert [path.stem for path in EVERYDAY] == ["equinox_module", "flax_linen", "flax_nnx"]
    assert all(len(path.read_text().splitlines()) < 90 for path in EVERYDAY)


@pytest.mark.slow
def test_the_plain_one_is_exact_and_agrees_with_unrolling() -> None:
    example = loaded(PLAIN)
    arguments = example["problem"], example["hyperparameters"]
    result = evaluate(*arguments, key=KEY)
    assert result.status == Status.OK
    assert result.diagnostics["exact"] is True
    assert result.value < 1  # it has learned: guessing has 2.3
    unrolled = evaluate(*arguments, key=KEY, method=Unrolled())
    assert result.value == pytest.approx(unrolled.value, rel=1e-4)
    assert result.gradient is not None
    assert unrolled.gradient is not None
    for name, slope in unrolled.gradient.items():
        np.testing.assert_allclose(result.gradient[name], slope, rtol=1e-3)


@pytest.mark.slow
@each_everyday
def test_the_gradient_of_an_everyday_recipe_is_that_of_float64(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bernoulli(key: jax.Array, p: Any = 0.5, shape: Any = None, **_: Any) -> jax.Array:
        dropped: jax.Array = jax.random.uniform(key, shape, jnp.float32) < p
        return dropped

    monkeypatch.setattr(jax.random, "bernoulli", bernoulli)  # so that float64 drops the same units
    problem = in_type(path, "float32")
    assert loaded(path)["space"].keys() == POINT.keys()
    found = evaluate(problem, POINT, key=KEY)
    assert found.status == Status.OK
    assert found.diagnostics["exact"] is True

    # The same start, and the same batches as an array.
    start: Any = jax.tree.map(np.asarray, problem.init(jax.random.split(KEY)[0], POINT))
    load: Any = problem.batches
    batches: Any = jax.tree.map(lambda *x: np.stack(x), *(load.load(step) for step in range(problem.steps)))
    with jax.enable_x64(True):
        wide = replace(
            in_type(path, "float64"),
            init=lambda key, h: jax.tree.map(lambda x: jnp.asarray(x, float if x.dtype == np.float32 else None), start),
            batches=lambda step: jax.tree.map(lambda x: jnp.asarray(x)[step], batches),
        )
        wanted = evaluate(wide, POINT, key=KEY, method=Unrolled())
    assert found.value == pytest.approx(wanted.value, rel=1e-5)
    assert found.gradient is not None
    assert wanted.gradient is not None
    for name, slope in wanted.gradient.items():
        np.testing.assert_allclose(found.gradient[name], slope, rtol=2e-4, err_msg=name)


@pytest.mark.slow
@each_everyday
def test_an_everyday_recipe_in_bfloat16_is_exact(path: Path) -> None:
    problem = loaded(path)["problem"]
    found = evaluate(problem, POINT, key=KEY)
    assert found.status == Status.OK
    assert found.diagnostics["exact"] is True
    assert found.value < 0.6  # it has learned: guessing has 2.3
    unrolled = evaluate(problem, POINT, key=KEY, method=Unrolled())
    assert found.value == pytest.approx(unrolled.value, rel=0.02)  # bfloat16 rounds to 0.4 %
    assert found.gradient is not None
    assert unrolled.gradient is not None
    for name in ("peak", "decay", "smoothing"):
        np.testing.assert_allclose(found.gradient[name], unrolled.gradient[name], rtol=0.05, err_msg=name)


@pytest.mark.slow
@each_everyday
def test_an_everyday_recipe_is_searched(path: Path) -> None:
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("validation loss 0.")
    assert float(done.stdout.split()[2]) < 0.35


def test_dropout_is_on_in_training_alone() -> None:
    example = loaded(PLAIN)
    problem: TrainingProblem = example["problem"]
    hyperparameters: dict[str, Any] = example["hyperparameters"]
    params = problem.init(KEY, hyperparameters)
    rows = problem.batches(jnp.int32(0))
    one, other = (problem.train_loss(params, hyperparameters, rows, jax.random.key(seed)) for seed in (1, 2))
    assert one != other
    losses = problem.valid_loss(params, hyperparameters)
    assert losses.shape == (400,)
    assert (losses == problem.valid_loss(params, hyperparameters)).all()


@each_everyday
def test_everyday_dropout_is_on_in_training_alone(path: Path) -> None:
    problem: TrainingProblem = loaded(path)["problem"]
    model = problem.init(KEY, POINT)
    batch = problem.batches(jnp.int32(0))
    one, other = (problem.train_loss(*model, POINT, batch, jax.random.key(seed))[0] for seed in (1, 2))
    assert one != other
    losses = problem.valid_loss(*model, POINT)
    assert losses.shape == (500,)
    assert (losses == problem.valid_loss(*model, POINT)).all()


@pytest.mark.slow
def test_a_loop_of_the_user_s_own_has_a_right_gradient() -> None:
    example = loaded(LOOP)
    point = {"rate": 0.01, "decay": 0.1, "scale": 0.1}
    result = check_gradient(example["problem"], point, example["space"], directions=1)
    assert result.agrees, str(result)


@pytest.mark.slow
def test_a_loop_of_the_user_s_own_is_searched() -> None:
    done = subprocess.run([sys.executable, LOOP], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("validation loss 0.")
    assert float(done.stdout.split()[2]) < 0.5


def test_a_script_prints_what_it_found() -> None:
    done = subprocess.run([sys.executable, PLAIN], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("validation loss 0.")
    assert " +- 0.0" in done.stdout
    assert "'l2'" in done.stdout


@each_everyday
def test_an_everyday_one_can_be_compared(path: Path) -> None:
    task = named(f"{path}:make")
    assert isinstance(task, TrainingTask)
    assert task.space.keys() == POINT.keys()


def test_the_sleeping_one_is_an_objective() -> None:
    task = named(f"{SLEEPING}:make")
    assert isinstance(task, ObjectiveTask)
    at_the_lowest = dict(zip((f"x{i}" for i in range(6)), loaded(SLEEPING)["LOWEST"], strict=True))
    assert task.objective(optuna.trial.FixedTrial(at_the_lowest)) == 0.0  # type: ignore[arg-type]  # as any trial
