"""The program of the page about weighing data is short, and finds what the page says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "weighing_data.md").read_text()
[PROGRAM] = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_a_user_needs_fewer_than_60_lines() -> None:
    assert len(PROGRAM.splitlines()) < 60


@pytest.mark.slow
@pytest.mark.skipif(not (Path(os.environ.get("HYPERGRAD_DATA", "")) / "mnist.npz").exists(), reason="trains on MNIST")
def test_it_finds_the_wrong_labels(tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(PROGRAM)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) > 0.94
