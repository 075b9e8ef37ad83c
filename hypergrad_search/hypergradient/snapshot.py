"""The snapshots of `Reversible`: an npz file as bytes, with all of training at a stop, and what it belongs to."""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search.checks import shown
from hypergrad_search.problem import Params
from hypergrad_search.training.exact import Inputs, Numbers, Planes, Program, State
from hypergrad_search.trouble import see

_HEADER = "header"
_REMEDY = "start without a snapshot, or give evaluate all that it was given when the snapshot was taken" + see(
    "snapshot"
)

Facts = dict[str, Any]  # what JSON can hold


class SnapshotError(ValueError):
    """A snapshot does not belong to the evaluation that should go on from it."""


class Stop(NamedTuple):
    """All that the rest of an evaluation needs, at a step where training has stopped.

    `largest` are the largest weights so far, `planes` holds the bits that were shifted out, by step, and `origin` the
    numbers at the step where the way back ends, if training has passed it. `last_probed` is the last step after which
    the resolution was probed.
    """

    state: State
    largest: Params
    planes: dict[int, Planes]
    origin: list[Numbers] | None
    last_probed: int


class Snapshot(NamedTuple):
    """What is in the bytes of a snapshot: the arrays of a `Stop`, and all that is not an array.

    `isolated` is that of the program, `seconds` is the time that the evaluation has taken so far, and `spilled` are the
    steps at which bits were shifted out that are in the snapshot.
    """

    arrays: Mapping[str, np.ndarray[Any, Any]]
    facts: Facts
    step: int
    last_probed: int
    isolated: bool
    seconds: float
    spilled: list[int]


def facts_of(program: Program, inputs: Inputs, key: jax.Array, initial: list[jax.Array], reversed_steps: int) -> Facts:
    """Return what must be the same where a snapshot is taken and where it is used.

    Initial parameters and settings may differ in their last bits, as they do between kinds of processors. A reversal
    that is inexact for it is noticed.
    """
    params = jax.tree_util.tree_leaves_with_path(jax.eval_shape(program.layout.unpack, initial))
    statistics = jax.tree_util.tree_leaves_with_path(inputs.statistics)
    raw_key = key if jnp.issubdtype(key.dtype, jnp.integer) else jax.random.key_data(key)
    hyperparameters = {name: _of_value(value) for name, value in program.static}
    hyperparameters |= {name: _digest(value) for name, value in inputs.dynamic.items()}
    return {
        "steps": program.problem.steps,
        "the optimizer": program.optimizer.name,
        "the shapes of the parameters": {jax.tree_util.keystr(path): list(x.shape) for path, x in params},
        "the shapes of the statistics": {jax.tree_util.keystr(path): list(x.shape) for path, x in statistics},
        "fraction_bits": dict(program.bits),
        "hyperparameters": hyperparameters,
        "key": _digest(raw_key),
        "the number of steps to reverse (gradient_below, last)": reversed_steps,
        "the sizes of the initial parameters": [_size(x) for x in initial],
        "the sizes of the optimizer's settings": {name: _size(x) for name, x in inputs.schedule.settings.items()},
    }


def write(stop: Stop, facts: Facts, *, isolated: bool, seconds: float) -> bytes:
    """Return a snapshot as the bytes of an npz file; raise `RuntimeError` where training has gone on since."""
    if any(x.is_deleted() for x in jax.tree.leaves(stop.state)):
        raise RuntimeError("Progress.snapshot: training has gone on since; call it before report returns")
    step = int(stop.state.step)
    header = {
        "facts": facts,
        "step": step,
        "last_probed": stop.last_probed,
        "isolated": isolated,
        "seconds": seconds,
        "spilled": sorted(stop.planes),
    }
    # The file is read with no need of the problem's own types: each array has the name of its place.
    arrays = {name: np.asarray(_raw(x)) for name, x in _by_place(_tree(stop, step)).items()}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **{_HEADER: np.array(json.dumps(header))}, **arrays)
    return file.getvalue()


