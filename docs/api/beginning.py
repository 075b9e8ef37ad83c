"""What the examples in docstrings begin with: a tiny problem, its space, and a study of it in Optuna."""

import jax
import jax.numpy as jnp
import optuna

from hypergrad_optuna import HypergradSampler, Objective
from hypergrad_search import Float, TrainingProblem, sgd

x = jax.random.normal(jax.random.key(1), (60, 3))
y = x @ jnp.array([1.0, -2.0, 0.5]) + 0.1 * jax.random.normal(jax.random.key(2), (60,))

problem = TrainingProblem(
    init=lambda key, h: jnp.zeros(3),
    train_loss=lambda w, h, rows, key: jnp.mean((x[rows] @ w - y[rows]) ** 2) + jnp.sum(h["l2"] * w**2),
    valid_loss=lambda w, h: (x[40:] @ w - y[40:]) ** 2,
    batches=lambda step: (jnp.arange(20) + 20 * step) % 40,
    optimizer=sgd("rate", momentum=0.9),
    steps=20,
)
space = {"rate": Float(1e-3, 0.3, log=True), "l2": Float(1e-6, 1.0, log=True)}
point = {"rate": 0.1, "l2": 1e-3}
key = jax.random.key(0)

objective = Objective(problem, space)
study = optuna.create_study(sampler=HypergradSampler(seed=0))
study.optimize(objective, n_trials=4)
