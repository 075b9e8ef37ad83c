"""What the reverse pass holds, in bytes a weight, from the shapes of its state and from the compiled program."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from hypergrad_search import Optimizer, TrainingProblem, adam, sgd, train
from hypergrad_search.hypergradient import reversible as method
from hypergrad_search.hyperparameters import split
from hypergrad_search.losses import left_out
from hypergrad_search.training import exact

KEY = jax.random.key(0)
FLOAT = 4
SIZES = (64, 1000, 10)


def weights(sizes: tuple[int, ...]) -> int:
    return sum(a * b + b for a, b in itertools.pairwise(sizes))


def size(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("optimizer", "limit"), [(sgd("rate", "momentum"), 40), (adam("rate", "momentum", eps=1e-6), 60)]
)
def test_what_the_reverse_pass_holds(
    make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any], optimizer: Optimizer, limit: int
) -> None:
    """1,000 steps at decay 0.9: what is carried from one step to the next, but for the weights and slots, in bytes.

    Those, a float each, are the model's own. Counted are their fixed-point limbs beyond that, the planes of what decays
    lost, the true initial weights to compare with, and the adjoints of weights and slots. A trajectory, which plain
    automatic differentiation keeps even with a checkpoint at each step, takes 8,000 (with Adam 12,000).
    """
    problem = make_problem(1000, optimizer, sizes=SIZES)
    dynamic = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), hyperparameters)
    program = exact.bind(problem, split({})[1], dynamic, {})
    inputs, initial, state, *_ = jax.eval_shape(functools.partial(method._begin, program), dynamic, KEY)
    adjoint = jax.eval_shape(functools.partial(method.start_adjoint, program), inputs, state, left_out(None))
    plans = method._begin(program, dynamic, KEY)[0].schedule.plans
    planes = sum(int(plan.spill.any(axis=1).sum()) for plan in plans.values())
    own = (1 + len(optimizer.slots)) * FLOAT
    assert size(initial) == FLOAT * weights(SIZES)
    held = size((initial, state.numbers, adjoint.weights, adjoint.slots)) / weights(SIZES) + planes
    assert held - own <= limit


@pytest.mark.slow
def test_the_compiled_program_grows_with_the_steps_by_the_planes_alone(
    make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any]
) -> None:
    """XLA's own account of temporary memory, the whole of a hypergradient, in a program of 1,000 more steps."""
    dynamic = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), hyperparameters)

    def temporary(steps: int) -> int:
        problem = make_problem(steps, sizes=SIZES, batch=10)

        def loss(h: dict[str, Any]) -> jax.Array:
            return problem.valid_loss(train(problem, h, KEY, smallest_decays={"velocity": 0.9}), h)

        analysis = jax.jit(jax.grad(loss)).lower(dynamic).compile().memory_analysis()
        assert analysis is not None
        return int(analysis.temp_size_in_bytes)

    per_step = (temporary(2000) - temporary(1000)) / weights(SIZES) / 1000
    entropy = math.log2(1 / 0.9) / 8
    assert per_step < 1.1 * entropy  # schedules included; a trajectory takes 8
