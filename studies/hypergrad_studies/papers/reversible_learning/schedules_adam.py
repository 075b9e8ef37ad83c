"""schedules-adam: schedules for Adam, whose training the paper could not run backwards.

The hyperparameters are a learning rate and a b1 for each array at each step, and each array's initial scale; b2 is
0.999. The network, the data and the outer loops are those of `schedules`, from a rate of e^-5 and a b1 of 0.88. TPE
searches one rate, one b1 and one scale, with as many gradient evaluations as the paper's outer loop. "hypergrad" may
take four times as many.
"""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import optuna
from rich.console import Console

from hypergrad_search import Float, Optimizer, adam
from hypergrad_studies.papers import figures
from hypergrad_studies.papers.results import Result, Scale, medians
from hypergrad_studies.papers.reversible_learning import comparison, outer, scheduled_loops, scheduled_training, unseen
from hypergrad_studies.papers.reversible_learning.outer import OuterLoop
from hypergrad_studies.papers.reversible_learning.sampled import Sampled
from hypergrad_studies.papers.reversible_learning.scheduled_training import Setup
from hypergrad_studies.papers.reversible_learning.schedules_rivals import TRIALS

START = {"log_learning_rate": -5.0, "logit_momentum": 2.0, "log_init_scale": -3.0}
LOW, HIGH = -9.0, -1.0  # the range of log learning rates


def scheduled_adam(setup: Setup) -> Optimizer:
    """Return Adam, with a schedule of rates and one of b1 for each array."""
    rate = scheduled_training.at(setup, jnp.exp, "log_learning_rate")
    return adam(rate, b1=scheduled_training.at(setup, jax.nn.sigmoid, "logit_momentum"))


def outer_loops(setup: Setup) -> dict[str, OuterLoop]:
    """Return the outer loops of `schedules`, and TPE on three numbers."""
    arrays = scheduled_training.space(setup.sizes)
    space = {**arrays, "log_learning_rate": Float(LOW, HIGH, shape=arrays["log_learning_rate"].shape)}
    one = scheduled_training.problem(setup, 1, scheduled_adam)
    several = scheduled_training.problem(setup, scheduled_loops.NETWORKS, scheduled_adam)
    return {
        "paper": replace(scheduled_loops.paper(setup), problem=one, space=space, start=START),
        "hypergrad": replace(scheduled_loops.hypergrad(setup), problem=several, space=space, start=START),
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
    setup = scheduled_training.SETUPS[scale]
    loops = outer_loops(setup)
    done = outer.record(loops, seeds, out, console)
    rows = comparison.rows(loops, done, "training loss", None)
    losses = unseen.judge(setup, scheduled_adam)
    for name, loop in loops.items():
        rows += unseen.rows(name, losses, [loop.found(name, seed, out) for seed in range(seeds)])
    figure, (axes,) = figures.panels(1, 1)
    comparison.draw(axes, done, None, "training loss")
    figure.savefig(out / "schedules-adam.svg")
    return medians("schedules-adam", rows, comparison.seconds(done), scale)
