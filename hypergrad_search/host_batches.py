"""`HostBatches`: minibatches that the host loads while the device trains."""

import functools
import os
import threading
import weakref
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search.checks import check_arguments, shown, whole_number
from hypergrad_search.load_errors import note, told, with_errors_of_load
from hypergrad_search.read_ahead import ReadAhead

Array = np.ndarray[Any, Any]
Leaves = tuple[Array, ...]

_REMEDY = (
    "index the data by the step alone, without an iterator or a generator that goes on from call to call: "
    "rng = np.random.default_rng((seed, step)); rows = rng.integers(0, len(data), size)"
)


@final
class HostBatches:
    """Minibatches that a function on the host loads during training: from files, databases, or any Python code.

    An instance is called with a step that JAX traces, so it can be a problem's `batches`, or a part of it:
    `batches=HostBatches(load)`, or `batches=lambda step: augmented(host(step))`. It works with every method, in both
    directions, in `train`, and under `jax.jit` and `jax.vmap`. Exact reversal stays exact.

    Example, with images in a file that is larger than memory:
        >>> import numpy as np
        >>> from hypergrad_search import HostBatches
        >>> images = np.lib.format.open_memmap("images.npy", mode="w+", dtype=np.uint8, shape=(1000, 28, 28))
        >>> def load(step):
        ...     rows = np.random.default_rng((0, step)).integers(0, len(images), 100)
        ...     return {"images": images[np.sort(rows)]}
        >>> host = HostBatches(load)
        >>> batches = lambda step: host(step)["images"] / 255.0  # the device is sent bytes, and makes floats of them
        >>> batches(3).shape
        (100, 28, 28)

    A data set of PyTorch or a source of Grain is indexed likewise, by rows that the step decides:
    `np.stack([dataset[int(i)][0] for i in rows])`. For epochs in shuffled order take
    `epoch, at = divmod(step, n // size)` and `order = np.random.default_rng((seed, epoch)).permutation(n)`, of which
    `order[at * size : (at + 1) * size]` are the rows; where n is large, keep the order of the last epoch.

    What load must do: it returns the same batch for the same step, bit for bit, however often and in whatever order
    it is called: the way back asks for all batches again. A checksum of each batch is kept, about 100 bytes a step, and
    a batch that differs from an earlier one of its step ends in an error. So that a loader that goes on from call to
    call is found before training, step 0 is loaded twice at first. All batches have the shapes and types of step 0's.
    As for any array that JAX is given, float64 becomes float32 where 64-bit types are off. What is returned is copied,
    so its memory may be used again.

    Threads: one thread makes all calls of `load`, one after the other, so `load` need not be thread-safe. While the
    device trains, this thread loads the next `ahead` steps, in the direction in which training runs: backwards in the
    reverse pass. It does not know where training ends, and may load `ahead` steps beyond; what goes wrong there is
    ignored. Where a batch takes longer to load than a step takes to train, the device waits, unless `load` has threads
    or processes of its own. `load` must not use JAX, which may be waiting for it.

    Memory: the host keeps `ahead + 1` batches for each place where an evaluation has read within the last 16 reads:
    one place for each evaluation that runs, and one more after a jump, as between two evaluations or, with `Unrolled`,
    between two checkpoints. The last ones are kept until the instance is forgotten.

    Errors: what `load` raises is raised by `evaluate`, `train` and `Method.params` as it is, with a note that names
    the step. It ends a study, since it does not depend on a trial's values. Inside of the caller's own `jax.jit` it is
    an error of JAX that has its text.

    Other processes: an instance can be pickled where `load` can, without batches and checksums. A memory-mapped
    array is pickled with all its data, so call `np.load(path, mmap_mode="r")` inside of `load` where the problem is
    sent to other processes, as by Ray Tune. JAX's compilation cache on disk keeps no programs that load from the host,
    so each process compiles them.

    Do not use it for data that fit the device's memory: an array of JAX that is indexed by the step is faster, since
    each step here takes a call of Python and copies, 0.1 to 0.2 ms for small batches.

    Args:
        load: a function `load(step)`, where `step` is an int from 0, that returns a pytree of numpy arrays. With
            `Hypernet`, `OnePass` and `RealTime`, which go on from checkpoints, steps go beyond the problem's `steps`.
        ahead: the number of steps that are loaded ahead, from 0. With 0 the device waits for each batch.

    Raises:
        ValueError: an argument does not fit, or, once batches are loaded, a batch is not made of numpy arrays, has
            other shapes or types than that of step 0, or differs from an earlier one of its step.
    """

    def __init__(self, load: Callable[[int], Any], *, ahead: int = 8) -> None:
        if not callable(load):
            raise ValueError(f"HostBatches: load must be a function of the step, got {shown(load)}")
        check_arguments("HostBatches: load", load, ("step",))
        self.load = load
        self.ahead = whole_number("HostBatches: ahead", ahead, 0)
        self._source = _Source(load)
        self._lock = threading.Lock()
        self._reader: ReadAhead[Leaves] | None = None
        self._process = os.getpid()

    @with_errors_of_load
    def __call__(self, step: jax.Array | int) -> Any:
        """Return the batch of a step as arrays of JAX; `step` is a whole number from 0, shape `()`, traced or not."""
        is_whole = isinstance(step, int | np.integer | np.ndarray | jax.Array) and jnp.issubdtype(
            jnp.result_type(step), jnp.integer
        )
        if not is_whole or jnp.shape(step):
            raise ValueError(f"HostBatches: step must be one whole number, traced or not, got {shown(step)}")
        return self._batch(step)

    def __reduce__(self) -> Any:
        return functools.partial(HostBatches, ahead=self.ahead), (self.load,)

    def _batch(self, step: jax.Array | int) -> Any:
        if self._source.kind is None:
            self._here().get(0)
        kind = self._source.kind
        assert kind is not None  # nothing can be loaded without it
        types = tuple(jax.dtypes.canonicalize_dtype(dtype) for dtype in kind.types)
        sent = [
            jax.ShapeDtypeStruct(*_kind_sent(*leaf))  # type: ignore[no-untyped-call]  # JAX has no types here
            for leaf in zip(kind.shapes, types, strict=True)
        ]
        leaves = jax.pure_callback(_Fetch(self, types), sent, step, vmap_method="sequential")
        return jax.tree.unflatten(kind.structure, map(_received, leaves, types))

    def _here(self) -> ReadAhead[Leaves]:
        """Return this process's reader, since a fork inherits no threads."""
        with self._lock:
            if self._reader is None or self._process != os.getpid():
                self._reader, self._process = ReadAhead(self._source, self.ahead), os.getpid()
                # The thread refers to the reader, and must not keep the instance.
                weakref.finalize(self, self._reader.close).atexit = False
            return self._reader


