"""What is said to a user whose run cannot come out right, in real runs on a small local Ray."""

import copy
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import optax
import pytest
import ray
from ray import cloudpickle, tune

from hypergrad_ray import HypergradSearch, best_hyperparameters, trainable, wants_gradient
from hypergrad_ray.trial_errors import passable
from hypergrad_search import Float, Space, TrainingProblem, sgd

SPACE: Space = {"rate": Float(1e-2, 0.3, log=True), "decay": Float(1e-4, 1e-1, log=True)}


def problem(optimizer: Any, valid: float = 1.0) -> TrainingProblem:
    """Return a problem whose functions travel by value."""
    return TrainingProblem(
        init=lambda key, h: jnp.zeros(2),
        train_loss=lambda p, h, batch, key: jnp.sum((p - 1.0) ** 2) + h["decay"] * jnp.sum(p**2),
        valid_loss=lambda p, h: valid * jnp.sum((p - 0.5) ** 2),
        test_loss=lambda p, h: jnp.sum((p - 0.4) ** 2),
        batches=lambda step: None,
        optimizer=optimizer,
        steps=5,
    )


@pytest.fixture(scope="module")
def _small_ray() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"os.fork\(\) was called")  # Ray's children leave JAX alone
        ray.init(num_cpus=1, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    yield
    ray.shutdown()


def run(train: Any, folder: Path, metric: str = "loss", mode: str = "min", mode_of_ray: str | None = None) -> Any:
    """Return the results of two trials."""
    return tune.Tuner(
        train,
        tune_config=tune.TuneConfig(
            metric=metric,
            mode=mode_of_ray or mode,
            search_alg=HypergradSearch(SPACE, metric=metric, mode=mode, seed=0),
            num_samples=2,
            max_concurrent_trials=1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
    ).fit()


def last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.usefixtures("_small_ray")
def test_a_run_that_maximises_the_loss_of_trainable_has_no_best(tmp_path: Path) -> None:
    results = run(trainable(problem(sgd("rate", 0.5)), SPACE), tmp_path, mode_of_ray="max")
    assert not results.errors
    with pytest.raises(
        ValueError, match=r"metric='loss' and mode='max', and trainable reports a loss.*give mode='min'"
    ):
        best_hyperparameters(results, SPACE)


@pytest.mark.slow
@pytest.mark.usefixtures("_small_ray")
def test_another_metric_than_that_of_the_gradients_is_refused(tmp_path: Path) -> None:
    results = run(trainable(problem(sgd("rate", 0.5)), SPACE), tmp_path, metric="test_loss")
    assert len(results.errors) == 2
    message = "ValueError: trainable: its gradients are those of 'loss', so search with HypergradSearch(..., metric="
    assert last_line(results.errors[-1]).startswith(message)
    with pytest.raises(ValueError, match="no trial has a finite 'test_loss'; the last error is: ValueError: trainable"):
        best_hyperparameters(results, SPACE)


@pytest.mark.slow
@pytest.mark.usefixtures("_small_ray")
def test_a_trainable_of_one_s_own_may_have_any_metric_and_mode(tmp_path: Path) -> None:
    def train(config: dict[str, Any]) -> None:
        gain = -math.log(config["rate"]) - config["decay"]
        result = {"gain": gain, "loss": 3.0, "gradient_evaluations": 2, "status": "ok"}
        if wants_gradient(config, gain):
            result["gradient"] = {"rate": -1 / config["rate"], "decay": -1.0}
        tune.report(result)

    results = run(train, tmp_path, metric="gain", mode="max")
    assert not results.errors
    gains = {result.config["rate"]: result.metrics["gain"] for result in results}
    assert gains[best_hyperparameters(results, SPACE)["rate"]] == max(gains.values())


@pytest.mark.slow
@pytest.mark.usefixtures("_small_ray")
def test_an_error_that_ray_cannot_copy_says_what_to_do_in_the_last_line(tmp_path: Path) -> None:
    def optimizer(h: Any) -> Any:
        return optax.adamw(optax.warmup_cosine_decay_schedule(0.0, h["rate"], 10, 100), weight_decay=h["decay"])

    results = run(trainable(problem(optimizer), SPACE), tmp_path)
    said = str(results.errors[-1])
    assert "_error_repr" not in said
    assert "TypeError: TracerBoolConversionError: Attempted boolean conversion" in said
    assert "in warmup_cosine_decay_schedule" in said  # the place in the user's own calls
    assert last_line(results.errors[-1]).endswith("more: python -m hypergrad_search traced")
    with pytest.raises(
        ValueError, match=r"finite 'loss'; the last error is: TypeError: Tracer.*_search traced$"
    ) as best:
        best_hyperparameters(results, SPACE)
    assert "\n" not in str(best.value)


@pytest.mark.slow
@pytest.mark.usefixtures("_small_ray")
def test_a_run_without_a_finite_loss_has_the_last_message(tmp_path: Path) -> None:
    results = run(trainable(problem(sgd("rate", 0.5), valid=math.nan), SPACE), tmp_path)
    message = results[1].metrics["message"]
    with pytest.raises(ValueError, match="no trial has a finite 'loss'; the last message is: ") as best:
        best_hyperparameters(results, SPACE)
    assert str(best.value).endswith(message)


# errors that Ray can pass on


class OfTwo(Exception):
    """An error that cannot be copied: its class takes other arguments than it keeps."""

    def __init__(self, some: int, other: int) -> None:
        super().__init__(f"{some} and {other}")


class Holder(TypeError):
    """An error that cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.held = (number for number in range(3))


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    error.add_note("the first note")
    error.add_note("the last note")
    try:
        raise error from cause
    except BaseException as caught:  # all kinds are tried here
        return caught


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (OfTwo(1, 2), ValueError, "OfTwo: 1 and 2"),
        (Holder("held"), TypeError, "Holder: held"),
        (ValueError("plain"), ValueError, "plain"),
        (KeyError("name"), KeyError, "'name'"),
    ],
)
def test_an_error_is_passed_on_with_its_text_notes_and_traceback(error: Exception, kind: type, text: str) -> None:
    passed = passable(raised(error))
    assert (type(passed), str(passed)) == (kind, text)
    assert (passed is error) == (type(error) is kind)
    assert passed.__traceback__ is error.__traceback__ is not None
    copied = cloudpickle.loads(cloudpickle.dumps(copy.copy(passed)))  # type: ignore[no-untyped-call]  # Ray's is not typed
    assert (type(copied), str(copied)) == (kind, text)
    assert copied.__notes__ == ["the first note", "the last note"]


@pytest.mark.parametrize("error", [RuntimeError("outer"), OfTwo(3, 4)])
def test_causes_are_passed_on_too(error: Exception) -> None:
    passed = passable(raised(error, cause=raised(OfTwo(1, 2))))
    assert (type(passed.__cause__), str(passed.__cause__)) == (ValueError, "OfTwo: 1 and 2")
    assert passable(raised(RuntimeError("alone"))).__cause__ is None


def test_trainable_raises_what_ray_can_pass_on() -> None:
    def optimizer(h: Any) -> Any:
        try:
            raise OfTwo(1, 2)
        except OfTwo as inner:
            raise OfTwo(3, 4) from inner

    with pytest.raises(ValueError, match="OfTwo: 3 and 4") as caught:
        trainable(problem(optimizer), SPACE)({"rate": 0.1, "decay": 0.01})
    assert type(caught.value.__cause__) is ValueError
    assert "optimizer" in [frame.name for frame in caught.traceback]


def test_an_error_that_ray_can_pass_on_keeps_what_led_to_it() -> None:
    def optimizer(h: Any) -> Any:
        try:
            raise OSError("no such file")
        except OSError:
            raise RuntimeError("no settings")  # noqa: B904  # it is the context that is looked at

    with pytest.raises(RuntimeError, match="no settings") as caught:
        trainable(problem(optimizer), SPACE)({"rate": 0.1, "decay": 0.01})
    assert str(caught.value.__context__) == "no such file"
    assert not caught.value.__suppress_context__
