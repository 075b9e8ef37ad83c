"""`evaluate_batch`: several evaluations of one problem in one program, by `jax.vmap`."""

import math
import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search.checks import number, random_key, shown
from hypergrad_search.cost import REVERSE_STEP, TRAINING_STEP, Cost
from hypergrad_search.determinism import check_device
from hypergrad_search.fold import Fold
from hypergrad_search.hypergradient import reversible
from hypergrad_search.hypergradient.base import (
    Evaluation,
    Request,
    Status,
    as_nested,
    finite_or_none,
    judge,
    trust_after,
)
from hypergrad_search.hypergradient.evaluate import evaluate
from hypergrad_search.hypergradient.reversible import Reversible
from hypergrad_search.hypergradient.without_effect import warn_of_what_has_no_effect
from hypergrad_search.hyperparameters import Static
from hypergrad_search.load_errors import with_errors_of_load
from hypergrad_search.losses import LeftOut, OuterLosses, left_out, outer_losses
from hypergrad_search.nesting import flat
from hypergrad_search.parameters import as_returned
from hypergrad_search.problem import TrainingProblem
from hypergrad_search.programs import compiled
from hypergrad_search.repeatable import checked_split
from hypergrad_search.space import Hyperparameters, NestedSpace, Space
from hypergrad_search.training import exact
from hypergrad_search.training.exact import Program, State
from hypergrad_search.training.train import Residuals, Room, room_of, run_back, smallest_decays_of, train_forward


@with_errors_of_load
def evaluate_batch(
    problem: TrainingProblem,
    hyperparameters: Sequence[Hyperparameters],
    *,
    method: Reversible | None = None,
    key: jax.Array,
    gradient_below: float | Sequence[float] = math.inf,
    fold: Sequence[Fold | None] | None = None,
    space: NestedSpace | None = None,
) -> list[Evaluation]:
    """Train at several hyperparameters at once, as one program on one device; return an `Evaluation` for each.

    A device that one small model leaves idle trains several in little more time. Memory grows with their number. Values
    and gradients are those of `evaluate`, but for the rounding of float32, since matrix products of batches may be
    summed in another order. Each gradient is exact for its own training, whose reversal was checked bit for bit; it is
    computed for all where it is wanted of one, and charged to all.

    Those that share all whole numbers and choices run together, in programs for 1, 2, 4, 8 and so on; places that are
    left over hold copies, whose cost all share. One by one are evaluated, at a cost of their own: those whose training
    fails, so that their status says why; those whose reversal was not exact; and all where training cannot be run
    backwards. A decay below the default of `train`'s `smallest_decays` makes a reversal inexact here.

    Do not use it for models that fill the device by themselves: there it saves nothing.

    Args:
        problem: the training run.
        hyperparameters: a list of dicts from names to values, in natural units.
        method: `Reversible()` by default; its `last` must be None.
        key: one key for all of them, or an array of keys, one for each.
        gradient_below: the value below which the gradient is wanted, for all of them or for each.
        fold: for each of them the fold that is held back, or None.
        space: what each hyperparameter is, as for `evaluate`.

    Raises:
        ValueError: an argument does not fit.
        RuntimeError: the device is a GPU, and XLA_FLAGS do not have `--xla_gpu_deterministic_ops=true`.

    Example:
        >>> from hypergrad_search import evaluate_batch, sgd, TrainingProblem
        >>> problem = TrainingProblem(
        ...     init=lambda key, h: jnp.ones(2),
        ...     train_loss=lambda w, h, batch, key: jnp.sum((w - h["target"]) ** 2),
        ...     valid_loss=lambda w, h: jnp.sum(w**2),
        ...     batches=lambda step: None,
        ...     optimizer=sgd("rate", "momentum"),
        ...     steps=20,
        ... )
        >>> ways = [{"target": t, "rate": 0.1, "momentum": 0.5} for t in (0.0, 0.5, 1.0)]
        >>> [round(e.value, 3) for e in evaluate_batch(problem, ways, key=jax.random.key(0))]
        [0.0, 0.5, 2.0]
    """
    if not isinstance(problem, TrainingProblem):
        raise ValueError(f"evaluate_batch: problem must be a TrainingProblem, got {problem!r}")
    method = Reversible() if method is None else method
    if not isinstance(method, Reversible) or method.last is not None:
        raise ValueError(f"evaluate_batch: method must be a Reversible without last, got {method!r}; or use evaluate")
    box: Space | None = flat(space)
    if box is not space:
        points = [flat(h, box) for h in hyperparameters]
        found_flat = evaluate_batch(
            problem, points, method=method, key=key, gradient_below=gradient_below, fold=fold, space=box
        )
        return [as_nested(evaluation) for evaluation in found_flat]
    members = _members(problem, hyperparameters, key, gradient_below, fold, box)
    found: dict[int, Evaluation] = {}
    for together in _groups(members):
        found |= dict(zip(together, _evaluate([members[i] for i in together], method), strict=True))
    for i, evaluation in found.items():
        if evaluation.gradient is not None:
            warn_of_what_has_no_effect(members[i].problem, members[i].hyperparameters, box, evaluation.gradient)
    return [found[i] for i in range(len(members))]


