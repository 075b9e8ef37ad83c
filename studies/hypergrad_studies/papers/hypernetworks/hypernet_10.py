"""hypernet-10: ten penalties, one for the weights of each class, by hypernetworks and by Bayesian optimisation.

Lorraine and Duvenaud 2018, section 4: a linear model 784-10, 50,000 images of MNIST to train, 10,000 to validate,
batches of 100, a linear hypernetwork; scikit-learn's digits at the small scale. Log penalties lie between -8 and 4, and
hypernetworks start at 0. Each search has the same time, without compilation. "hypernet" is this package's, centred;
"hypernet, as printed" is the paper's text: not centred, rates of 1e-4, log penalties drawn with a variance of 1e-5.
"random" and "tpe" (Optuna's) train at each point; the paper's Bayesian optimisation was another program. The final
penalties of hypernetworks are also shown with a model that is trained from scratch. Loss and penalties are those of
`penalised`; rates and steps of training runs were chosen for the validation loss with all penalties at 0.03.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import optax
import optuna
from rich.console import Console

from hypergrad_optuna import Objective
from hypergrad_search import Float, Hypernet, Optimizer, Space, Unrolled, sgd
from hypergrad_search.hypergradient import Joint, Linear
from hypergrad_studies.papers.hypernetworks import penalised, race, searches, splits
from hypergrad_studies.papers.hypernetworks.searches import Attempt
from hypergrad_studies.papers.results import Result, Scale, medians

LOW, HIGH = -8.0, 4.0  # the range of log penalties
STRETCH = 200  # an evaluation takes so many steps of a hypernetwork
SPACE: Space = {"l2_weights_0": Float(math.exp(LOW), math.exp(HIGH), log=True, shape=(penalised.OUTPUTS,))}

HYPERNETS = {
    "hypernet": Hypernet(network=Linear(), optimizer=optax.adam(3e-4), hyper_optimizer=optax.adam(1e-2), steps=STRETCH),
    "hypernet, as printed": Hypernet(
        network=Linear(),
        algorithm=Joint(scale=math.sqrt(1e-5) / (HIGH - LOW), centred=False),  # in units of the box
        optimizer=optax.adam(1e-4),
        hyper_optimizer=optax.adam(1e-4 / (HIGH - LOW)),
        steps=STRETCH,
    ),
}

#: the paper's validation and test loss at the end of each search, as squared errors
PAPER = {
    **dict.fromkeys(HYPERNETS, (penalised.squared_error(0.485), penalised.squared_error(0.555))),
    "random": (penalised.squared_error(0.60), penalised.squared_error(0.66)),
    "tpe": (penalised.squared_error(0.593), penalised.squared_error(0.655)),
}


@dataclass(frozen=True)
class Setup:
    """What a scale means: how many pixels, how training runs, and how many seconds each search has."""

    pixels: int
    optimizer: Optimizer
    steps: int
    seconds: float


SETUPS: dict[Scale, Setup] = {
    "small": Setup(64, sgd(0.1, 0.97, dampening=True), 300, 8.0),
    "paper": Setup(784, sgd(0.003, 0.97, dampening=True), 2000, 60.0),
}


def study(scale: Scale, out: Path, seeds: int, console: Console) -> list[Result]:
    """Write `records.jsonl` and `hypernet-10.svg` into the folder `out`, and return the numbers."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    setup = SETUPS[scale]
    problem = penalised.problem(
        splits.load(scale, 50_000),
        (setup.pixels, penalised.OUTPUTS),
        optimizer=setup.optimizer,
        steps=setup.steps,
        batch=100,
    )

    def tpe(seed: int) -> Iterator[Attempt]:
        objective = Objective(problem, SPACE, method=Unrolled(), key=jax.random.key(seed))
        return searches.sampled(objective, optuna.samplers.TPESampler(seed=seed))

    raced = race.race(
        {
            **{name: partial(searches.hypernet, problem, SPACE, method) for name, method in HYPERNETS.items()},
            "random": partial(searches.random, problem, SPACE),
            "tpe": tpe,
        },
        seeds,
        setup.seconds,
        out / "records.jsonl",
        console,
    )
    race.draw([timed for timed, _ in raced], out / "hypernet-10.svg")
    rows = race.rows(raced, race.retrain(problem, raced, HYPERNETS, seeds), PAPER, seeds)
    return medians("hypernet-10", rows, setup.seconds * seeds * len(PAPER), scale)
