"""Every problem trains and has a gradient, and has the optimum, lifts and seeds that it is said to have."""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest

from hypergrad_optuna import Objective
from hypergrad_search import Float, Fold, Reversible, Status, Unrolled, evaluate
from hypergrad_search.problem import check_problem
from hypergrad_search.space import dimension, lifted, unlifted
from hypergrad_studies.data import MissingData, mnist
from hypergrad_studies.networks import Split, cross_entropy, network, normal_network
from hypergrad_studies.problems import (
    PROBLEMS,
    digits,
    digits_labels,
    digits_mixed,
    middle,
    text_mlp,
)
from hypergrad_studies.problems.synthetic import FUNCTIONS

DIMENSIONS = {
    "digits-mlp": (10, 7403),
    "digits-l2": (650, 650),
    "digits-adamw": (7, 1208),
    "cancer-mlp": (7, 1442),
    "diabetes-mlp": (6, 2952),
    "text-mlp": (7, 1205),
    "mnist-mlp": (7, 40502),
    "mnist-cnn": (8, 8),
    "digits-rates": (100, 100),
    "digits-schedules": (1608, 1608),
    "digits-labels": (1003, 1801),
    "digits-mixed": (10, 10),  # it also has an integer and a categorical
    "data-cleaning": (6000, 6000),
    "digits-noisy": (10, 7403),
    "synthetic-quadratic": (10, 10),
    "synthetic-rosenbrock": (8, 8),
    "synthetic-rastrigin": (6, 6),
    "synthetic-steps": (10, 10),
    "synthetic-exploding": (8, 8),
    "synthetic-wrong": (10, 10),
}
"""How many numbers each problem has as it is, and how many when it is lifted."""

OF_MNIST = ("mnist-mlp", "mnist-cnn", "data-cleaning")

LONG = ("text-mlp", "digits-adamw", "digits-schedules", "digits-mixed", "digits-rates")
"""Problems whose programs take long to compile."""

TRAINED_BELOW = ("cancer-mlp", "diabetes-mlp", "digits-labels")
"""Problems that another of the fast tests trains, with a gradient that it compares."""

CHANCE = {"cancer-mlp": math.log(2), "diabetes-mlp": 1.0, "text-mlp": math.log(36)}
"""The loss of guessing; that of digits is log(10)."""


def test_the_table_of_dimensions_is_whole() -> None:
    assert DIMENSIONS.keys() == PROBLEMS.keys()


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_has_as_many_numbers_as_the_table_says(name: str) -> None:
    task = PROBLEMS[name]()
    plain, with_lifts = DIMENSIONS[name]
    assert dimension(task.space) == plain
    if name in OF_MNIST:
        _needs_mnist()  # to see what the losses read
    assert dimension(lifted(task.liftable)) == with_lifts
    assert task.can_lift == (plain < with_lifts)


def _needs_mnist() -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn warns that it tries again
            mnist()
    except MissingData as missing:
        pytest.skip(f"trains on MNIST, which cannot be had here: {missing}")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in OF_MNIST or n in LONG + TRAINED_BELOW else n for n in PROBLEMS],
)
def test_every_problem_trains_and_has_a_gradient(name: str) -> None:
    if name in OF_MNIST:
        _needs_mnist()
    problem, space = PROBLEMS[name]().posed()
    check_problem(problem, space)
    result = evaluate(problem, middle(space), key=jax.random.key(0), space=space)
    assert result.status == Status.OK
    assert result.diagnostics["exact"] is True
    assert np.isfinite(result.value)
    assert result.gradient is not None
    assert all((np.asarray(g) != 0).any() for g in result.gradient.values())
    if not name.startswith("synthetic"):
        assert result.value < CHANCE.get(name, math.log(10))
        assert result.test_loss is not None


