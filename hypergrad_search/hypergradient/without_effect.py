"""Warnings of what has no effect: hyperparameters that nothing reads, and validation losses without a slope."""

import warnings
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from hypergrad_search.hyperparameters import Static, split
from hypergrad_search.losses import fitted_loss, left_out
from hypergrad_search.parameters import as_returned, split_statistics
from hypergrad_search.problem import TrainingProblem
from hypergrad_search.repeatable import OF_ALL_METHODS, example_arguments, function_of, reads
from hypergrad_search.space import Hyperparameters, Space, floats
from hypergrad_search.trouble import see

#: The problems that were looked at, each with the sets of names that were looked for.
_looked_at: "weakref.WeakKeyDictionary[TrainingProblem, set[frozenset[str]]]" = weakref.WeakKeyDictionary()


def warn_of_what_has_no_effect(
    problem: TrainingProblem, hyperparameters: Hyperparameters, space: Space | None, gradient: dict[str, Any]
) -> None:
    """Warn where the validation loss has no slope, or nothing reads a hyperparameter; once for each set of names.

    It is called with the gradient of an evaluation, since values alone need neither. A loss without a slope is named
    only where that gradient is zero: methods that take no derivatives need none, and the loss may read hyperparameters.
    The names are those of the space, which says what is to be searched. They are not looked at where some values are
    plain, since these may decide what the others are for. Nothing is computed.
    """
    dynamic, static = split(hyperparameters, space)
    names = frozenset(() if space is None or static.pairs else floats(space))
    looked_at = _looked_at.setdefault(problem, set())
    if names in looked_at:
        return
    looked_at.add(names)
    if not any(np.any(slope) for slope in gradient.values()) and _is_flat(problem, dynamic, static):
        warnings.warn(
            "valid_loss: its derivative by the model is zero everywhere, so all gradients will be zero; an accuracy "
            f"has no slope, so return a smooth loss, such as a cross-entropy{see('useless')}",
            stacklevel=4,
        )
    unread = names - _read(problem, dynamic, static) if names else names
    if unread:
        warnings.warn(
            f"nothing in this problem reads {', '.join(map(repr, sorted(unread)))}: neither its functions nor its "
            f"optimizer depend on it; correct the name, or leave it out{see('unread')}",
            stacklevel=4,
        )


def _is_flat(problem: TrainingProblem, dynamic: dict[str, Any], static: Static) -> bool:
    """Return whether the program of the validation loss's gradient multiplies nothing by the slope it is given."""

    def slope(model: tuple[Any, ...], h: dict[str, Any], scale: jax.Array) -> list[jax.Array]:
        floats_of_model, put = split_statistics(model)

        def loss(numbers: list[jax.Array]) -> jax.Array:
            params, *statistics = put(numbers)
            trained = as_returned(problem, params, statistics[0] if statistics else None)
            return fitted_loss(problem, trained, {**h, **dict(static)}, left_out(None))

        value, pull_back = jax.vjp(loss, floats_of_model)
        slopes: list[jax.Array] = pull_back(scale.astype(value.dtype))[0]
        return slopes

    model = example_arguments(problem, dynamic, static)["valid_loss"][:-1]
    try:
        program = jax.make_jaxpr(slope)(model, dynamic, jnp.float32(1.0)).jaxpr
    except Exception:  # a loss without a reverse mode has forward derivatives at most, and is not looked at
        return False
    _, used = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    return not used[-1]


def _read(problem: TrainingProblem, dynamic: dict[str, Any], static: Static) -> set[str]:
    """Return the hyperparameters that a function of the problem or its optimizer depends on."""
    arguments_of = example_arguments(problem, dynamic, static)
    functions = {name: function_of(problem, name) for name in OF_ALL_METHODS}
    return set().union(
        *(reads(f, arguments_of[name], dynamic, static) for name, f in functions.items() if f is not None)
    )
