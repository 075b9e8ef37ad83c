"""The problem and the studies of weighing data, on a small part of MNIST, or on noise of its shape."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import f1_score

from hypergrad_search import Reversible, Unrolled, evaluate
from hypergrad_studies import data_cleaning as study
from hypergrad_studies import data_selection, json_lines
from hypergrad_studies.data_cleaning import Record
from hypergrad_studies.networks import Layers, Split
from hypergrad_studies.problems import data_cleaning
from hypergrad_studies.problems.data_cleaning import PLANTED, TO_CLEAN, VALID

KEY = jax.random.key(0)
N = TO_CLEAN + PLANTED


@pytest.fixture(autouse=True)
def small_problem(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ten blobs in place of MNIST's digits, and few steps."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(10, 784)).astype(np.float32)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = generator.integers(0, 10, n).astype(np.int32)
        return (centres[labels] + 9 * generator.normal(size=(n, 784))).astype(np.float32) / 9, labels

    train, test = draw(TO_CLEAN + PLANTED + VALID + 2000), draw(1000)
    monkeypatch.setattr(data_cleaning, "mnist", lambda: (train, test))
    monkeypatch.setattr(data_cleaning, "MNIST_TRAIN", len(train[1]))
    monkeypatch.setattr(data_cleaning, "STEPS", 60)
    monkeypatch.setattr(study, "STEPS", 60)
    data_cleaning.data.cache_clear()
    yield
    data_cleaning.data.cache_clear()


def test_half_of_the_labels_are_wrong_among_those_to_clean_and_among_the_planted_ones() -> None:
    data = data_cleaning.data(1)
    assert [part.sum() for part in (data.wrong[:TO_CLEAN], data.wrong[TO_CLEAN:])] == [TO_CLEAN // 2, PLANTED // 2]
    planted = data.train.labels[TO_CLEAN:]
    np.testing.assert_array_equal(planted != data.planted_labels, data.wrong[TO_CLEAN:])
    assert len(data.valid.labels) == VALID
    # No validation image is a training image, and another seed draws others.
    rows = {image.tobytes() for image in data.train.images}
    assert not rows & {image.tobytes() for image in data.valid.images}
    assert not np.array_equal(data.train.labels, data_cleaning.data(2).train.labels)


@pytest.mark.slow
def test_a_validation_image_is_judged_by_the_model_that_has_not_seen_it() -> None:
    data = data_cleaning.data(0)
    problem, _ = data_cleaning.problem()
    h = {"weight": np.zeros(N, np.float32)}
    params = Unrolled().params(problem, h, key=KEY)
    models = [jax.tree.map(lambda x, k=k: x[k], params) for k in range(2)]
    losses = problem.valid_loss(params, h)
    for half, model in enumerate(models):
        own = np.arange(VALID) % 2 == half
        np.testing.assert_allclose(losses[own], data_cleaning.losses(model, data.valid)[own], rtol=1e-5)
        seen = Split(data.valid.images[~own], data.valid.labels[~own])
        unseen = Split(data.valid.images[own], data.valid.labels[own])
        assert data_cleaning.accuracy(model, seen) > data_cleaning.accuracy(model, unseen) > 0.2


def test_an_image_of_weight_0_does_not_count() -> None:
    problem, _ = data_cleaning.problem()
    wrong = data_cleaning.data(0).wrong
    h = {"weight": (~wrong).astype(np.float32)}
    params = problem.init(KEY, h)
    batch = problem.batch(jnp.int32(3), h)
    found = jax.grad(lambda weight: problem.train_loss(params, {"weight": weight}, batch, KEY))(
        jnp.asarray(h["weight"])
    )
    assert set(np.flatnonzero(np.asarray(found))) == set(np.asarray(batch.train).tolist())


@pytest.mark.slow
def test_its_gradient_tells_right_labels_from_wrong_ones_and_is_exact() -> None:
    problem, space = data_cleaning.problem()
    half = {"weight": np.full(N, 0.5)}
    found, other = (
        evaluate(problem, half, key=KEY, space=space, method=method) for method in (Reversible(), Unrolled())
    )
    assert found.diagnostics["exact"] is True
    assert found.gradient is not None
    assert other.gradient is not None
    slope = np.asarray(found.gradient["weight"])
    assert np.linalg.norm(slope - other.gradient["weight"]) < 1e-2 * np.linalg.norm(slope)
    assert f1_score(data_cleaning.data(0).wrong, slope > 0) > 0.7


def records(f1s: list[float], planted: list[float], losses: list[float]) -> list[Record]:
    rows = zip(f1s, planted, losses, strict=True)
    return [
        Record("linear", "Reversible", 1, i, loss=loss, f1=f1, planted_f1=known, cost=4.0 * (i + 1))
        for i, (f1, known, loss) in enumerate(rows)
    ]


def test_rules_choose_a_trial_by_what_a_user_knows() -> None:
    trials = records([0.5, 0.9, 0.8, 0.7], [0.6, 0.8, 0.8, 0.7], [3.0, 2.0, 1.0, 1.5])
    chosen = {name: rule(trials).trial for name, rule in study.RULES.items()}
    assert chosen == {"planted errors found best": 1, "lowest validation loss": 2, "last trial": 3}


def test_tables_have_medians_and_rules() -> None:
    trials = records([0.5, 0.9, 0.8, 0.7], [0.6, 0.8, 0.8, 0.7], [3.0, 2.0, 1.0, 1.5])
    chosen = replace(trials[1], accuracy=0.91, kept_accuracy=0.89)
    baseline = Record("linear", "all labels", 1, accuracy=0.8, kept_accuracy=0.7)
    results, rules = study.tables([baseline, trials[0], chosen, *trials[2:]])
    assert [list(column.cells) for column in results.columns] == [
        ["all labels", "Reversible"],
        ["", "0.900"],
        ["70.0%", "89.0%"],
        ["80.0%", "91.0%"],
        ["0", "8"],
    ]
    assert [list(column.cells) for column in rules.columns] == [
        ["Reversible"],
        ["0.900"],
        ["0.800"],
        ["0.700"],
        ["0.900"],
    ]


@pytest.mark.slow
def test_a_study_finds_wrong_labels_and_a_model_gains(tmp_path: Path) -> None:
    found = [*study.baselines("linear", 1), *study.search("linear", "Reversible", 1, trials=4)]
    by_name = {record.method: record for record in found if record.accuracy is not None}
    ours, right = by_name["Reversible"], by_name["the labels that are right"]
    assert ours.f1 is not None
    assert ours.f1 > 0.75
    for one in ("accuracy", "kept_accuracy"):
        assert getattr(by_name["all labels"], one) < getattr(ours, one) <= getattr(right, one) + 0.02
    assert [record.cost for record in found if record.trial is not None][-1] >= 4.0
    study.write(found, tmp_path)
    assert json_lines.read(tmp_path / "data_cleaning.jsonl", Record) == found


@pytest.mark.slow
def test_chosen_images_have_right_labels() -> None:
    found = {record.choice: record for record in data_selection.choose("linear", 1, gradients=2)}
    assert found[data_selection.RANDOM].wrong == pytest.approx(0.5, abs=0.1)
    assert found[data_selection.RIGHT].wrong == 0.0
    assert found["2 gradients"].wrong < 0.1
    assert found["2 gradients"].accuracy > found[data_selection.RANDOM].accuracy
    assert "1.2%" in str(list(data_selection.table([replace(found["1 gradient"], wrong=0.012)]).columns[1].cells))


def test_training_ends_with_a_model_that_has_learned() -> None:
    data = data_cleaning.data(0)
    params: Layers = study.trained("mlp", Split(data.valid.images, data.valid.labels))
    assert [layer["weights"].shape for layer in params] == [(784, 300), (300, 10)]
    assert data_cleaning.accuracy(params, data.valid) > data_cleaning.accuracy(params, data.test) > 0.2
