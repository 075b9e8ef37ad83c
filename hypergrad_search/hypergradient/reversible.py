"""Hypergradients by exactly reversible training: constant memory, any number of hyperparameters."""

import functools
import math
import time
import weakref
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search.hypergradient.base import (
    MESSAGES,
    MOST_GROWTH,
    Cost,
    Evaluation,
    Method,
    Report,
    Request,
    Status,
    describe,
    finite_or_none,
    judge,
)
from hypergrad_search.problem import TrainingProblem, losses, split
from hypergrad_search.space import Hyperparameters
from hypergrad_search.training import bit_buffer, reversible
from hypergrad_search.training.reversible import Adjoint, Diagnosis, Numbers, Planes, Run, Schedule, State


class InexactReversalError(ArithmeticError):
    """Running training backwards did not end at the state it had started from."""


@dataclass(frozen=True)
class Reversible(Method):
    """Run training backwards, bit for bit, and differentiate it on the way (Maclaurin, Duvenaud and Adams 2015).

    Memory does not grow with the number of steps, but for log2(1 / decay) bits a weight and step, where a decay is a
    momentum, one of Adam's betas, or what weight decay leaves. The reverse pass is run only where the value comes
    out below `gradient_below`, after training. Afterwards the recovered initial state is compared with the true one
    bit for bit: an inexact gradient is never returned. Where they differ, it is tried once more with the gradient
    compiled by itself, which this problem's evaluations then keep to: one more gradient a step.

    - `fallback`: evaluates instead where the reversal was not exact; with None `InexactReversalError` is raised.
    - `last`: the reverse pass stops after this many steps, at `last / steps` of its cost: the hypergradient truncated
      to the last steps. What acts through the initial parameters or earlier steps has no gradient then. A copy of the
      weights and slots is kept to compare with.
    - `fraction_bits`: the resolution of "weights" and of each of the optimizer's slots ("velocity"; "mu", "nu"), from
      16 to 84 bits behind the binary point; one bit more halves the range. A number that leaves its range ends
      training with the status "overflow", whose message names the setting.

    Not for decays below 1/256, parameters other than float32, or losses that are not deterministic functions of
    their arguments (on a GPU, switch on deterministic operations): use `Unrolled` there.
    """

    _: KW_ONLY
    fallback: Method | None = None
    last: int | None = None
    fraction_bits: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        if self.last is not None and (isinstance(self.last, bool) or not isinstance(self.last, int) or self.last < 1):
            raise ValueError(f"Reversible: last must be a whole number above 0 or None, got {self.last!r}")

    def evaluate(
        self,
        problem: TrainingProblem,
        hyperparameters: Hyperparameters,
        key: jax.Array,
        request: Request,
    ) -> Evaluation:
        """See `hypergrad_search.evaluate`."""
        started = time.perf_counter()
        dynamic, static = split(hyperparameters)
        bits = reversible.resolution(problem.optimizer, self.fraction_bits)
        run = Run(problem, static, bits, isolated=problem in _ISOLATED)
        first = 0 if self.last is None else max(problem.steps - self.last, 0)
        reports = _Reports(request.report, request.report_every) if request.report else None
        kept_from = first if request.gradient_below > -math.inf else problem.steps
        trained = _train(run, dynamic, key, kept_from, reports)

        def result(value: float, gradient: dict[str, Any] | None, spent: int, **described: Any) -> Evaluation:
            cost = Cost(spent, time.perf_counter() - started)
            return Evaluation(value, gradient, cost, described)

        done = int(trained.state.step)
        if trained.state.outside:
            diagnosis = _diagnose(run, trained.initial, trained.state, trained.schedule, dynamic, key)
            status, why = _explain(diagnosis, run, done)
            return result(math.inf, None, done, **describe(status, steps=done, exact=None, losses={}, message=why))
        final = _losses(run, trained.state, trained.schedule, dynamic, key)
        status, value = judge(final, request.held_back_below)
        if not value < request.gradient_below:
            return result(value, None, done, **describe(status, steps=done, exact=None, losses=final))

        exact, adjoint = _run_back(run, trained, dynamic, key, first)
        spent = done + (4 if run.isolated else 3) * (problem.steps - first)
        if not exact:
            retry: Method = self if not run.isolated else self._fallback()
            _ISOLATED.add(problem)
            again = retry.evaluate(problem, hyperparameters, key, Request())
            cost = Cost(spent + again.cost.gradient_evaluations, time.perf_counter() - started)
            described = {**again.diagnostics, "exact": again.diagnostics["exact"] or False}
            return replace(again, cost=cost, diagnostics=described)
        gradient = finite_or_none(_finish(run, adjoint, dynamic, key, first == 0))
        norms = np.nan_to_num(adjoint.norms, nan=math.inf, posinf=math.inf)[first:].tolist()  # beyond float32
        why = _why_useless(gradient, norms)
        described = describe(
            Status.EXPLODED if why else status, steps=done, exact=exact, losses=final, message=why or None
        )
        return result(value, gradient, spent, **described, adjoint_norms=norms)

    def _fallback(self) -> Method:
        if self.fallback is None:
            raise InexactReversalError(
                "training run backwards did not end at its initial state: the training loss is not computed with the "
                "same bits twice; make it deterministic, or use Reversible(fallback=Unrolled())"
            )
        return self.fallback


