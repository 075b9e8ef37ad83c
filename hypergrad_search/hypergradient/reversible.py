"""`Reversible`: hypergradients by exactly reversible training, for any number of hyperparameters."""

import functools
import math
import time
import warnings
import weakref
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search.checks import whole_number
from hypergrad_search.cost import REVERSE_STEP, TRAINING_STEP, Cost
from hypergrad_search.determinism import check_device
from hypergrad_search.hypergradient import snapshot as snapshots
from hypergrad_search.hypergradient.base import (
    MESSAGES,
    MOST_GROWTH,
    Evaluation,
    Method,
    Progress,
    Report,
    Request,
    Status,
    finite_or_none,
    judge,
    trust_after,
)
from hypergrad_search.hypergradient.snapshot import Facts, Snapshot, Stop
from hypergrad_search.hyperparameters import split
from hypergrad_search.losses import LeftOut, OuterLosses, fitted_loss, left_out, outer_losses
from hypergrad_search.optimizers import AdditiveOptimizer
from hypergrad_search.parameters import as_returned, split_statistics
from hypergrad_search.problem import Params, TrainingProblem
from hypergrad_search.programs import compiled
from hypergrad_search.space import Hyperparameters, Space
from hypergrad_search.training import bit_buffer, exact, fixed_point, resolution
from hypergrad_search.training.exact import Adjoint, Diagnosis, Inputs, Numbers, Planes, Program, State
from hypergrad_search.training.resolution import Unresolved
from hypergrad_search.training.train import train
from hypergrad_search.trouble import ending_with, see

#: The resolution is probed after the first step and the last. Between other probes lie at least so many steps, since a
#: probe takes about as long as one.
_PROBE_EVERY = 32


class InexactReversalError(ArithmeticError):
    """Running training backwards did not end at the state it had started from."""


