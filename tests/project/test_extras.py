"""Each extra alone, in a fresh environment, installed from the wheel."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

PROBLEM = """
import jax
import jax.numpy as jnp

from hypergrad_search import Float, TrainingProblem, evaluate, sgd

problem = TrainingProblem(
    init=lambda key, h: jnp.ones(2),
    train_loss=lambda w, h, batch, key: jnp.sum(w**2),
    valid_loss=lambda w, h: jnp.sum((w - 0.5) ** 2),
    batches=lambda step: None,
    optimizer=sgd("rate", 0.5),
    steps=5,
)
space = {"rate": Float(1e-3, 0.3, log=True)}
"""

# What is installed, and a program that uses it.
EXTRAS = {
    "": PROBLEM + "print(evaluate(problem, {'rate': 0.1}, key=jax.random.key(0)).status)",
    "optuna": PROBLEM
    + """
import optuna

from hypergrad_optuna import HypergradSampler, Objective, best_hyperparameters

study = optuna.create_study(sampler=HypergradSampler(seed=0))
study.optimize(Objective(problem, space), n_trials=3)
rate = best_hyperparameters(study)["rate"]
print(study.best_trial.user_attrs["hypergrad:status"])
""",
    "ray": PROBLEM
    + """
from hypergrad_ray import HypergradSearch, trainable

assert callable(trainable(problem, space))
config = HypergradSearch(space, metric="loss", mode="min", seed=0).suggest("first")
print("ok" if config is not None and "rate" in config else "wrong")
""",
    "visualization": "import plotly\nprint('ok')",
    "studies": "from hypergrad_studies import cli\nprint('ok')",
}

USER = (
    EXTRAS["optuna"]
    + """
rates: list[float] = [trial.params["rate"] for trial in study.trials]
value: float = evaluate(problem, {"rate": 0.1}, key=jax.random.key(0)).value
"""
)


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ["hypergrad_search", "integrations", "studies"]:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ["pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, cwd=source)
    (built,) = folder.glob("*.whl")
    return built


def installed(wheel: Path, extra: str, folder: Path) -> Path:
    """Return the folder of programs of a fresh environment, at the pinned versions."""
    run(BIN / "uv", "venv", "--quiet", "--python", sys.executable, folder, cwd=wheel.parent)
    what = f"hypergrad-search[{extra}] @ {wheel.as_uri()}" if extra else str(wheel)
    pins = ROOT / "constraints.txt"
    run(BIN / "uv", "pip", "install", "--quiet", "--python", folder, "--constraint", pins, what, cwd=wheel.parent)
    return folder / "bin"


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_works_alone(extra: str, wheel: Path, tmp_path: Path) -> None:
    programs = installed(wheel, extra, tmp_path / "environment")
    (tmp_path / "program.py").write_text(EXTRAS[extra], encoding="utf-8")
    # Isolated mode leaves out PYTHONPATH, so that nothing of the checkout is found.
    assert run(programs / "python", "-I", "program.py", cwd=tmp_path).splitlines()[-1] == "ok"
    command = subprocess.run(
        [programs / "python", "-I", programs / "hypergrad", "--help"], capture_output=True, text=True
    )
    if extra == "studies":
        assert command.returncode == 0, command.stderr
        assert "compare" in command.stdout
    else:
        assert command.returncode == 1
        assert command.stderr.strip().endswith("is not installed; pip install 'hypergrad-search[studies]'")
        assert len(command.stderr.splitlines()) == 1
    if extra == "optuna":
        (tmp_path / "user.py").write_text(USER, encoding="utf-8")
        run(BIN / "mypy", "--strict", "--python-executable", programs / "python", "user.py", cwd=tmp_path)