# The problems whose gradient the compiler rounds differently in the two directions, as a first reversal has shown.
_ISOLATED: "weakref.WeakSet[TrainingProblem]" = weakref.WeakSet()


class _Reports(NamedTuple):
    call: Report
    every: int


class _Trained(NamedTuple):
    """Training that is done, and what the way back needs.

    `spills` says, by name, at which step and in which group contents were shifted; `planes` has what that shifted out,
    by step; `origin` the numbers at the step where the way back ends, None where that is the start.
    """

    initial: list[jax.Array]
    state: State
    schedule: Schedule
    spills: dict[str, np.ndarray]
    planes: dict[int, Planes]
    origin: list[Numbers] | None


def _train(run: Run, dynamic: dict[str, Any], key: jax.Array, kept_from: int, reports: _Reports | None) -> _Trained:
    """Train, keeping what the way back to the step `kept_from` needs."""
    steps = run.problem.steps
    initial, state, schedule, extremes = _begin(run, dynamic, key)
    _check_decays(extremes)
    spills = {name: np.asarray(plan.spill) for name, plan in schedule.plans.items()}
    due = {name: set(np.flatnonzero(spill.any(axis=1)).tolist()) for name, spill in spills.items()}
    reported = set(range(reports.every, steps, reports.every)) if reports else set()
    planes: dict[int, Planes] = {}
    origin = None
    for stop in sorted(reported.union({kept_from, steps} - {0}, *due.values())):
        state, filled = _advance(run, state, schedule, dynamic, key, stop, _shifted(spills, stop))
        if kept_from < stop < steps:
            planes[stop] = {name: filled[name] for name in spills if stop in due[name]}
        if 0 < stop == kept_from < steps:
            origin = jax.tree.map(jnp.copy, state.numbers)
        if reports and stop in reported and not state.outside:
            reports.call(stop, float(_losses(run, state, schedule, dynamic, key)["valid_loss"]))
    return _Trained(initial, state, schedule, spills, planes, origin)


def _run_back(run: Run, trained: _Trained, dynamic: dict[str, Any], key: jax.Array, first: int) -> tuple[bool, Adjoint]:
    """Whether the way back ended where training had come from, and the adjoint there."""
    initial, state, schedule, spills, planes, origin = trained
    adjoint = _start_adjoint(run, state, schedule, dynamic, key)
    none = [jnp.zeros(x.shape, jnp.uint8) for x in initial]
    for stop in sorted({*planes, first}, reverse=True):
        kept = planes.pop(stop, {})  # and so freed
        shifted = _shifted(spills, stop if kept else 0)
        filled = {name: kept.get(name, none) for name in spills}
        state, adjoint = _retreat(run, state, adjoint, schedule, dynamic, key, stop, shifted, filled)
    return bool(_is_start(run, state, initial) if origin is None else _equal(state.numbers, origin)), adjoint