@dataclass(frozen=True)
class Reversible(Method):
    """Run training backwards, bit for bit, and differentiate it on the way (Maclaurin, Duvenaud and Adams 2015).

    Memory does not grow with the number of steps, but for log2(1 / decay) bits a weight and step, where a decay is a
    momentum, one of Adam's betas, that of an average, or `1 - learning_rate * weight_decay`. The reverse pass is run
    after training, and only where the value comes out below `gradient_below`. Then the recovered initial state is
    compared with the true one bit for bit: an inexact gradient is never returned. Where they differ, the evaluation is
    repeated with a program whose gradient is compiled by itself. All later evaluations of the problem use this program,
    and one more gradient for each step of the reverse pass.

    - `fallback`: the method that evaluates instead where training cannot be run backwards (see below), and where the
      reversal was not exact. With None, `ValueError` and `InexactReversalError` are raised. Where it evaluated,
      `diagnostics` say why. It must train at the given hyperparameters, so it cannot be a `Hypernet`.
    - `last`: the reverse pass stops after this many steps, at `last / steps` of its cost, and the hypergradient is
      truncated to them. It leaves out all effects through the initial parameters and earlier steps. One copy of the
      weights and slots is kept for the comparison.
    - `fraction_bits`: the resolution of "weights" and of each of the optimizer's slots ("velocity"; "mu", "nu"; "nu",
      "trace"; "ema"), from 16 to 84 bits behind the binary point; one bit more halves the range. A number that leaves
      its range ends training with the status "overflow", and one for which the resolution is too coarse with the status
      "underflow"; the message names the setting. What underflows is evaluated by the fallback where there is one.

    `trust` is the same for all hyperparameters: 1 where the adjoint grew by a factor of at most 100 on its way back,
    and less the more it grew, to 0 at 1,000, where the status is "exploded".

    Its reports have snapshots, from which an evaluation goes on with the same bits in value and gradient, in another
    process too. The cost counts each step once, those before the snapshot included. A snapshot has the weights and
    slots, and the bits that decays have spilled so far; the problem's functions and data must be those that it was
    taken with. The next process may have another kind of processor, which rounds differently. Then the reversal is
    inexact, and the evaluation is repeated from the first step. Nothing is gone on with where the fallback evaluates.

    Training cannot be run backwards with decays below 1/256 or above 1, with parameters other than float32, with an
    optimizer that is not an `AdditiveOptimizer`, and with losses that are not deterministic functions of their
    arguments: use `Unrolled` there. On a GPU, XLA_FLAGS must have `--xla_gpu_deterministic_ops=true`; an evaluation
    without it raises `RuntimeError`, also where there is a fallback. Raises `ValueError` where a setting does not fit.

    Example:
        >>> from hypergrad_search import Reversible, Unrolled, evaluate
        >>> result = evaluate(problem, point, key=key, method=Reversible(fallback=Unrolled()))
        >>> result.diagnostics["exact"]
        True
    """

    _: KW_ONLY
    fallback: Method | None = None
    last: int | None = None
    fraction_bits: Mapping[str, int] | tuple[tuple[str, int], ...] = ()
    resumes = True

    def __post_init__(self) -> None:
        if self.fallback is not None and not isinstance(self.fallback, Method):
            raise ValueError(f"Reversible: fallback must be a Method such as Unrolled(), got {self.fallback!r}")
        if self.fallback is not None and self.fallback.continues:
            raise ValueError(
                "Reversible: fallback must train at the given hyperparameters, as Unrolled() does, and "
                f"{type(self.fallback).__name__} moves them; give it to evaluate as the method instead"
            )
        if self.last is not None:
            object.__setattr__(self, "last", whole_number("Reversible: last", self.last, 1))
        # Pairs, so that a method can be hashed.
        chosen = dict(self.fraction_bits) if isinstance(self.fraction_bits, tuple) else self.fraction_bits
        bits = exact.check_fraction_bits(chosen)
        object.__setattr__(self, "fraction_bits", tuple(bits.items()))

    def evaluate(
        self,
        problem: TrainingProblem,
        hyperparameters: Hyperparameters,
        key: jax.Array,
        request: Request,
    ) -> Evaluation:
        """See `hypergrad_search.evaluate`."""
        check_device(key)
        started = time.perf_counter()
        try:
            return self._reverse(problem, hyperparameters, key, request)
        except exact.IrreversibleError as error:
            if self.fallback is None:
                raise
            why = str(error)
            if not isinstance(error, exact.IrreversibleDecayError):
                said = f"{type(self.fallback).__name__} differentiates this problem in place of Reversible. {why}"
                _warn_once(problem, ending_with(see("fallback"), said))
        spent = Cost(0.0, time.perf_counter() - started)
        return _fall_back(self.fallback, problem, hyperparameters, key, request, spent, why)

    def _reverse(
        self, problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array, request: Request
    ) -> Evaluation:
        taken = None if request.snapshot is None else snapshots.read(request.snapshot)
        started = time.perf_counter() - (taken.seconds if taken else 0.0)
        dynamic, static = split(hyperparameters, request.space)
        if taken and taken.isolated:
            ISOLATED.add(problem)
        isolated = problem in ISOLATED
        program = exact.bind(problem, static, dynamic, dict(self.fraction_bits), isolated=isolated)
        first = 0 if self.last is None else max(problem.steps - self.last, 0)
        after = taken.step if taken else 0
        reports = _Reports(request.report, request.report_every, after, started) if request.report else None
        kept_from = first if request.gradient_below > -math.inf else problem.steps
        # A program that is not isolated may have rounded differently, so what it began is begun again.
        begun = taken if taken and taken.isolated == isolated else None
        trained = _train(program, dynamic, key, kept_from, reports, begun)
        inputs, done = trained.inputs, int(trained.state.step)

        def cost(reversed_steps: int = 0) -> Cost:
            a_step = REVERSE_STEP + (TRAINING_STEP if isolated else 0)
            return Cost(TRAINING_STEP * done + a_step * reversed_steps, time.perf_counter() - started)

        if trained.lost is not None:
            why = _explain_loss(trained.lost, program, done)
            if self.fallback is None:
                return Evaluation(
                    math.inf, None, Status.UNDERFLOW, cost(), why, diagnostics={"steps": done, "exact": None}
                )
            rest = replace(request, report=_reports_after(request.report, done), snapshot=None)
            return _fall_back(self.fallback, problem, hyperparameters, key, rest, cost(), why)
        if trained.state.outside:
            diagnosis = _diagnose(program, inputs, trained.initial, trained.state)
            status, why = _explain(diagnosis, program, inputs, done)
            return Evaluation(math.inf, None, status, cost(), why, diagnostics={"steps": done, "exact": None})
        judged = judge(losses_of(program, inputs, trained.state), request.fold)
        if not request.wants_gradient(judged):
            return replace(judged, cost=cost(), diagnostics={"steps": done, "exact": None})

        spilled = sum(plane.nbytes for plane in jax.tree.leaves(trained.planes))
        is_exact, adjoint = _run_back(program, trained, first, left_out(request.fold))
        spent = cost(problem.steps - first)
        if not is_exact:
            rest = replace(request, gradient_below=math.inf, report=_reports_after(request.report, done), snapshot=None)
            if begun is None and not isolated:
                ISOLATED.add(problem)
            if begun is not None or not isolated:
                return charged(self.evaluate(problem, hyperparameters, key, rest), spent)
            if self.fallback is None:
                raise InexactReversalError(
                    f"{_INEXACT}; make it deterministic, or use Reversible(fallback=Unrolled()){see('inexact')}"
                )
            return _fall_back(self.fallback, problem, hyperparameters, key, rest, spent, _INEXACT)
        gradient = finite_or_none(finish(program, adjoint, dynamic, key, first == 0))
        norms = np.nan_to_num(adjoint.norms, nan=math.inf, posinf=math.inf)[first:].tolist()  # beyond float32
        why = why_useless(gradient, norms)
        return replace(
            judged,
            gradient=gradient,
            status=Status.EXPLODED if why else judged.status,
            message=why or judged.message,
            trust=None if gradient is None else trust_after(growth_of(norms), gradient),
            cost=replace(spent, seconds=time.perf_counter() - started),
            diagnostics={"steps": done, "exact": True, "adjoint_norms": norms, "spilled_bytes": spilled},
        )

    def params(
        self,
        problem: TrainingProblem,
        hyperparameters: Hyperparameters,
        *,
        key: jax.Array,
        space: Space | None = None,
        checkpoint: bytes | None = None,
    ) -> Params:
        """See `Method`. Training is exact, so the bits are those of an evaluation that did not have to be repeated.

        Where training cannot be run backwards, or a number underflows, the parameters are the fallback's.
        """
        try:
            params = train(problem, hyperparameters, key, fraction_bits=dict(self.fraction_bits), space=space)
        except exact.IrreversibleError:
            if self.fallback is None:
                raise
        else:
            leaves = jax.tree.leaves(params)
            if self.fallback is None or isinstance(leaves[0], jax.core.Tracer) or all(map(_is_finite, leaves)):
                return params
        return self.fallback.params(problem, hyperparameters, key=key, space=space, checkpoint=checkpoint)


