"""Compiled programs, of which a process keeps a limited number."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import jax

from hypergrad_search.rearranged import rearranged

#: The number of programs that each function keeps. All programs of one small network together take some 500 memory
#: maps, of which Linux grants a process 65,530.
MOST_KEPT = 32

Result = TypeVar("Result")

_planned: ContextVar[list[int] | None] = ContextVar("_planned", default=None)


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
            run, operands = program(*args[:static]), args[static:]
            planned = _planned.get()
            if planned is not None:
                planned.append(_bytes(run, operands))
            return run(*operands)

        return call

    return decorate


@contextlib.contextmanager
def planned_memory() -> Iterator[list[int]]:
    """Yield a list that gets, for each call of a program within, the bytes that XLA plans for it.

    They are those of its arguments, its results and all that it keeps in between. Each program is compiled once more.
    """
    planned: list[int] = []
    before = _planned.set(planned)
    try:
        yield planned
    finally:
        _planned.reset(before)


def _bytes(run: Any, operands: tuple[Any, ...]) -> int:
    analysis = run.lower(*operands).compile().memory_analysis()
    sizes = analysis.argument_size_in_bytes, analysis.output_size_in_bytes, analysis.temp_size_in_bytes
    return int(sum(sizes) - analysis.alias_size_in_bytes)
