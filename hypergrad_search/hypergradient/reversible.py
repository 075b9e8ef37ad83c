"""Hypergradients by exactly reversible training: constant memory, any number of hyperparameters."""

import functools
import math
import time
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from hypergrad_search.hypergradient.base import (
    Cost,
    Evaluation,
    Method,
    Report,
    Status,
    describe,
    finite_or_none,
    judge,
)
from hypergrad_search.problem import TrainingProblem, initial_params, losses, split
from hypergrad_search.space import Hyperparameters
from hypergrad_search.training import bit_buffer, reversible
from hypergrad_search.training.optimizers import resolve
from hypergrad_search.training.reversible import Schedule, State

Static = tuple[tuple[str, Any], ...]

_FAILURES = {reversible.NOT_A_NUMBER: Status.NAN, reversible.OUT_OF_RANGE: Status.OVERFLOW}


class InexactReversalError(ArithmeticError):
    """Running training backwards did not end at the state it had started from."""


@dataclass(frozen=True)
class Reversible(Method):
    """Run training backwards, bit for bit, and differentiate it on the way (Maclaurin, Duvenaud and Adams 2015).

    Memory does not grow with the number of steps, but for log2(1 / momentum) bits a weight and step. The reverse
    pass is run only where the value comes out below `gradient_below`, after training. Afterwards the recovered
    initial state is compared with the true one bit for bit. Where they differ, `fallback` evaluates instead, and
    with None `InexactReversalError` is raised: an inexact gradient is never returned.

    Not for momentum below 1/256, parameters other than float32, or losses that are not deterministic functions of
    their arguments (on a GPU, switch on deterministic operations): use `Unrolled` there.
    """

    _: KW_ONLY
    fallback: Method | None = None

    def evaluate(
        self,
        problem: TrainingProblem,
        hyperparameters: Hyperparameters,
        key: jax.Array,
        *,
        gradient_below: float,
        report: Report | None,
        report_every: int,
    ) -> Evaluation:
        """See `hypergrad_search.evaluate`."""
        started = time.perf_counter()
        dynamic, static = split(hyperparameters)
        settings, schedule, planes = _plan(problem, static, dynamic, key)
        _check_decays(problem, settings)
        reversed_at_all = gradient_below > -math.inf
        capacity = bit_buffer.roomy_capacity(int(planes)) if reversed_at_all else 0
        initial, state = _start(problem, static, capacity, dynamic, key)

        stops = range(report_every, problem.steps, report_every) if report else ()
        for stop in (*stops, problem.steps):
            state = _advance(problem, static, state, schedule, dynamic, key, stop)
            if report and stop < problem.steps and int(state.failure) == reversible.FINE:
                report(stop, float(_losses(problem, static, state, dynamic, key)["valid_loss"]))

        failure, steps = int(state.failure), int(state.step)
        final = _losses(problem, static, state, dynamic, key) if failure == reversible.FINE else {}
        status, value = judge(final) if final else (_FAILURES[failure], math.inf)
        spent, gradient, exact = steps, None, None
        if value < gradient_below:
            raw, matches, _ = _reverse(problem, static, initial, state, schedule, dynamic, key)
            spent += 3 * problem.steps
            exact = bool(matches)
            if not exact:
                return self._fall_back(problem, hyperparameters, key, Cost(spent, time.perf_counter() - started))
            gradient = finite_or_none(raw)
            status = Status.EXPLODED if gradient is None else status
        return Evaluation(
            value=value,
            gradient=gradient,
            cost=Cost(spent, time.perf_counter() - started),
            diagnostics=describe(status, steps=steps, exact=exact, losses=final),
        )

    def _fall_back(
        self, problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array, spent: Cost
    ) -> Evaluation:
        if self.fallback is None:
            raise InexactReversalError(
                "training run backwards did not end at its initial state: the training loss is not computed with the "
                "same bits twice; make it deterministic, or use Reversible(fallback=Unrolled())"
            )
        result = self.fallback.evaluate(
            problem, hyperparameters, key, gradient_below=math.inf, report=None, report_every=1
        )
        cost = Cost(spent.gradient_evaluations + result.cost.gradient_evaluations, spent.seconds + result.cost.seconds)
        return replace(result, cost=cost, diagnostics={**result.diagnostics, "exact": False})