def read(snapshot: bytes) -> Snapshot:
    """Return what is in a snapshot; raise `SnapshotError` where the bytes are none."""
    try:
        with np.load(io.BytesIO(snapshot)) as file:
            header = json.loads(str(file[_HEADER]))
            arrays = {name: file[name] for name in file.files if name != _HEADER}
        return Snapshot(arrays=arrays, **header)
    except (ValueError, TypeError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise SnapshotError(
            f"evaluate: snapshot must be bytes that Progress.snapshot has returned, got {shown(snapshot)}; "
            f"start without a snapshot{see('snapshot')}"
        ) from error


def stop_of(snapshot: Snapshot, facts: Facts, like: Stop) -> Stop:
    """Return the stop where a snapshot was taken; `like` has its structure, shapes and types.

    Raises `SnapshotError` where the facts are not the same, or an array is missing.
    """
    check(snapshot, facts)
    structure = jax.tree.structure(_tree(like, snapshot.step))
    places = _by_place(_tree(like, snapshot.step))
    found = snapshot.arrays
    wrong = [name for name, x in places.items() if name not in found or found[name].shape != _raw(x).shape]
    if wrong or found.keys() != places.keys():
        raise SnapshotError(f"evaluate: snapshot lacks {wrong or 'nothing, but has more than it should'}; {_REMEDY}")
    state, largest, planes, origin = jax.tree.unflatten(
        structure, [_like(found[name], x) for name, x in places.items()]
    )
    record = [x.at[: snapshot.step].set(past) for x, past in zip(like.state.record, state.record, strict=True)]
    return Stop(state._replace(record=record), largest, planes, origin, snapshot.last_probed)


def check(snapshot: Snapshot, facts: Facts) -> None:
    """Raise `SnapshotError` where the facts of a snapshot are not these."""
    for name, now in facts.items():
        _check(name, snapshot.facts.get(name), now)


def _tree(stop: Stop, step: int) -> tuple[State, Params, dict[int, Planes], list[Numbers] | None]:
    """Return the arrays of a stop, without the part of the record that is to come."""
    past = [x[:step] for x in stop.state.record]
    return stop.state._replace(record=past), stop.largest, stop.planes, stop.origin


def _by_place(tree: Any) -> dict[str, jax.Array]:
    return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _raw(x: jax.Array) -> jax.Array:
    """Return an array that numpy knows, since it does not know JAX's keys."""
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def _like(found: np.ndarray[Any, Any], like: jax.Array) -> jax.Array:
    raw = _raw(like)
    # numpy writes types that it does not know, such as bfloat16, as plain bytes.
    typed = found.view(raw.dtype) if found.dtype.kind == "V" else found.astype(raw.dtype)
    array: jax.Array = jax.device_put(typed, may_alias=False)  # it will be donated
    return array if raw is like else jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))


def _check(name: str, before: Any, now: Any) -> None:
    if isinstance(now, dict) and isinstance(before, dict):
        different = [key for key in {**before, **now} if not _same(before.get(key), now.get(key))]
        if different:
            raise SnapshotError(
                f"evaluate: snapshot is of another evaluation: {name} differ: {shown(different)}; {_REMEDY}"
            )
    elif not _same(before, now):
        raise SnapshotError(
            f"evaluate: snapshot is of another evaluation: {name}: it has {shown(before)}, and needs {shown(now)}; "
            f"{_REMEDY}"
        )


def _same(before: Any, now: Any) -> bool:
    if isinstance(now, float) and isinstance(before, float):
        return bool(np.isclose(before, now, rtol=1e-4, atol=0.0, equal_nan=True))
    if isinstance(now, list) and isinstance(before, list):
        return len(before) == len(now) and all(map(_same, before, now))
    return bool(before == now)


def _digest(value: Any) -> str:
    array = np.asarray(value)
    return hashlib.blake2b(f"{array.dtype}{array.shape}".encode() + array.tobytes(), digest_size=16).hexdigest()


def _of_value(value: Any) -> str:
    """Return a text for a plain value; one of a type that may show an address is known by its name alone."""
    if value is None or isinstance(value, bool | int | float | str | np.generic):
        return str(value)
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _size(x: jax.Array) -> float:
    return float(np.sum(np.abs(np.asarray(x, np.float64))))