class _Member(NamedTuple):
    """One of a batch: the problem with its number of steps, and its hyperparameters, whole and split."""

    problem: TrainingProblem
    hyperparameters: Hyperparameters
    dynamic: dict[str, Any]
    static: Static
    key: jax.Array
    request: Request

    def alone(self, method: Reversible) -> Evaluation:
        """Return its evaluation as `evaluate` makes it."""
        return evaluate(
            self.problem,
            self.hyperparameters,
            method=method,
            key=self.key,
            gradient_below=self.request.gradient_below,
            fold=self.request.fold,
            space=self.request.space,
        )


def _members(
    problem: TrainingProblem,
    hyperparameters: Sequence[Hyperparameters],
    key: jax.Array,
    gradient_below: float | Sequence[float],
    fold: Sequence[Fold | None] | None,
    space: Space | None,
) -> list[_Member]:
    if isinstance(hyperparameters, str | dict) or not isinstance(hyperparameters, Sequence):
        raise ValueError(f"evaluate_batch: hyperparameters must be a list of dicts, got {shown(hyperparameters)}")
    n = len(hyperparameters)
    limits = list(gradient_below) if isinstance(gradient_below, Sequence) else [gradient_below] * n
    if len(limits) != n:
        raise ValueError(f"evaluate_batch: gradient_below must be one number or {n}, got {len(limits)}")
    folds = [None] * n if fold is None else list(fold)
    if len(folds) != n:
        raise ValueError(f"evaluate_batch: fold must have one entry for each of {n} hyperparameters, got {len(folds)}")
    for held_back in folds:
        if held_back is not None and not isinstance(held_back, Fold):
            raise ValueError(f"evaluate_batch: fold must have Folds such as Fold(0, of=4) or None, got {held_back!r}")
    return [
        _Member(
            *_split(problem, h, space),
            key,
            Request(number("evaluate_batch: gradient_below", limit), held_back, space=space),
        )
        for h, key, limit, held_back in zip(hyperparameters, _keys(key, n), limits, folds, strict=True)
    ]


def _keys(key: jax.Array, n: int) -> list[jax.Array]:
    """Return `n` keys, given one for all of them, or an array of them."""
    is_raw = isinstance(key, jax.Array) and key.dtype == jnp.uint32  # as jax.random.PRNGKey returns it, shape (2,)
    is_key = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not (is_raw or is_key) or key.ndim != (2 if is_raw else 1):
        return [random_key("evaluate_batch: key", key)] * n
    if len(key) != n:
        raise ValueError(f"evaluate_batch: key must be one key, or an array of {n}, got an array of {len(key)}")
    return list(key)


def _split(
    problem: TrainingProblem, hyperparameters: Hyperparameters, space: Space | None
) -> tuple[TrainingProblem, Hyperparameters, dict[str, Any], Static]:
    of_steps, dynamic, static = checked_split(problem, hyperparameters, space)
    return of_steps, hyperparameters, dynamic, static


def _groups(members: Sequence[_Member]) -> list[list[int]]:
    """Return the places of those that share a program: their problem, plain values and shapes are the same."""
    groups: dict[Any, list[int]] = {}
    for i, member in enumerate(members):
        leaves, structure = jax.tree.flatten(member.dynamic)
        shapes = tuple((x.shape, x.dtype) for x in leaves)
        groups.setdefault((member.problem, member.static, shapes, structure), []).append(i)
    return list(groups.values())


# The problems whose gradient the compiler rounds differently in the two directions of a batch.
_ISOLATED: "weakref.WeakSet[TrainingProblem]" = weakref.WeakSet()


def _evaluate(members: Sequence[_Member], method: Reversible) -> list[Evaluation]:
    """Return the evaluations of members that share a program."""
    first = members[0]
    if len(members) == 1:
        return [first.alone(method)]
    check_device(first.key)
    isolated = first.problem in _ISOLATED or first.problem in reversible.ISOLATED
    try:
        bits = dict(method.fraction_bits)
        program = exact.bind(first.problem, first.static, first.dynamic, bits, isolated=isolated)
    except exact.IrreversibleError:
        return [member.alone(method) for member in members]

    started = time.perf_counter()
    filled = [*members, *[first] * (_power_of_two(len(members)) - len(members))]
    batch = _Batch(
        jax.tree.map(lambda *xs: jnp.stack(xs), *[member.dynamic for member in filled]),
        jnp.stack([member.key for member in filled]),
    )
    trained = _train(program, batch)
    losses = jax.device_get(trained.losses)
    judged = [None if _fails(trained, i) else _judged(m, losses, i) for i, m in enumerate(members)]
    steps = first.problem.steps
    spent = TRAINING_STEP * steps
    gradients: list[Evaluation | None] = judged
    if any(j is not None and m.request.wants_gradient(j) for j, m in zip(judged, members, strict=True)):
        spent += (REVERSE_STEP + (TRAINING_STEP if isolated else 0)) * steps
        without = jax.tree.map(lambda *xs: jnp.stack(xs), *[left_out(m.request.fold) for m in filled])
        reversed_ = jax.device_get(_reverse(program, batch, trained.residuals, without))
        gradients = [_with_gradient(m, j, reversed_, i) for i, (j, m) in enumerate(zip(judged, members, strict=True))]
        fits = jax.device_get(trained.residuals.fits)
        if any(j is not None and fits[i] and not reversed_.exact[i] for i, j in enumerate(judged)):
            _ISOLATED.add(first.problem)
    share = Cost(spent * len(filled) / len(members), (time.perf_counter() - started) / len(members))
    return [
        reversible.charged(member.alone(method) if found is None else found, share)
        for member, found in zip(members, gradients, strict=True)
    ]


