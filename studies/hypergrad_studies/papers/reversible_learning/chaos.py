"""chaos: from which learning rate on the hypergradient is useless (Maclaurin, Duvenaud and Adams 2015, section 4).

The study takes the loss after training and its gradient as functions of one log learning rate. Beyond some rate
training is chaotic: the gradient is still the right one, to the bit, but of a function so rugged that it says nothing
about the next rate. There it disagrees with finite differences, and explodes. The paper's network is 784-200-50-10 on
1,000 images of MNIST, batch 250, 50 steps, decay 0.9. Initial weights and biases of scale e^-2 and pixels in [0, 1] are
those of the authors' code. (The paper's other studies subtract the mean of the pixels; chaos would then begin at higher
rates.) The paper has 1,000 rates, and this study has 200. The small study has 100, and a network 64-50-20-10 on
scikit-learn's digits.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits

from hypergrad_search import InexactReversalError, TrainingProblem, evaluate, sgd
from hypergrad_studies import data, json_lines
from hypergrad_studies.networks import Split, cross_entropy, in_turn, normal_network
from hypergrad_studies.papers import figures
from hypergrad_studies.papers.results import Result, Row, Scale, medians

STEPS, BATCH, IMAGES = 50, 250, 1000
INITIAL_SCALE = math.exp(-2)

STEP = 1e-3  # finite differences are taken over this much log rate to both sides
IN_A_ROW = 3  # so many rates must disagree one after another, since one slope near zero may disagree by chance


@dataclass(frozen=True)
class Setup:
    """What a scale means: the network, its data, and the log rates of the study (from, to, how many)."""

    sizes: tuple[int, ...]
    images: Callable[[], Split]
    rates: tuple[float, float, int]


def _digits() -> Split:
    images, labels = load_digits(return_X_y=True)
    return Split((images[:IMAGES] / 16).astype(np.float32), labels[:IMAGES].astype(np.int32))


def _mnist() -> Split:
    (images, labels), _ = data.mnist()
    return Split(images[:IMAGES], labels[:IMAGES])


SETUPS: dict[Scale, Setup] = {
    "small": Setup((64, 50, 20, 10), _digits, (0.5, 2.5, 100)),
    "paper": Setup((784, 200, 50, 10), _mnist, (0.5, 2.5, 200)),
}


@dataclass(frozen=True)
class AtRate:
    """The loss and its derivatives at one log rate.

    A number that could not be computed is NaN, and one that left the range of float32 is infinite. `slope` is the
    finite difference of the loss. `growth` is the largest norm that the gradient with respect to the weights had on
    the way back, divided by its norm at the last weights.
    """

    seed: int
    log_rate: float
    loss: float
    gradient: float
    slope: float
    status: str
    exact: bool | None
    growth: float
    seconds: float


def study(scale: Scale, out: Path, seeds: int, console: Console) -> list[Result]:
    """Write `records.jsonl` and `chaos.svg` into the folder `out`, and return the numbers."""
    setup = SETUPS[scale]
    training = problem(setup.sizes, setup.images())
    rates = np.linspace(*setup.rates).tolist()
    pairs = [(seed, rate) for seed in range(seeds) for rate in rates]
    path = out / "records.jsonl"
    known = {(point.seed, point.log_rate): point for point in json_lines.read(path, AtRate, drop_cut=True)}
    json_lines.replace(path, known.values())  # this removes a last line that was cut short
    points = []
    for seed, rate in track(pairs, "chaos", console=console):
        if (seed, rate) not in known:
            known[seed, rate] = measure(training, seed, rate)
            json_lines.append(path, known[seed, rate])
        points.append(known[seed, rate])
    draw(points, out / "chaos.svg")
    return results(points, scale)


def problem(sizes: tuple[int, ...], train: Split) -> TrainingProblem:
    """Return the training, whose outer loss is the loss on the training set, as in the paper's figure."""
    return TrainingProblem(
        init=lambda key, hyperparameters: normal_network(key, sizes, INITIAL_SCALE),
        train_loss=lambda params, hyperparameters, batch, key: jnp.mean(cross_entropy(params, batch)),
        valid_loss=lambda params, hyperparameters: jnp.mean(cross_entropy(params, train)),
        batches=lambda step: in_turn(train, step, BATCH),
        optimizer=sgd(lambda hyperparameters, step: jnp.exp(hyperparameters["log_rate"]), 0.9, dampening=True),
        steps=STEPS,
    )


