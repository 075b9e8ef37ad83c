"""Every file in examples/ runs as a user would run it, and its gradient is right; that of a model is exact."""

import functools
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import Status, TrainingProblem, Unrolled, check_gradient, evaluate

FOLDER = Path(__file__).parents[2] / "examples"
LOOP = FOLDER / "python_loop.py"
EXAMPLES = sorted(path for path in FOLDER.glob("*.py") if path != LOOP)


@functools.cache
def loaded(path: Path) -> dict[str, Any]:
    """Return the names that an example defines."""
    return runpy.run_path(str(path))


def test_there_is_one_for_each_way_to_write_a_model() -> None:
    assert [path.stem for path in EXAMPLES] == ["equinox_module", "flax_linen", "flax_nnx", "plain"]


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[] if path.stem == "plain" else pytest.mark.slow) for path in EXAMPLES],
)
def test_the_gradient_is_exact_and_agrees_with_unrolling(path: Path) -> None:
    example = loaded(path)
    arguments = example["problem"], example["hyperparameters"]
    result = evaluate(*arguments, key=jax.random.key(0))
    assert result.status == Status.OK
    assert result.diagnostics["exact"] is True
    assert result.value < 1  # it has learned: guessing has 2.3
    unrolled = evaluate(*arguments, key=jax.random.key(0), method=Unrolled())
    assert result.value == pytest.approx(unrolled.value, rel=1e-4)
    assert result.gradient is not None
    assert unrolled.gradient is not None
    for name, slope in unrolled.gradient.items():
        np.testing.assert_allclose(result.gradient[name], slope, rtol=1e-3)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_dropout_is_on_in_training_alone(path: Path) -> None:
    example = loaded(path)
    problem: TrainingProblem = example["problem"]
    hyperparameters: dict[str, Any] = example["hyperparameters"]
    params = problem.init(jax.random.key(0), hyperparameters)
    rows = problem.batches(jnp.int32(0))
    one, other = (problem.train_loss(params, hyperparameters, rows, jax.random.key(seed)) for seed in (1, 2))
    assert one != other
    losses = problem.valid_loss(params, hyperparameters)
    assert losses.shape == (400,)
    assert (losses == problem.valid_loss(params, hyperparameters)).all()


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
    done = subprocess.run([sys.executable, EXAMPLES[-1]], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("validation loss 0.")
    assert " +- 0.0" in done.stdout
    assert "'l2'" in done.stdout
