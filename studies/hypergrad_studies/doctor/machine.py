"""The machine: its device, its versions, and the settings that exact hypergradients need on it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search.determinism import DETERMINISTIC_FLAGS, GPUS, flag, is_deterministic, is_on

_PACKAGES = ("jax", "jaxlib", "optax")
_SIZE = 256  # of the matrices whose product is measured
_COARSE = 10.0  # products that are so many times as far off as the CPU's are not those of float32
_AUTOTUNING = "xla_gpu_autotune_level"


class Verdict(StrEnum):
    """What is to be said of a setting; where one is `MISSING` the examination ends."""

    FOUND = "found"
    MISSING = "missing"
    ADVISED = "missing, but only advised"
    NOT_NEEDED = "not needed here"


@dataclass(frozen=True)
class Check:
    """A setting of the machine, what was found of it, and what to set; "" for nothing."""

    name: str
    found: str
    verdict: Verdict
    advice: str = ""


@dataclass(frozen=True)
class Machine:
    """The machine that JAX runs on, by default.

    `kind` is the device's name, `versions` has those of the packages by name, and `precision` is JAX's default for
    matrix products. `has_cpu` tells whether JAX has a CPU too. `coarseness` tells how many times as far off the
    device's products of float32 matrices are as the CPU's: 1 on the CPU itself, and some thousands where a GPU takes
    TF32 or a TPU bfloat16.
    """

    platform: str
    kind: str
    devices: int
    versions: Mapping[str, str]
    x64: bool
    precision: str
    xla_flags: str
    has_cpu: bool
    coarseness: float

    @classmethod
    def here(cls) -> "Machine":
        """Return the machine that this process runs on."""
        (device,) = jnp.zeros(()).devices()
        has_cpu = _has_cpu()
        return cls(
            platform=device.platform,
            kind=device.device_kind,
            devices=jax.device_count(device.platform),
            versions={name: metadata.version(name) for name in _PACKAGES},
            x64=jnp.result_type(float) == jnp.float64,
            precision=_precision(),
            xla_flags=os.environ.get("XLA_FLAGS", ""),
            has_cpu=has_cpu,
            coarseness=_coarseness() if has_cpu else 1.0,
        )

    @property
    def checks(self) -> list[Check]:
        """What is to be said of the settings."""
        return [self._operations, self._autotuning, self._products, self._cpu]

    @property
    def _operations(self) -> Check:
        name = "deterministic operations"
        if self.platform not in GPUS:
            return Check(name, "", Verdict.NOT_NEEDED)
        if is_deterministic(self.xla_flags):
            return Check(name, " ".join(f"--{x}" for x in DETERMINISTIC_FLAGS if self._has(x)), Verdict.FOUND)
        return Check(name, "", Verdict.MISSING, f"XLA_FLAGS=--{DETERMINISTIC_FLAGS[0]}=true")

    @property
    def _autotuning(self) -> Check:
        name = "no autotuning, so that both directions get the same kernels"
        if self.platform not in GPUS:
            return Check(name, "", Verdict.NOT_NEEDED)
        for is_off, what in (
            (flag(self.xla_flags, _AUTOTUNING) == "0", f"--{_AUTOTUNING}=0"),
            (self._has(DETERMINISTIC_FLAGS[0]), f"--{DETERMINISTIC_FLAGS[0]} implies it"),
        ):
            if is_off:
                return Check(name, what, Verdict.FOUND)
        return Check(name, "", Verdict.ADVISED, f"XLA_FLAGS=--{_AUTOTUNING}=0")

    @property
    def _products(self) -> Check:
        found = f"precision {self.precision}: {self.coarseness:,.0f} times as far off as the CPU's"
        name = "matrix products in float32"
        if self.platform == "cpu":
            return Check(name, f"precision {self.precision}", Verdict.NOT_NEEDED)
        if self.coarseness < _COARSE:
            return Check(name, found, Verdict.FOUND)
        return Check(name, found, Verdict.ADVISED, "JAX_DEFAULT_MATMUL_PRECISION=highest")

    @property
    def _cpu(self) -> Check:
        name = "a CPU, to compare gradients with"
        if self.platform == "cpu":
            return Check(name, "", Verdict.NOT_NEEDED)
        if self.has_cpu:
            return Check(name, "cpu", Verdict.FOUND)
        return Check(name, "", Verdict.MISSING, f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', self.platform)},cpu")

    def _has(self, name: str) -> bool:
        return is_on(self.xla_flags, name)


def _precision() -> str:
    chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]  # JAX has no types here
    return str(chosen or "default")


def _has_cpu() -> bool:
    try:
        return bool(jax.devices("cpu"))
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return False


def _coarseness() -> float:
    drawn = np.random.default_rng(0)
    first, second = (drawn.normal(size=(_SIZE, _SIZE)).astype(np.float32) for _ in range(2))
    exact = first.astype(np.float64) @ second.astype(np.float64)

    def error() -> float:
        return float(np.linalg.norm(np.asarray(jnp.matmul(first, second)) - exact))

    here = error()
    with jax.default_device(jax.devices("cpu")[0]):
        return max(1.0, here / error())