def _power_of_two(n: int) -> int:
    """Return the smallest power of two that is not below `n`."""
    return 1 << (n - 1).bit_length()


class _Batch(NamedTuple):
    """The traced hyperparameters and the keys of a batch, with a leading axis for its members."""

    dynamic: dict[str, Any]
    keys: jax.Array


class _TrainedBatch(NamedTuple):
    """The losses of a batch after training, what its way back needs, and the range of each decay."""

    losses: OuterLosses
    residuals: Residuals
    decays: dict[str, jax.Array]


class _ReversedBatch(NamedTuple):
    """Whether each reversal was exact, the norms of its adjoint at each step, and its gradient."""

    exact: jax.Array
    norms: jax.Array
    gradient: dict[str, jax.Array]


def _fails(trained: _TrainedBatch, i: int) -> bool:
    """Return whether member `i` failed, or cannot be run backwards for its decays."""
    try:
        reversible.check_decays({name: x[i] for name, x in trained.decays.items()})
    except exact.IrreversibleDecayError:
        return True
    return bool(trained.residuals.failed[i])


def _judged(member: _Member, losses: OuterLosses, i: int) -> Evaluation:
    judged = judge(jax.tree.map(lambda x: x[i], losses), member.request.fold)
    return replace(judged, diagnostics={"steps": member.problem.steps, "exact": None})


def _with_gradient(member: _Member, judged: Evaluation | None, reversed_: _ReversedBatch, i: int) -> Evaluation | None:
    """Return an evaluation with its gradient, where that is wanted; None where the reversal was not exact."""
    if judged is None or not member.request.wants_gradient(judged):
        return judged
    if not reversed_.exact[i]:
        return None
    gradient = finite_or_none({name: x[i] for name, x in reversed_.gradient.items()})
    norms = np.nan_to_num(reversed_.norms[i], nan=math.inf, posinf=math.inf).tolist()
    why = reversible.why_useless(gradient, norms)
    return replace(
        judged,
        gradient=gradient,
        status=Status.EXPLODED if why else judged.status,
        message=why or judged.message,
        trust=None if gradient is None else trust_after(reversible.growth_of(norms), gradient),
        diagnostics={"steps": member.problem.steps, "exact": True, "adjoint_norms": norms},
    )


#: The axes of the members. They share the number of the step, so that both directions read the same batch of data, and
#: compute with it in the same way.
_AXES = Residuals(State(0, None, 0, 0, 0), 0, 0, 0, 0, 0)  # type: ignore[arg-type]  # axes in place of arrays


def _room(program: Program, settings: dict[str, jax.Array]) -> Room:
    return room_of(program, settings, smallest_decays_of(program, {}))


@compiled(static=1)
def _train(program: Program, batch: _Batch) -> _TrainedBatch:
    def one(dynamic: dict[str, Any], key: jax.Array) -> _TrainedBatch:
        init_key, step_key = jax.random.split(key)
        params, statistics, settings, _ = exact.prepare(program.problem, program.static, dynamic, init_key)
        weights = program.layout.pack(params)
        (weights, statistics), residuals = train_forward(
            program, _room(program, settings), weights, statistics, settings, dynamic, step_key
        )
        trained = as_returned(program.problem, program.layout.unpack(weights), statistics)
        losses = outer_losses(program.problem, trained, {**dynamic, **dict(program.static)})
        return _TrainedBatch(losses, residuals, reversible.range_of_decays(program.optimizer, settings))

    return jax.vmap(one, out_axes=_TrainedBatch(0, _AXES, 0))(*batch)  # type: ignore[arg-type]  # axes in place of arrays


@compiled(static=1)
def _reverse(program: Program, batch: _Batch, residuals: Residuals, without: LeftOut) -> _ReversedBatch:
    def one(dynamic: dict[str, Any], key: jax.Array, residuals: Residuals, without: LeftOut) -> _ReversedBatch:
        init_key, _ = jax.random.split(key)
        _, _, settings, _ = exact.prepare(program.problem, program.static, dynamic, init_key)
        final = reversible.start_adjoint(program, residuals.inputs, residuals.state, without)
        is_exact, adjoint = run_back(program, _room(program, settings), residuals, final)
        gradient = reversible.finish(program, adjoint, dynamic, key, True)
        return _ReversedBatch(is_exact & residuals.fits & ~residuals.failed, adjoint.norms, gradient)

    return jax.vmap(one, in_axes=(0, 0, _AXES, 0))(*batch, residuals, without)