def _is_finite(x: jax.Array) -> bool:
    return bool(jnp.isfinite(x).all())


_INEXACT = (
    "training run backwards did not end at its initial state: the training loss is not computed with the same bits "
    "twice"
)


# The problems whose gradient the compiler rounds differently in the two directions, as a first reversal has shown.
ISOLATED: "weakref.WeakSet[TrainingProblem]" = weakref.WeakSet()


# The problems about which a warning was given.
_WARNED: "weakref.WeakSet[TrainingProblem]" = weakref.WeakSet()


def _warn_once(problem: TrainingProblem, message: str) -> None:
    if problem not in _WARNED:
        _WARNED.add(problem)
        warnings.warn(message, stacklevel=5)


def _fall_back(
    fallback: Method,
    problem: TrainingProblem,
    hyperparameters: Hyperparameters,
    key: jax.Array,
    request: Request,
    spent: Cost,
    why: str,
) -> Evaluation:
    evaluation = fallback.evaluate(problem, hyperparameters, key, request)
    diagnostics = {**evaluation.diagnostics, "exact": False, "fallback": why}
    return charged(replace(evaluation, diagnostics=diagnostics), spent)


def charged(evaluation: Evaluation, spent: Cost) -> Evaluation:
    """Return an evaluation that is charged for what was spent before it."""
    cost = Cost(
        spent.gradient_evaluations + evaluation.cost.gradient_evaluations, spent.seconds + evaluation.cost.seconds
    )
    return replace(evaluation, cost=cost)


