"""A check that the functions of a problem depend on their arguments alone.

JAX runs a function once, to trace it, and from then on repeats what it has traced. What a function draws from NumPy's
generator or takes from an iterator would be the same at every step, without a word. Such a function does not trace to
the same program twice.
"""

import contextlib
import functools
import itertools
import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend import core
from jax.interpreters import partial_eval

from hypergrad_search import optax_optimizers
from hypergrad_search.hyperparameters import Static, noting_counts, split_of_space
from hypergrad_search.load_errors import is_of_load
from hypergrad_search.optimizers import Optimizer, resolve
from hypergrad_search.parameters import initial
from hypergrad_search.problem import Params, TrainingProblem, check_names
from hypergrad_search.space import Hyperparameters, Space
from hypergrad_search.trouble import see

_IN_BATCHES = (
    "step is traced by JAX, so keep the data in a jax array and take (1) "
    "jax.lax.dynamic_slice_in_dim(data, start, length), (2) data[order[step]] with a table of indices, order, that is "
    "a jax array too, or (3) "
    "data[jax.random.randint(jax.random.fold_in(key, step), (length,), 0, len(data))]; or let the host load it: "
    "HostBatches(load)"
)
_REMEDIES = {
    "init": "draw from the key that it is given",
    "optimizer": "compute its settings from the hyperparameters and the step alone",
    "batches": _IN_BATCHES,
    "train_loss": "draw from the key that it is given, which is new at each step",
    "valid_loss": "draw from a fixed key, such as jax.random.key(0)",
    "test_loss": "draw from a fixed key, such as jax.random.key(0)",
    "valid_batch_loss": "draw from jax.random.fold_in(jax.random.key(0), step)",
}

#: The functions that every method calls.
OF_ALL_METHODS = ("batches", "init", "train_loss", "valid_loss", "test_loss", "optimizer")

_NUMBERS = (jax.Array, np.ndarray, np.generic, float, int)

_traces = itertools.count()

_ADDRESS = re.compile("0x[0-9a-f]+")

#: The problems that have been found repeatable: which of their functions, and with which plain values.
_checked: "weakref.WeakKeyDictionary[TrainingProblem, set[tuple[tuple[str, ...], Static]]]" = (
    weakref.WeakKeyDictionary()
)


def checked_split(
    problem: TrainingProblem, hyperparameters: Hyperparameters, space: Space | None
) -> tuple[TrainingProblem, dict[str, Any], Static]:
    """Return the problem at the hyperparameters, and what `split` returns of them; all of it is checked.

    Raises `ValueError` where something does not fit, and notes on other errors which whole numbers were taken for
    floats.
    """
    dynamic, static = split_of_space(hyperparameters, space)
    check_names(problem, hyperparameters)
    problem = problem.at(hyperparameters)
    with noting_counts(hyperparameters, space):
        check_repeatable(problem, dynamic, static)
    return problem, dynamic, static


def check_repeatable(
    problem: TrainingProblem, dynamic: dict[str, Any], static: Static, names: tuple[str, ...] = OF_ALL_METHODS
) -> None:
    """Raise `ValueError` where a function of the problem differs between two traces, or `batches` cannot be traced.

    It is done once for a problem and each choice of plain values, which may decide what is run; nothing is computed.
    `names` are the functions that are looked at, for those that few methods call.
    """
    repeatable = _checked.setdefault(problem, set())
    if (names, static) in repeatable:
        return
    arguments_of = example_arguments(problem, dynamic, static)
    for name in names:
        function = function_of(problem, name)
        if function is None:
            continue
        trace = functools.partial(_traced, function, arguments_of[name], dynamic, static)
        programs = [trace(), trace()]
        if not _same(*programs):  # it may build something at its first call alone
            programs = [programs[1], trace()]
        if not _same(*programs):
            raise ValueError(
                f"{name}: two calls with the same arguments differ, so it reads something that changes, such as "
                f"NumPy's random numbers, an iterator or a counter. JAX would repeat what it saw first at every step. "
                f"Instead, {_REMEDIES[name]}{see('differs')}"
            )
    repeatable.add((names, static))


def function_of(problem: TrainingProblem, name: str) -> Callable[..., Any] | None:
    """Return a function of a problem by its name, to be traced with its `example_arguments`; None where it has none."""

    def settings(params: Params, hyperparameters: dict[str, Any]) -> Any:
        if isinstance(problem.optimizer, Optimizer):
            found = resolve(problem.optimizer, hyperparameters, params, problem.steps)[0]
            transform = problem.optimizer.transform
            if transform is None:
                return found
            key = jax.random.key(0)
            return found, optax_optimizers.transformed(transform, hyperparameters, params, params, key)
        transformation = optax_optimizers.made(problem.optimizer, hyperparameters)
        kept = optax_optimizers.start(transformation, params)
        return optax_optimizers.step(transformation, params, kept, params, jnp.float32(0.0))

    function: Callable[..., Any] | None
    function = {"optimizer": settings, "batches": problem.batch}.get(name) or getattr(problem, name)
    return function


