"""The layout of parameters during training: small leaves share arrays, which makes fewer and longer loops."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search.problem import Params

_SMALL = 1 << 15  # weights; a smaller leaf shares an array with others of the same settings


@dataclass(frozen=True)
class Layout:
    """The arrangement of the parameters' leaves in arrays; `arrays` lists the leaves that each array consists of.

    An array of one leaf has the shape of this leaf, and an array of several leaves is flat. All leaves of an array have
    the same settings, those of the array's group in `groups`.
    """

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    arrays: tuple[tuple[int, ...], ...]
    groups: tuple[int, ...]

    def pack(self, params: Params) -> list[jax.Array]:
        """Return the arrays that hold these parameters."""
        leaves = self.treedef.flatten_up_to(params)
        return [
            leaves[array[0]] if len(array) == 1 else jnp.concatenate([jnp.ravel(leaves[i]) for i in array])
            for array in self.arrays
        ]

    def unpack(self, arrays: list[jax.Array]) -> Params:
        """Return the parameters that these arrays hold."""
        leaves: dict[int, jax.Array] = {}
        for array, indices in zip(arrays, self.arrays, strict=True):
            sizes = [math.prod(self.shapes[i]) for i in indices]
            parts = jnp.split(array, np.cumsum(sizes)[:-1]) if len(indices) > 1 else [array]
            leaves |= {i: part.reshape(self.shapes[i]) for i, part in zip(indices, parts, strict=True)}
        return jax.tree.unflatten(self.treedef, [leaves[i] for i in range(len(leaves))])


def arrange(params: Params, groups: Sequence[int], *, share: bool) -> Layout:
    """Return the layout for parameters of these shapes, where `groups` has the group of settings of each leaf.

    Unless leaves may `share` an array, each has its own.
    """
    leaves, treedef = jax.tree.flatten(params)
    arrays: dict[Any, list[int]] = {}
    for i, (leaf, group) in enumerate(zip(leaves, groups, strict=True)):
        arrays.setdefault((group, "small" if share and leaf.size < _SMALL else i), []).append(i)
    return Layout(
        treedef,
        tuple(leaf.shape for leaf in leaves),
        tuple(map(tuple, arrays.values())),
        tuple(group for group, _ in arrays),
    )
