"""Checks of arguments that many places share."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def whole_number(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """Return `value` as an int; numpy's integers count as whole numbers, and booleans do not.

    Args:
        name: how the error calls the argument, with its owner, such as `"Hypernet: steps"`.
        value: what the caller got.
        least: the smallest value that is allowed; None for no limit.
        most: the largest value that is allowed; None for no limit.

    Raises:
        ValueError: `value` is not a whole number, or lies outside of the limits.
    """
    limits = ("" if least is None else f" from {least}") + ("" if most is None else f" to {most}")
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least) or (most is not None and number > most):
        raise ValueError(f"{name} must be a whole number{limits}, got {value!r}")
    return number


def random_key(name: str, value: Any) -> None:
    """Raise `ValueError` unless `value` is a key of `jax.random`."""
    dtype = getattr(value, "dtype", None)
    is_key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and not value.shape
    is_raw = dtype == jnp.uint32 and value.shape == (2,)
    if not is_key and not is_raw:
        raise ValueError(f"{name} must be a key such as jax.random.key(0), got {value!r}")
