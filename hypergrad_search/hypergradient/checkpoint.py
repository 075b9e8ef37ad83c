"""The checkpoints of `Hypernet`: an npz file as bytes, with the arrays of a stretch and a fingerprint of what fits."""

import io
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search.hypergradient.stretch import Setup, State


def save(setup: Setup, state: State) -> bytes:
    """Return a state as the bytes of an npz file."""
    file = io.BytesIO()
    arrays = map(np.asarray, jax.tree.leaves(state))
    np.savez(file, *arrays, fingerprint=np.array(_fingerprint(setup, state)))
    return file.getvalue()


def load(setup: Setup, checkpoint: bytes, like: State) -> State:
    """Return the state that `save` was given; `like` has its structure and shapes.

    Raises `ValueError` where the bytes are not a checkpoint, or belong to another problem, space or method.
    """
    try:
        with np.load(io.BytesIO(checkpoint)) as file:
            same = str(file["fingerprint"]) == _fingerprint(setup, like)
            saved = [jnp.asarray(file[name]) for name in file.files if name != "fingerprint"]
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError("evaluate: checkpoint must be bytes that Hypernet has written; start without one") from error
    if not same:
        raise ValueError("evaluate: checkpoint is of another problem, space or Hypernet; start without one")
    state: State = jax.tree.unflatten(jax.tree.structure(like), saved)
    return state


def _fingerprint(setup: Setup, state: State) -> str:
    """Return all that must be the same where a checkpoint is written and where it is read."""
    box = [(name, p.low, p.high, p.log, p.shape) for name, p in setup.parameters]
    arrays = [(x.shape, str(x.dtype)) for x in jax.tree.leaves(state)]
    return repr((box, type(setup.network).__name__, setup.algorithm.centred, arrays))
