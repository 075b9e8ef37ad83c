"""hypernet-1d: the validation loss as a function of one penalty: by training, and by two hypernetworks.

Lorraine and Duvenaud 2018, figure 3 and the following: a linear model, 10 training images of MNIST (of scikit-learn's
digits at the small scale), 10,000 to validate. "trained" is the curve of many training runs. "global" is the curve of a
hypernetwork with 50 hidden ReLUs, trained over the whole box. "local" is the curve of a linear hypernetwork around the
penalty where joint optimisation ended, which began at a log penalty of 3. The hypernetworks are this package's; the
paper's global one drew log penalties from a normal distribution, this one uniformly from [-2, 4]. The penalty is on the
weights, not on biases.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track

from hypergrad_search import Float, Hypernet, Space, evaluate, sgd
from hypergrad_search.hypergradient import Global, Linear, OneHidden
from hypergrad_studies import json_lines
from hypergrad_studies.papers import figures
from hypergrad_studies.papers.hypernetworks import penalised, searches, splits
from hypergrad_studies.papers.hypernetworks.prediction import fading_adam, predicted
from hypergrad_studies.papers.results import Result, Row, Scale, medians

LOW, HIGH = -2.0, 4.0  # the range of the log penalty
SPACE: Space = {"l2_weights_0": Float(math.exp(LOW), math.exp(HIGH), log=True)}
START = 3.0  # joint optimisation starts at this log penalty
IMAGES = 10
NEAR = 0.75  # how far from the end of joint optimisation the local curve is shown, in log penalties
PAPER = 1.8  # the log penalty of the minimum, by both hypernetworks and by training


@dataclass(frozen=True)
class Setup:
    """What a scale means: how many pixels, how many penalties are trained, and a hypernetwork's steps."""

    pixels: int
    points: int
    hypernet_steps: int


SETUPS: dict[Scale, Setup] = {"small": Setup(64, 61, 20_000), "paper": Setup(784, 121, 50_000)}


@dataclass(frozen=True)
class CurvePoint:
    """The validation loss on a curve at a log penalty; the curve "search" is where joint optimisation ended."""

    seed: int
    curve: str
    log_l2: float
    value: float


def study(scale: Scale, out: Path, seeds: int, console: Console) -> list[Result]:
    """Write `records.jsonl` and `hypernet-1d.svg` into the folder `out`, and return the numbers."""
    setup = SETUPS[scale]
    started = time.perf_counter()
    points = [point for seed in range(seeds) for point in curves(setup, scale, seed, console)]
    json_lines.replace(out / "records.jsonl", points)
    draw(points, out / "hypernet-1d.svg")
    names = {"trained": "minimum of the trained losses", "global": "minimum of the global hypernetwork"}
    rows = [Row(f"log penalty: {name}", PAPER, lowest(points, curve, seeds)) for curve, name in names.items()]
    rows.append(Row("log penalty: end of joint optimisation", PAPER, lowest(points, "search", seeds)))
    return medians("hypernet-1d", rows, time.perf_counter() - started, scale)


def curves(setup: Setup, scale: Scale, seed: int, console: Console) -> list[CurvePoint]:
    """Return the points of all curves of a seed; a hypernetwork whose training failed has no curve."""
    problem = penalised.problem(
        splits.load(scale, IMAGES),
        (setup.pixels, penalised.OUTPUTS),
        optimizer=sgd(0.01, 0.97, dampening=True),
        steps=3000,
        batch=IMAGES,
    )
    key = jax.random.key(seed)
    grid = np.linspace(LOW, HIGH, setup.points)
    found = [
        CurvePoint(seed, "trained", float(at), searches.train(problem, {"l2_weights_0": math.exp(at)}, seed).value)
        for at in track(grid, f"hypernet-1d, seed {seed}", console=console)
    ]
    steps = setup.hypernet_steps
    fading = fading_adam(steps)
    for curve, method in {
        "global": Hypernet(network=OneHidden(50), algorithm=Global(hyper_steps=1), optimizer=fading, steps=steps + 1),
        "local": Hypernet(network=Linear(), optimizer=fading, steps=steps),
    }.items():
        done = evaluate(problem, {"l2_weights_0": math.exp(START)}, method=method, key=key, space=SPACE)
        if done.checkpoint is None or done.refined is None:
            continue
        end = math.log(done.refined["l2_weights_0"])
        near = grid if curve == "global" else grid[np.abs(grid - end) <= NEAR]
        losses = predicted(problem, SPACE, method, done.checkpoint, key)(jnp.asarray(near))
        found += [CurvePoint(seed, curve, float(at), float(loss)) for at, loss in zip(near, losses, strict=True)]
        if curve == "local":
            found.append(CurvePoint(seed, "search", end, done.value))
    return found


def lowest(points: Iterable[CurvePoint], curve: str, seeds: int) -> list[float]:
    """Return the log penalty of the lowest loss on a curve, for each seed; NaN where a seed has no such curve."""
    found = []
    for seed in range(seeds):
        mine = [point for point in points if (point.curve, point.seed) == (curve, seed)]
        found.append(min(mine, key=lambda point: point.value).log_l2 if mine else math.nan)
    return found


def draw(points: Iterable[CurvePoint], path: Path) -> None:
    """Draw the paper's figure for the first seed."""
    figure, (axes,) = figures.panels(1, 1, width=7.5, height=4.4)
    looks = {"trained": ("kx", 4), "global": ("C0-", 1), "local": ("C1-", 1), "search": ("C1o", 6)}
    for curve, (look, size) in looks.items():
        mine = [point for point in points if (point.curve, point.seed) == (curve, 0)]
        x, y = [point.log_l2 for point in mine], [point.value for point in mine]
        axes.plot(x, y, look, markersize=size, label="end of joint optimisation" if curve == "search" else curve)
    axes.set(xlabel="log penalty", ylabel="squared error, validation")
    axes.legend(frameon=False)
    figure.savefig(path)
