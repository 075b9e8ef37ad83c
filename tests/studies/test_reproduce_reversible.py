"""The reproductions of reversible learning: what is special about each, and all of them at the small scale."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

from hypergrad_search import Reversible, Unrolled, evaluate
from hypergrad_studies.cli import cli
from hypergrad_studies.papers.reversible_learning import (
    initial_gradient,
    l2_per_weight,
    memory,
    omniglot_sharing,
    scheduled_loops,
    scheduled_training,
    schedules_adam,
    schedules_rivals,
    schedules_transfer,
    training_data,
)
from hypergrad_studies.papers.reversible_learning.released_adam import released_adam

SMALL = scheduled_training.SETUPS["small"]


def test_adam_as_the_authors_released_it() -> None:
    """By hand, m is 0.1 g at first and nearly g from then on, and yet it is divided by 1 - 0.9**t."""
    optimizer = released_adam(0.5)
    gradients = [np.array([2.0, -1e-4]), np.array([1.0, 3e-4])]
    state = optimizer.init(np.zeros(2))
    mean, square = np.zeros(2), np.zeros(2)
    for t, gradient in enumerate(gradients, 1):
        decay = 0.9 * 1e-4 ** (t - 1)
        mean, square = decay * mean + (1 - decay) * gradient, 0.99 * square + 0.01 * gradient**2
        expected = -0.5 * mean / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.99**t)) + 1e-4)
        updates, state = optimizer.update(gradient, state)
        np.testing.assert_allclose(updates, expected, rtol=1e-5)
    np.testing.assert_allclose(mean, gradients[1], rtol=0.01)


def test_a_schedule_is_stretched_and_a_number_is_one() -> None:
    longer = replace(SMALL, steps=10 * SMALL.steps)
    schedule = np.arange(8 * scheduled_training.STEPS, dtype=np.float32).reshape(8, scheduled_training.STEPS)
    for setup, step, entry in ((SMALL, 7, 7), (longer, 79, 7), (longer, 999, 99)):
        setting = scheduled_training.at(setup, lambda x: 2 * x, "rate")
        leaves = jax.tree.leaves(setting({"rate": schedule}, jnp.asarray(step)))
        np.testing.assert_array_equal(leaves, 2 * schedule[:, entry])
        assert jax.tree.leaves(setting({"rate": 3.0}, jnp.asarray(step))) == [6.0] * 8


def test_networks_at_once_start_apart_and_biases_come_first() -> None:
    scales = np.log([0.1, 1, 0.1, 1]).astype(np.float32)
    two_layers = replace(SMALL, sizes=(64, 50, 10))
    params = jax.jit(scheduled_training.problem(two_layers, 3).init)(jax.random.key(0), {"log_init_scale": scales})
    for layer, (fan_in, fan_out) in zip(params, ((64, 50), (50, 10)), strict=True):
        assert layer["weights"].shape == (3, fan_in, fan_out)
        assert 0.9 < layer["weights"].std() < 1.1
        assert 0.05 < layer["biases"].std() < 0.15
        assert not np.array_equal(layer["weights"][0], layer["weights"][1])


@pytest.mark.slow
@pytest.mark.parametrize("adam", [False, True])
def test_the_schedules_gradient_is_that_of_floats(adam: bool) -> None:
    steps = 3
    optimizer = schedules_adam.scheduled_adam if adam else scheduled_training.momentum
    problem = scheduled_training.problem(replace(SMALL, steps=steps), 2, optimizer)
    loop = schedules_adam.outer_loops(SMALL)["paper"] if adam else scheduled_loops.paper(SMALL)
    start = loop.start_arrays()
    exact, floats = (evaluate(problem, start, key=jax.random.key(0), method=m) for m in (Reversible(), Unrolled()))
    assert exact.gradient is not None
    assert floats.gradient is not None
    for name, gradient in exact.gradient.items():
        np.testing.assert_allclose(gradient, floats.gradient[name], rtol=1e-3, atol=1e-6)
    entries = np.abs(exact.gradient["log_learning_rate"]).max(axis=0) > 0
    assert entries.sum() == steps  # each step has an entry


def test_the_outer_loss_has_a_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prior is 0.01 times the sum of the penalties' squares, and the hypergradient contains its derivative."""
    setup = l2_per_weight.SETUPS["small"]
    loop = l2_per_weight.outer_loops(setup)["paper"]
    at = {**loop.start_arrays(), "log_l2_biases": np.linspace(-3, 1, 10, dtype=np.float32)}
    found = evaluate(loop.problem, at, key=jax.random.key(0))
    monkeypatch.setattr(l2_per_weight, "PRIOR", 0.0)
    without = evaluate(l2_per_weight.problem(setup), at, key=jax.random.key(0))
    prior = 0.01 * sum(np.sum(np.exp(2.0 * x)) for x in at.values())
    assert found.value - without.value == pytest.approx(prior, rel=1e-4)
    assert found.test_loss == without.test_loss
    assert found.gradient is not None
    assert without.gradient is not None
    for name, x in at.items():
        np.testing.assert_allclose(
            found.gradient[name] - without.gradient[name], 0.02 * np.exp(2.0 * x), rtol=1e-3, atol=1e-6
        )


