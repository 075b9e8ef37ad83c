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


def test_there_is_an_example_for_each_host() -> None:
    words = ["HypergradSampler", "warmup_cosine", "Hypernet", "tune.run", "compare("]
    assert [word in example for word, example in zip(words, EXAMPLES, strict=True)] == [True] * 5


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_run_as_printed(number: int, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(EXAMPLES[number])
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        check=False,
        env={**os.environ, "RAY_ADDRESS": "local"},  # or it would join, and end with, another test's Ray
    )
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout.split()[-1]) < 0.3


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
