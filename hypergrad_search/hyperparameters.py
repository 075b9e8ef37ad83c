"""Hyperparameters as programs see them: those that JAX traces, and those that are part of the program."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search.checks import shown
from hypergrad_search.nesting import SEPARATOR
from hypergrad_search.space import Categorical, Float, Hyperparameters, Int, Space, check_space


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


def split(hyperparameters: Hyperparameters, space: Space | None = None) -> tuple[dict[str, Any], Static]:
    """Return the hyperparameters that JAX traces, as floating-point arrays, and all others, which are hashable.

    The space decides: a `Float` is traced, an `Int` or a `Categorical` is a plain value. Of what is not in the space,
    every number is traced, whether it is written 1 or 1.0, and so are arrays of numbers and pytrees of floats.

    Raises `ValueError` where `hyperparameters` is not a mapping from names, or a value does not fit.

    Example:
        >>> from hypergrad_search import Float, Int
        >>> from hypergrad_search.hypergradient import split
        >>> dynamic, static = split({"rate": 0.1, "width": 8}, {"rate": Float(0.0, 1.0), "width": Int(1, 9)})
        >>> list(dynamic), dict(static)
        (['rate'], {'width': 8})
    """
    if not isinstance(hyperparameters, Mapping):
        raise ValueError(f"hyperparameters must be a dict from names to values, got {shown(hyperparameters)}")
    dynamic, static = {}, []
    for name, value in hyperparameters.items():
        if not isinstance(name, str):
            raise ValueError(f"hyperparameters: names must be strings, got {name!r}")
        plain = value.item() if isinstance(value, np.generic) else value
        parameter = None if space is None else space.get(name)
        if parameter is not None:
            plain = _fitted(name, plain, parameter)
        if isinstance(parameter, Float) or (parameter is None and (_is_number(plain) or _holds_floats(plain))):
            dynamic[name] = jax.tree.map(_floating, plain)
        elif isinstance(plain, jax.Array) or getattr(plain, "__hash__", None) is None:
            raise ValueError(
                f"hyperparameter {name!r} must be numbers or a plain value (str, bool or None), got "
                f"{shown(value)}{_advice_on_nesting(name, plain)}"
            )
        else:
            static.append((name, plain))
    return dynamic, Static(tuple(static), tuple(type(value) for _, value in static))


def split_of_space(hyperparameters: Hyperparameters, space: Space | None) -> tuple[dict[str, Any], Static]:
    """Return what `split` returns; raise `ValueError` where the hyperparameters do not fit the space, or it is none."""
    if space is not None:
        check_space(space)
    dynamic, static = split(hyperparameters, space)
    missing = [name for name in space or {} if name not in hyperparameters]
    if missing:
        raise ValueError(f"hyperparameters lack {missing[0]!r} of the space, got {sorted(hyperparameters)}")
    return dynamic, static


@contextmanager
def noting_counts(hyperparameters: Hyperparameters, space: Space | None) -> Iterator[None]:
    """Note on errors which whole numbers `split` takes for floats only because no space says what they are."""
    try:
        yield
    except Exception as error:  # whatever it is, it is raised again with a note
        unknown = {name: value for name, value in hyperparameters.items() if name not in (space or {})}
        counts = [n for n, value in unknown.items() if _is_number(value) and isinstance(value, int | np.integer)]
        if counts:
            error.add_note(
                f"{', '.join(counts)}: whole numbers were taken for floats; give a space that says which is an Int, "
                "such as space={'width': Int(1, 100)}"
            )
        raise


def _advice_on_nesting(name: str, value: Any) -> str:
    if not isinstance(value, Mapping) or not value:
        return ""
    inner = f"{name}{SEPARATOR}{next(iter(value))}"
    return f"; a dict that is one value holds floats alone, and a nested one gives each of its values a name: {inner!r}"


def _fitted(name: str, value: Any, parameter: Float | Int | Categorical) -> Any:
    """Return a value of its parameter's kind, where a choice that was written 1 may be 1.0; raise `ValueError`."""
    if isinstance(parameter, Float):
        fits = _is_number(value) and np.shape(value) in (parameter.shape, parameter.lift)
    elif isinstance(parameter, Int):
        value = value.item() if isinstance(value, jax.Array) and value.ndim == 0 else value
        fits = isinstance(value, int) and not isinstance(value, bool)
    else:
        equal = [choice for choice in parameter.choices if np.ndim(value) == 0 and choice == value]
        same = [choice for choice in equal if type(choice) is type(value)]
        fits, value = bool(equal), (same or equal or [value])[0]
    if not fits and isinstance(parameter, Float) and _is_number(value):
        advice = (
            "" if parameter.lift is False or parameter.shape else "; is it lifted? give lift_settings(problem, space)"
        )
        raise ValueError(f"hyperparameter {name!r} must have shape {parameter.shape}, got {np.shape(value)}{advice}")
    if not fits:
        raise ValueError(f"hyperparameter {name!r} must fit {parameter}, got {shown(value)}")
    return value


def _is_number(value: Any) -> bool:
    """Return whether a value is a number, or an array of numbers; booleans are none."""
    if isinstance(value, jax.Array | np.ndarray):
        return bool(jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer))
    return isinstance(value, int | float) and not isinstance(value, bool)


def _holds_floats(tree: Any) -> bool:
    leaves = jax.tree.leaves(tree)
    return bool(leaves) and all(_is_number(x) and jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in leaves)


def _floating(leaf: Any) -> jax.Array:
    # The type is spelled out so that a Python number and an array of the same value share a compiled program.
    dtype = jnp.result_type(leaf)
    return jnp.asarray(leaf, dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float))
