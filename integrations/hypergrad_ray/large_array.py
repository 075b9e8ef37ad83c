"""`LargeArray`: an ndarray that Ray's logs show in one line, and that the state of a run only names."""

import hashlib
import os
import pickle
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from pyarrow import fs
from ray import cloudpickle
from ray._private.worker import global_worker

LARGE = 1000  # numpy shows arrays with more elements than this in short

#: Where this process has met arrays of runs, the latest place last.
_places: list[tuple[fs.FileSystem, str]] = []


@dataclass
class Home:
    """The folder where the large arrays of a run are files; None until Ray has told it."""

    folder: Path | None = None

    def take(self, values: Mapping[str, Any]) -> None:
        """Let the large arrays among these values, and in dicts among them, be files of this folder."""
        for value in values.values():
            if isinstance(value, LargeArray):
                value.home = self
            elif isinstance(value, Mapping):
                self.take(value)


class LargeArray(np.ndarray):
    """An ndarray in every respect, but that Ray logs it as text such as `[0.1 0.2 ... 0.9]`.

    Ray writes each number of an ndarray itself into `params.json` and `result.json`, which takes seconds for a million.
    It also pickles every config and result several times into the state of its experiment. There an array with a
    `home` is the name of a file in that folder; files are named by their content, so that each array is written once.
    What is computed from a large array is a plain ndarray.
    """

    home: Home | None

    def __array_finalize__(self, array: Any) -> None:
        self.home = getattr(array, "home", None)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else np.asarray(array)


@dataclass(frozen=True)
class StoredArray(np.lib.mixins.NDArrayOperatorsMixin):
    """A large array in a run that was restored, or in a function that Ray sends to a worker.

    `numpy.asarray`, arithmetic and numpy's functions read its numbers from the folder of its run, wherever that is now,
    or else from `folder`, where it was. Where it is an argument, Ray's workers are sent the array itself. Raises
    `FileNotFoundError` where no folder has it.
    """

    name: str
    folder: str = ""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.array(self.load(), dtype=dtype)

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **settings: Any) -> Any:
        read = [np.asarray(x) if isinstance(x, StoredArray) else x for x in inputs]
        return getattr(function, method)(*read, **settings)

    def load(self) -> LargeArray:
        """Return the array."""
        places = [*reversed(_places), (fs.LocalFileSystem(), self.folder)]
        for filesystem, folder in places:
            path = f"{folder}/{self.name}"
            if filesystem.get_file_info(path).type == fs.FileType.File:
                with filesystem.open_input_stream(path) as file:
                    array: np.ndarray[Any, Any] = pickle.loads(file.readall())
                return array.view(LargeArray)
        raise FileNotFoundError(
            f"the array {self.name} is in none of the folders {[folder for _, folder in places]}; restore its run by "
            "tune.Tuner.restore, or give the run's results to best_hyperparameters"
        )


def in_short(value: Any) -> Any:
    """Return a value, in which arrays of more than 1000 numbers are short in Ray's logs and in the state of a run.

    Use it for what a trainable of your own reports: `tune.report({"loss": loss, "gradient": in_short(gradient)})`. A
    large array, of NumPy or JAX, becomes an ndarray. In a dict, each value is treated; all others stay as they are.

    Example:
        >>> import numpy as np
        >>> from hypergrad_ray import in_short
        >>> str(in_short({"x": np.zeros(2000), "rate": 0.1})["x"])
        '[0. 0. 0. ... 0. 0. 0.]'
    """
    if isinstance(value, Mapping):
        return {name: in_short(each) for name, each in value.items()}
    if isinstance(value, np.ndarray | jax.Array) and value.size > LARGE:
        return np.asarray(value).view(LargeArray)
    return value


def read_from(filesystem: fs.FileSystem, folder: str) -> None:
    """Look into this folder too where a `StoredArray` is read."""
    place = filesystem, folder
    if place in _places:
        _places.remove(place)
    _places.append(place)


def _is_sent() -> bool:
    """Return whether Ray pickles for another process, and not for a file."""
    # Ray tells only here for what it pickles.
    if not global_worker.connected:
        return False
    context = global_worker.get_serialization_context()  # type: ignore[no-untyped-call]  # Ray's is not typed
    return bool(context.is_in_band_serialization())


def _reduced(array: LargeArray) -> Any:
    if _is_sent():
        return _received, (np.asarray(array),)
    folder = None if array.home is None else array.home.folder
    if folder is None or not folder.exists():
        return array.__reduce__()
    content = pickle.dumps(np.asarray(array), protocol=5)
    # Ray copies files with this ending along with the state of a run, in both directions.
    name = f"array-{hashlib.blake2b(content, digest_size=16).hexdigest()}.pkl"
    if not (folder / name).exists():
        unfinished = folder / f".{uuid.uuid4()}-tmp"
        unfinished.write_bytes(content)
        os.replace(unfinished, folder / name)
    return StoredArray, (name, str(folder))


def _reduced_name(stored: StoredArray) -> Any:
    return (_received, (np.asarray(stored),)) if _is_sent() else (StoredArray, (stored.name, stored.folder))


def _received(array: np.ndarray[Any, Any]) -> LargeArray:
    """Return a copy of an array, which lies in memory that Ray's processes share and that cannot be written to."""
    return np.array(array).view(LargeArray)


# These are for the pickles that Ray's cloudpickle makes. In others, such as those of Python, an array is whole.
cloudpickle.CloudPickler.dispatch[LargeArray] = _reduced
cloudpickle.CloudPickler.dispatch[StoredArray] = _reduced_name
