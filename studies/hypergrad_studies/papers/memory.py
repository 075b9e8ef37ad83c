"""memory: how many bits a weight and step the reverse pass needs, beside the entropy that decays destroy.

Maclaurin, Duvenaud and Adams 2015, section 2: multiplying by a decay below 1 loses log2(1 / decay) bits, and a buffer
that keeps no more makes training reversible: 200 times less than float32 at 0.9, and 1,000 times less at 0.98. (As
released, the buffers are Python integers, which take 73 times less than float32.) Measured is what arrays of JAX there
are during `evaluate`: what has been added between two reports is what was kept of the steps between. Weights of a
linear model on scikit-learn's digits, and at the paper's scale of a network of four layers. Each run is then reversed,
which `evaluate` compares to the bit.
"""

import itertools
import math
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.progress import track

from hypergrad_search import TrainingProblem, evaluate, sgd
from hypergrad_studies.papers import figures
from hypergrad_studies.papers.results import Result, Row, Scale, line, medians
from hypergrad_studies.problems import digits

DECAYS = (0.5, 0.9, 0.98)
BITS = 80.0  # a weight, that are to be lost in a run: ten bytes
REPORTS = 8  # in a run
PAPER = {0.9: (0.152, 200.0), 0.98: (0.029, 1000.0)}  # bits a weight and step, and how many times less than float32

SIZES: dict[Scale, tuple[int, ...]] = {"small": (64, 10), "paper": (64, 50, 50, 50, 10)}


@dataclass(frozen=True)
class Measurement:
    """The bytes that all arrays have at each of some steps."""

    seed: int
    decay: float
    weights: int
    steps: list[int]
    bytes: list[int]
    seconds: float

    @property
    def bits(self) -> float:
        """A weight and step, from the first report to the last."""
        return 8 * (self.bytes[-1] - self.bytes[0]) / self.weights / (self.steps[-1] - self.steps[0])


def study(scale: Scale, out: Path, seeds: int, console: Console) -> list[Result]:
    """Write `records.jsonl` and `memory.svg` into the folder `out`, and return the numbers."""
    measured = []
    problems = {decay: training(SIZES[scale], decay) for decay in DECAYS}
    pairs = [(seed, decay) for seed in range(seeds) for decay in DECAYS]
    with (out / "records.jsonl").open("w") as file:
        for seed, decay in track(pairs, "memory", console=console):
            measured.append(measure(problems[decay], SIZES[scale], decay, seed))
            file.write(line(measured[-1]))
    rows = []
    for decay in DECAYS:
        mine = [m for m in measured if m.decay == decay]
        bits, limit = [m.bits for m in mine], math.log2(1 / decay)
        (claimed, less), more = PAPER.get(decay, (None, None)), [32 / b for b in bits]
        rows += [
            Row(f"decay {decay}: bits a weight and step", claimed, bits),
            Row(f"decay {decay}: entropy limit", claimed, [limit] * len(mine)),
            Row(f"decay {decay}: float32 at each step takes so many times that", less, more),
        ]
    draw(measured, out / "memory.svg")
    return medians("memory", rows, sum(m.seconds for m in measured), scale)


def measure(problem: TrainingProblem, sizes: tuple[int, ...], decay: float, seed: int) -> Measurement:
    """Train, and back."""
    steps: list[int] = []
    held: list[int] = []

    def report(step: int, loss: float) -> None:
        steps.append(step)
        held.append(sum(array.nbytes for array in jax.live_arrays()))

    started = time.perf_counter()
    evaluate(
        problem, {"learning_rate": 0.1}, key=jax.random.key(seed), report=report, report_every=problem.steps // REPORTS
    )
    weights = sum(fan_out * (fan_in + 1) for fan_in, fan_out in itertools.pairwise(sizes))
    seconds = time.perf_counter() - started
    return Measurement(seed, decay, weights, steps, held, seconds)


def training(sizes: tuple[int, ...], decay: float) -> TrainingProblem:
    """Of a tanh network until `BITS` are lost, with the learning rate as its only hyperparameter."""
    length = math.ceil(BITS / math.log2(1 / decay) / REPORTS)
    return TrainingProblem(
        init=lambda key, hyperparameters: digits.network(key, sizes, [0.1] * (len(sizes) - 1)),
        train_loss=lambda params, hyperparameters, batch, key: digits.cross_entropy(params, batch),
        valid_loss=digits.valid_loss,
        batches=digits.batches,
        optimizer=sgd("learning_rate", decay, dampening=True),
        steps=length * REPORTS + 1,
    )


def draw(measured: list[Measurement], path: Path) -> None:
    """The bits kept a weight at each step of the first seed's runs; dashed the entropy that was destroyed."""
    figure, (axes,) = figures.panels(1, 1)
    for i, m in enumerate(m for m in measured if m.seed == 0):
        since = np.array(m.steps) - m.steps[0]
        axes.plot(
            since,
            8 * (np.array(m.bytes) - m.bytes[0]) / m.weights,
            "o-",
            color=f"C{i}",
            markersize=3,
            label=f"{m.decay}",
        )
        axes.plot(since, since * math.log2(1 / m.decay), color=f"C{i}", linestyle="--", linewidth=1)
    axes.set(xlabel="steps", ylabel="bits kept a weight", xscale="log", yscale="log")
    axes.legend(frameon=False, title="decay")
    figure.savefig(path)
