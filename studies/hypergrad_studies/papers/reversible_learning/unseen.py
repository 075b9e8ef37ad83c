"""What hyperparameters are worth: the losses with initial weights and batches that no search has seen."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad_search import Optimizer, TrainingProblem, evaluate, train
from hypergrad_studies.networks import logits
from hypergrad_studies.papers.results import Row
from hypergrad_studies.papers.reversible_learning.scheduled_training import Setup, momentum, problem

RUNS = 10  # losses are means over so many training runs


class Losses(NamedTuple):
    """Means over training runs, NaN where one of them failed; `error` is the misclassified part of the test set."""

    training: Any
    test: Any
    error: Any


def unseen_key(run: int) -> jax.Array:
    """Return the key of a training run; no search has used it."""
    return jax.random.fold_in(jax.random.key(1), 1000 + run)


def judge(
    setup: Setup, optimizer: Callable[[Setup], Optimizer] = momentum, runs: int = RUNS
) -> Callable[[Mapping[str, Any]], Losses]:
    """Return a function from hyperparameters to what they are worth."""
    _, test = jax.tree.map(jnp.asarray, setup.data())

    def wrong(layers: Any) -> jax.Array:
        return jnp.mean(jnp.argmax(logits(layers, test.images), axis=1) != test.labels)

    training = problem(setup, 1, optimizer)

    @jax.jit
    def losses_of(params: Any, hyperparameters: Any) -> Losses:
        test_loss = training.test_loss(params, hyperparameters) if training.test_loss else jnp.nan
        return Losses(training.valid_loss(params, hyperparameters), test_loss, jnp.mean(jax.vmap(wrong)(params)))

    def losses(hyperparameters: Mapping[str, Any]) -> Losses:
        done = [losses_of(train(training, hyperparameters, unseen_key(i)), hyperparameters) for i in range(runs)]
        return Losses(*(float(np.mean(x)) for x in zip(*done, strict=True)))

    return losses


def rows(
    name: str,
    judge: Callable[[Mapping[str, Any]], Losses],
    found: Iterable[Mapping[str, Any]],
    reported: tuple[float | None, float | None, float | None] = (None, None, None),
) -> list[Row]:
    """Return what the finds of a search are worth for each seed, beside the paper's numbers for the same quantities."""
    losses = [judge(hyperparameters) for hyperparameters in found]
    names = ("training loss", "test loss", "test error")
    return [
        Row(f"{name}: {quantity}, unseen seeds", paper, list(mine))
        for quantity, paper, mine in zip(names, reported, zip(*losses, strict=True), strict=True)
    ]


def curve(problem: TrainingProblem, hyperparameters: Mapping[str, Any], every: int = 1) -> list[float]:
    """Return a learning curve: the loss on the whole training set every so many steps of one training run."""
    losses: list[float] = []
    last = evaluate(
        problem,
        hyperparameters,
        key=unseen_key(0),
        gradient_below=-math.inf,
        report=lambda now: losses.append(now.loss),
        report_every=every,
    )
    return [*losses, last.value]