def test_training_images_begin_as_noise_and_are_what_is_learned() -> None:
    setup = training_data.SETUPS["small"]
    noise = training_data.noise(setup)
    assert noise.shape == (10, 64)
    assert 0.008 < noise.std() < 0.012
    loop = training_data.outer_loops(setup)["paper"]
    assert loop.start["pixels"] == 0
    found = evaluate(loop.problem, loop.start_arrays(), key=jax.random.key(0))
    assert found.value == pytest.approx(math.log(10), abs=0.1)  # nothing has been learned from noise
    assert found.gradient is not None
    assert (np.abs(found.gradient["pixels"]).max(axis=1) > 0).all()


def test_alphabets_are_turned_and_split() -> None:
    setup = omniglot_sharing.SETUPS["small"]
    data = omniglot_sharing.parts(setup)
    counts = {name: [len(split.labels) for split in splits] for name, splits in data.items()}
    assert counts == {"fitted": [50] * 4, "valid": [10] * 4, "train": [60] * 4, "test": [15] * 4}
    rows = {name: {bytes(x) for x in np.asarray(splits[0].images)} for name, splits in data.items()}
    assert rows["train"] == rows["fitted"] | rows["valid"]
    assert not rows["fitted"] & rows["valid"]
    assert not rows["train"] & rows["test"]
    whole = np.concatenate([split.images for name in ("train", "test") for split in data[name]])
    np.testing.assert_allclose(whole.mean(axis=0), 0, atol=1e-5)
    upright = setup.alphabets(5)[0][0].reshape(-1, 8, 8)
    ink, turned = (np.sort(x.sum(axis=(1, 2))) for x in (upright, np.rot90(upright, axes=(1, 2))))
    np.testing.assert_allclose(ink, turned)


def test_correlations_of_networks() -> None:
    separate, tied, half = omniglot_sharing.by_hand(4, [0.0, 1.0, 0.5])
    np.testing.assert_allclose(omniglot_sharing.correlations(separate), np.eye(4), atol=1e-6)
    np.testing.assert_allclose(omniglot_sharing.correlations(tied), np.ones((4, 4)), rtol=1e-6)
    np.testing.assert_allclose(half, np.full((4, 4), 0.125))  # where the outer loops start
    own, shared = 0.625, 0.125
    expected = (2 * own * shared + 2 * shared**2) / (own**2 + 3 * shared**2)
    correlation = omniglot_sharing.correlations(half)
    np.testing.assert_allclose(correlation[~np.eye(4, dtype=bool)], expected, rtol=1e-6)
    correlation[[0, 2], [2, 0]] = 0.9  # the first alphabet and the same turned
    assert omniglot_sharing.turned_and_others(correlation) == pytest.approx(((0.9 + expected) / 2, expected))


@pytest.mark.slow
def test_the_gradient_of_sharing_is_that_of_floats() -> None:
    setup = omniglot_sharing.SETUPS["small"]
    loop = omniglot_sharing.outer_loops(setup, omniglot_sharing.parts(setup))["paper"]
    start, key = loop.start_arrays(), jax.random.key(0)
    exact, floats = (evaluate(loop.problem, start, key=key, method=m) for m in (Reversible(), Unrolled()))
    assert exact.diagnostics["exact"] is True
    assert exact.gradient is not None
    assert floats.gradient is not None
    np.testing.assert_allclose(exact.gradient["sharing"], floats.gradient["sharing"], rtol=2e-3, atol=1e-5)
    # the outer loss depends on the matrices directly too, which finite differences see
    direction = exact.gradient["sharing"] / np.linalg.norm(exact.gradient["sharing"])
    above, below = (
        evaluate(loop.problem, {"sharing": start["sharing"] + d * direction}, key=key, gradient_below=-math.inf).value
        for d in (0.01, -0.01)
    )
    assert (above - below) / 0.02 == pytest.approx(np.linalg.norm(exact.gradient["sharing"]), rel=0.02)


def test_the_bits_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "BITS", 40.0)
    monkeypatch.setattr(memory, "REPORTS", 5)
    found = memory.measure(memory.problem((64, 10), 0.5), (64, 10), 0.5, 0)
    assert found.weights == 650
    assert found.steps == [8, 16, 24, 32, 40]
    assert found.bits * (40 - 8) == pytest.approx(32, abs=8)  # a plane more or less
    grown = np.diff(found.bytes)
    assert set(grown % 650) == {0}  # whole planes, a byte for each weight


