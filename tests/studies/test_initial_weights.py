"""Learned initial weights: the hypergradient is MAML's, and with rates of 0 that of plain learning, to the bit."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from jax.flatten_util import ravel_pytree

from hypergrad_optuna import HypergradSampler, Objective, best_hyperparameters
from hypergrad_search import Float, Space, TrainingProblem, evaluate, sgd
from hypergrad_studies import initial_weights, json_lines
from hypergrad_studies.data import Drawings
from hypergrad_studies.initial_weights import Characters, Record, Reduction, Tasks
from hypergrad_studies.networks import Layers, Split, cross_entropy
from hypergrad_studies.problems import digits


@pytest.fixture(scope="module")
def data() -> Characters:
    """Return characters of four invented alphabets: each drawing is its character's image, a little changed."""
    random = np.random.default_rng(0)
    alphabet = np.repeat(np.arange(4), 6 * 20)
    character = np.tile(np.repeat(np.arange(6), 20), 4)
    ink = np.repeat(random.uniform(size=(24, 28, 28)) < 0.3, 20, axis=0)
    images = np.where(random.uniform(size=ink.shape) < 0.05, ~ink, ink).astype(np.float32)
    drawer, mixed = np.tile(np.arange(1, 21), 24), random.permutation(len(images))
    drawings = Drawings(images[mixed], alphabet[mixed], character[mixed], drawer[mixed], list("abcd"))
    return initial_weights.characters(drawings, valid=1, test=1)


@pytest.fixture(scope="module")
def training(data: Characters) -> TrainingProblem:
    """Return the training on the characters, which all tests compile once."""
    return initial_weights.problem(data.images)


def test_parts_are_of_different_alphabets_and_whole(data: Characters) -> None:
    assert {name: part.shape for name, part in data.parts.items()} == {
        "train": (12, 20),
        "valid": (6, 20),
        "test": (6, 20),
    }
    every = np.concatenate([part.ravel() for part in data.parts.values()])
    assert sorted(every) == list(range(480))
    of_one, of_all = data.images[data.parts["train"][0]], data.images
    assert of_one.std(axis=0).mean() < 0.7 * of_all.std(axis=0).mean(), "drawings of a character are alike"
    np.testing.assert_allclose(data.images.mean(axis=0), 0, atol=1e-6)


def test_tasks_have_different_characters_and_no_drawing_twice(data: Characters) -> None:
    part = data.parts["train"]
    tasks = initial_weights.draw(part, 30, np.random.default_rng(0))
    assert tasks.support.shape == (30, 5, 1)
    assert tasks.query.shape == (30, 5, 5)
    of_index = {index: character for character, mine in enumerate(part) for index in mine}
    for task in np.asarray(tasks.whole, int):
        assert len(np.unique(task)) == task.size
        of_class = [{of_index[index] for index in drawings} for drawings in task]
        assert all(len(characters) == 1 for characters in of_class)
        assert len(set.union(*of_class)) == len(task)


def by_hand(data: Characters, h: dict[str, Any], tasks: Tasks) -> jax.Array:
    """Return the mean query loss after training on each task alone, in the type of the weights."""
    leaves, structure = jax.tree.flatten(h["initial"])
    pixels = jnp.asarray(data.images, leaves[0].dtype)

    def loss(weights: list[jax.Array], indices: jax.Array) -> jax.Array:
        labels = jnp.repeat(jnp.arange(5), indices.shape[1])
        return jnp.mean(cross_entropy(jax.tree.unflatten(structure, weights), Split(pixels[indices.ravel()], labels)))

    def of_task(support: jax.Array, query: jax.Array) -> jax.Array:
        weights, speeds = leaves, [jnp.zeros_like(leaf) for leaf in leaves]
        for _ in range(initial_weights.STEPS):
            slopes = jax.grad(loss)(weights, support)
            speeds = [initial_weights.MOMENTUM * v + g for v, g in zip(speeds, slopes, strict=True)]
            weights = [w - rate[0] * v for w, rate, v in zip(weights, h["rates"], speeds, strict=True)]
        return loss(weights, query)

    return jnp.mean(jax.vmap(of_task)(jnp.asarray(tasks.support, int), jnp.asarray(tasks.query, int)))


