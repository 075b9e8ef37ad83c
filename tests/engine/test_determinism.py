"""On a GPU without deterministic operations nothing is run backwards, and nothing falls back in silence."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import Float, Method, Reversible, TrainingProblem, Unrolled, determinism, evaluate, sgd, train
from hypergrad_search.determinism import check_determinism, flag, is_deterministic, platform_of
from hypergrad_search.hosting import DEFAULT_METHOD, host
from hypergrad_search.search.ask_tell import Wanted

ON = "--xla_gpu_deterministic_ops=true"
KEY = jax.random.key(0)
H = {"rate": 0.1}
PROBLEM = TrainingProblem(
    init=lambda key, h: jnp.ones(2),
    train_loss=lambda w, h, batch, key: jnp.sum(w**2),
    valid_loss=lambda w, h: jnp.sum(w**2),
    batches=lambda step: None,
    optimizer=sgd("rate", 0.5),
    steps=2,
)


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        ("", None),
        (ON, "true"),
        ("--xla_gpu_deterministic_ops", "true"),
        ("--xla_gpu_deterministic_ops=1", "1"),
        (f"--xla_gpu_autotune_level=0  {ON}\n", "true"),
        (f"{ON} --xla_gpu_deterministic_ops=false", "false"),
        ("--xla_gpu_deterministic_ops_too=true", None),
        ("xla_gpu_deterministic_ops=true", None),
    ],
)
def test_a_flag_is_read_as_xla_reads_it(flags: str, value: str | None) -> None:
    assert flag(flags, "xla_gpu_deterministic_ops") == value
    assert is_deterministic(flags) == (value in ("true", "1"))


def test_either_flag_makes_a_gpu_deterministic() -> None:
    for platform in ("gpu", "cuda", "rocm"):
        for flags in (ON, "--xla_gpu_exclude_nondeterministic_ops=True"):
            check_determinism(platform, flags)
        for flags in ("", "--xla_gpu_autotune_level=0", "--xla_gpu_deterministic_ops=false"):
            with pytest.raises(RuntimeError) as refused:
                check_determinism(platform, flags)
            assert str(refused.value) == (
                f"XLA_FLAGS must have {ON} to train reversibly on a GPU, got {flags!r}; "
                "set it before Python starts, or use method=Unrolled(), which works without; "
                "more: python -m hypergrad_search determinism"
            )


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_other_platforms_need_no_flag(platform: str) -> None:
    check_determinism(platform, "")


def test_the_platform_is_that_of_the_key_or_of_the_default_device() -> None:
    cpu = jax.devices("cpu")[0]
    keys = (KEY, jax.random.PRNGKey(0), np.zeros(2, np.uint32), jax.device_put(KEY, cpu))
    assert [platform_of(key) for key in keys] == ["cpu"] * 4
    with jax.default_device(cpu):
        assert platform_of(KEY) == "cpu"
    seen: list[str] = []
    jax.eval_shape(lambda key: seen.append(platform_of(key)), KEY)
    assert seen == ["cpu"]


def test_the_users_choice_of_a_device_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    cpu = jax.devices("cpu")[0]
    assert platform_of(KEY) == "gpu"
    assert platform_of(jax.device_put(KEY, cpu)) == "cpu"
    for chosen in (cpu, "cpu"):
        with jax.default_device(chosen):
            assert platform_of(KEY) == "cpu"


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(determinism, "platform_of", lambda key: "gpu")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    return monkeypatch


CALLS: dict[str, Callable[[Method], Any]] = {
    "evaluate": lambda method: evaluate(PROBLEM, H, key=KEY, method=method),
    "a value alone": lambda method: evaluate(PROBLEM, H, key=KEY, method=method, gradient_below=-jnp.inf),
    "params": lambda method: method.params(PROBLEM, H, key=KEY),
    "in a host": lambda method: host("Objective", PROBLEM, {"rate": Float(0.1, 1.0)}, method, KEY, None).evaluate(
        H, Wanted(), on_the_way=lambda now, spent: None, checkpoint=lambda: None
    ),
}


@pytest.mark.parametrize("method", [Reversible(), DEFAULT_METHOD], ids=["alone", "with a fallback"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_nothing_falls_back_in_silence(
    call: Callable[[Method], Any], method: Method, on_a_gpu: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="XLA_FLAGS must have"):
        call(method)
    call(Unrolled())
    on_a_gpu.setenv("XLA_FLAGS", ON)
    call(method)


@pytest.mark.usefixtures("on_a_gpu")
def test_train_is_refused_when_it_is_traced_too() -> None:
    for run in (train, jax.jit(train, static_argnums=0)):
        with pytest.raises(RuntimeError, match="XLA_FLAGS must have"):
            run(PROBLEM, H, KEY)