def _check_decays(problem: TrainingProblem, settings: dict[str, jax.Array]) -> None:
    for name in problem.optimizer.decays.values():
        low, high = float(jnp.min(settings[name])), float(jnp.max(settings[name]))
        if not bit_buffer.SMALLEST_DECAY <= low <= high <= bit_buffer.LARGEST_DECAY:
            wrong = high if high > bit_buffer.LARGEST_DECAY else low
            raise ValueError(
                f"{name} must be from {bit_buffer.SMALLEST_DECAY} to {bit_buffer.LARGEST_DECAY} to train reversibly, "
                f"got {wrong}; use method=Unrolled()"
            )


def _prepare(
    problem: TrainingProblem, static: Static, dynamic: dict[str, Any], key: jax.Array
) -> tuple[Any, dict[str, jax.Array]]:
    """Initial parameters and settings: what the hyperparameters act through, besides the training loss."""
    hyperparameters = {**dynamic, **dict(static)}
    params = initial_params(problem, hyperparameters, jax.random.split(key)[0])
    return params, resolve(problem.optimizer, hyperparameters, params, problem.steps)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _plan(
    problem: TrainingProblem, static: Static, dynamic: dict[str, Any], key: jax.Array
) -> tuple[dict[str, jax.Array], Schedule, jax.Array]:
    _, settings = _prepare(problem, static, dynamic, key)
    return settings, *reversible.plan_schedule(problem.optimizer, settings)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _start(
    problem: TrainingProblem, static: Static, capacity: int, dynamic: dict[str, Any], key: jax.Array
) -> tuple[list[jax.Array], State]:
    params, _ = _prepare(problem, static, dynamic, key)
    return jax.tree.leaves(params), reversible.start(problem.optimizer, params, capacity)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2,))
def _advance(
    problem: TrainingProblem,
    static: Static,
    state: State,
    schedule: Schedule,
    dynamic: dict[str, Any],
    key: jax.Array,
    stop: int,
) -> State:
    treedef = _structure(problem, static, dynamic, key)
    step_key = jax.random.split(key)[1]
    return reversible.run_forward(problem, treedef, state, schedule, {**dynamic, **dict(static)}, step_key, stop)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _losses(
    problem: TrainingProblem, static: Static, state: State, dynamic: dict[str, Any], key: jax.Array
) -> dict[str, jax.Array]:
    treedef = _structure(problem, static, dynamic, key)
    return losses(problem, jax.tree.unflatten(treedef, reversible.weights_of(state)))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3,))
def _reverse(
    problem: TrainingProblem,
    static: Static,
    initial: list[jax.Array],
    state: State,
    schedule: Schedule,
    dynamic: dict[str, Any],
    key: jax.Array,
) -> tuple[dict[str, jax.Array], jax.Array, State]:
    """The hypergradient, whether the reversal was exact, and the state at the start, in the memory of the final one."""
    treedef = _structure(problem, static, dynamic, key)

    def valid_loss(weights: list[jax.Array]) -> jax.Array:
        return losses(problem, jax.tree.unflatten(treedef, weights))["valid_loss"]

    reversal = reversible.run_backward(
        problem,
        treedef,
        state,
        schedule,
        {**dynamic, **dict(static)},
        jax.random.split(key)[1],
        initial,
        jax.grad(valid_loss)(reversible.weights_of(state)),
    )
    _, pull_back = jax.vjp(lambda dynamic: _prepare(problem, static, dynamic, key), dynamic)
    (through_start,) = pull_back((jax.tree.unflatten(treedef, reversal.params), reversal.settings))
    gradient = jax.tree.map(jnp.add, reversal.hyperparameters, through_start)
    return gradient, reversal.exact, State(reversal.leaves, jnp.int32(0), state.failure)


def _structure(problem: TrainingProblem, static: Static, dynamic: dict[str, Any], key: jax.Array) -> Any:
    return jax.tree.structure(jax.eval_shape(lambda: _prepare(problem, static, dynamic, key)[0]))
