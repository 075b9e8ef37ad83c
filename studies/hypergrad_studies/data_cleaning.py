"""Cleaning data by gradients: how many wrong labels are found, what a model gains, when to stop, and at what cost.

Each method gets the same search, `HypergradSampler` in a study of Optuna, and the same number of trials. Of each trial
the rounded weights say which labels are wrong: those of weights below one half. The trial that counts is the one that
finds the planted errors best, whose truth a user knows. At the end a model is trained on what was kept and on all
images with right labels.
"""

import functools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optuna
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.metrics import f1_score

from hypergrad_optuna import HypergradSampler, Objective, hyperparameters_of
from hypergrad_search import DrMAD, Implicit, Method, Reversible, TrainingProblem, Unrolled, adamw
from hypergrad_search.hypergradient import ConjugateGradients, Identity
from hypergrad_studies import json_lines
from hypergrad_studies.networks import Layers, Split
from hypergrad_studies.problems import data_cleaning
from hypergrad_studies.problems.data_cleaning import L2, PLANTED, STEPS, TO_CLEAN

EPOCH = (TO_CLEAN + PLANTED) // data_cleaning.BATCH
FINAL_BATCH = 500
#: The learning rate and the penalty of training on what is kept; chosen by cross-validation among the images with right
#: labels, of seeds that no table has.
FINAL = {"linear": (1.4e-3, 0.0), "mlp": (2e-3, 1e-4)}

METHODS: dict[str, Method] = {
    "Reversible": Reversible(),
    "Implicit, CG": Implicit(solver=ConjugateGradients(damping=0.01, iterations=20), batches=EPOCH),
    "Implicit, identity": Implicit(solver=Identity(), batches=EPOCH),
    "DrMAD": DrMAD(),
}
"""The methods whose cost does not grow with the number of weights; `Unrolled` has the gradient of `Reversible`."""

#: What needs no search: all labels as they are, none of them, and the right ones alone, which nobody knows.
BASELINES = "all labels", "images with right labels alone", "the labels that are right"


@dataclass(frozen=True)
class Record:
    """What came of a trial, or of a baseline.

    - `trial`: its number in the study; None for a baseline.
    - `loss`, `test_loss`: of the search's own models, nats.
    - `f1`: of finding the wrong labels among the images to clean; `planted_f1` among the planted ones.
    - `cost`: what the study has spent until the trial's end, in training runs.
    - `kept_accuracy`, `accuracy`: the shares of test images that a model classifies right after training on what was
      kept, and on this and all images with right labels; None where no model was trained.
    """

    model: str
    method: str
    seed: int
    trial: int | None = None
    loss: float | None = None
    test_loss: float | None = None
    f1: float | None = None
    planted_f1: float | None = None
    cost: float = 0.0
    kept_accuracy: float | None = None
    accuracy: float | None = None


def _loss(trial: Record) -> float:
    return math.inf if trial.loss is None else trial.loss


RULES: dict[str, Callable[[Sequence[Record]], Record]] = {
    "planted errors found best": lambda trials: max(trials, key=lambda trial: trial.planted_f1 or 0.0),  # the first
    "lowest validation loss": lambda trials: min(trials, key=_loss),
    "last trial": lambda trials: trials[-1],
}
"""The ways to choose a trial of a study; the first one is that of the tables."""


def search(model: str, method: str, seed: int, trials: int, l2: float = L2) -> Iterator[Record]:
    """Yield a record of each trial of a study, and with the chosen one the accuracy after training on what is kept."""
    problem, space = data_cleaning.problem(model, seed, l2)
    study = optuna.create_study(sampler=HypergradSampler(seed=seed))
    study.optimize(Objective(problem, space, method=METHODS[method]), n_trials=trials)
    weights = [
        np.broadcast_to(np.asarray(hyperparameters_of(trial)["weight"]), TO_CLEAN + PLANTED) for trial in study.trials
    ]
    truth, spent = data_cleaning.data(seed).wrong, 0.0
    records: list[Record] = []
    for trial, weight in zip(study.trials, weights, strict=True):
        spent += trial.user_attrs["hypergrad:cost"] / STEPS
        found = weight < 0.5
        records.append(
            Record(
                model,
                method,
                seed,
                trial.number,
                loss=trial.value,
                test_loss=trial.user_attrs.get("hypergrad:test_loss"),
                f1=float(f1_score(truth[:TO_CLEAN], found[:TO_CLEAN])),
                planted_f1=float(f1_score(truth[TO_CLEAN:], found[TO_CLEAN:])),
                cost=spent,
            )
        )
    chosen = RULES["planted errors found best"](records)
    for record, weight in zip(records, weights, strict=True):
        yield judged(record, weight >= 0.5) if record is chosen else record


def baselines(model: str, seed: int) -> Iterator[Record]:
    """Yield the records of `BASELINES`."""
    right = ~data_cleaning.data(seed).wrong
    for name, kept in zip(BASELINES, (np.ones_like(right), np.zeros_like(right), right), strict=True):
        yield judged(Record(model, name, seed), kept)