class _Kind(NamedTuple):
    """What all batches have in common: the structure, and the shape and type of each array."""

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    types: tuple[np.dtype[Any], ...]


class _Source:
    """The user's `load`, with checks of what it returns. The first call loads step 0 once more."""

    def __init__(self, load: Callable[[int], Any]) -> None:
        self.kind: _Kind | None = None  # that of step 0, once it was loaded
        self._load = load
        self._checksums: dict[int, int] = {}

    def __call__(self, step: int) -> Leaves:
        try:
            kind, checksums = self.kind, self._checksums
            if kind is None:
                first, kind = self._read(0)
                checksums = {0: _checksum(first)}
            leaves, of_leaves = self._read(step)
            _check_kind(step, of_leaves, kind)
            found = _checksum(leaves)
            if checksums.setdefault(step, found) != found:
                raise ValueError(f"HostBatches: load({step}) returned another batch than before; {_REMEDY}")
            self.kind, self._checksums = kind, checksums
        except BaseException as error:
            note(error, step)
            raise
        return leaves

    def _read(self, step: int) -> tuple[Leaves, _Kind]:
        """Return copies of the arrays of a batch: reading a mapped file takes place here, and memory may be reused."""
        batch = self._load(step)
        leaves, structure = jax.tree.flatten(batch)
        if not leaves:
            raise ValueError(f"HostBatches: load({step}) must return numpy arrays, got {shown(batch)}")
        for i, leaf in enumerate(leaves):
            wrong = _what_is_wrong_with(leaf)
            if wrong is not None:
                raise ValueError(
                    f"HostBatches: {_name(step, structure, i)} must be a numpy array of numbers, got {wrong}"
                )
        copies = tuple(np.array(leaf, dtype=leaf.dtype.newbyteorder("="), order="C") for leaf in leaves)
        return copies, _Kind(structure, tuple(x.shape for x in copies), tuple(x.dtype for x in copies))