@pytest.mark.slow
def test_the_hypergradient_is_that_of_float64(data: Characters, training: TrainingProblem) -> None:
    tasks = initial_weights.draw(data.parts["train"], 2, np.random.default_rng(1))
    h = initial_weights._start(data.sizes, 0, 0.3)
    found = evaluate(training, {**h, **tasks._asdict()}, key=initial_weights.KEY)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), h)
        value, slope = jax.jit(jax.value_and_grad(lambda h: by_hand(data, h, tasks)))(wide)
        exact = {name: np.asarray(ravel_pytree(slope[name])[0]) for name in h}
    assert found.diagnostics["exact"] is True
    assert found.value == pytest.approx(float(value), rel=1e-5)
    assert found.gradient is not None
    for name, truth in exact.items():
        ours = np.asarray(ravel_pytree(found.gradient[name])[0])
        assert np.linalg.norm(ours - truth) < 1e-4 * np.linalg.norm(truth), name
    assert not found.gradient["support"].any()
    assert found.cost.gradient_evaluations == 4 * initial_weights.STEPS


@pytest.mark.slow
def test_rates_of_0_are_plain_learning_to_the_bit(data: Characters, training: TrainingProblem) -> None:
    found = initial_weights.reduction(data, training, 0, tasks=1)
    assert (found.steps, found.difference) == (20, 0.0)
    assert found.weights > 0.1


@pytest.mark.slow
def test_rates_of_0_are_plain_learning_of_several_tasks_but_for_rounding(
    data: Characters, training: TrainingProblem
) -> None:
    found = initial_weights.reduction(data, training, 0, tasks=2)
    assert found.difference < 1e-6


@pytest.mark.slow
def test_other_rates_are_not_plain_learning(data: Characters, training: TrainingProblem) -> None:
    tasks = initial_weights.draw(data.parts["train"], 1, np.random.default_rng(1))
    start = initial_weights._start(data.sizes, 0, 0.3)
    ours = initial_weights.maml(training, ["initial"])(start, tasks)
    plain = initial_weights.on_queries(data.images)(start, tasks)
    assert ours is not None
    assert plain is not None
    one, other = (ravel_pytree(each["initial"])[0] for each in (ours, plain))
    assert jnp.linalg.norm(one - other) > 0.1 * jnp.linalg.norm(other)


def test_a_search_trains_where_rates_are_0() -> None:
    """All that is left of a training run is its validation loss, at the weights that the search proposes."""
    valid = digits.splits()[1]
    layers: Layers = [{"weights": jnp.zeros((64, 10)), "biases": jnp.zeros(10)}]
    flat, unravel = ravel_pytree(layers)
    problem = TrainingProblem(
        init=lambda key, h: unravel(h["weights"]),
        train_loss=lambda params, h, batch, key: jnp.mean(cross_entropy(params, batch)),
        valid_loss=lambda params, h: jnp.mean(cross_entropy(params, valid)),
        batches=digits.batches,
        optimizer=sgd(0.0, 0.5),
        steps=1,
    )
    space: Space = {"weights": Float(-1.0, 1.0, shape=flat.shape)}
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(Objective(problem, space), n_trials=20)
    values = [trial.value for trial in study.trials if trial.value is not None]
    at_best = unravel(jnp.asarray(best_hyperparameters(study)["weights"], jnp.float32))
    assert study.best_value == float(jnp.mean(cross_entropy(at_best, valid)))
    assert values[0] == pytest.approx(math.log(10))
    assert study.best_value < 0.5 * values[0]


@pytest.mark.slow
def test_all_ways_spend_the_same_and_are_judged(
    data: Characters, training: TrainingProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initial_weights, "JUDGED", 20)
    budget = 3 * initial_weights.TASKS * initial_weights.STEPS * 4
    records = [
        initial_weights.from_scratch(data, training, 0),
        *(
            initial_weights._learned(data, training, name, way.settings[0], 0, budget)
            for name, way in initial_weights.WAYS_TO_LEARN.items()
        ),
    ]
    assert [record.gradient_evaluations for record in records] == [0.0, *[budget] * 5]
    for record in records:
        assert math.isfinite(record.valid_loss)
        assert math.isfinite(record.test_loss)
        assert 0 <= record.test_error < 0.8
        assert record.factor in initial_weights.FACTORS


def test_records_are_written_and_shown(tmp_path: Path) -> None:
    records = [Record("MAML", seed, 1e-3, 0.3, 1.0, 0.4, 0.5, 0.1 + seed / 100, 960.0, 1.0) for seed in range(3)] + [
        Record("Reptile", seed, 1.0, 1.0, 0.3, 0.4, 0.6, 0.11, 960.0, 1.0) for seed in range(3)
    ]
    reductions = [Reduction(0, 20, 1e-8, 0.5)]
    initial_weights.write(records, reductions, tmp_path / "out")
    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    assert [json_lines.parse(line, Record) for line in lines] == records
    found, same = initial_weights.tables(records, reductions)
    assert [list(column.cells) for column in found.columns][3] == ["", "1 of 3"]
    assert [list(column.cells) for column in same.columns][2] == ["1.0e-08"]
