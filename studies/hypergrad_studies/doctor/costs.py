"""What a hypergradient costs on the device: time as a ratio to training, and memory, for one network of medium size."""

import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from hypergrad_search import Method, Reversible, TrainingProblem, Unrolled, evaluate, train
from hypergrad_search.training import train_in_floats
from hypergrad_studies import bench

CASE = bench.Case(steps=64, decay=0.9, width=512, ways=())
OPTIMIZER = "adam"
ROUNDS = 3

Train = Callable[[TrainingProblem, dict[str, jax.Array], jax.Array], Any]

# These are below the true decays by float32's rounding error, so that no decay is smaller than its buffer allows.
_DECAYS = {"mu": CASE.decay * (1 - 1e-6), "nu": bench.B2 * (1 - 1e-6)}

#: The methods, and how each trains in one program; the one that needs less memory comes first, since the peak of a
#: device never falls again.
METHODS: dict[str, tuple[Method, Train]] = {
    "Reversible": (Reversible(), functools.partial(train, smallest_decays=_DECAYS)),
    "Unrolled": (Unrolled(), train_in_floats),
}


@dataclass(frozen=True)
class MethodCost:
    """The cost of a method: times as ratios to training in plain floats, and bytes.

    `value` is the ratio of a value alone, and `both` that of a value with its gradient. `memory` is the device's peak,
    or else what XLA plans, as `is_peak` tells.
    """

    method: str
    value: float
    both: float
    memory: int
    is_peak: bool


def measure() -> list[MethodCost]:
    """Measure all methods, which take turns in each round, so that what else the machine does hits all alike.

    A ratio is the median over the rounds. A value by `Unrolled` is training in plain floats.
    """
    problem, hyperparameters = bench.problem(CASE, OPTIMIZER)

    def seconds(method: Method) -> tuple[float, float]:
        """Return the seconds of a value alone, and of a value with its gradient."""
        ends = [time.perf_counter()]
        for below in (-math.inf, math.inf):
            evaluate(problem, hyperparameters, key=jax.random.key(0), method=method, gradient_below=below)
            ends.append(time.perf_counter())
        return ends[1] - ends[0], ends[2] - ends[1]

    memory = {}
    for name, (method, run) in METHODS.items():
        seconds(method)  # compiles
        peak = _peak()
        memory[name] = (_planned(problem, hyperparameters, run), False) if peak is None else (peak, True)
    rounds = [{name: seconds(method) for name, (method, _) in METHODS.items()} for _ in range(ROUNDS)]

    def ratio(name: str, which: int) -> float:
        return statistics.median(of[name][which] / of["Unrolled"][0] for of in rounds)

    return [MethodCost(name, ratio(name, 0), ratio(name, 1), *memory[name]) for name in METHODS]


def _peak() -> int | None:
    """Return the most bytes that the device has had in use so far; None where it does not tell, as CPUs."""
    (device,) = jnp.zeros(()).devices()
    found = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return None if found is None else int(found)


def _planned(problem: TrainingProblem, hyperparameters: dict[str, jax.Array], run: Train) -> int:
    """Return the bytes that XLA plans for the intermediate results of a value and its gradient in one program."""

    def loss(h: dict[str, jax.Array]) -> jax.Array:
        return jnp.mean(problem.valid_loss(run(problem, h, jax.random.key(0)), h))

    analysis = jax.jit(jax.value_and_grad(loss)).lower(hyperparameters).compile().memory_analysis()
    assert analysis is not None, "XLA has no account of memory on this backend"
    return int(analysis.temp_size_in_bytes)
