"""The checkpoints of methods that continue: an npz file as bytes, with arrays and a fingerprint of what fits them."""

import io
import zipfile
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

State = TypeVar("State")


def save(facts: tuple[Any, ...], state: Any) -> bytes:
    """Return a pytree of arrays as the bytes of an npz file; `facts` are what must be the same where it is read."""
    file = io.BytesIO()
    arrays = map(np.asarray, jax.tree.leaves(state))
    np.savez(file, *arrays, fingerprint=np.array(_fingerprint(facts, state)))
    return file.getvalue()


def load(owner: str, facts: tuple[Any, ...], checkpoint: bytes, like: State) -> State:
    """Return the state that `save` was given; `like` has its structure and shapes, and errors name `owner`.

    Raises `ValueError` where the bytes are not a checkpoint, or belong to another problem, space or method.
    """
    try:
        with np.load(io.BytesIO(checkpoint)) as file:
            same = str(file["fingerprint"]) == _fingerprint(facts, like)
            saved = [jnp.asarray(file[name]) for name in file.files if name != "fingerprint"]
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"evaluate: checkpoint must be bytes that {owner} has written; start without one") from error
    if not same:
        raise ValueError(f"evaluate: checkpoint is of another problem, space or {owner}; start without one")
    state: State = jax.tree.unflatten(jax.tree.structure(like), saved)
    return state


def _fingerprint(facts: tuple[Any, ...], state: Any) -> str:
    arrays = [(x.shape, str(x.dtype)) for x in jax.tree.leaves(state)]
    return repr((*facts, arrays))