def judged(record: Record, kept: np.ndarray[Any, Any]) -> Record:
    """Return a record with the test accuracies after training on what is kept of the images to clean."""
    data = data_cleaning.data(record.seed)
    own = np.flatnonzero(kept[:TO_CLEAN])
    kept_split = Split(data.train.images[own], data.train.labels[own])
    right = Split(
        np.concatenate([data.train.images[TO_CLEAN:], data.valid.images]),
        np.concatenate([data.planted_labels, data.valid.labels]),
    )
    both = Split(*(np.concatenate(parts) for parts in zip(kept_split, right, strict=True)))
    return replace(
        record,
        kept_accuracy=data_cleaning.accuracy(trained(record.model, kept_split), data.test) if len(own) else None,
        accuracy=data_cleaning.accuracy(trained(record.model, both), data.test),
    )


def trained(model: str, split: Split) -> Layers:
    """Return a model that was trained on all examples alike, by AdamW with a falling rate."""
    rate, l2 = FINAL[model]
    order = jnp.asarray(np.random.default_rng(0).permutation(len(split.labels)))

    def batches(step: jax.Array) -> Split:
        rows = (step * FINAL_BATCH + jnp.arange(FINAL_BATCH)) % len(order)
        return data_cleaning.at(split, order[rows])

    def train_loss(params: Layers, h: dict[str, Any], batch: Split, key: jax.Array) -> jax.Array:
        penalty = sum(jnp.sum(layer["weights"] ** 2) for layer in params)
        return jnp.mean(data_cleaning.losses(params, batch)) + l2 * penalty

    problem = TrainingProblem(
        init=lambda key, h: data_cleaning.initial(model, key),
        train_loss=train_loss,
        valid_loss=lambda params, h: jnp.float32(0.0),
        batches=batches,
        optimizer=adamw(lambda h, step: rate * data_cleaning.falling(step), 0.9, 0.99),
        steps=STEPS,
    )
    params: Layers = Unrolled().params(problem, {}, key=jax.random.key(0))
    return params


def measure(
    models: Sequence[str], methods: Sequence[str], seeds: int, trials: int, l2: float, console: Console
) -> list[Record]:
    """Return the records of all studies and baselines, from seed 1 on: seed 0 served to choose the settings."""
    plan = [
        run
        for model in models
        for seed in range(1, seeds + 1)
        for run in (
            functools.partial(baselines, model, seed),
            *(functools.partial(search, model, method, seed, trials, l2) for method in methods),
        )
    ]
    return [record for run in track(plan, "studies", console=console) for record in run()]


def tables(records: Sequence[Record]) -> list[Table]:
    """Return, for each model, a table of the methods and one of the rules by which a trial is chosen: medians."""
    found = []
    for model in dict.fromkeys(record.model for record in records):
        of_model = [record for record in records if record.model == model]
        seeds = len({record.seed for record in of_model})
        title = f"{model}, medians of {seeds} seeds: F1 of finding wrong labels, accuracies on the test images"
        table = Table("method", "F1", "kept alone", "and right ones", "cost", title=title)
        for method in dict.fromkeys(record.method for record in of_model):
            chosen = [r for r in of_model if r.method == method and r.accuracy is not None]
            cells = (
                median([r.f1 for r in chosen]),
                median([r.kept_accuracy for r in chosen], "{:.1%}"),
                median([r.accuracy for r in chosen], "{:.1%}"),
                median([r.cost for r in chosen], "{:.0f}"),
            )
            table.add_row(method, *cells)
        found.append(table)
        found.append(_rules(of_model, f"{model}, F1 by what chooses the trial"))
    return found


def _rules(records: Sequence[Record], title: str) -> Table:
    table = Table("method", *RULES, "best of all", title=title)
    for method in dict.fromkeys(record.method for record in records if record.trial is not None):
        studies: dict[int, list[Record]] = {}
        for record in records:
            if record.method == method:
                studies.setdefault(record.seed, []).append(record)
        by_rule = [median([rule(trials).f1 for trials in studies.values()]) for rule in RULES.values()]
        best = median([max(trial.f1 or 0.0 for trial in trials) for trials in studies.values()])
        table.add_row(method, *by_rule, best)
    return table


def median(numbers: Sequence[float | None], form: str = "{:.3f}") -> str:
    """Return the median with the least and the largest of some numbers, as text; "" where there are none."""
    known = [number for number in numbers if number is not None]
    if not known:
        return ""
    middle, low, high = (form.format(x) for x in (statistics.median(known), min(known), max(known)))
    return middle if low == high else f"{middle} ({low} to {high})"


def write(records: Sequence[Record], folder: Path) -> None:
    """Write the records to `data_cleaning.jsonl` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    json_lines.replace(folder / "data_cleaning.jsonl", records)
