"""What a release needs: files that agree, and a check that finds where they do not."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA_NAMES = {"ray[tune]": "ray-tune"}


def the_check() -> Any:
    spec = importlib.util.spec_from_file_location("release", ROOT / "tools" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RELEASE = the_check()


def parsed(requirements: list[str]) -> dict[str, str]:
    """Return the lowest version of each requirement, by its name on conda-forge."""
    pairs = [re.split(r" ?>=", requirement, maxsplit=1) for requirement in requirements]
    return {CONDA_NAMES.get(name, name): version for name, version in pairs}


def test_all_files_say_the_same_version() -> None:
    assert set(RELEASE.copies(ROOT).values()) == {PROJECT["version"]}


def test_the_conda_recipe_needs_what_the_project_needs() -> None:
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text(encoding="utf-8"))
    needs = recipe["requirements"]
    assert parsed(needs["run"]) == {
        "python": PROJECT["requires-python"].removeprefix(">="),
        **parsed(PROJECT["dependencies"]),
    }
    extras = [need for name in ("optuna", "visualization", "ray") for need in PROJECT["optional-dependencies"][name]]
    assert parsed(needs["run_constraints"]) == parsed(extras)
    (built_by,) = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    assert built_by.replace(">=", " >=") in needs["host"]
    (script,) = recipe["build"]["python"]["entry_points"]
    assert script == f"hypergrad = {PROJECT['scripts']['hypergrad']}"
    assert recipe["about"]["summary"] == PROJECT["description"]


def test_the_citation_is_of_this_project() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["title"] == PROJECT["name"]
    assert citation["license"] == PROJECT["license"]
    assert [{"name": author["name"]} for author in PROJECT["authors"]] == citation["authors"]
    assert {"cff-version", "message", "abstract", "keywords"} <= citation.keys()


def test_pre_commit_runs_what_make_lint_runs() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (local,) = config["repos"]
    hooks = [hook["entry"] for hook in local["hooks"]]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^lint: .*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert hooks == [line.strip().replace("$(VENV)", ".venv") for line in lines.splitlines()]


@pytest.mark.slow
def test_pre_commit_passes() -> None:
    uvx = Path(sys.executable).with_name("uvx")
    done = subprocess.run(
        [uvx, "pre-commit", "run", "--all-files"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("Passed") == 3


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository from which a release can be made."""
    for name in ("pyproject.toml", "CITATION.cff", "conda/recipe.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    changelog = f"# Changelog\n\n## [{PROJECT['version']}] - 2026-12-01\n"
    (tmp_path / "CHANGELOG.md").write_text(changelog, encoding="utf-8")
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(
        folder,
        "-c",
        "user.name=tester",
        "-c",
        "user.email=tester@localhost",
        "commit",
        "--quiet",
        "--message",
        "a state",
    )


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_where_all_agrees_nothing_stands_against_a_release(repository: Path) -> None:
    assert list(RELEASE.obstacles(repository)) == []
    git(repository, "tag", f"v{PROJECT['version']}")
    assert list(RELEASE.obstacles(repository)) == []


def test_each_obstacle_is_named(repository: Path) -> None:
    git(repository, "tag", f"v{PROJECT['version']}")
    rewrite(repository / "CHANGELOG.md", "2026-12-01", "unreleased")
    commit(repository)
    rewrite(repository / "CITATION.cff", f"version: {PROJECT['version']}", "version: 9.9.9")
    undated, *others = [str(x) for x in sorted(RELEASE.obstacles(repository))]
    assert "no date" in undated
    wrong, changed, tagged = others
    assert "CITATION.cff says 9.9.9" in wrong
    assert " M CITATION.cff" in changed or "M CITATION.cff" in changed
    assert "is on another commit" in tagged
