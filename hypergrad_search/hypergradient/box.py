"""The unit box in which methods move hyperparameters that they refine, as those do that continue."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from hypergrad_search.hyperparameters import Static, split
from hypergrad_search.space import Float, Hyperparameters, Space, floats, scaled, to_unit, unscaled

ROUNDING = 1e-4  # in units of the box; a point may lie this far outside of it, since float32 rounds logarithms


@dataclass(frozen=True)
class Box:
    """The names and boxes of the hyperparameters that move, and those that are plain values."""

    parameters: tuple[tuple[str, Float], ...]
    static: Static

    def hyperparameters(self, point: jax.Array, fixed: Mapping[str, jax.Array]) -> dict[str, Any]:
        """Return the hyperparameters at a point, in natural units, with those that do not move.

        A point outside of the unit box counts as the nearest one within.
        """
        return self.within(jnp.clip(point, 0.0, 1.0), fixed)

    def within(self, point: jax.Array, fixed: Mapping[str, jax.Array]) -> dict[str, Any]:
        """Return the hyperparameters at a point of the unit box, where clipping would halve the slope on its faces."""
        values, start = {}, 0
        for name, p in self.parameters:
            values[name] = unscaled(p, point[start : start + p.size].reshape(p.shape), jnp)
            start += p.size
        return {**values, **fixed, **dict(self.static)}

    def point(self, hyperparameters: Mapping[str, Any]) -> jax.Array:
        """Return the point of the unit box where hyperparameters are; JAX may trace these."""
        values = [(p, jnp.asarray(hyperparameters[name], jnp.float32)) for name, p in self.parameters]
        return jnp.concatenate([scaled(p, value, jnp) for p, value in values])

    @property
    def facts(self) -> list[tuple[Any, ...]]:
        """All that must be the same where a checkpoint is written and where it is read."""
        return [(name, p.low, p.high, p.log, p.shape) for name, p in self.parameters]


def box_of(space: Space, hyperparameters: Hyperparameters) -> tuple[Box, jax.Array, dict[str, Any]]:
    """Return the box, the point in it, and the floating-point hyperparameters that do not move."""
    moving = floats(space)
    fixed, static = split({n: value for n, value in hyperparameters.items() if n not in moving}, space)
    box = Box(tuple(moving.items()), static)
    return box, box.point(hyperparameters), fixed


def check_start(owner: str, space: Space, hyperparameters: Hyperparameters) -> None:
    """Raise `ValueError` where the space has nothing to move, or the hyperparameters lie outside of it."""
    if not floats(space):
        raise ValueError(f"{owner}: the space has no Float, and nothing else has a gradient")
    unit = to_unit(space, hyperparameters)
    if not ((unit >= -ROUNDING) & (unit <= 1 + ROUNDING)).all():
        raise ValueError(f"{owner}: a hyperparameter lies outside of its bounds in space; start within them")
