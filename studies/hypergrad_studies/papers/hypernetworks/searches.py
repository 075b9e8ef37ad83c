"""The searches that the hypernetwork studies compare, each as an iterator of its evaluations.

No search ends by itself, except that a hypernetwork's search ends when one of its evaluations fails.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optuna

from hypergrad_optuna import Objective
from hypergrad_optuna.attributes import STATUS, TEST_LOSS
from hypergrad_search import Hypernet, Space, TrainingProblem, Unrolled, evaluate
from hypergrad_search.hypergradient import Evaluation
from hypergrad_search.space import dimension, from_unit
from hypergrad_studies.papers.hypernetworks.penalised import alike


@dataclass(frozen=True)
class Attempt:
    """One evaluation of a search: the hyperparameters that it tried, the losses there, and how it ended."""

    hyperparameters: dict[str, Any]
    value: float
    test: float
    status: str


def train(problem: TrainingProblem, hyperparameters: dict[str, Any], seed: int) -> Attempt:
    """Train a model from scratch, in floats."""
    done = evaluate(problem, hyperparameters, method=Unrolled(), key=jax.random.key(seed), gradient_below=-math.inf)
    return attempt(hyperparameters, done)


def attempt(hyperparameters: dict[str, Any], done: Evaluation) -> Attempt:
    """Return an evaluation as an attempt; its test loss is NaN where there is none."""
    return Attempt(
        hyperparameters, done.value, math.nan if done.test_loss is None else done.test_loss, str(done.status)
    )


def hypernet(problem: TrainingProblem, space: Space, method: Hypernet, seed: int) -> Iterator[Attempt]:
    """Yield stretches of a hypernetwork's joint optimisation from log penalties of 0, until one fails."""
    hyperparameters, checkpoint = alike(space, 1.0), None
    while True:
        done = evaluate(
            problem, hyperparameters, method=method, key=jax.random.key(seed), space=space, checkpoint=checkpoint
        )
        if done.refined is None:
            yield attempt(hyperparameters, done)
            return
        hyperparameters, checkpoint = done.refined, done.checkpoint
        yield attempt(hyperparameters, done)


def random(problem: TrainingProblem, space: Space, seed: int) -> Iterator[Attempt]:
    """Yield training runs at points drawn uniformly from the box."""
    draw = np.random.default_rng(seed)
    while True:
        yield train(problem, from_unit(space, draw.uniform(size=dimension(space))), seed)


def sampled(objective: Objective, sampler: optuna.samplers.BaseSampler) -> Iterator[Attempt]:
    """Yield the trials of an Optuna study."""
    study = optuna.create_study(sampler=sampler)
    while True:
        trial = study.ask()
        hyperparameters = objective.suggest(trial)
        value = objective.evaluate(trial, hyperparameters)
        attributes = study.tell(trial, value).user_attrs
        yield Attempt(hyperparameters, value, attributes.get(TEST_LOSS, math.nan), attributes[STATUS])
