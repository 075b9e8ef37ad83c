"""Schedules: those of optax as settings, and a warm-up with gradients in all that shapes it."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad_search import (
    TrainingProblem,
    Unrolled,
    adam,
    evaluate,
    fit_warmup_cosine,
    sgd,
    summarize_schedules,
    warmup_cosine,
)


@pytest.mark.parametrize("warmup", [1, 10, 99])
@pytest.mark.parametrize("final", [0.0, 0.02])
def test_whole_warm_ups_are_those_of_optax(warmup: int, final: float) -> None:
    steps = jnp.arange(101)
    ours = jax.vmap(warmup_cosine(0.3, warmup, final, steps=100))(steps)
    with jax.numpy_dtype_promotion("standard"):
        wanted = jax.vmap(optax.warmup_cosine_decay_schedule(0.0, 0.3, warmup, 100, final))(steps)
    np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-6)


def test_slopes_are_those_of_finite_differences() -> None:
    with jax.enable_x64(True):
        at = jnp.array([0.3, 7.5, 0.02])

        def total(x: jax.Array) -> jax.Array:
            weights = jnp.cos(jnp.arange(30.0))
            return jnp.sum(weights * jax.vmap(warmup_cosine(x[0], x[1], x[2], steps=30))(jnp.arange(30)))

        slopes = jax.grad(total)(at)
        for i in range(3):
            step = 1e-6 * jnp.eye(3)[i]
            assert float(slopes[i]) == pytest.approx(float(total(at + step) - total(at - step)) / 2e-6, rel=1e-6)


def problem(rate: object) -> TrainingProblem:
    return TrainingProblem(
        init=lambda key, h: jnp.ones(3),
        train_loss=lambda w, h, batch, key: jnp.sum(w**2),
        valid_loss=lambda w, h: jnp.sum(w**2),
        batches=lambda step: None,
        optimizer=sgd(rate, 0.5),
        steps=10,
    )


def test_a_schedule_of_optax_is_a_setting() -> None:
    schedule = optax.cosine_decay_schedule(0.1, 10)
    with jax.numpy_dtype_promotion("standard"):
        values = np.asarray(jax.vmap(schedule)(np.arange(10)))
        by_schedule = evaluate(problem(schedule), {}, key=jax.random.key(0)).value
    assert by_schedule == pytest.approx(evaluate(problem(values), {}, key=jax.random.key(0)).value, rel=1e-6)


def test_a_function_of_both_keeps_its_meaning() -> None:
    def both(h: dict[str, jax.Array], step: jax.Array = jnp.int32(0)) -> jax.Array:  # noqa: B008 (an array is no mutable)
        return h["rate"] / (1 + step.astype(jnp.float32))

    assert evaluate(problem(both), {"rate": 0.1}, key=jax.random.key(0)).gradient is not None


def test_a_function_that_may_be_called_either_way_is_refused() -> None:
    """If the way was guessed, a number of the user's own would be taken for the step."""
    with pytest.raises(ValueError, match=r"learning_rate must take either \(step\) or \(hyperparameters, step\)"):
        evaluate(problem(lambda step, scale=1.0: 0.001 * scale), {"rate": 0.1}, key=jax.random.key(0))
    bound = functools.partial(lambda step, scale=1.0: 0.001 * scale, scale=2.0)
    assert evaluate(problem(bound), {"rate": 0.1}, key=jax.random.key(0)).gradient is not None


def test_what_is_neither_is_named() -> None:
    with pytest.raises(ValueError, match=r"learning_rate must take \(hyperparameters, step\)"):
        evaluate(problem(lambda: 0.1), {}, key=jax.random.key(0))
    with pytest.raises(ValueError, match="steps must be a whole number from 1"):
        warmup_cosine(0.1, 2, steps=0)
    assert adam(optax.constant_schedule(0.1)).name == "adam"


