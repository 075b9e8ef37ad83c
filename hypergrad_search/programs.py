"""Compiled programs, of which a process keeps a limited number."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from hypergrad_search.rearranged import rearranged

#: The number of programs that each function keeps. All programs of one small network together take some 500 memory
#: maps, of which Linux grants a process 65,530.
MOST_KEPT = 32

Result = TypeVar("Result")


def compiled(*, static: int, donate: tuple[int, ...] = ()) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Return a decorator like `jax.jit` that keeps the programs of the last 32 choices of static arguments alone.

    `jax.jit` itself keeps all. A search over whole numbers compiles a program for each of them, and would end when the
    process runs out of memory maps. Programs are `rearranged`, which makes them faster on CPUs.

    Args:
        static: the number of leading arguments that are static; they must be hashable.
        donate: the positions of the arguments whose memory the result may take.
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        @functools.lru_cache(maxsize=MOST_KEPT)
        def program(*known: Any) -> Callable[..., Result]:
            # JAX forgets what it has compiled when this function is no longer referred to.
            donated = [at - static for at in donate]
            return jax.jit(rearranged(functools.partial(function, *known)), donate_argnums=donated)

        @functools.wraps(function)
        def call(*args: Any) -> Result:
            return program(*args[:static])(*args[static:])

        return call

    return decorate
