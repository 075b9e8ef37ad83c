"""memory: how many bits a weight and step the reverse pass needs, beside the entropy that decays destroy.

Maclaurin, Duvenaud and Adams 2015, section 2: multiplying by a decay below 1 loses log2(1 / decay) bits, and a buffer
that keeps these bits and no more makes training reversible. It takes 200 times less than float32 at 0.9, and 1,000
times less at 0.98. (As released, the buffers are Python integers, which take 73 times less than float32.) The study
measures the bytes of all live JAX arrays during `evaluate`: their growth between two reports is what was kept of the
steps between. The weights are those of a linear model on scikit-learn's digits, and of a network of four layers at the
paper's scale. Each run is then reversed, and `evaluate` compares the result with the start to the bit.
"""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track

from hypergrad_search import TrainingProblem, evaluate, sgd
from hypergrad_search.hypergradient import Progress
from hypergrad_studies import json_lines
from hypergrad_studies.networks import cross_entropy, network
from hypergrad_studies.papers import figures
from hypergrad_studies.papers.results import Result, Row, Scale, medians
from hypergrad_studies.problems import digits

DECAYS = (0.5, 0.9, 0.98)
BITS = 80.0  # each weight loses so many bits in a run, or ten bytes
REPORTS = 8  # each run reports its bytes so many times
PAPER = {0.9: (0.152, 200.0), 0.98: (0.029, 1000.0)}  # bits a weight and step, and how many times less than float32

SIZES: dict[Scale, tuple[int, ...]] = {"small": (64, 10), "paper": (64, 50, 50, 50, 10)}


live_arrays: Callable[[], Sequence[jax.Array]] = jax.live_arrays  # JAX gives it no type


@dataclass(frozen=True)
class Measurement:
    """The bytes of all live arrays at some of the steps of one run."""

    seed: int
    decay: float
    weights: int
    steps: list[int]
    bytes: list[int]
    seconds: float

    @property
    def bits(self) -> float:
        """The bits kept for each weight and step, from the first report to the last."""
        return 8 * (self.bytes[-1] - self.bytes[0]) / self.weights / (self.steps[-1] - self.steps[0])


def study(scale: Scale, out: Path, seeds: int, console: Console) -> list[Result]:
    """Write `records.jsonl` and `memory.svg` into the folder `out`, and return the numbers."""
    problems = {decay: problem(SIZES[scale], decay) for decay in DECAYS}
    pairs = [(seed, decay) for seed in range(seeds) for decay in DECAYS]
    measured = [
        measure(problems[decay], SIZES[scale], decay, seed) for seed, decay in track(pairs, "memory", console=console)
    ]
    json_lines.replace(out / "records.jsonl", measured)
    rows = []
    for decay in DECAYS:
        bits = [m.bits for m in measured if m.decay == decay]
        claimed, less = PAPER.get(decay, (None, None))
        rows += [
            Row(f"decay {decay}: bits a weight and step", claimed, bits),
            Row(f"decay {decay}: entropy limit", claimed, [math.log2(1 / decay)] * len(bits)),
            Row(f"decay {decay}: float32 at each step takes so many times that", less, [32 / b for b in bits]),
        ]
    draw(measured, out / "memory.svg")
    return medians("memory", rows, sum(m.seconds for m in measured), scale)


def problem(sizes: tuple[int, ...], decay: float) -> TrainingProblem:
    """Return the training of a tanh network until each weight has lost `BITS`; it has the learning rate to tune."""
    between_reports = math.ceil(BITS / math.log2(1 / decay) / REPORTS)
    _, valid, _ = digits.splits()
    return TrainingProblem(
        init=lambda key, hyperparameters: network(key, sizes, [0.1] * (len(sizes) - 1)),
        train_loss=lambda params, hyperparameters, batch, key: jnp.mean(cross_entropy(params, batch)),
        valid_loss=lambda params, hyperparameters: jnp.mean(cross_entropy(params, valid)),
        batches=digits.batches,
        optimizer=sgd("learning_rate", decay, dampening=True),
        steps=between_reports * REPORTS + 1,
    )


def measure(problem: TrainingProblem, sizes: tuple[int, ...], decay: float, seed: int) -> Measurement:
    """Train and go back, and measure the bytes of all live arrays at each report."""
    steps: list[int] = []
    live: list[int] = []

    def report(now: Progress) -> None:
        steps.append(now.step)
        live.append(sum(array.nbytes for array in live_arrays()))

    started = time.perf_counter()
    evaluate(
        problem, {"learning_rate": 0.1}, key=jax.random.key(seed), report=report, report_every=problem.steps // REPORTS
    )
    weights = sum(fan_out * (fan_in + 1) for fan_in, fan_out in itertools.pairwise(sizes))
    seconds = time.perf_counter() - started
    return Measurement(seed, decay, weights, steps, live, seconds)


def draw(measured: Sequence[Measurement], path: Path) -> None:
    """Draw the bits kept for a weight at each step of the first seed's runs, and the entropy destroyed as dashes."""
    figure, (axes,) = figures.panels(1, 1)
    for i, m in enumerate(m for m in measured if m.seed == 0):
        since = np.array(m.steps) - m.steps[0]
        bits = 8 * (np.array(m.bytes) - m.bytes[0]) / m.weights
        axes.plot(since, bits, "o-", color=f"C{i}", markersize=3, label=f"{m.decay}")
        axes.plot(since, since * math.log2(1 / m.decay), color=f"C{i}", linestyle="--", linewidth=1)
    axes.set(xlabel="steps", ylabel="bits kept a weight", xscale="log", yscale="log")
    axes.legend(frameon=False, title="decay")
    figure.savefig(path)
