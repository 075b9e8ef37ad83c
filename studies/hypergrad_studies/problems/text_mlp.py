"""text-mlp: 7 hyperparameters of a tanh network that tells the next character from 12, 120 steps on the Book of Esther.

`esther.txt` has a verse a line, in the King James Version, which is in the public domain; it was taken from the package
`bible-kjv-text` of Debian.
"""

import functools
import math
from importlib.resources import files
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search import Float, Space, TrainingProblem, adamw
from hypergrad_studies.networks import Split, cross_entropy, in_turn, network

BATCH = 500
TRAIN, VALID = 20_000, 4_000  # characters to guess; what follows them is for the test
CONTEXT = 12
EMBEDDING, HIDDEN = 16, 100
STEPS = 120

Params = dict[str, Any]

SPACE: Space = {
    "learning_rate": Float(1e-4, 1e-1, log=True),
    "b1": Float(0.5, 0.99),
    **{f"decay_{name}": Float(1e-4, 1.0, log=True) for name in ("embedding", "hidden", "last")},
    "noise": Float(0.0, 1.0),
    "init_scale": Float(1e-1, 10.0, log=True),
}


@functools.cache
def text() -> str:
    """Return the whole book in small letters."""
    return files("hypergrad_studies.problems").joinpath("esther.txt").read_text(encoding="ascii").lower()


@functools.cache
def alphabet() -> str:
    """Return the 36 characters that the text has, each of which is known by its place here."""
    return "".join(sorted(set(text())))


@functools.cache
def splits() -> tuple[Split, Split, Split]:
    """Return training, validation and test sets, which follow each other in the text and share no character.

    An example is the numbers of 12 characters, shape `(n, 12)`, and of the next one. Those of the training set are
    shuffled by a fixed seed.
    """
    numbers = np.array([alphabet().index(character) for character in text()], np.int32)
    windows = np.lib.stride_tricks.sliding_window_view(numbers, CONTEXT + 1)
    valid, test = TRAIN + CONTEXT, TRAIN + VALID + 2 * CONTEXT  # where they start
    shuffled = np.random.default_rng(0).permutation(windows[:TRAIN])
    return _split(shuffled), _split(windows[valid : valid + VALID]), _split(windows[test:])


def _split(windows: np.ndarray[Any, Any]) -> Split:
    return Split(windows[:, :-1], windows[:, -1])


def batches(step: jax.Array) -> Split:
    return in_turn(splits()[0], step, BATCH)


def init(key: jax.Array, hyperparameters: dict[str, Any]) -> Params:
    """Return embeddings with a standard deviation of 1, and layers with `init_scale` over the root of their inputs."""
    of_embedding, of_layers = jax.random.split(key)
    sizes = (CONTEXT * EMBEDDING, HIDDEN, len(alphabet()))
    scales = [hyperparameters["init_scale"] / math.sqrt(inputs) for inputs in sizes[:-1]]
    hidden, last = network(of_layers, sizes, scales)
    embedding = jax.random.normal(of_embedding, (len(alphabet()), EMBEDDING))
    return {"embedding": embedding, "hidden": hidden, "last": last}


def losses(params: Params, data: Split, factors: Any = 1.0) -> jax.Array:
    """Return the cross-entropy of each next character, in nats; `factors` multiply what the hidden layer is given."""
    inputs = params["embedding"][data.images].reshape(-1, CONTEXT * EMBEDDING) * factors
    return cross_entropy([params["hidden"], params["last"]], Split(inputs, data.labels))


def train_loss(params: Params, hyperparameters: dict[str, Any], batch: Split, key: jax.Array) -> jax.Array:
    """Return the mean loss under Gaussian dropout: each input is multiplied by 1 and normal noise of size `noise`."""
    factors = 1 + hyperparameters["noise"] * jax.random.normal(key, (BATCH, CONTEXT * EMBEDDING))
    return jnp.mean(losses(params, batch, factors))


def valid_loss(params: Params, hyperparameters: dict[str, Any]) -> jax.Array:
    return losses(params, splits()[1])


def test_loss(params: Params, hyperparameters: dict[str, Any]) -> jax.Array:
    return losses(params, splits()[2])


def problem() -> tuple[TrainingProblem, Space]:
    """Return the problem and its space."""
    layers = {name: {"weights": f"decay_{name}", "biases": 0.0} for name in ("hidden", "last")}
    return (
        TrainingProblem(
            init=init,
            train_loss=train_loss,
            valid_loss=valid_loss,
            test_loss=test_loss,
            batches=batches,
            optimizer=adamw("learning_rate", "b1", weight_decay={"embedding": "decay_embedding", **layers}),
            steps=STEPS,
        ),
        SPACE,
    )