def measure(training: TrainingProblem, seed: int, log_rate: float) -> AtRate:
    """Return loss, gradient and finite difference at one rate."""
    started = time.perf_counter()
    key = jax.random.key(seed)
    # rounded to float32 as in training, so that the difference is divided by the distance that it is taken over
    below, here, above = (float(np.float32(x)) for x in (log_rate - STEP, log_rate, log_rate + STEP))

    def value(at: float) -> float:
        return evaluate(training, {"log_rate": at}, key=key, gradient_below=-math.inf).value

    low, high = value(below), value(above)
    gradient = growth = math.nan
    exact: bool | None
    try:
        found = evaluate(training, {"log_rate": here}, key=key)
        loss, status, exact = found.value, str(found.status), found.diagnostics["exact"]
        if exact:
            norms = np.array(found.diagnostics["adjoint_norms"])
            # a norm is NaN where infinities were added
            growth = math.inf if np.isnan(norms).any() else float(norms.max() / norms[-1])
            gradient = math.inf if found.gradient is None else float(found.gradient["log_rate"])
    except InexactReversalError:
        loss, status, exact = value(here), "inexact", False
    return AtRate(
        seed=seed,
        log_rate=log_rate,
        loss=loss,
        gradient=gradient,
        slope=(high - low) / (above - below) if math.isfinite(low) and math.isfinite(high) else math.nan,
        status=status,
        exact=exact,
        growth=growth,
        seconds=time.perf_counter() - started,
    )


def agrees(point: AtRate, tolerance: float) -> bool:
    """Return whether gradient and finite difference are the same to the relative `tolerance`."""
    return abs(point.gradient - point.slope) <= tolerance * abs(point.slope)


def useful_below(points: Sequence[AtRate], tolerance: float) -> float:
    """Return the log rate of the first of one seed's `points` from which `IN_A_ROW` disagree; infinity without any."""
    wrong = [not agrees(point, tolerance) for point in points]
    starts = (i for i in range(len(points) - IN_A_ROW + 1) if all(wrong[i : i + IN_A_ROW]))
    return next((points[i].log_rate for i in starts), math.inf)


def results(points: Iterable[AtRate], scale: Scale) -> list[Result]:
    """Return every number as the median over seeds, beside the paper's number where the scale is the paper's."""
    seeds = _by_seed(points)

    def growth(agree: bool, percent: float) -> Callable[[list[AtRate]], float]:
        return lambda mine: quantile([point.growth for point in mine if agrees(point, 0.1) is agree], percent)

    prefix = "growth of the adjoint where they"
    quantities: list[tuple[str, float | None, Callable[[list[AtRate]], float]]] = [
        ("log rate from which gradient and finite difference differ by 1 %", 1.47, lambda p: useful_below(p, 0.01)),
        ("log rate from which they differ by 10 %", None, lambda p: useful_below(p, 0.1)),
        ("largest gradient", 1e33, lambda p: float(np.nanmax([abs(point.gradient) for point in p]))),
        *((f"{prefix} agree to 10 %: quantile {q} %", None, growth(True, q)) for q in (50, 90, 99, 100)),
        *((f"{prefix} differ by more: quantile {q} %", None, growth(False, q)) for q in (0, 1, 10, 50)),
    ]
    rows = [Row(quantity, paper, [of(mine) for mine in seeds]) for quantity, paper, of in quantities]
    return medians("chaos", rows, sum(point.seconds for mine in seeds for point in mine), scale)


def quantile(growths: Iterable[float], percent: float) -> float:
    """Return the quantile of the growths that are not NaN; NaN where all are NaN."""
    known = [growth for growth in growths if not math.isnan(growth)]
    # the nearest value is taken, since interpolation between infinities gives NaN
    return float(np.percentile(known, percent, method="nearest")) if known else math.nan


def draw(points: Iterable[AtRate], path: Path) -> None:
    """Draw the paper's figure: the loss above, the size of its gradient below."""
    seeds = _by_seed(points)
    figure, (upper, lower) = figures.panels(2, 1, width=7.5, height=3)
    upper.sharex(lower)
    upper.tick_params(labelbottom=False)
    end = float(np.median([useful_below(mine, 0.1) for mine in seeds]))
    for i, mine in enumerate(seeds):
        x = [point.log_rate for point in mine]
        style: dict[str, Any] = {"linewidth": 1, "color": f"C{i}", "label": f"seed {mine[0].seed}"}
        upper.plot(x, [_drawable(point.loss) for point in mine], **style)
        lower.plot(x, [_drawable(abs(point.gradient)) for point in mine], **style)
        lower.plot(x, [_drawable(abs(point.slope)) for point in mine], ".", markersize=3, color=f"C{i}")
    for axes in (upper, lower):
        if math.isfinite(end):
            axes.axvline(end, color="0.5", linestyle="--", linewidth=1)
        axes.set_yscale("log")
    upper.set_ylabel("training loss")
    upper.legend(frameon=False)
    lower.set_ylabel("|gradient| (line),\n|finite difference| (dots)")
    lower.set_xlabel("log learning rate; dashed: from here on they differ by more than 10 %")
    figure.savefig(path)


def _by_seed(points: Iterable[AtRate]) -> list[list[AtRate]]:
    found: dict[int, list[AtRate]] = {}
    for point in points:
        found.setdefault(point.seed, []).append(point)
    return list(found.values())


def _drawable(value: float) -> float:
    return value if math.isfinite(value) else math.nan
