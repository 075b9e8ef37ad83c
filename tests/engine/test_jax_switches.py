"""JAX's own switches change nothing: every method gives the same under each of them."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import Evaluation, Float, Hypernet, Method, Reversible, TrainingProblem, Unrolled, adam, evaluate
from hypergrad_search.hypergradient import Diagonal, Joint, Linear, OneHidden

KEY = jax.random.key(0)
DRAWN = np.random.default_rng(0)
X, Y = DRAWN.normal(size=(40, 4)).astype("f4"), DRAWN.normal(size=40).astype("f4")
SPACE = {"l2": Float(1e-3, 1.0, log=True, shape=(4,))}
POINT = {"l2": np.full(4, 0.1)}


def problem(steps: int) -> TrainingProblem:
    """The loss mixes data in float32 with a hyperparameter in JAX's default type, as users do."""
    return TrainingProblem(
        init=lambda key, h: 0.1 * jax.random.normal(key, (4,), jnp.float32),
        train_loss=lambda w, h, batch, key: jnp.mean((X @ w - Y) ** 2) + jnp.sum(h["l2"].astype(jnp.float32) * w**2),
        valid_loss=lambda w, h: (X @ w - Y) ** 2,
        batches=lambda step: step,
        optimizer=adam(0.1),
        steps=steps,
    )


SWITCHES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "jax_enable_x64": lambda: jax.enable_x64(True),
    "jax_disable_jit": jax.disable_jit,
    "jax_debug_nans": lambda: jax.debug_nans(True),
    "jax_numpy_dtype_promotion": lambda: jax.numpy_dtype_promotion("standard"),  # it is strict in all other tests
    "jax_check_tracer_leaks": jax.checking_leaks,
}
METHODS: dict[str, Method] = {
    "Reversible": Reversible(),
    "Unrolled": Unrolled(),
    "Hypernet": Hypernet(),
    "Hypernet of one matrix": Hypernet(network=Linear(), algorithm=Joint(centred=False)),
    "Hypernet with a hidden layer": Hypernet(network=OneHidden(5), algorithm=Joint(centred=False, entropy=1e-3)),
    "Hypernet of a diagonal": Hypernet(network=Diagonal(), finetune=2),
}


@functools.cache
def as_usual(method: Method, steps: int) -> Evaluation:
    return evaluate(problem(steps), POINT, key=KEY, method=method, space=SPACE)


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, id=n, marks=pytest.mark.slow if n.startswith("Hypernet ") else ()) for n, m in METHODS.items()],
)
@pytest.mark.parametrize("switch", SWITCHES.values(), ids=SWITCHES)
def test_a_switch_changes_nothing(switch: Callable[[], AbstractContextManager[Any]], method: Method) -> None:
    # The first is a square, so that all checkpointed segments have one length.
    for steps in (4, 6) if isinstance(method, Unrolled) else (4,):
        usual = as_usual(method, steps)
        with switch():
            switched = evaluate(problem(steps), POINT, key=KEY, method=method, space=SPACE)
        assert switched.status == usual.status
        # In float64 JAX draws other numbers for the networks.
        assert switched.value == pytest.approx(usual.value, rel=0.1 if isinstance(method, Hypernet) else 1e-5)
        if usual.gradient is not None:
            assert switched.gradient is not None
            np.testing.assert_allclose(switched.gradient["l2"], usual.gradient["l2"], rtol=1e-4)
