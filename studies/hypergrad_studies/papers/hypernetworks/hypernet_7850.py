"""hypernet-7850: a penalty for each weight of a linear model, by hypernetworks and by their rivals, on the clock.

Lorraine and Duvenaud 2018, section 4: 784-10 with biases, 10,000 images of MNIST to train, 10,000 to validate. On
scikit-learn's digits there are 650 penalties. Log penalties lie between -8 and 4, and hypernetworks start at 0, far
above the best single log penalty of about -3 (the mean of random search is -2). Each search has the same time, without
compilation. There are four hypernetworks:

- "hypernet" is this package's: centred, with one number for each weight (`Diagonal`).
- "hypernet, rank 10" is the same with the paper's network.
- "hypernet, as printed" is the paper's text: not centred, rates of 1e-4, log penalties drawn with a variance of 1e-5.
- "hypernet, as released" is the authors' code: not centred, nothing drawn, and a rate of 0.01 for log penalties.

All searches share the loss (see `penalised`) and the batches. "random" trains at random points, and "reversible" is
`HypergradSampler` with exact hypergradients of training runs; the paper's rival of this kind was unrolled. A
hypernetwork's own loss is the loss of the weights that it outputs, so its final penalties are also shown with a model
that is trained from scratch. Rates and steps of training runs were chosen for the validation loss with all penalties at
0.03.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import optax
import optuna
from rich.console import Console

from hypergrad_optuna import HypergradSampler, Objective
from hypergrad_search import Hypernet, Optimizer, sgd
from hypergrad_search.hypergradient import Diagonal, Joint, LowRank
from hypergrad_studies.papers.hypernetworks import penalised, race, searches, splits
from hypergrad_studies.papers.hypernetworks.race import Timed, best
from hypergrad_studies.papers.hypernetworks.searches import Attempt
from hypergrad_studies.papers.results import Result, Row, Scale, medians

LOW, HIGH = -8.0, 4.0  # the range of log penalties
STRETCH = 200  # an evaluation takes so many steps of a hypernetwork

_paper = partial(Hypernet, network=LowRank(10), optimizer=optax.adam(1e-4), steps=STRETCH)
HYPERNETS = {
    "hypernet": Hypernet(
        network=Diagonal(), optimizer=optax.adam(1e-3), hyper_optimizer=optax.adam(1e-2), steps=STRETCH
    ),
    "hypernet, rank 10": Hypernet(
        network=LowRank(10), optimizer=optax.adam(3e-4), hyper_optimizer=optax.adam(3e-3), steps=STRETCH
    ),
    # rates and scales are in units of the box
    "hypernet, as printed": _paper(
        algorithm=Joint(scale=math.sqrt(1e-5) / (HIGH - LOW), centred=False),
        hyper_optimizer=optax.adam(1e-4 / (HIGH - LOW)),
    ),
    "hypernet, as released": _paper(
        algorithm=Joint(scale=0, centred=False), hyper_optimizer=optax.adam(0.01 / (HIGH - LOW))
    ),
}

#: the paper's validation and test loss at the end of each search, as squared errors
PAPER = {
    **dict.fromkeys(HYPERNETS, (penalised.squared_error(0.54), penalised.squared_error(0.605))),
    "random": (penalised.squared_error(0.617), penalised.squared_error(0.683)),
    "reversible": (0.0383, 0.0401),
}


@dataclass(frozen=True)
class Setup:
    """What a scale means: how many pixels, how training runs, and how many seconds each search has."""

    pixels: int
    optimizer: Optimizer
    steps: int
    batch: int
    seconds: float


SETUPS: dict[Scale, Setup] = {
    "small": Setup(64, sgd(0.1, 0.97, dampening=True), 300, 100, 5.0),
    "paper": Setup(784, sgd(0.02, 0.97, dampening=True), 300, 500, 60.0),
}


def study(scale: Scale, out: Path, seeds: int, console: Console) -> list[Result]:
    """Write `records.jsonl` and `hypernet-7850.svg` into the folder `out`, and return the numbers."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    setup = SETUPS[scale]
    sizes = (setup.pixels, penalised.OUTPUTS)
    space = penalised.penalties(sizes, math.exp(LOW), math.exp(HIGH))
    problem = penalised.problem(
        splits.load(scale, 10_000),
        sizes,
        optimizer=setup.optimizer,
        steps=setup.steps,
        batch=setup.batch,
    )

    def reversible(seed: int) -> Iterator[Attempt]:
        return searches.sampled(Objective(problem, space, key=jax.random.key(seed)), HypergradSampler(seed=seed))

    raced = race.race(
        {
            **{name: partial(searches.hypernet, problem, space, method) for name, method in HYPERNETS.items()},
            "random": partial(searches.random, problem, space),
            "reversible": reversible,
        },
        seeds,
        setup.seconds,
        out / "records.jsonl",
        console,
    )
    evaluations = [timed for timed, _ in raced]
    race.draw(evaluations, out / "hypernet-7850.svg")
    rows = race.rows(raced, race.retrain(problem, raced, HYPERNETS, seeds), PAPER, seeds)
    rows += [row for method in HYPERNETS for row in against_rivals(evaluations, method, seeds)]
    return medians("hypernet-7850", rows, setup.seconds * seeds * len(PAPER), scale)


def against_rivals(evaluations: Sequence[Timed], method: str, seeds: int) -> list[Row]:
    """Return how a hypernetwork compares with random search and with exact gradients on the clock."""
    ratios, overtaken = [], []
    for seed in range(seeds):
        own, random, reversible = (best(evaluations, name, seed) for name in (method, "random", "reversible"))
        ratios.append(reaches(own, random[-1].value) / random[-1].seconds)
        overtaken.append(overtakes(reversible, own))
    return [
        Row(f"{method}: time to random search's loss, in units of its time", None, ratios),
        Row(f"{method}: second at which reversible is ahead for good", None, overtaken),
    ]


def reaches(curve: Sequence[Timed], value: float) -> float:
    """Return the second at which a best-so-far curve first is at `value` or below; infinite where it never is."""
    return next((timed.seconds for timed in curve if timed.value <= value), math.inf)


def overtakes(one: Sequence[Timed], other: Sequence[Timed]) -> float:
    """Return the second from which on the best-so-far curve `one` stays below `other`; infinite where it does not."""
    if one[-1].value >= other[-1].value:
        return math.inf
    ahead = math.inf
    for seconds in sorted((timed.seconds for timed in (*one, *other)), reverse=True):
        values = [[timed.value for timed in curve if timed.seconds <= seconds] for curve in (one, other)]
        if min(values[0], default=math.inf) >= min(values[1], default=math.inf):
            break
        ahead = seconds
    return ahead