@pytest.mark.parametrize(
    "name",
    [
        "diabetes-mlp",
        pytest.param("digits-labels", marks=pytest.mark.slow),
        pytest.param("text-mlp", marks=pytest.mark.slow),
        pytest.param("mnist-cnn", marks=pytest.mark.slow),
    ],
)
def test_gradients_of_both_exact_methods_agree(name: str) -> None:
    if name in OF_MNIST:
        _needs_mnist()
    problem, space = PROBLEMS[name]().posed()
    methods = (Reversible(), Unrolled())
    found, other = (evaluate(problem, middle(space), key=jax.random.key(0), space=space, method=m) for m in methods)
    assert found.gradient is not None
    assert other.gradient is not None
    assert found.value == pytest.approx(other.value, rel=1e-6)
    for n, expected in other.gradient.items():
        np.testing.assert_allclose(found.gradient[n], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    "name", ["cancer-mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("digits-mixed", "digits-adamw"))]
)
def test_lifted_problems_train_alike_and_hold_back_a_fold(name: str) -> None:
    problem, space = PROBLEMS[name]().posed(lifts=True)
    point, numbers = middle(lifted(space)), middle(unlifted(space))
    fold = Fold(0, of=4)
    result = evaluate(problem, point, key=jax.random.key(0), fold=fold, space=space)
    assert result.status == Status.OK
    assert result.gradient is not None
    assert {n: g.shape for n, g in result.gradient.items()} == {
        n: p.shape for n, p in lifted(space).items() if isinstance(p, Float)
    }
    plain = evaluate(problem, numbers, key=jax.random.key(0), space=space)
    assert result.value == pytest.approx(plain.value, rel=1e-4)
    sums = {n: g.sum() for n, g in result.gradient.items()}  # by the chain rule, as all are the same number
    fitted = evaluate(problem, numbers, key=jax.random.key(0), fold=fold, space=space).gradient
    assert fitted is not None
    assert plain.gradient is not None
    assert sums == {n: pytest.approx(g, rel=2e-2, abs=1e-4) for n, g in fitted.items()}
    # `plain` follows all validation data
    assert any(abs(plain.gradient[n] - g) > 0.02 * abs(g) for n, g in fitted.items())


def test_a_problem_is_posed_without_lifts_or_with_them() -> None:
    plain, space = PROBLEMS["digits-mlp"]().posed()
    whole, lifts = PROBLEMS["digits-mlp"]().posed(lifts=True)
    assert space == unlifted(lifts) != lifts
    assert PROBLEMS["digits-mlp"]().posed()[0] is plain is whole  # or it would compile anew
    assert PROBLEMS["digits-noisy"]().posed()[0] is plain


EXAMPLES = {
    "cancer-mlp": (136, 133),
    "diabetes-mlp": (110, 112),
    "text-mlp": (4000, 6195),
    "mnist-mlp": (10_000, 10_000),
    "mnist-cnn": (2000, 2500),
    "data-cleaning": (4000, 10_000),
}
"""How many validation and test examples there are; on digits 400 and 397."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow) if n in OF_MNIST else n
        for n in PROBLEMS
        if not n.startswith("synthetic")
    ],
)
def test_outer_losses_are_those_of_examples(name: str) -> None:
    if name in OF_MNIST:
        _needs_mnist()
    problem, space = PROBLEMS[name]().posed()
    point = middle(space)
    params = jax.eval_shape(lambda: problem.init(jax.random.key(0), point))
    assert problem.test_loss is not None
    losses = [jax.eval_shape(lambda p, of=of: of(p, point), params) for of in (problem.valid_loss, problem.test_loss)]
    assert [x.shape for x in losses] == [(n,) for n in EXAMPLES.get(name, (400, 397))]


def test_a_synthetic_problem_has_one_loss() -> None:
    problem, space = PROBLEMS["synthetic-quadratic"]().posed()
    point = middle(space)
    assert problem.valid_loss(problem.init(jax.random.key(0), point), point).shape == ()


def test_the_mixed_problem_takes_its_activation_and_width_from_the_hyperparameters() -> None:
    problem, space = PROBLEMS["digits-mixed"]().posed()
    for width in (1, 3):
        point = middle(space) | {"width": width}
        layers = jax.eval_shape(lambda point=point: problem.init(jax.random.key(0), point))
        assert [layer["biases"].shape for layer in layers] == [(16 * width,), (16 * width,), (10,)]
    layers = problem.init(jax.random.key(0), middle(space) | {"width": 1})
    for activation, function in digits_mixed.ACTIVATIONS.items():
        np.testing.assert_array_equal(
            problem.valid_loss(layers, middle(space) | {"activation": activation}),
            cross_entropy(layers, digits.splits()[1], function),
        )
    relu = middle(space) | {"activation": "relu", "width": 2}
    result = evaluate(problem, relu, key=jax.random.key(0), gradient_below=-np.inf, space=space)
    assert result.status == Status.OK


def test_a_network_is_layers_of_its_sizes_and_scales() -> None:
    layers = network(jax.random.key(0), (300, 200, 10), [0.5, 2.0])
    assert [layer["weights"].shape for layer in layers] == [(300, 200), (200, 10)]
    assert [float(layer["weights"].std()) for layer in layers] == pytest.approx([0.5, 2.0], rel=0.05)
    assert all((layer["biases"] == 0).all() for layer in layers)
    normal = normal_network(jax.random.key(0), (300, 200, 10), 0.5)
    assert [float(layer["weights"].std()) for layer in normal] == pytest.approx([0.5, 0.5], rel=0.05)
    assert float(jnp.concatenate([layer["biases"] for layer in normal]).std()) == pytest.approx(0.5, rel=0.15)


def test_cross_entropy_is_the_negative_log_likelihood_of_each_class() -> None:
    layers = [{"weights": jnp.zeros((2, 3)), "biases": jnp.log(jnp.array([0.5, 0.3, 0.2]))}]
    losses = cross_entropy(layers, Split(jnp.ones((4, 2)), jnp.array([0, 1, 2, 0])))
    np.testing.assert_allclose(losses, -np.log([0.5, 0.3, 0.2, 0.5]), rtol=1e-6)


def test_a_noisy_problem_differs_from_trial_to_trial() -> None:
    (name,) = (name for name, make in PROBLEMS.items() if make().reseed)
    problem, space = PROBLEMS[name]().posed()
    study = optuna.create_study()
    for reseed in (False, True):
        objective = Objective(problem, space, reseed=reseed)
        values = {objective.evaluate(study.ask(), middle(space)) for _ in range(3)}
        assert len(values) == (3 if reseed else 1)


def named(point: np.ndarray) -> dict[str, float]:
    return {f"x{i}": float(x) for i, x in enumerate(point)}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_optimum_of_a_synthetic_problem_is_known(name: str) -> None:
    function, low, high, best = FUNCTIONS[name]
    problem, _ = PROBLEMS[f"synthetic-{name}"]().posed()
    assert evaluate(problem, named(best), key=jax.random.key(0)).value == pytest.approx(0, abs=1e-6)
    assert ((low < best) & (best < high)).all()
    points = np.random.default_rng(0).uniform(low, high, (1000, len(best)))
    assert (jax.vmap(function)(jnp.asarray(points, jnp.float32)) > 0).all()


def slopes(name: str, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradient that is reported at a point, and finite differences in float64."""
    problem, _ = PROBLEMS[f"synthetic-{name}"]().posed()
    gradient = evaluate(problem, named(point), key=jax.random.key(0)).gradient
    assert gradient is not None
    reported = np.array([gradient[name] for name in named(point)])
    function, step = jax.jit(FUNCTIONS[name][0]), 1e-6
    # the functions' constants are float32
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        ends = [[function(jnp.asarray(point + s * row)) for s in (step, -step)] for row in np.eye(len(point))]
    return reported, np.array([float(up - down) / (2 * step) for up, down in ends])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_synthetic_gradients_are_right_but_where_they_are_wrong(name: str) -> None:
    best = FUNCTIONS[name][-1]
    reported, true = slopes(name, best.astype(float) + 0.2)
    expected = -true if name == "wrong" else true
    np.testing.assert_allclose(reported, expected, rtol=1e-3, atol=1e-3 * np.abs(true).max())


def test_a_step_is_not_in_the_gradient() -> None:
    best = FUNCTIONS["steps"][-1].astype(float)
    reported, _ = slopes("steps", best + 0.2)
    function = FUNCTIONS["steps"][0]
    rise = function(jnp.asarray(best + 0.6)) - function(jnp.asarray(best + 0.2))
    assert rise > 10 * reported.sum() * 0.4


def test_the_exploding_gradient_is_huge_in_a_part_of_the_box() -> None:
    gradient = jax.vmap(jax.grad(FUNCTIONS["exploding"][0]))
    points = jnp.asarray(np.random.default_rng(0).uniform(-5, 5, (1000, 8)), jnp.float32)
    norms = jnp.linalg.norm(gradient(points), axis=1)
    assert 0.2 < (norms > 1e3).mean() < 0.8
    assert jnp.median(norms[norms < 1e3]) < 20


def test_no_image_is_in_two_sets() -> None:
    train, valid, test = digits.splits()
    assert [len(part.labels) for part in (train, valid, test)] == [1000, 400, 397]
    rows = [{row.tobytes() for row in part.images} for part in (train, valid, test)]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]


