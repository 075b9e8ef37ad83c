"""Whether a function has derivatives of its own, by `jax.custom_jvp` or `jax.custom_vjp`.

Such derivatives need not be those of any function: a straight-through estimator takes the slope of rounding for 1. Then
second derivatives depend on the order in which they are taken, and `custom_vjp` knows reverse mode alone.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

_JAX = str(Path(jax.__file__).parent)


def has_custom_derivatives(function: Callable[..., Any], *args: Any) -> bool:
    """Return whether the function, called with `args`, calls one whose derivatives are not JAX's own.

    The functions that JAX itself defines by `jax.custom_jvp`, such as `jax.nn.relu`, have their true derivatives.
    """
    return _any_in(jax.make_jaxpr(function)(*args).jaxpr)


def _any_in(jaxpr: Jaxpr) -> bool:
    return any(_is_custom(equation) or any(map(_any_in, _within(equation))) for equation in jaxpr.eqns)


def _is_custom(equation: JaxprEqn) -> bool:
    name = equation.primitive.name
    if name == "custom_jvp_call":
        where = getattr(equation.params["call_jaxpr"].jaxpr.debug_info, "func_src_info", None) or ""
        return f" at {_JAX}" not in where
    return name.startswith("custom_vjp_call")


def _within(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """Yield the programs in the parameters of an equation, such as the body of a loop or branches."""
    for parameter in equation.params.values():
        for part in parameter if isinstance(parameter, list | tuple) else (parameter,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part