def _what_is_wrong_with(leaf: Any) -> str | None:
    if isinstance(leaf, jax.Array):  # it is not shown, since showing it would wait for JAX
        return "an array of JAX; JAX waits for load, so use numpy in it"
    if not isinstance(leaf, np.ndarray | np.generic):
        return f"{shown(leaf)}; np.asarray makes an array of it"
    if not (jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == np.bool_):
        return f"dtype {leaf.dtype}; encode it as numbers"
    return None


def _name(step: int, structure: Any, i: int) -> str:
    """Return how an array of a batch is written, such as `load(3)['images']`."""
    paths = jax.tree_util.tree_leaves_with_path(jax.tree.unflatten(structure, range(structure.num_leaves)))
    return f"load({step}){jax.tree_util.keystr(paths[i][0])}"


def _check_kind(step: int, found: _Kind, wanted: _Kind) -> None:
    if found.structure != wanted.structure:
        raise ValueError(
            f"HostBatches: load({step}) must return the same structure as load(0), {wanted.structure}, "
            f"got {found.structure}"
        )
    of_arrays = zip(found.shapes, found.types, wanted.shapes, wanted.types, strict=True)
    for i, (shape, dtype, first_shape, first_dtype) in enumerate(of_arrays):
        if (shape, dtype) != (first_shape, first_dtype):
            raise ValueError(
                f"HostBatches: {_name(step, found.structure, i)} must have shape {first_shape} and dtype "
                f"{first_dtype}, as load(0) has, got {shape} and {dtype}; where the last batch of an epoch is smaller, "
                "leave it out, or fill it up: rows = (size * step + np.arange(size)) % len(data)"
            )


def _checksum(leaves: Leaves) -> int:
    return functools.reduce(lambda so_far, x: zlib.crc32(x.reshape(-1).view(np.uint8).data, so_far), leaves, 0)


@dataclass(frozen=True)
class _Fetch:
    """The function that JAX calls; equal ones share what JAX has compiled."""

    host: HostBatches
    types: tuple[np.dtype[Any], ...]

    def __call__(self, step: Any) -> list[Array]:
        at = int(np.asarray(step))
        try:
            if at < 0:
                raise ValueError(f"HostBatches: step must be from 0, got {at}")
            leaves = self.host._here().get(at)
        except BaseException as error:
            raise told(error, at) from None
        return [_sent(x.astype(dtype, copy=False)) for x, dtype in zip(leaves, self.types, strict=True)]


# JAX refuses 64-bit numbers of a callback in a thread where they are off. It chooses the thread, and the context
# `jax.enable_x64` holds for the caller's thread alone. So these numbers are sent as pairs of 32-bit ones.


def _is_wide(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iuf" and dtype.itemsize == 8


def _kind_sent(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[tuple[int, ...], Any]:
    return ((*shape, 2), np.uint32) if _is_wide(dtype) else (shape, dtype)


def _sent(x: Array) -> Array:
    return x.reshape(*x.shape, 1).view(np.uint32) if _is_wide(x.dtype) else x


def _received(x: jax.Array, dtype: np.dtype[Any]) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, dtype) if _is_wide(dtype) else x