def _reports_after(report: Report | None, done: int) -> Report | None:
    """Return a function that passes on the reports of later steps; the others have been made.

    What is reported has no snapshot, since this method could not go on from those of its fallback.
    """
    if report is None:
        return None
    return lambda now: report(replace(now, snapshot=None)) if now.step > done else None


class _Reports(NamedTuple):
    """Whom to tell of the way, and every how many steps; `after` so many, and `started` at this time."""

    call: Report
    every: int
    after: int
    started: float

    def steps(self, most: int) -> set[int]:
        """Return the steps to report of, among the first `most`, of which the last is none."""
        return {step for step in range(self.every, most, self.every) if step > self.after}


class _Trained(NamedTuple):
    """The result of training, and all that the way back needs.

    `initial` are the initial weights as floats. `spills` tells by name at which step and in which group contents were
    shifted, and `planes` holds the bits that were shifted out, by step. `origin` holds the numbers at the step where
    the way back ends, and is None where it ends at the start. `lost` tells which numbers are too coarse, and is None
    where none is; training ends early otherwise.
    """

    inputs: Inputs
    initial: list[jax.Array]
    state: State
    spills: dict[str, np.ndarray[Any, Any]]
    planes: dict[int, Planes]
    origin: list[Numbers] | None
    lost: Unresolved | None


def _train(
    program: Program,
    dynamic: dict[str, Any],
    key: jax.Array,
    kept_from: int,
    reports: _Reports | None,
    begun: Snapshot | None = None,
) -> _Trained:
    """Train, or go on from where training had begun, and keep all that the way back to the step `kept_from` needs."""
    steps = program.problem.steps
    inputs, initial, state, largest, extremes = _begin(program, dynamic, key)
    check_decays(extremes)
    spills = {name: np.asarray(plan.spill) for name, plan in inputs.schedule.plans.items()}
    due = {name: set(np.flatnonzero(spill.any(axis=1)).tolist()) for name, spill in spills.items()}
    reported = reports.steps(steps) if reports else set()
    facts = snapshots.facts_of(program, inputs, key, initial, steps - kept_from) if reported or begun else {}
    planes: dict[int, Planes] = {}
    origin, lost, last_probed = None, None, 0
    if begun:
        like = _like(state, largest, due, kept_from, begun.step, steps)
        if begun.spilled == sorted(like.planes):
            state, largest, planes, origin, last_probed = snapshots.stop_of(begun, facts, like)
        else:  # another processor rounds decays to other plans, so training begins again
            snapshots.check(begun, facts)
            begun = None
    done = begun.step if begun else 0
    for stop in sorted(reported.union({1, kept_from, steps}, *due.values()).difference(range(done + 1))):
        probed = stop in (1, steps) or stop >= last_probed + _PROBE_EVERY
        shifted = _shifted(spills, stop)
        state, filled, largest, doubtful = _forward(program, inputs, state, largest, stop, shifted, probed)
        last_probed = stop if probed else last_probed
        in_doubt = probed and bool(doubtful)
        del doubtful  # so that nothing is kept but what the way back needs
        if in_doubt:
            found = _unresolved(program, inputs, initial, state, largest)
            lost = found if any(jax.tree.leaves(jax.device_get(found.found))) else None
            if lost or state.outside:
                break
        if kept_from < stop < steps and any(stop in steps_due for steps_due in due.values()):
            planes[stop] = {name: filled[name] for name in spills if stop in due[name]}
        if 0 < stop == kept_from < steps:
            origin = jax.tree.map(jnp.copy, state.numbers)
        if reports and stop in reported and not state.outside:
            here = Stop(state, largest, planes, origin, last_probed)
            loss = float(losses_of(program, inputs, state).value)
            reports.call(Progress(stop, loss, functools.partial(_snapshot, program, here, facts, reports.started)))
    return _Trained(inputs, initial, state, spills, planes, origin, lost)