@pytest.mark.parametrize("warmup", [0.0, 10.0])
def test_a_warm_up_of_no_steps_or_of_all_has_values_and_no_nan(warmup: float) -> None:
    def at(warmup: jax.Array, step: jax.Array) -> jax.Array:
        return warmup_cosine(0.3, warmup, steps=10)(step)

    steps = np.arange(10, dtype=np.float32)
    values, slopes = jax.vmap(jax.value_and_grad(at), (None, 0))(jnp.float32(warmup), jnp.asarray(steps))
    wanted = 0.03 * steps if warmup else 0.15 * (1 + np.cos(np.pi * steps / 10))
    np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-6)
    assert np.isfinite(slopes).all()


@pytest.mark.parametrize("numbers", [(0.3, 7.5, 0.02), (2.0, 60.0, 1.0), (1e-4, 1.0, 0.0)])
def test_a_fit_finds_the_schedule_again(numbers: tuple[float, float, float]) -> None:
    names = ("peak", "warmup", "final")
    with jax.enable_x64(True):
        schedule = np.asarray(jax.vmap(warmup_cosine(*numbers, steps=100))(jnp.arange(100)))
    assert fit_warmup_cosine(schedule) == pytest.approx(dict(zip(names, numbers, strict=True)), rel=1e-4, abs=1e-8)
    scattered = np.stack([0.5 * schedule, 1.5 * schedule])
    assert fit_warmup_cosine(scattered) == pytest.approx(fit_warmup_cosine(schedule), rel=1e-4, abs=1e-8)


def test_a_fit_smooths_what_a_search_has_found() -> None:
    smooth = np.asarray(jax.vmap(warmup_cosine(0.2, 10.0, 0.05, steps=100))(jnp.arange(100)))
    noisy = smooth * np.random.default_rng(0).lognormal(sigma=0.3, size=(4, 100))
    assert fit_warmup_cosine(noisy) == pytest.approx({"peak": 0.2, "warmup": 10.0, "final": 0.05}, rel=0.2)


@pytest.mark.parametrize("wrong", [0.1, [0.1], np.ones((2, 3, 4)), [0.1, np.nan]])
def test_what_is_no_schedule_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"fit_warmup_cosine: schedule must have shape \(steps,\)"):
        fit_warmup_cosine(wrong)


def test_a_summary_says_what_it_is_worth() -> None:
    run = replace(problem("rate"), optimizer=sgd("rate", "momentum"))
    h = {"rate": np.geomspace(0.3, 0.01, 10)[None], "momentum": np.linspace(0.5, 0.9, 10), "l2": 1.0}
    key = jax.random.key(0)
    summary = summarize_schedules(run, h, key=key)
    assert summary.numbers == {"rate": fit_warmup_cosine(h["rate"]), "momentum": {"constant": pytest.approx(0.7)}}
    assert summary.hyperparameters["l2"] == 1.0
    assert summary.hyperparameters["rate"].shape == (1, 10)
    again = evaluate(run, summary.hyperparameters, key=key, method=Unrolled())
    assert (summary.value, summary.test_loss) == (again.value, None)
    assert summary.value != evaluate(run, h, key=key, method=Unrolled()).value
    with pytest.raises(ValueError, match="no setting of the optimizer uses a hyperparameter that is a schedule"):
        summarize_schedules(run, {**h, "rate": 0.1, "momentum": 0.5}, key=key)


def test_a_table_that_a_function_looks_up_is_no_schedule() -> None:
    run = replace(problem("rate"), optimizer=sgd("rate", lambda h, step: h["table"][0, step]))
    h = {"rate": np.full((1, 10), 0.1), "l2": 1.0, "table": np.full((1, 10), 0.5)}
    summary = summarize_schedules(run, h, key=jax.random.key(0))
    assert summary.numbers.keys() == {"rate"}
    assert summary.hyperparameters["table"] is h["table"]


def test_a_schedule_that_a_setting_is_computed_from_becomes_its_mean() -> None:
    run = replace(problem("rate"), optimizer=sgd("rate", lambda h, step: 1 - h["rest"]))
    h = {"rate": 0.1, "l2": 1.0, "rest": np.linspace(0.1, 0.5, 10)[None]}
    summary = summarize_schedules(run, h, key=jax.random.key(0))
    assert summary.numbers == {"rest": {"constant": pytest.approx(0.3)}}
