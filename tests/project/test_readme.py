"""The README's examples run as printed, and its links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_it_fits_a_few_screens() -> None:
    assert len(README.splitlines()) <= 150


def test_there_is_an_example_for_each_host() -> None:
    words = ["HypergradSampler", "tune.run"]
    assert [word in example for word, example in zip(words, EXAMPLES, strict=True)] == [True] * 2


def test_examples_run_as_printed(tmp_path: Path) -> None:
    """The second one imports what the first one was saved as."""
    (tmp_path / "mine.py").write_text(EXAMPLES[0] + "\n\ndef make():\n    return problem, space\n")
    (tmp_path / "search.py").write_text(EXAMPLES[1])
    for name in ("mine.py", "search.py"):
        done = _run(tmp_path, sys.executable, name)
        assert done.returncode == 0, done.stderr
        assert 0 < float(done.stdout.split()[-1]) < 0.3


@pytest.mark.slow
def test_the_comparison_runs_as_printed(tmp_path: Path) -> None:
    """With a small budget and two of the methods, since the whole takes minutes."""
    (command,) = re.findall(r"^    hypergrad (compare .*)$", README, flags=re.MULTILINE)
    (tmp_path / "mine.py").write_text(EXAMPLES[0] + "\n\ndef make():\n    return problem, space\n")
    small = command.replace("--budget 2500", "--budget 500 --seeds 1 --methods random,hypergrad")
    assert small != command
    done = _run(tmp_path, Path(sys.executable).with_name("hypergrad"), *small.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "mine" / "report.html").exists()


def _run(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    alone = {**os.environ, "RAY_ADDRESS": "local"}  # or it would join, and end with, another test's Ray
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder, check=False, env=alone)


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"(?<!:)make ([a-z-]+)", README)  # a problem's name ends with :make
    assert "test" in targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
