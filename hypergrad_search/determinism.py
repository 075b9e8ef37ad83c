"""Whether a device computes the same bits twice, without which no training can be run backwards.

CPUs and TPUs do. A GPU adds up in the order in which its threads happen to finish, unless XLA is told otherwise when
the process starts: see https://openxla.org/xla/determinism.
"""

import os
from typing import Any

import jax

from hypergrad_search.trouble import see

GPUS = ("gpu", "cuda", "rocm")

#: Each of these flags makes a GPU deterministic. The first switches autotuning off too, so that the programs for the
#: two directions of training get the same kernels.
DETERMINISTIC_FLAGS = ("xla_gpu_deterministic_ops", "xla_gpu_exclude_nondeterministic_ops")


def check_device(key: Any) -> None:
    """Raise `RuntimeError` where training from this key would run on a GPU that computes other bits each time."""
    check_determinism(platform_of(key), os.environ.get("XLA_FLAGS", ""))


def check_determinism(platform: str, xla_flags: str) -> None:
    """Raise `RuntimeError` unless a device of this platform computes the same bits twice under these flags of XLA."""
    if platform in GPUS and not is_deterministic(xla_flags):
        raise RuntimeError(
            f"XLA_FLAGS must have --{DETERMINISTIC_FLAGS[0]}=true to train reversibly on a GPU, got {xla_flags!r}; "
            f"set it before Python starts, or use method=Unrolled(), which works without{see('determinism')}"
        )


def is_deterministic(xla_flags: str) -> bool:
    """Return whether these flags make a GPU deterministic."""
    return any(is_on(xla_flags, name) for name in DETERMINISTIC_FLAGS)


def is_on(xla_flags: str, name: str) -> bool:
    """Return whether a flag that is true or false is true; where it is not given it is false."""
    return (flag(xla_flags, name) or "").lower() in ("true", "1")


def flag(xla_flags: str, name: str) -> str | None:
    """Return the value of a flag as XLA reads it: the last one counts, and one without a value is "true"."""
    found = None
    for word in xla_flags.split():
        left, _, value = word.partition("=")
        if left == f"--{name}":
            found = value or "true"
    return found


def platform_of(key: Any) -> str:
    """Return the platform that a program runs on whose only array is this key, which JAX may trace.

    A key is on the device that the user has put it on. Most keys have no such device; these, and keys that are traced,
    are where JAX's default device is.
    """
    if not isinstance(key, jax.core.Tracer) and getattr(key, "committed", False):
        return str(next(iter(key.devices())).platform)
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]  # JAX has no types here
    if chosen is None:
        return jax.default_backend()
    return chosen if isinstance(chosen, str) else str(chosen.platform)
