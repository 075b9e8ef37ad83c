"""Gradients of the device held against float64 on the CPU, with float32 on the CPU as the yardstick.

Rounding noise grows on its way through training, by a factor of 1 or of 10,000, as the hyperparameters are. So there is
no one tolerance for all settings. But ordinary float32 training on the CPU, differentiated by `Unrolled`, has the same
noise, and its error is the yardstick. Where a device's own products are coarser than float32's, such as TF32's, all
errors may be so many times as large.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from hypergrad_search import Unrolled, evaluate
from hypergrad_studies.doctor.reversals import Reversal
from hypergrad_studies.doctor.settings import Setting

MOST_COMPARED = 20  # settings of a kind, all of one program, since two more programs are compiled for the comparison
TOLERANCE = 10.0  # an error may be so many yardsticks, times the coarseness of the device's products
SHARE = 0.9  # of the settings that must be within the tolerance; with few of them a yardstick may be small by chance


@dataclass(frozen=True)
class Agreement:
    """The relative errors of the gradients of one kind, on the device and of float32 on the CPU, setting by setting.

    The errors are distances from the float64 gradient, relative to its norm; all are taken with respect to the
    logarithms of the hyperparameters, so that their units do not matter.
    """

    kind: str
    errors: tuple[float, ...]
    on_the_cpu: tuple[float, ...]

    @property
    def ratios(self) -> NDArray[np.float64]:
        """The errors in yardsticks: a yardstick is the error on the CPU, or its median if that is more."""
        yardsticks = np.maximum(self.on_the_cpu, np.median(self.on_the_cpu))
        return np.asarray(self.errors) / np.maximum(yardsticks, np.finfo(np.float32).eps)

    def is_close(self, coarseness: float) -> bool:
        """Return whether the gradients can be trusted on a device of this coarseness."""
        return bool(np.mean(self.ratios <= TOLERANCE * coarseness) >= SHARE)


def compare(kind: str, reversals: Sequence[Reversal]) -> Agreement | None:
    """Compare the gradients of the first program of a kind that has any; return None where none has."""
    usable = [x for x in reversals if x.setting.program.kind == kind and x.gradient is not None]
    chosen = [x for x in usable if x.setting.program is usable[0].setting.program][:MOST_COMPARED]
    errors, on_the_cpu = [], []
    for reversal in chosen:
        exact = _on_the_cpu(reversal.setting, np.float64)
        rough = _on_the_cpu(reversal.setting, np.float32)
        if exact is not None and rough is not None:
            h, size = reversal.setting.hyperparameters, np.linalg.norm(exact)
            errors.append(float(np.linalg.norm(_in_logarithms(reversal.gradient, h) - exact) / size))
            on_the_cpu.append(float(np.linalg.norm(rough - exact) / size))
    return Agreement(kind, tuple(errors), tuple(on_the_cpu)) if errors else None


def _on_the_cpu(setting: Setting, dtype: Any) -> NDArray[np.float64] | None:
    hyperparameters = {name: value.astype(dtype) for name, value in setting.hyperparameters.items()}
    with jax.default_device(jax.devices("cpu")[0]), jax.enable_x64(dtype is np.float64):
        key = jax.random.key(setting.seed)
        gradient = evaluate(setting.program.problem, hyperparameters, key=key, method=Unrolled()).gradient
    return None if gradient is None else _in_logarithms(gradient, setting.hyperparameters)


def _in_logarithms(gradient: Any, hyperparameters: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    return np.array([float(gradient[name]) * float(value) for name, value in hyperparameters.items()])
