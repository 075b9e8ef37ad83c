"""Every public name is on a page of the reference, and every example in a docstring runs as printed."""

import copy
import doctest
import importlib
import re
import runpy
from pathlib import Path
from typing import Any

import jax
import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "api").glob("*.md"))
BEGINNING = ROOT / "docs" / "api" / "beginning.py"
PACKAGES = [
    ROOT / "hypergrad_search",
    *(ROOT / "integrations").glob("hypergrad_*"),
    *(ROOT / "studies").glob("hypergrad_*"),
]
PUBLIC = [
    "hypergrad_search",
    "hypergrad_search.hypergradient",
    "hypergrad_search.optimizers",
    "hypergrad_search.search",
    "hypergrad_search.training",
    "hypergrad_optuna",
    "hypergrad_optuna.visualization",
    "hypergrad_ray",
    "hypergrad_studies",
]
WITH_EXAMPLES = sorted(path for package in PACKAGES for path in package.rglob("*.py") if ">>>" in path.read_text())


def name_of(path: Path) -> str:
    """Return the name of the module in a file of one of the packages."""
    (package,) = (package for package in PACKAGES if path.is_relative_to(package))
    return ".".join(path.relative_to(package.parent).with_suffix("").parts)


def named(module: str) -> list[str]:
    """Return the public names of a module."""
    of_module = importlib.import_module(module)
    own = (name for name, value in vars(of_module).items() if getattr(value, "__module__", None) == module)
    names: list[str] = getattr(of_module, "__all__", None) or [name for name in own if not name.startswith("_")]
    return names


def described() -> list[str]:
    """Return the full names that the pages of the reference describe."""
    directive = r"^\.\. auto(?:class|exception|function|data):: ([\w.]+)$"
    return [name for page in PAGES for name in re.findall(directive, page.read_text(), flags=re.MULTILINE)]


def found(name: str) -> Any:
    """Return what has a full name."""
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def test_all_public_modules_are_known() -> None:
    of_engine = {name_of(path).removesuffix(".__init__") for path in (ROOT / "hypergrad_search").rglob("__init__.py")}
    assert of_engine <= set(PUBLIC)
    assert {package.name for package in PACKAGES} <= set(PUBLIC)


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_on_a_page(module: str) -> None:
    of_module = importlib.import_module(module)
    on_pages = [found(name) for name in described()]
    names = named(module)
    assert names
    assert [name for name in names if not any(getattr(of_module, name) is each for each in on_pages)] == []


def test_no_name_is_on_two_pages() -> None:
    names = described()
    assert len(names) == len(set(names))
    assert len(names) > 100


@pytest.fixture(scope="module")
def beginning() -> dict[str, Any]:
    """Return what the examples begin with, as the pages of the reference say."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        names = runpy.run_path(str(BEGINNING))
    return {name: value for name, value in names.items() if not name.startswith("__")}


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=name_of)
def test_examples_in_docstrings_run(
    path: Path, beginning: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name_of(path))
    runner = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST)
    names = {**beginning, "study": copy.deepcopy(beginning["study"])}
    examples = doctest.DocTestFinder().find(module, name_of(path), globs=names)
    assert sum(len(example.examples) for example in examples) == path.read_text().count(">>>")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for example in examples:
            assert runner.run(example).failed == 0, example.name


def test_no_example_is_left_out() -> None:
    assert [path.name for path in WITH_EXAMPLES if "doctest: +SKIP" in path.read_text()] == []


def test_pages_say_what_examples_begin_with() -> None:
    assert "{literalinclude} beginning.py" in (ROOT / "docs" / "api" / "hypergrad_search.md").read_text()
    assert [page.name for page in PAGES if "beginning" not in page.read_text()] == []
