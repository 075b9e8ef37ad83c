"""Imports run one way: tests -> studies -> adapters -> engine; and inside the engine likewise."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE_ROOTS = {
    "hypergrad_search": ROOT,
    "hypergrad_optuna": ROOT / "integrations",
    "hypergrad_ray": ROOT / "integrations",
    "hypergrad_studies": ROOT / "studies",
}

# A package must not reach these names by any chain of imports through this project's modules.
FORBIDDEN = {
    "hypergrad_search": ["optuna", "ray", "hypergrad_optuna", "hypergrad_ray", "hypergrad_studies", "tests"],
    "hypergrad_search.search": ["jax", "hypergrad_search.training", "hypergrad_search.hypergradient"],
    "hypergrad_search.problem": ["hypergrad_search.training", "hypergrad_search.hypergradient"],
    "hypergrad_search.training": ["hypergrad_search.hypergradient", "hypergrad_search.search"],
    "hypergrad_search.hypergradient": ["hypergrad_search.search"],
    "hypergrad_optuna": ["ray", "hypergrad_ray", "hypergrad_studies", "tests"],
    "hypergrad_ray": ["hypergrad_optuna", "hypergrad_studies", "tests"],
    "hypergrad_studies": ["tests"],
}


def module_files() -> dict[str, Path]:
    """Return all modules of the project by their dotted names."""
    files = {}
    for package, root in SOURCE_ROOTS.items():
        for path in (root / package).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports_of(module: str, files: dict[str, Path]) -> set[str]:
    """Return the absolute names of all that a module imports, inside functions too."""
    path = files[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                submodule = f"{source}.{alias.name}"
                names.add(submodule if submodule in files else source)
    return names


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_one_way(package: str) -> None:
    files = module_files()
    graph = {module: imports_of(module, files) for module in files}
    chains = {module: module for module in sorted(files) if inside(module, package)}
    assert chains, f"no module of {package} was found below {ROOT}"
    pending = list(chains)
    wrong = []
    for module in pending:
        for name in sorted(graph[module] - chains.keys()):
            chains[name] = f"{chains[module]} -> {name}"
            if any(inside(name, forbidden) for forbidden in FORBIDDEN[package]):
                wrong.append(chains[name])
            elif name in files:
                pending.append(name)
    assert not wrong, "imports against the direction:\n" + "\n".join(wrong)


def test_no_import_runs_round() -> None:
    files = module_files()
    graph = {module: imports_of(module, files) & files.keys() for module in files}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_engine_leaves_optuna_and_ray_unloaded(tmp_path: Path) -> None:
    script = "import sys, hypergrad_search; print({'optuna', 'ray'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


@pytest.mark.parametrize(
    ("missing", "run", "line"),
    [
        (
            "click",
            "from hypergrad_studies.command import main; main()",
            "hypergrad: click is not installed; pip install 'hypergrad-search[studies]'",
        ),
        (
            "optuna",
            "import hypergrad_optuna",
            "ImportError: hypergrad_optuna needs optuna 5.0 or newer; pip install 'hypergrad-search[optuna]'",
        ),
        ("ray", "import hypergrad_ray", "ImportError: hypergrad_ray needs ray; pip install 'hypergrad-search[ray]'"),
    ],
)
def test_a_missing_extra_is_told_in_one_line(missing: str, run: str, line: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; {run}"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    *before, last = found.stderr.splitlines()
    assert last == line
    assert run.startswith("import") or not before, "a command shows no traceback"
