"""Problems whose batches the host loads, as Ray sends them to its workers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ray import cloudpickle

from hypergrad_search import HostBatches, TrainingProblem, evaluate, sgd


def test_a_problem_is_sent_after_it_was_evaluated() -> None:
    data = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)

    def load(step: int) -> Any:
        return data[np.random.default_rng((0, step)).integers(0, len(data), 10)]

    def valid_loss(w: jax.Array, h: Any) -> jax.Array:
        return jnp.square(jnp.asarray(data) @ w - 1)

    problem = TrainingProblem(
        init=lambda key, h: jnp.zeros(3),
        train_loss=lambda w, h, batch, key: jnp.mean((batch @ w - 1) ** 2),
        valid_loss=valid_loss,
        batches=HostBatches(load, ahead=3),
        optimizer=sgd("rate", 0.9),
        steps=20,
    )
    here = evaluate(problem, {"rate": 0.1}, key=jax.random.key(0))
    sent = cloudpickle.loads(cloudpickle.dumps(problem))  # type: ignore[no-untyped-call]  # Ray has no types here
    there = evaluate(sent, {"rate": 0.1}, key=jax.random.key(0))
    assert here.gradient is not None
    assert there.gradient is not None
    assert (there.value, there.gradient["rate"]) == (here.value, here.gradient["rate"])
    assert sent.batches.ahead == 3
