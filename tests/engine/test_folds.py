"""Losses of examples: their mean, its standard error, and folds that a gradient leaves out."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import (
    DrMAD,
    Evaluation,
    Float,
    Fold,
    Forward,
    Hypernet,
    Implicit,
    Method,
    OnePass,
    Persistent,
    RealTime,
    Reversible,
    Smoothed,
    Status,
    TrainingProblem,
    Unrolled,
    evaluate,
    sgd,
)
from hypergrad_search.fold import blocks_of, order, split
from hypergrad_search.hypergradient import Linear

Array = np.ndarray[Any, Any]

KEY = jax.random.key(0)
EXAMPLES = 11
STEPS = 20
RNG = np.random.default_rng(0)
X, Y = np.float32(RNG.normal(size=(15, 3))), np.float32(RNG.normal(size=15))
X_VALID, Y_VALID = np.float32(RNG.normal(size=(EXAMPLES, 3))), np.float32(RNG.normal(size=EXAMPLES))
X_TEST, Y_TEST = np.float32(RNG.normal(size=(7, 3))), np.float32(RNG.normal(size=7))
PENALTY = {"penalty": np.array([0.1, 0.2, 0.3])}
H: dict[str, Any] = {**PENALTY, "mask": np.ones(EXAMPLES), "size": 2.0}
SPACE = {"penalty": Float(1e-3, 10.0, log=True, shape=(3,))}

HYPERNET = Hypernet(network=Linear(), steps=STEPS)
METHODS: dict[str, Method] = {
    "Reversible": Reversible(),
    "Unrolled": Unrolled(),
    "DrMAD": DrMAD(),
    "Forward": Forward(),
    "Hypernet": HYPERNET,
    "Implicit": Implicit(),
    "OnePass": OnePass(),
    "Persistent": Persistent(pairs=2),
    "RealTime": RealTime(),
    "Smoothed": Smoothed(pairs=2),
}
#: Those that trace the losses at each evaluation, without compiling, to see what they depend on.
TRACING = Hypernet | Implicit | OnePass | RealTime
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def squares(p: jax.Array, x: Any, y: Any, h: Any = None) -> jax.Array:
    return jnp.square(x @ p - y) * (1 if h is None else h["size"])


def ridge(**changes: Any) -> TrainingProblem:
    parts: dict[str, Any] = {
        "init": lambda key, h: jnp.zeros(3),
        "train_loss": lambda p, h, batch, key: jnp.mean(squares(p, X, Y)) + jnp.sum(h["penalty"] * p**2),
        "valid_loss": lambda p, h: squares(p, X_VALID, Y_VALID, h),
        "batches": lambda step: None,
        "optimizer": sgd(0.1, 0.5),
        "steps": STEPS,
        "test_loss": lambda p, h: squares(p, X_TEST, Y_TEST),
    }
    return TrainingProblem(**{**parts, **changes})


def run(problem: TrainingProblem, method: Method, h: dict[str, Any] = H, **request: Any) -> Evaluation:
    return evaluate(problem, h, method=method, key=KEY, space=SPACE, **request)


def followed(result: Evaluation) -> dict[str, Any]:
    """What tells which gradient a method took: the gradient, or where `Hypernet` went."""
    found = result.gradient if result.refined is None else {"penalty": result.refined["penalty"]}
    assert found is not None
    return {name: value for name, value in found.items() if name != "mask"}


def error_of(losses: Array) -> float:
    return float(losses.std(ddof=1) / math.sqrt(len(losses)))


LOSSES = ridge()
MEAN = ridge(valid_loss=lambda p, h: jnp.mean(squares(p, X_VALID, Y_VALID, h)))
# The mean over the examples that `mask` leaves: a problem that is told what to leave out by a hyperparameter.
MASKED = ridge(valid_loss=lambda p, h: jnp.sum(h["mask"] * squares(p, X_VALID, Y_VALID, h)) / jnp.sum(h["mask"]))


@each_method
def test_losses_of_examples_are_their_mean(method: Method) -> None:
    """The two are different programs, so they agree up to rounding."""
    of_examples, of_mean = run(LOSSES, method), run(MEAN, method)
    assert of_examples.value == pytest.approx(of_mean.value, rel=1e-6)
    assert of_examples.test_loss == pytest.approx(of_mean.test_loss, rel=1e-6)
    for name, slope in followed(of_mean).items():
        np.testing.assert_allclose(followed(of_examples)[name], slope, rtol=1e-5, atol=1e-7)
    assert of_mean.standard_error is None
    assert of_examples.held_back is None


@each_method
def test_errors_and_folds_are_those_of_numpy(method: Method) -> None:
    result = run(LOSSES, method, fold=Fold(1, of=4))
    h = H if result.refined is None else result.refined
    params = np.asarray(method.params(LOSSES, h, key=KEY, space=SPACE, checkpoint=result.checkpoint), np.float64)
    valid, test = H["size"] * (X_VALID @ params - Y_VALID) ** 2, (X_TEST @ params - Y_TEST) ** 2
    assert result.value == pytest.approx(valid.mean(), rel=1e-5)
    assert result.standard_error == pytest.approx(error_of(valid), rel=1e-5)
    assert result.test_loss == pytest.approx(test.mean(), rel=1e-5)
    assert result.test_standard_error == pytest.approx(error_of(test), rel=1e-5)
    parts = split(valid, 4)
    assert result.held_back == pytest.approx([part.mean() for part in parts], rel=1e-5)
    assert result.held_back_errors == pytest.approx([error_of(part) for part in parts], rel=1e-5)


@each_method
def test_the_gradient_is_that_of_the_other_examples(method: Method) -> None:
    whole = run(LOSSES, method)
    for fold in (Fold(1, of=4), Fold(2, of=3)):
        left_out = run(LOSSES, method, fold=fold)
        kept = np.float32(order(EXAMPLES) % fold.of != fold.index)
        rest = run(MASKED, method, {**H, "mask": kept})
        for name, slope in followed(rest).items():
            np.testing.assert_allclose(followed(left_out)[name], slope, rtol=1e-5, atol=1e-7)
            assert not np.allclose(slope, followed(whole)[name], rtol=1e-3, atol=0)
        if left_out.refined is None:  # the same training
            assert left_out.value == whole.value


@dataclass
class Work:
    """What JAX did: how often it traced the validation loss, and what it compiled."""

    traced: int = 0
    compiled: list[str] = field(default_factory=list)
    watched: bool = True


@contextmanager
def watched() -> Iterator[tuple[TrainingProblem, Work]]:
    work = Work()

    def valid_loss(p: jax.Array, h: dict[str, Any]) -> jax.Array:
        work.traced += 1
        return squares(p, X_VALID, Y_VALID, h)

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if work.watched and "backend_compile" in event:
            work.compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)  # older versions of JAX cannot take it back
    try:
        yield ridge(valid_loss=valid_loss), work
    finally:
        work.watched = False


@each_method
def test_all_folds_share_one_compiled_program(method: Method) -> None:
    with watched() as (problem, work):
        for below in (math.inf, 1e9):
            run(problem, method, fold=Fold(0, of=4, below=below))
        assert work.compiled
        before = Work(work.traced, list(work.compiled))
        results = [run(problem, method, fold=fold) for fold in (Fold(3, of=4), Fold(1, of=2), Fold(2, of=5, below=1e8))]
        assert work.compiled == before.compiled
        assert work.traced - before.traced == (len(results) if isinstance(method, TRACING) else 0)
    assert len({followed(result)["penalty"].tobytes() for result in results}) == 3


@each_method
def test_more_folds_than_examples_are_refused(method: Method) -> None:
    with pytest.raises(ValueError, match=r"fold: 11 validation examples cannot be split into of=12 parts; use fewer"):
        run(LOSSES, method, fold=Fold(0, of=EXAMPLES + 1))


def test_a_fold_of_one_example_has_no_standard_error() -> None:
    result = run(LOSSES, Reversible(), fold=Fold(0, of=EXAMPLES))
    assert result.held_back is not None
    assert len(result.held_back) == EXAMPLES
    assert result.held_back_errors == (None,) * EXAMPLES
    one = run(ridge(valid_loss=lambda p, h: squares(p, X_VALID, Y_VALID, h)[:1]), Reversible())
    assert one.standard_error is None


@each_method
def test_a_scalar_loss_holds_nothing_back(method: Method) -> None:
    plain, asked = run(MEAN, method), run(MEAN, method, fold=Fold(1, of=4, below=-math.inf))
    assert (asked.status, asked.value, asked.held_back) == (Status.OK, plain.value, None)
    for name, slope in followed(plain).items():
        np.testing.assert_allclose(followed(asked)[name], slope, rtol=1e-6)


@each_method
def test_what_is_fitted_no_better_than_its_bound_is_overfitted(method: Method) -> None:
    free = run(LOSSES, method, fold=Fold(2, of=4))
    assert free.held_back is not None
    bound = free.held_back[2]
    above = run(LOSSES, method, fold=Fold(2, of=4, below=math.nextafter(bound, math.inf)))
    at = run(LOSSES, method, fold=Fold(2, of=4, below=bound))
    assert (above.status, above.value, above.held_back) == (Status.OK, free.value, free.held_back)
    assert followed(above).keys() == followed(free).keys()
    assert all((followed(above)[name] == slope).all() for name, slope in followed(free).items())
    assert (at.status, at.value, at.held_back) == (Status.OVERFITTED, free.value, free.held_back)
    assert "fitted no better" in at.message
    assert (at.gradient, at.refined, at.checkpoint) == (None, None, None)
    if not method.continues:
        assert at.cost.gradient_evaluations == STEPS
    # the bound is for the fold that is held back alone
    other = run(LOSSES, method, fold=Fold(1, of=4, below=math.inf))
    assert other.status == Status.OK


@each_method
@pytest.mark.parametrize(("bad", "status"), [(math.nan, Status.NAN), (math.inf, Status.DIVERGED)])
def test_an_example_that_is_not_finite_says_so(method: Method, bad: float, status: Status) -> None:
    """Wherever it is: in the fold that is held back, or among the others."""
    for fold in (None, Fold(0, of=2), Fold(1, of=2)):
        result = run(BROKEN, method, {**H, "bad": bad}, fold=fold)
        assert (result.status, result.value, result.gradient, result.refined) == (status, math.inf, None, None)
        assert result.standard_error is None


BROKEN = ridge(valid_loss=lambda p, h: squares(p, X_VALID, Y_VALID, h).at[3].add(h["bad"]))


def test_a_minibatch_is_not_descended_where_a_fold_is_held_back() -> None:
    """`valid_batch_loss` does not say which examples it holds."""
    traced: list[Any] = []

    def valid_batch_loss(p: jax.Array, h: dict[str, Any], step: jax.Array) -> jax.Array:
        traced.append(step)
        return jnp.sum(p**2)

    problem = ridge(valid_batch_loss=valid_batch_loss)
    held_back = run(problem, HYPERNET, fold=Fold(1, of=4))
    assert not traced
    np.testing.assert_allclose(
        followed(held_back)["penalty"], followed(run(LOSSES, HYPERNET, fold=Fold(1, of=4)))["penalty"], rtol=1e-6
    )
    whole = run(problem, HYPERNET)
    assert traced
    assert not np.allclose(followed(whole)["penalty"], followed(run(LOSSES, HYPERNET))["penalty"], rtol=1e-4)


def test_a_minibatch_is_descended_where_the_loss_has_no_examples_to_hold_back() -> None:
    losses = {
        "valid_loss": lambda p, h: jnp.mean(squares(p, X_VALID, Y_VALID, h)),
        "valid_batch_loss": lambda p, h, step: jnp.sum(p**2),
    }
    result = run(ridge(**losses), HYPERNET, fold=Fold(1, of=4))
    assert result.held_back is None
    assert followed(result)["penalty"].tolist() == followed(run(ridge(**losses), HYPERNET))["penalty"].tolist()


def test_losses_of_a_minibatch_are_their_mean() -> None:
    of_examples = run(ridge(valid_batch_loss=lambda p, h, s: squares(p, X_VALID, Y_VALID, h)), HYPERNET)
    np.testing.assert_allclose(followed(of_examples)["penalty"], followed(run(LOSSES, HYPERNET))["penalty"], rtol=1e-6)


@pytest.mark.parametrize(
    ("method", "dtype"),
    [(method, jnp.float16) for method in METHODS.values()] + [(Unrolled(), jnp.bfloat16), (HYPERNET, jnp.bfloat16)],
    ids=lambda x: getattr(x, "__name__", type(x).__name__),
)
def test_losses_in_half_precision_are_summed_in_float32(method: Method, dtype: Any) -> None:
    """3,000 losses of about 30 each: their sum is beyond float16."""

    def valid_loss(p: jax.Array, h: dict[str, Any]) -> jax.Array:
        return jnp.asarray(h["size"] * 15 + jnp.sum(p) * jnp.ones(3000), dtype)

    problem = ridge(valid_loss=valid_loss, test_loss=None)
    result, whole = run(problem, method, fold=Fold(1, of=4)), run(problem, method)
    assert result.status == Status.OK
    assert result.value == whole.value
    assert result.value == pytest.approx(30, rel=0.05)
    assert result.held_back == (result.value,) * 4  # all examples are alike
    assert result.standard_error == 0
    for name, slope in followed(whole).items():
        assert np.isfinite(slope).all()
        np.testing.assert_allclose(followed(result)[name], slope, rtol=0.01)


def test_folds_are_parts_of_nearly_equal_size() -> None:
    parts = split(np.arange(EXAMPLES), 4)
    assert sorted(map(len, parts)) == [2, 3, 3, 3]
    assert sorted(np.concatenate(parts)) == list(range(EXAMPLES))
    assert [list(part) for part in parts] == [list(part) for part in split(np.arange(EXAMPLES), 4)]
    assert any((np.diff(part) != 4).any() for part in parts)  # sorted data are mixed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": 0, "of": 1}, "Fold: of must be a whole number from 2, got 1"),
        ({"index": 4, "of": 4}, "Fold: index must be a whole number from 0 to 3, got 4"),
        ({"index": -1, "of": 4}, "Fold: index must be a whole number from 0 to 3, got -1"),
        ({"index": 0, "of": 4, "below": math.nan}, "Fold: below must be a number, got nan"),
        ({"index": 0, "of": 4, "below": None}, "Fold: below must be a number, got None"),
    ],
)
def test_folds_that_do_not_fit_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fold(**arguments)


def test_what_is_no_fold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"evaluate: fold must be a Fold such as Fold\(0, of=4\) or None, got 3"):
        run(LOSSES, Reversible(), fold=3)


def test_blocks_are_the_parts_in_pieces_of_equal_size() -> None:
    losses = RNG.normal(size=1000)
    blocks, parts = blocks_of(losses, 4), split(losses, 4)
    assert [len(x) for x in blocks] == [32] * 4
    for of_part, part in zip(blocks, parts, strict=True):
        sizes = [8] * 26 + [7] * 6  # 250 examples
        assert np.average(of_part, weights=sizes) == pytest.approx(part.mean())
        assert of_part[0] == part[:8].mean()
    assert blocks_of(losses[:10], 4) == tuple(tuple(part.tolist()) for part in split(losses[:10], 4))


def test_blocks_of_sorted_data_are_alike() -> None:
    """Each block has examples of all classes, and their means are those of float64."""
    sorted_losses = np.repeat(np.arange(10.0), 320)
    assert np.std(blocks_of(sorted_losses, 4)) < 1.0  # of one class alone it would be 2.9
    coarse = jnp.full(40_000, 0.1, jnp.bfloat16)
    assert {x for part in blocks_of(np.asarray(coarse), 4) for x in part} == {float(coarse[0])}


def test_a_gain_must_be_larger_than_its_standard_error() -> None:
    """Two parts of four examples, before and after a step that lowers the mean of the second part by 0.5."""
    before = (1.0, 2.0, 3.0, 4.0)
    alike, lucky = (0.5, 1.4, 2.6, 3.5), (1.1, 2.1, 3.1, 1.7)
    errors = [np.subtract(before, after).std(ddof=1) / 2 for after in (alike, lucky)]
    assert errors == pytest.approx([0.0408, 0.6], rel=1e-3)
    losses = (9.0, 2.0)
    for margin, accepted in ((0.0, [True, True]), (0.8, [True, True]), (1.0, [True, False]), (13.0, [False, False])):
        fold = Fold(0, of=2, below=2.5, judge=1, margin=margin, blocks=before)
        assert [fold.accepts(losses, ((9.0,) * 4, after)) for after in (alike, lucky)] == accepted
        assert fold.accepts(losses)  # without blocks, any gain will do
        assert not fold.accepts((9.0, 2.5), ((9.0,) * 4, alike))


def test_large_parts_need_less_of_a_margin() -> None:
    """The gain is 1.39 standard errors; parts of 32 examples need 2, and parts of 128 need 1."""
    blocks, after = (1.0, 2.0, 3.0, 4.0), (1.1, 2.1, 2.1, 3.1)
    gain = float(np.mean(np.subtract(blocks, after)))
    assert gain / (np.subtract(blocks, after).std(ddof=1) / 2) == pytest.approx(1.39, rel=1e-2)
    fold = Fold(0, of=2, below=2.5, judge=1, margin=2.0, blocks=blocks)
    accepted = {n: fold.accepts((9.0, 2.5 - gain), ((9.0,) * 4, after), 2 * n) for n in (4, 32, 64, 68, 128)}
    assert accepted == {4: False, 32: False, 64: False, 68: True, 128: True}


def test_a_method_judges_by_the_blocks() -> None:
    free = run(LOSSES, Reversible(), fold=Fold(2, of=4))
    assert free.held_back is not None
    assert free.blocks is not None
    assert [np.mean(x) for x in free.blocks] == pytest.approx(free.held_back)
    some = Fold(2, of=4, below=free.held_back[2] + 0.1, margin=1.0)
    alike, luck = np.add(free.blocks[2], 0.1), np.add(free.blocks[2], [0.3, 0.0, 0.0][: len(free.blocks[2])])
    found = run(LOSSES, Reversible(), fold=replace(some, blocks=tuple(alike)))
    lucky = run(LOSSES, Reversible(), fold=replace(some, blocks=tuple(luck - luck.mean() + alike.mean())))
    assert (found.status, lucky.status) == (Status.OK, Status.OVERFITTED)
    assert (found.value, lucky.value) == (free.value, free.value)
    assert lucky.cross_validated is None


def test_each_example_counts_where_it_was_held_back() -> None:
    free = run(LOSSES, Reversible(), fold=Fold(2, of=4))
    assert free.held_back is not None
    assert free.cross_validated == free.value
    step = run(LOSSES, Reversible(), fold=Fold(2, of=4, below=free.held_back[1] + 0.25, judge=1, cross_validated=7.0))
    assert step.cross_validated == pytest.approx(7.0 - 0.25)
    again = run(LOSSES, Reversible(), fold=Fold(2, of=4, cross_validated=7.0))
    assert again.cross_validated == 7.0
    assert run(LOSSES, Reversible()).cross_validated is None
