"""The packages for OptunaHub have what its registry asks for, and their examples run."""

import inspect
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import optunahub
import pytest

from hypergrad_optuna import HypergradSampler, Objective, visualization

ROOT = Path(__file__).parents[2]
REGISTRY = ROOT / "optunahub" / "package"
PACKAGES = {"samplers/hypergrad": "sampler", "visualization/plot_hypergradient_schedules": "visualization"}
FRONT_MATTER = ["author", "title", "description", "tags", "optuna_versions", "license"]


def front_matter(package: str) -> dict[str, str]:
    _, head, _ = (REGISTRY / package / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return {name: value for name, _, value in (line.partition(": ") for line in head.splitlines())}


def test_no_package_is_left_out() -> None:
    assert {str(path.parent.relative_to(REGISTRY)) for path in REGISTRY.glob("*/*/README.md")} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_what_the_registry_asks_for(package: str) -> None:
    folder = REGISTRY / package
    for name in ("README.md", "LICENSE", "__init__.py", "example.py", "requirements.txt", "tests"):
        assert (folder / name).exists()
    assert (folder / "LICENSE").read_text(encoding="utf-8") == (ROOT / "LICENSE").read_text(encoding="utf-8")
    head = front_matter(package)
    assert list(head) == FRONT_MATTER
    assert PACKAGES[package] in re.findall(r"[\w -]+", head["tags"])
    assert head["license"] == "MIT License"
    assert re.fullmatch(r"\[\d+\.\d+\.\d+\]", head["optuna_versions"])
    assert "<" not in (folder / "README.md").read_text(encoding="utf-8")  # the registry removes HTML
    assert (folder / "requirements.txt").read_text(encoding="utf-8").startswith("hypergrad-search[optuna")


@pytest.mark.parametrize("package", PACKAGES)
def test_an_example_runs(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_module(package: str) -> Any:
        return optunahub.load_local_module(package=package, registry_root=str(REGISTRY))

    monkeypatch.setattr(optunahub, "load_module", load_module)
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path(str(REGISTRY / package / "example.py"))
    trials = found["study"].trials
    assert found["study"].best_value < trials[0].value
    if PACKAGES[package] == "visualization":
        assert (tmp_path / "schedules.html").stat().st_size > 10_000
        assert len(found["figure"].data[0].y) == 30


@pytest.mark.parametrize("package", PACKAGES)
def test_the_tests_of_a_package_pass(package: str, tmp_path: Path) -> None:
    shutil.copytree(REGISTRY, tmp_path / "package")
    tests = tmp_path / "package" / package / "tests"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_readme_says_what_the_signatures_are() -> None:
    told = " ".join((REGISTRY / "samplers/hypergrad/README.md").read_text(encoding="utf-8").split())
    for name, callee in {"HypergradSampler": HypergradSampler, "Objective": Objective}.items():
        parameters = inspect.signature(callee).parameters
        (arguments,) = re.findall(rf"`{name}\((.*?)\)`", told)
        assert [x.partition("=")[0] for x in arguments.split(", ") if x != "*"] == list(parameters)
    told = (REGISTRY / "visualization/plot_hypergradient_schedules/README.md").read_text(encoding="utf-8")
    (arguments,) = re.findall(r"`plot_hypergradient_schedules\((.*?)\)`", told)
    parameters = inspect.signature(visualization.plot_schedules).parameters
    assert [x.partition("=")[0] for x in arguments.split(", ") if x != "*"] == list(parameters)
