"""A ridge regression: a penalty for each of its weights, and the learning rate."""

import jax
import jax.numpy as jnp
import optuna
import optunahub

from hypergrad_search import Float, TrainingProblem, sgd

module = optunahub.load_module(package="samplers/hypergrad")

of_inputs, of_noise, of_truth = jax.random.split(jax.random.key(0), 3)
x = jax.random.normal(of_inputs, (120, 20))
truth = jax.random.normal(of_truth, (20,)) * (jnp.arange(20) < 5)
y = x @ truth + 2.0 * jax.random.normal(of_noise, (120,))

problem = TrainingProblem(
    init=lambda key, h: jnp.zeros(20),
    train_loss=lambda w, h, batch, key: jnp.mean((x[:40] @ w - y[:40]) ** 2) + jnp.sum(h["l2"] * w**2),
    valid_loss=lambda w, h: (x[40:80] @ w - y[40:80]) ** 2,
    test_loss=lambda w, h: (x[80:] @ w - y[80:]) ** 2,
    batches=lambda step: None,
    optimizer=sgd("rate", 0.9),
    steps=50,
)
space = {"l2": Float(1e-4, 10.0, log=True, lift=(20,)), "rate": Float(1e-3, 0.1, log=True)}

study = optuna.create_study(sampler=module.HypergradSampler(seed=0))
study.optimize(module.Objective(problem, space), n_trials=15)
print(f"validation loss {study.best_value:.3f}, penalties {module.best_hyperparameters(study)['l2']}")
