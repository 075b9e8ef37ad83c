"""The wheel carries everything that the four packages need, and works away from the checkout."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[2]
PACKAGES = ["hypergrad_search", "hypergrad_optuna", "hypergrad_ray", "hypergrad_studies"]

SCRIPT = """
import importlib, json, sys
target, *packages = sys.argv[1:]
sys.path.insert(0, target)
print(json.dumps([importlib.import_module(package).__file__ for package in packages]))
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_installed_wheel_is_complete(tmp_path: Path) -> None:
    # A build leaves files beside its sources, so it works on a copy.
    source = tmp_path / "source"
    leftovers = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ["hypergrad_search", "integrations", "studies"]:
        shutil.copytree(ROOT / name, source / name, ignore=leftovers)
    for name in ["pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, source)
    python = sys.executable
    run(python, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, cwd=source)
    (wheel,) = tmp_path.glob("*.whl")
    folders = {name.split("/")[0] for name in ZipFile(wheel).namelist()}
    assert {name for name in folders if not name.endswith(".dist-info")} == set(PACKAGES)

    target = tmp_path / "target"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel, cwd=tmp_path)
    for package in PACKAGES:
        assert (target / package / "py.typed").is_file()
    assert list((target / "hypergrad_studies").glob("*.html"))
    assert (target / "hypergrad_studies" / "problems" / "esther.txt").is_file()

    # Isolated mode leaves out the working directory and PYTHONPATH; the folder put first hides the checkout.
    files = json.loads(run(python, "-I", "-c", SCRIPT, target, *PACKAGES, cwd=tmp_path).splitlines()[-1])
    assert [Path(file).parent for file in files] == [target / package for package in PACKAGES]
