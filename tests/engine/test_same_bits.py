"""Exact training gives the bits that it gave before: `same_bits.json` was written by an earlier version of the engine.

A change of these bits is no fault by itself, but nobody should make one without knowing it. To accept it, write the
output of `XLA_FLAGS=--xla_cpu_max_isa=AVX2 python tests/engine/same_bits.py` into the file, as its "hashes".
"""

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
RECORDED = json.loads((HERE / "same_bits.json").read_text())


@pytest.fixture(scope="module")
def hashes() -> dict[str, str]:
    version = metadata.version("jaxlib")
    if version != RECORDED["jaxlib"]:
        pytest.skip(f"the hashes were made with jaxlib {RECORDED['jaxlib']}, and compilers differ; this is {version}")
    if platform.machine() != "x86_64":
        pytest.skip(f"the hashes were made on x86_64, and its instructions round differently; {platform.machine()}")
    environment = {**os.environ, "XLA_FLAGS": "--xla_cpu_max_isa=AVX2", "JAX_ENABLE_X64": "0"}
    done = subprocess.run([sys.executable, HERE / "same_bits.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_every_case_was_recorded(hashes: dict[str, str]) -> None:
    assert hashes.keys() == RECORDED["hashes"].keys()


@pytest.mark.parametrize("what", RECORDED["hashes"])
def test_same_bits(hashes: dict[str, str], what: str) -> None:
    assert hashes[what] == RECORDED["hashes"][what]
