"""A learning rate for each of 30 steps, found by a study and plotted."""

import jax.numpy as jnp
import optuna
import optunahub

from hypergrad_search import Float, TrainingProblem, sgd

sampler = optunahub.load_module(package="samplers/hypergrad")
plots = optunahub.load_module(package="visualization/plot_hypergradient_schedules")

curvature = jnp.logspace(-1, 1, 10)
problem = TrainingProblem(
    init=lambda key, h: jnp.ones(10),
    train_loss=lambda w, h, batch, key: jnp.sum(curvature * w**2),
    valid_loss=lambda w, h: curvature * w**2,
    batches=lambda step: None,
    optimizer=sgd("rate", 0.5),
    steps=30,
)
objective = sampler.Objective(problem, {"rate": Float(1e-3, 0.09, log=True)})
study = optuna.create_study(sampler=sampler.HypergradSampler(seed=0))
study.optimize(objective, n_trials=15)
figure = plots.plot_hypergradient_schedules(study, objective)
figure.write_html("schedules.html")
