"""Hyperparameters as programs see them: those that JAX traces, and those that are part of the program."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from hypergrad_search.space import Hyperparameters


@dataclass(frozen=True)
class Static:
    """Hyperparameters that are plain values; each choice of them compiles to a program of its own.

    Iterating gives pairs of name and value, so `dict` takes it. `types` tell apart what compares equal, such as True, 1
    and 1.0.
    """

    pairs: tuple[tuple[str, Any], ...]
    types: tuple[type, ...]

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self.pairs)


def split(hyperparameters: Hyperparameters) -> tuple[dict[str, Any], Static]:
    """Return the floating-point hyperparameters, which JAX can trace, and all others, which are hashable.

    Raises `ValueError` where `hyperparameters` is not a mapping, or a value is neither floating-point nor plain.
    """
    if not isinstance(hyperparameters, Mapping):
        raise ValueError(f"hyperparameters must be a dict from names to values, got {hyperparameters!r}")
    dynamic, static = {}, []
    for name, value in hyperparameters.items():
        leaves = jax.tree.leaves(value)
        if leaves and all(_is_floating(leaf) for leaf in leaves):
            # The type is spelled out so that a Python number and an array of the same value share a compiled program.
            dynamic[name] = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), value)
        elif isinstance(value, jax.Array) or getattr(value, "__hash__", None) is None:
            raise ValueError(
                f"hyperparameter {name!r} must be floating-point or a plain value (int, str, bool), got {value!r}; "
                "integer arrays belong in batches"
            )
        else:
            static.append((name, value))
    return dynamic, Static(tuple(static), tuple(type(value) for _, value in static))


def _is_floating(leaf: Any) -> bool:
    return not isinstance(leaf, str | bool | int) and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