def test_agreement_of_means() -> None:
    assert initial_gradient.agreement([np.array([1.0, 0]), np.array([2.0, 0])]) == pytest.approx(1)
    assert initial_gradient.agreement([np.array([1.0, 0]), np.array([0.0, 1])]) == pytest.approx(0)


def test_what_is_carried_over_to_a_wider_network() -> None:
    large = schedules_transfer.large(SMALL)
    assert (large.sizes, large.steps) == ((64, 200, 200, 200, 10), 1000)
    found: dict[str, Any] = {"log_learning_rate": np.float32(1), "log_init_scale": np.float32(-2)}
    carried = schedules_transfer.carried(SMALL, found)
    half = -2 - math.log(2)
    np.testing.assert_allclose(carried["log_init_scale"], [-2, -2, -2, half, -2, half, -2, half], rtol=1e-6)
    assert carried["log_learning_rate"] == 1


def run(name: str, folder: Path, *options: str) -> dict[str, Any]:
    """Run a study, and return its results by quantity."""
    done = CliRunner().invoke(cli, ["reproduce", name, "--seeds", "1", "--out", str(folder / name), *options])
    assert done.exit_code == 0, done.output
    assert (folder / name / f"{name}.svg").exists()
    results = json.loads((folder / name / "results.json").read_text())
    assert {(row["study"], row["paper"]) for row in results} == {(f"{name} (small)", None)}
    return {row["quantity"]: float(row["ours"]) for row in results}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "loss"), [("l2-per-weight", "validation loss and prior"), ("training-data", "validation loss")]
)
def test_penalties_and_training_data(name: str, loss: str, tmp_path: Path) -> None:
    found = run(name, tmp_path)
    iterations = 50 if name == "l2-per-weight" else 40
    at_start, end, own = (
        found[f"{who}: {loss} {when}"]
        for who, when in (
            ("paper", "at the start"),
            ("paper", f"after {iterations} iterations"),
            ("hypergrad", f"after {iterations} iterations"),
        )
    )
    assert own < end < 0.5 * at_start
    assert found["hypergrad: first iteration where paper ends"] < iterations
    assert len((tmp_path / name / "records.jsonl").read_text().splitlines()) == 2 * (iterations + 1)


@pytest.mark.slow
def test_sharing(tmp_path: Path) -> None:
    found = run("omniglot-sharing", tmp_path)
    tests = {name: found[f"{name}, final: test loss"] for name in ("separate", "tied", "paper", "hypergrad")}
    assert max(tests["paper"], tests["hypergrad"]) < min(tests["separate"], tests["tied"])


@pytest.mark.slow
def test_schedules_and_what_builds_on_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduled_loops, "ITERATIONS", 12)
    monkeypatch.setattr(schedules_rivals, "TRIALS", 16)
    monkeypatch.setattr(schedules_adam, "TRIALS", 16)
    monkeypatch.setattr(schedules_transfer, "TRIALS", 3)
    found = run("schedules", tmp_path)
    assert found["hypergrad: training loss after 12 iterations"] < found["paper: training loss after 12 iterations"]
    assert found["paper: training loss after 12 iterations"] < 0.6 * found["paper: training loss at the start"]
    records = (tmp_path / "schedules" / "records.jsonl").read_text()
    scales = run("initial-scales", tmp_path)
    assert scales["layer 2: 1 / sqrt(fan-in)"] == pytest.approx(50**-0.5)
    rivals = run("schedules-rivals", tmp_path)
    assert (tmp_path / "schedules" / "records.jsonl").read_text() == records
    unseen = "training loss, unseen seeds"
    assert rivals[f"paper: {unseen}"] == found[f"paper: {unseen}"]
    transfer = run("schedules-transfer", tmp_path)
    assert all(0 < loss < 2.5 for quantity, loss in transfer.items() if "training loss" in quantity)
    assert (tmp_path / "schedules" / "records.jsonl").read_text() == records  # these runs were not repeated
    adam = run("schedules-adam", tmp_path)
    assert adam["hypergrad: training loss after 12 iterations"] < adam["paper: training loss at the start"]


@pytest.mark.slow
def test_truncated_schedules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduled_loops, "ITERATIONS", 6)
    found = run("schedules-truncated", tmp_path)
    losses = [found[f"last-{last}: training loss, unseen seeds"] for last in (10, 100)]
    assert losses[1] < losses[0]


@pytest.mark.slow
def test_memory_and_the_initial_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initial_gradient, "DRAWS", 4)
    found = run("memory", tmp_path)
    for decay in memory.DECAYS:
        bits, limit = found[f"decay {decay}: bits a weight and step"], found[f"decay {decay}: entropy limit"]
        assert bits == pytest.approx(limit, rel=8 / 70)  # 70 bits between the reports, a plane more or less
    gradient = run("initial-gradient", tmp_path)
    assert gradient["log learning rate: share of the weights' elements below 0"] > 0.9  # rates are too low at first