def _like(state: State, largest: Params, due: dict[str, set[int]], kept_from: int, step: int, steps: int) -> Stop:
    """Return a stop after `step` steps with the structure, shapes and types that it must have."""
    spilled = jax.eval_shape(lambda: [{name: x[name][0].astype(jnp.uint8) for name in due} for x in state.numbers])
    plane = {name: [x[name] for x in spilled] for name in due}
    stops = sorted(stop for stop in set().union(*due.values()) if kept_from < stop <= step)
    planes: dict[int, Any] = {stop: {name: plane[name] for name in due if stop in due[name]} for stop in stops}
    return Stop(state, largest, planes, state.numbers if 0 < kept_from <= step < steps else None, 0)


def _snapshot(program: Program, stop: Stop, facts: Facts, started: float) -> bytes:
    seconds = time.perf_counter() - started
    return snapshots.write(stop, facts, isolated=program.isolated, seconds=seconds)


def _run_back(program: Program, trained: _Trained, first: int, without: LeftOut) -> tuple[bool, Adjoint]:
    """Return whether the way back ended at the same state as training had there, and the adjoint there."""
    inputs, initial, state, spills, planes, origin, _ = trained
    adjoint = start_adjoint(program, inputs, state, without)
    none = [jnp.zeros(x.shape, jnp.uint8) for x in initial]
    for stop in sorted({*planes, first}, reverse=True):
        kept = planes.pop(stop, {})  # taken out, so that its memory is freed
        shifted = _shifted(spills, stop if kept else 0)
        filled = {name: kept.get(name, none) for name in spills}
        state, adjoint = _backward(program, inputs, state, adjoint, stop, shifted, filled)
    return bool(
        _is_start(program, state, initial) if origin is None else _equal(program, state.numbers, origin)
    ), adjoint


