"""schedules-adam: schedules for Adam, whose training the paper could not run backwards.

A learning rate and a b1 for each array at each step, and each array's initial scale; b2 is 0.999. The same network,
data and outer loops as in `schedules`, from a rate of e^-5 and a b1 of 0.88; beside them TPE on one rate, b1 and scale,
with as many gradient evaluations as the paper's outer loop. "hypergrad" may take four times that.
"""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import optuna
from rich.console import Console

from hypergrad_search import Float, Optimizer, adam
from hypergrad_studies.papers import figures, outer, schedules
from hypergrad_studies.papers.outer import Sampled
from hypergrad_studies.papers.results import Result, Scale, medians
from hypergrad_studies.papers.schedules import Setup
from hypergrad_studies.papers.schedules_rivals import TRIALS

START = {"log_learning_rate": -5.0, "logit_momentum": 2.0, "log_init_scale": -3.0}
LOW, HIGH = -9.0, -1.0  # of log learning rates


def scheduled_adam(setup: Setup) -> Optimizer:
    """Adam, with a schedule of rates and one of b1 for each array."""
    rate = schedules.at(setup, jnp.exp, "log_learning_rate")
    return adam(rate, b1=schedules.at(setup, jax.nn.sigmoid, "logit_momentum"))


def searches(setup: Setup) -> dict[str, outer.Search]:
    """The outer loops of `schedules`, and TPE on three numbers."""
    arrays = schedules.space(setup.sizes)
    space = {**arrays, "log_learning_rate": Float(LOW, HIGH, shape=arrays["log_learning_rate"].shape)}
    one = schedules.problem(setup, 1, scheduled_adam)
    several = schedules.problem(setup, schedules.NETWORKS, scheduled_adam)
    return {
        "paper": replace(schedules.paper(setup), problem=one, space=space, start=START),
        "hypergrad": replace(schedules.hypergrad(setup), problem=several, space=space, start=START),
        "tpe": Sampled(
            one,
            {name: replace(array, shape=()) for name, array in space.items()},
            START,
            TRIALS,
            sampler=lambda seed: optuna.samplers.TPESampler(seed=seed),
        ),
    }


def study(scale: Scale, out: Path, seeds: int, console: Console) -> list[Result]:
    """Write `records.jsonl` and `schedules-adam.svg` into the folder `out`, and return the numbers."""
    setup = schedules.SETUPS[scale]
    loops = searches(setup)
    done = outer.run(loops, seeds, out, console)
    rows = outer.ends(loops, done, "training loss", None)
    losses = schedules.judge(setup, scheduled_adam)
    for name, loop in loops.items():
        rows += schedules.unseen(name, losses, [loop.found(name, seed, out) for seed in range(seeds)])
    figure, (axes,) = figures.panels(1, 1)
    figures.outer_loop(axes, done, None, "training loss")
    figure.savefig(out / "schedules-adam.svg")
    return medians("schedules-adam", rows, outer.seconds(done), scale)