def test_batches_go_through_the_training_set_in_turn() -> None:
    train = digits.splits()[0]
    seen = np.concatenate([digits.batches(jnp.int32(step)).labels for step in range(5)])
    np.testing.assert_array_equal(seen, train.labels)
    np.testing.assert_array_equal(digits.batches(jnp.int32(5)).images, digits.batches(jnp.int32(0)).images)


def test_three_in_ten_training_labels_are_wrong_and_an_image_of_weight_0_does_not_count() -> None:
    train = digits.splits()[0]
    right = digits_labels.labels() == train.labels
    assert [int(right.sum()), int((~right).sum())] == [700, 300]
    problem, space = PROBLEMS["digits-labels"]().posed()
    point = middle(space) | {"weight": right.astype(np.float32), "l2": 0.0}
    key = jax.random.key(0)
    params = problem.init(key, point)
    for step in (0, 7):
        rows = np.arange(step * 200, step * 200 + 200) % 1000
        losses = cross_entropy(params, Split(train.images[rows], train.labels[rows]))
        found = problem.train_loss(params, point, problem.batch(jnp.int32(step), point), key)
        assert float(found) == pytest.approx(float(losses[right[rows]].sum()) / 200, rel=1e-5)


def test_the_parts_of_the_text_share_no_character() -> None:
    text, alphabet = text_mlp.text(), text_mlp.alphabet()
    train, valid, test = text_mlp.splits()

    def strings(part: Split) -> list[str]:
        windows = np.concatenate([part.images, part.labels[:, None]], axis=1)
        return ["".join(alphabet[i] for i in window) for window in windows]

    # the last characters of training and validation are those at 20,011 and 24,023
    assert sorted(strings(train)) == sorted(text[i : i + 13] for i in range(20_000))
    assert strings(valid) == [text[i : i + 13] for i in range(20_012, 24_012)]
    assert strings(test) == [text[i : i + 13] for i in range(24_024, len(text) - 12)]