def _shifted(spills: dict[str, np.ndarray[Any, Any]], stop: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return by name and group whether contents are shifted before the step `stop`; none are at the start and end."""
    return {name: spill[stop] if stop < len(spill) else np.zeros_like(spill[0]) for name, spill in spills.items()}


def growth_of(norms: list[float]) -> float:
    """Return by what factor the adjoint grew at most on its way back, given its norms."""
    return max(norms) / norms[-1] if norms[-1] else 0.0


def why_useless(gradient: dict[str, Any] | None, norms: list[float]) -> str:
    """Return what is wrong with a gradient, given the adjoint's norms on its way back; "" if it is useful."""
    if gradient is None:
        return MESSAGES[Status.EXPLODED]
    if math.isinf(norms[-1]):
        return "the value is sound, but its gradient is useless: that of the final weights is beyond float32's range"
    growth = growth_of(norms)
    if growth <= MOST_GROWTH:
        return ""
    how = "beyond float32's range" if math.isinf(growth) else f"by a factor of {growth:.0e}"
    return (
        f"the value is sound, but its gradient is useless: it grew {how} on its way back through training, which is "
        "chaotic here; lower the learning rate, or truncate: Reversible(last=...)"
    )


def check_decays(extremes: dict[str, jax.Array]) -> None:
    """Raise `IrreversibleDecayError` where a decay has a value with which training cannot be run backwards."""
    for name, (low, high) in jax.device_get(extremes).items():
        if not bit_buffer.SMALLEST_DECAY <= low <= high <= 1:
            wrong = low if not low >= bit_buffer.SMALLEST_DECAY else high
            raise exact.IrreversibleDecayError(
                f"{name} must be from {bit_buffer.SMALLEST_DECAY} to 1 to train reversibly, got {wrong}; "
                f"use method=Unrolled(){see('irreversible')}"
            )


def _explain(diagnosis: Diagnosis, program: Program, inputs: Inputs, step: int) -> tuple[Status, str]:
    nan, gradient_nan, outside, reach = jax.device_get(diagnosis)
    when = f"at step {step}" if step else "at the start"
    leaves = jax.tree_util.tree_leaves_with_path(nan)
    for (path, found), in_gradient in zip(leaves, jax.tree.leaves(gradient_nan), strict=True):
        if found:
            why = f"there is NaN in the update of params{jax.tree_util.keystr(path)} {when}"
            return Status.NAN, why if in_gradient or not step else f"{why}, {_by_settings(inputs, step)}"
    for name in outside:
        leaves = jax.tree_util.tree_leaves_with_path(outside[name])
        for (path, found), limit in zip(leaves, jax.tree.leaves(reach[name]), strict=True):
            if found:
                return Status.OVERFLOW, (
                    f"{name} of params{jax.tree_util.keystr(path)} left the range of +-{limit:g} {when}; lower the "
                    f"learning rate or scales, or widen the range: "
                    f"Reversible(fraction_bits={{{name!r}: {program.bits[name] - 4}}})"
                )
    raise AssertionError("training ended early for no reason")


def _explain_loss(lost: Unresolved, program: Program, step: int) -> str:
    found, units = jax.device_get(lost)
    for name in found:
        leaves = jax.tree_util.tree_leaves_with_path(found[name])
        for (path, is_coarse), unit in zip(leaves, jax.tree.leaves(units[name]), strict=True):
            if is_coarse:
                finer = min(program.bits[name] + 16, fixed_point.MOST_FRACTION_BITS)
                setting = f", or take a finer unit: Reversible(fraction_bits={{{name!r}: {finer}}})"
                return (
                    f"{name} of params{jax.tree_util.keystr(path)} is too small for its unit of {unit:.0e} at step "
                    f"{step}; scale the loss up{setting if finer > program.bits[name] else ''}"
                )
    raise AssertionError("no number is too coarse")


def _by_settings(inputs: Inputs, step: int) -> str:
    settings = jax.device_get({name: x[step - 1] for name, x in inputs.schedule.settings.items()})
    values = (f"{name} {' and '.join(f'{x:g}' for x in dict.fromkeys(xs.tolist()))}" for name, xs in settings.items())
    return f"and none in its gradient: change the settings, which are {', '.join(values)} there"


# These are the programs that evaluate() puts together. Their shapes do not depend on the values of hyperparameters, so
# that each compiles once for a problem.


@compiled(static=1)
def _begin(
    program: Program, dynamic: dict[str, Any], key: jax.Array
) -> tuple[Inputs, list[jax.Array], State, Params, dict[str, jax.Array]]:
    """Return the inputs, the initial weights as floats, the state, the largest weights, and the range of each decay."""
    init_key, step_key = jax.random.split(key)
    optimizer = program.optimizer
    params, statistics, settings, _ = exact.prepare(program.problem, program.static, dynamic, init_key)
    initial = program.layout.pack(params)
    logs = exact.log_decays(optimizer, settings)
    stretch = functools.reduce(jnp.minimum, map(bit_buffer.stretch, logs.values()))
    schedule, _ = exact.plan_schedule(optimizer, settings, stretch)
    inputs, state = Inputs(dynamic, step_key, schedule, statistics), exact.start(program, initial, statistics)
    return inputs, initial, state, resolution.largest_weights(program, initial), range_of_decays(optimizer, settings)


def range_of_decays(optimizer: AdditiveOptimizer, settings: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return the smallest and the largest value of each decay, shape `(2,)`, by the names that users know."""
    decays = {setting: settings[setting] for setting in optimizer.decays.values()}
    weight_decay = optimizer.weight_decay(settings)
    if weight_decay is not None:
        decays["1 - learning_rate * weight_decay"] = 1 - weight_decay
    return {name: jnp.stack([jnp.min(x), jnp.max(x)]) for name, x in decays.items()}


@compiled(static=1, donate=(2,))
def _forward(
    program: Program, inputs: Inputs, state: State, largest: Params, stop: int, shifted: dict[str, Any], probed: bool
) -> tuple[State, Planes, Params, jax.Array]:
    """Train until `stop`, and then spill the contents that are due.

    Return the state, what was spilled, and, if `probed`, the largest weight of each leaf so far, and whether a number
    may be too coarse or has left its range.
    """
    state = exact.run_forward(program, inputs, state, stop, early=True)
    planes = {}
    for name, now in shifted.items():
        state, planes[name] = exact.spill(program, state, name, now & ~state.outside)

    def probe(state: State, largest: Params) -> tuple[Params, jax.Array]:
        now, doubtful = resolution.probe(program, inputs, state, largest)
        return jax.tree.map(lambda x, y: jnp.where(state.outside, x, y), largest, now), doubtful | state.outside

    def leave(state: State, largest: Params) -> tuple[Params, jax.Array]:
        return largest, jnp.bool_(False)

    return state, planes, *jax.lax.cond(probed, probe, leave, state, largest)


_unresolved = compiled(static=1)(resolution.unresolved)


@compiled(static=1)
def losses_of(program: Program, inputs: Inputs, state: State) -> OuterLosses:
    """Return the outer losses after training."""
    params = program.layout.unpack(exact.judged_weights(program, inputs, state))
    trained = as_returned(program.problem, params, state.statistics)
    return outer_losses(program.problem, trained, {**inputs.dynamic, **dict(program.static)})


@compiled(static=1)
def _diagnose(program: Program, inputs: Inputs, initial: list[jax.Array], state: State) -> Diagnosis:
    diagnosis = exact.diagnose(program, inputs, state)
    start = jax.tree.map(lambda x: jnp.any(jnp.isnan(x)), program.layout.unpack(initial))
    return diagnosis._replace(nan=jax.tree.map(lambda x, y: jnp.where(state.step > 0, x, y), diagnosis.nan, start))


@compiled(static=1)
def start_adjoint(program: Program, inputs: Inputs, state: State, without: LeftOut) -> Adjoint:
    """Return the adjoint at the end of training, of the loss that leaves out a fold."""
    floats, put = split_statistics(state.statistics)

    def fitted(weights: list[jax.Array], floats: list[jax.Array], dynamic: dict[str, Any]) -> jax.Array:
        trained = as_returned(program.problem, program.layout.unpack(weights), put(floats))
        return fitted_loss(program.problem, trained, {**dynamic, **dict(program.static)}, without)

    weights = exact.judged_weights(program, inputs, state)
    gradients = jax.grad(fitted, argnums=(0, 1, 2))(weights, floats, inputs.dynamic)
    return exact.start_adjoint(program, inputs, *gradients)


@compiled(static=1, donate=(2, 3))
def _backward(
    program: Program,
    inputs: Inputs,
    state: State,
    adjoint: Adjoint,
    stop: int,
    shifted: dict[str, Any],
    planes: Planes,
) -> tuple[State, Adjoint]:
    """Undo `_forward` until `stop`, and then unspill the contents that were spilled there."""
    state, adjoint = exact.run_backward(program, inputs, state, adjoint, stop)
    for name, now in shifted.items():
        state = exact.unspill(program, state, name, now, planes[name])
    return state, adjoint


@compiled(static=1)
def _is_start(program: Program, state: State, initial: list[jax.Array]) -> jax.Array:
    return exact.equal(state.numbers, exact.start(program, initial, state.statistics).numbers)


@compiled(static=1)
def _equal(program: Program, numbers: list[Numbers], others: list[Numbers]) -> jax.Array:
    return exact.equal(numbers, others)


@compiled(static=1)
def finish(
    program: Program, adjoint: Adjoint, dynamic: dict[str, Any], key: jax.Array, from_start: bool
) -> dict[str, jax.Array]:
    """Return the hypergradient: it acts through losses, settings and, if `from_start`, the initial weights."""
    init_key, _ = jax.random.split(key)

    def act(dynamic: dict[str, Any]) -> tuple[tuple[list[jax.Array], list[jax.Array]], dict[str, jax.Array]]:
        params, statistics, settings, _ = exact.prepare(program.problem, program.static, dynamic, init_key)
        return (program.layout.pack(params), split_statistics(statistics)[0]), settings

    _, pull_back = jax.vjp(act, dynamic)
    at_start = jax.tree.map(
        lambda x: jnp.where(from_start, x, 0), (exact.initial_adjoint(program, adjoint), adjoint.statistics)
    )
    (through_start,) = pull_back((at_start, adjoint.settings))
    gradient: dict[str, jax.Array] = jax.tree.map(jnp.add, adjoint.hyperparameters, through_start)
    return gradient