def example_arguments(problem: TrainingProblem, dynamic: dict[str, Any], static: Static) -> dict[str, tuple[Any, ...]]:
    """Return by the name of each function of a problem arguments that it can be traced with.

    `dynamic` itself stands where the function gets all hyperparameters. Nothing is computed.
    """
    key, step = jax.random.key(0), jnp.int32(0)
    batch = _shape_of_batch(problem, step, dynamic, static)
    with _explained({*dynamic, *dict(static)}):
        params, statistics = jax.eval_shape(lambda h: initial(problem, {**h, **dict(static)}, key), dynamic)
    model = (params, statistics) if problem.has_statistics else (params,)
    return {
        "batches": (step, dynamic),
        "init": (key, dynamic),
        "train_loss": (*model, dynamic, batch, key),
        "valid_loss": (*model, dynamic),
        "test_loss": (*model, dynamic),
        "valid_batch_loss": (*model, dynamic, step),
        "optimizer": (params, dynamic),
    }


def _shape_of_batch(problem: TrainingProblem, step: jax.Array, dynamic: dict[str, Any], static: Static) -> Any:
    try:
        return jax.eval_shape(lambda step, dynamic: problem.batch(step, {**dynamic, **dict(static)}), step, dynamic)
    except (TypeError, IndexError) as error:  # of which JAX's errors about traced values are subclasses
        if is_of_load(error):
            raise
        reason = str(error).partition("\n")[0]
        raise ValueError(f"batches: JAX cannot trace it ({type(error).__name__}: {reason}); {_IN_BATCHES}") from error


def reads(
    function: Callable[..., Any], arguments: tuple[Any, ...], dynamic: dict[str, Any], static: Static
) -> set[str]:
    """Return the hyperparameters that the numbers which a function returns depend on; `arguments` are as in `_traced`.

    A function that passes all of them on, and uses few, reads these few.
    """
    with _explained({*dynamic, *dict(static)}):
        program = jax.make_jaxpr(_numbers_of(function, arguments, dynamic, static))(*arguments).jaxpr
    _, used = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    names = [
        name
        for argument in arguments
        for name, part in (sorted(argument.items()) if argument is dynamic else [("", argument)])
        for _ in jax.tree.leaves(part)
    ]
    return {name for name, is_used in zip(names, used, strict=True) if is_used and name}


@contextlib.contextmanager
def _explained(names: set[str]) -> Iterator[None]:
    """Add a note to errors that a user's function raises for what it was not given: known numbers, or a name."""
    try:
        yield
    except jax.errors.JAXTypeError as error:
        error.add_note(
            "JAX traces hyperparameters, weights and batches here, so Python can neither branch on them nor make "
            "numbers of them: use jnp.where or jax.lax.cond. Where a schedule of optax does so, such as "
            f"warmup_cosine_decay_schedule, take hypergrad_search.warmup_cosine{see('traced')}"
        )
        raise
    except KeyError as error:
        if error.args and error.args[0] not in names:
            error.add_note(f"If {error.args[0]!r} is a hyperparameter: those of this problem are {sorted(names)}")
        raise


def _numbers_of(
    function: Callable[..., Any], arguments: tuple[Any, ...], dynamic: dict[str, Any], static: Static
) -> Callable[..., list[Any]]:
    """Return a function of the same arguments that returns the numbers in the result, as a list.

    Where `arguments` have `dynamic` itself, it adds the plain values. What is no number is refused where it is used.
    """
    are_hyperparameters = [argument is dynamic for argument in arguments]

    def numbers(*traced: Any) -> list[Any]:
        whole = [{**x, **dict(static)} if found else x for x, found in zip(traced, are_hyperparameters, strict=True)]
        return [leaf for leaf in jax.tree.leaves(function(*whole)) if isinstance(leaf, _NUMBERS)]

    return numbers


def _traced(
    function: Callable[..., Any], arguments: tuple[Any, ...], dynamic: dict[str, Any], static: Static
) -> list[Any]:
    """Return the text and the values of the program that a function is traced to.

    Where `arguments` have `dynamic` itself, the function gets the plain values too.

    JAX remembers what it has traced, of the functions that this one calls too, such as those with a `jax.jit` of their
    own. A label that was never used before makes it trace all of them anew.
    """
    with (
        set_xla_metadata(hypergrad_trace=str(next(_traces))),  # type: ignore[no-untyped-call]  # JAX has no types here
        _explained({*dynamic, *dict(static)}),
    ):
        program = jax.make_jaxpr(_numbers_of(function, arguments, dynamic, static))(*arguments)
    return [_ADDRESS.sub("", str(program)), *_values(program)]


def _values(program: core.ClosedJaxpr | core.Jaxpr) -> Iterator[Any]:
    """Yield the constants and literals that a program computes with, which its text may shorten or leave out."""
    if isinstance(program, core.ClosedJaxpr):
        yield from program.consts
        program = program.jaxpr
    yield from (x.val for x in program.outvars if isinstance(x, core.Literal))
    for equation in program.eqns:
        yield from (x.val for x in equation.invars if isinstance(x, core.Literal))
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else (parameter,):
                if isinstance(inner, core.Jaxpr | core.ClosedJaxpr):
                    yield from _values(inner)


def _same(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(map(_equal, first, second))


def _equal(some: Any, other: Any) -> bool:
    if some is other:
        return True
    if isinstance(some, str) or isinstance(other, str):
        return bool(some == other)
    first, second = _bits(some), _bits(other)
    return first.shape == second.shape and first.dtype == second.dtype and first.tobytes() == second.tobytes()


def _bits(constant: Any) -> np.ndarray[Any, Any]:
    with jax.ensure_compile_time_eval():  # also inside of the caller's own `jax.jit`
        array = jnp.asarray(constant)
        return np.asarray(jax.random.key_data(array) if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else array)