def _shifted(spills: dict[str, np.ndarray], stop: int) -> dict[str, np.ndarray]:
    """By name and group, whether contents are shifted before the step `stop`: never at the start, nor at the end."""
    return {name: spill[stop] if stop < len(spill) else np.zeros_like(spill[0]) for name, spill in spills.items()}


def _why_useless(gradient: dict[str, Any] | None, norms: list[float]) -> str:
    """What is wrong with a gradient, given the adjoint's norms on its way back; nothing if nothing is."""
    growth = max(norms) / norms[-1] if norms[-1] else 0.0
    if gradient is None:
        return MESSAGES[Status.EXPLODED]
    if growth <= MOST_GROWTH:
        return ""
    return (
        f"the value is sound, but its gradient is useless: it grew by a factor of {growth:.0e} on its way back "
        "through training, which is chaotic here; lower the learning rate, or truncate: Reversible(last=...)"
    )


def _check_decays(extremes: dict[str, jax.Array]) -> None:
    for name, (low, high) in jax.device_get(extremes).items():
        if not bit_buffer.SMALLEST_DECAY <= low <= high <= 1:
            wrong = low if not low >= bit_buffer.SMALLEST_DECAY else high
            raise ValueError(
                f"{name} must be from {bit_buffer.SMALLEST_DECAY} to 1 to train reversibly, got {wrong}; "
                "use method=Unrolled()"
            )


def _explain(diagnosis: Diagnosis, run: Run, step: int) -> tuple[Status, str]:
    nan, outside, reach = jax.device_get(diagnosis)
    when = f"at step {step}" if step else "at the start"
    for path, found in jax.tree_util.tree_leaves_with_path(nan):
        if found:
            return Status.NAN, f"NaN in the update of params{jax.tree_util.keystr(path)} {when}"
    for name in outside:
        leaves = jax.tree_util.tree_leaves_with_path(outside[name])
        for (path, found), limit in zip(leaves, jax.tree.leaves(reach[name]), strict=True):
            if found:
                return Status.OVERFLOW, (
                    f"{name} of params{jax.tree_util.keystr(path)} left the range of +-{limit:g} {when}; lower the "
                    f"learning rate or scales, or widen the range: "
                    f"Reversible(fraction_bits={{{name!r}: {run.bits[name] - 4}}})"
                )
    raise AssertionError("training ended early for no reason")


# The programs that evaluate() puts together. Their shapes do not depend on the values of hyperparameters, so that
# each compiles once for a problem.


@functools.partial(jax.jit, static_argnums=0)
def _begin(
    run: Run, dynamic: dict[str, Any], key: jax.Array
) -> tuple[list[jax.Array], State, Schedule, dict[str, jax.Array]]:
    """The initial weights, exact and as floats; the schedule; and the smallest and largest of each decay."""
    init_key, _ = jax.random.split(key)
    params, settings, _ = reversible.prepare(run, dynamic, init_key)
    initial = reversible.layout_of(run, dynamic, init_key).pack(params)
    logs = reversible.log_decays(run.optimizer, settings)
    stretch = functools.reduce(jnp.minimum, map(bit_buffer.stretch, logs.values()))
    schedule, _ = reversible.plan_schedule(run.optimizer, settings, stretch)
    decays = {setting: settings[setting] for setting in run.optimizer.decays.values()}
    weight_decay = run.optimizer.weight_decay(settings)
    if weight_decay is not None:
        decays["1 - learning_rate * weight_decay"] = 1 - weight_decay
    extremes = {name: jnp.stack([jnp.min(x), jnp.max(x)]) for name, x in decays.items()}
    return initial, reversible.start(run, initial), schedule, extremes


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _advance(
    run: Run,
    state: State,
    schedule: Schedule,
    dynamic: dict[str, Any],
    key: jax.Array,
    stop: int,
    shifted: dict[str, Any],
) -> tuple[State, Planes]:
    """Train until `stop`, and then spill what is due."""
    init_key, step_key = jax.random.split(key)
    layout = reversible.layout_of(run, dynamic, init_key)
    state = reversible.run_forward(run, layout, state, schedule, dynamic, step_key, stop, early=True)
    planes = {}
    for name, now in shifted.items():
        state, planes[name] = reversible.spill(layout, state, name, now & ~state.outside)
    return state, planes


