"""Data-parallel training over several devices: eight virtual ones, in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from hypergrad_search import Reversible, TrainingProblem, Unrolled, adamw, evaluate, train

devices = jax.devices()
mesh = jax.sharding.Mesh(np.array(devices), ("data",))
by_example = NamedSharding(mesh, PartitionSpec("data"))
draw = np.random.default_rng(0)
x = draw.normal(size=(320, 20)).astype(np.float32)
y = np.sin(x @ draw.normal(size=20)).astype(np.float32)

def problem(sharded):
    def batches(step):
        rows = (jnp.arange(64) + 64 * step) % 256
        batch = jnp.asarray(x)[rows], jnp.asarray(y)[rows]
        return jax.lax.with_sharding_constraint(batch, by_example) if sharded else batch

    def losses(params, x, y):
        return (jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2

    return TrainingProblem(
        init=lambda key, h: {"w": jax.random.normal(key, (20, 16)) / 5, "v": jnp.full(16, 0.1)},
        train_loss=lambda p, h, batch, key: losses(p, *batch).mean() + h["l2"] * jnp.sum(p["w"] ** 2),
        valid_loss=lambda p, h: losses(p, jnp.asarray(x[256:]), jnp.asarray(y[256:])),
        batches=batches,
        optimizer=adamw("rate"),
        steps=30,
    )

h, key = {"rate": 0.02, "l2": 1e-3}, jax.random.key(0)
one, many, floats = (
    evaluate(problem(sharded), h, key=key, method=method)
    for sharded, method in ((False, Reversible()), (True, Reversible()), (True, Unrolled()))
)
run, taken = problem(True), []
evaluate(run, h, key=key, report=lambda now: taken.append(now.snapshot()), report_every=10)
resumed = evaluate(run, h, key=key, snapshot=taken[1])
text = jax.jit(lambda h: train(run, h, key)).lower(h).compile().as_text()
print(json.dumps({
    "devices": len(devices),
    "collective": "all-reduce" in text or "all-gather" in text,
    "resumed": resumed.value == many.value and resumed.gradient == many.gradient,
    "resumed_cost": resumed.cost.gradient_evaluations,
    "exact": many.diagnostics["exact"],
    "values": [e.value for e in (one, many, floats)],
    "gradients": [{n: float(g) for n, g in e.gradient.items()} for e in (one, many, floats)],
}))
"""


@pytest.mark.slow
def test_training_over_eight_devices_is_exact() -> None:
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == 8
    assert found["collective"]  # the work was really shared out
    assert found["exact"] is True
    assert found["resumed"] is True
    assert found["resumed_cost"] == 4 * 30  # it went on with the same bits, so that nothing was repeated
    one, many, floats = found["values"]
    assert many == pytest.approx(one, rel=1e-5)
    assert floats == pytest.approx(one, rel=1e-4)
    for gradient in found["gradients"][1:]:
        assert gradient == pytest.approx(found["gradients"][0], rel=1e-3)
