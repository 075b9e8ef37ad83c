"""What the reverse pass holds, in bytes a weight, from the shapes of its state and from the compiled program."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import TrainingProblem, train
from hypergrad_search.hypergradient import reversible as method
from hypergrad_search.training import bit_buffer

KEY = jax.random.key(0)
FLOAT = 4
SIZES = (64, 1000, 10)


def weights(sizes: tuple[int, ...]) -> int:
    return sum(a * b + b for a, b in itertools.pairwise(sizes))


def size(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_the_reverse_pass_holds_at_most_40_bytes_a_weight(
    make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any]
) -> None:
    """1,000 steps at decay 0.9: what is carried from one step to the next, but for the weights and velocity.

    Those, a float each, are the model's own. Counted are their fixed-point limbs beyond that, the bit buffer with all
    its planes, the true initial weights to compare with, and the adjoints of weights and velocity.
    """
    problem = make_problem(1000, sizes=SIZES)
    dynamic = jax.tree.map(jnp.asarray, hyperparameters)
    _, _, planes = method._plan(problem, (), dynamic, KEY)
    capacity = bit_buffer.roomy_capacity(int(planes))
    initial, state = jax.eval_shape(functools.partial(method._start, problem, (), capacity), dynamic, KEY)
    adjoints = 2 * size(initial)
    own = 2 * FLOAT * weights(SIZES)
    assert size(initial) == FLOAT * weights(SIZES)
    assert size((initial, state.leaves)) + adjoints - own <= 40 * weights(SIZES)


def test_the_compiled_program_grows_with_the_steps_by_the_buffer_alone(
    make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any]
) -> None:
    """XLA's own account of temporary memory, the whole of a hypergradient, in a program of 1,000 more steps."""
    dynamic = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), hyperparameters)

    def temporary(steps: int) -> int:
        problem = make_problem(steps, sizes=SIZES, batch=10)

        def loss(h: dict[str, Any]) -> jax.Array:
            return problem.valid_loss(train(problem, h, KEY, smallest_momentum=0.9))

        return jax.jit(jax.grad(loss)).lower(dynamic).compile().memory_analysis().temp_size_in_bytes

    per_step = (temporary(2000) - temporary(1000)) / weights(SIZES) / 1000
    entropy = math.log2(1 / 0.9) / 8
    assert per_step < 1.3 * entropy  # schedules and the ladder of capacities included; a trajectory takes 8


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("steps", [1000, 4000])
def test_planes_hold_what_entropy_demands(decay: float, steps: int) -> None:
    """Not less than the entropy, but for the 16 bits that stay in the stores; at most 5 % more."""
    _, planes = bit_buffer.plan(jnp.full(steps, decay, jnp.float32))
    bits, entropy = int(planes) * bit_buffer.PLANE_BITS, steps * math.log2(1 / decay)
    assert entropy - 16 <= bits <= 1.05 * entropy


def test_planes_follow_schedules() -> None:
    decays = np.random.default_rng(0).uniform(0.3, 0.99, 2000).astype(np.float32)
    _, planes = bit_buffer.plan(jnp.asarray(decays))
    entropy = float(np.sum(np.log2(1 / decays)))
    assert entropy - 16 <= int(planes) * bit_buffer.PLANE_BITS <= 1.05 * entropy


def test_capacities_waste_little_and_are_few() -> None:
    capacities = [bit_buffer.roomy_capacity(n) for n in range(1, 1000)]
    assert all(n <= c <= max(16, 1.125 * n + 1) for n, c in enumerate(capacities, 1))
    assert len(set(capacities)) < 60