@functools.partial(jax.jit, static_argnums=0)
def _losses(
    run: Run, state: State, schedule: Schedule, dynamic: dict[str, Any], key: jax.Array
) -> dict[str, jax.Array]:
    layout = reversible.layout_of(run, dynamic, key)
    return losses(run.problem, layout.unpack(reversible.weights_of(run, layout, state, schedule)))


@functools.partial(jax.jit, static_argnums=0)
def _diagnose(
    run: Run,
    initial: list[jax.Array],
    state: State,
    schedule: Schedule,
    dynamic: dict[str, Any],
    key: jax.Array,
) -> Diagnosis:
    init_key, step_key = jax.random.split(key)
    layout = reversible.layout_of(run, dynamic, init_key)
    diagnosis = reversible.diagnose(run, layout, state, schedule, dynamic, step_key)
    start = jax.tree.map(lambda x: jnp.any(jnp.isnan(x)), layout.unpack(initial))
    return diagnosis._replace(nan=jax.tree.map(lambda x, y: jnp.where(state.step > 0, x, y), diagnosis.nan, start))


@functools.partial(jax.jit, static_argnums=0)
def _start_adjoint(run: Run, state: State, schedule: Schedule, dynamic: dict[str, Any], key: jax.Array) -> Adjoint:
    layout = reversible.layout_of(run, dynamic, key)

    def valid_loss(weights: list[jax.Array]) -> jax.Array:
        return losses(run.problem, layout.unpack(weights))["valid_loss"]

    weights = reversible.weights_of(run, layout, state, schedule)
    return reversible.start_adjoint(run, schedule, dynamic, jax.grad(valid_loss)(weights))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _retreat(
    run: Run,
    state: State,
    adjoint: Adjoint,
    schedule: Schedule,
    dynamic: dict[str, Any],
    key: jax.Array,
    stop: int,
    shifted: dict[str, Any],
    planes: Planes,
) -> tuple[State, Adjoint]:
    """Undo `_advance` until `stop`, and then what was spilled there."""
    init_key, step_key = jax.random.split(key)
    layout = reversible.layout_of(run, dynamic, init_key)
    state, adjoint = reversible.run_backward(run, layout, state, adjoint, schedule, dynamic, step_key, stop)
    for name, now in shifted.items():
        state = reversible.unspill(layout, state, name, now, planes[name])
    return state, adjoint


@functools.partial(jax.jit, static_argnums=0)
def _is_start(run: Run, state: State, initial: list[jax.Array]) -> jax.Array:
    return reversible.equal(state.numbers, reversible.start(run, initial).numbers)


_equal = jax.jit(reversible.equal)


@functools.partial(jax.jit, static_argnums=0)
def _finish(
    run: Run, adjoint: Adjoint, dynamic: dict[str, Any], key: jax.Array, from_start: bool
) -> dict[str, jax.Array]:
    """The hypergradient: what came through training loss, settings and, if `from_start`, the initial weights."""
    init_key, _ = jax.random.split(key)
    layout = reversible.layout_of(run, dynamic, init_key)

    def act(dynamic: dict[str, Any]) -> tuple[list[jax.Array], dict[str, jax.Array]]:
        params, settings, _ = reversible.prepare(run, dynamic, init_key)
        return layout.pack(params), settings

    _, pull_back = jax.vjp(act, dynamic)
    weights = [jnp.where(from_start, x, 0) for x in adjoint.weights]
    (through_start,) = pull_back((weights, adjoint.settings))
    return jax.tree.map(jnp.add, adjoint.hyperparameters, through_start)
