"""Outer loops: how the studies of reversible learning tune hyperparameters.

There are two kinds. `Descent` follows the hypergradient with an optimizer of optax, as the paper does. `Sampled` is an
Optuna study, which `HypergradSampler` or any other sampler leads. Each loop keeps its state in a file for each seed. It
goes on from there where it was cut off, so that a study which is run twice computes nothing twice.
"""

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from rich.console import Console
from rich.progress import track

from hypergrad_search import Float, TrainingProblem
from hypergrad_studies import json_lines


@dataclass(frozen=True)
class Iteration:
    """One training run of an outer loop; iteration 0 is the run at the start.

    `value` is the outer loss, infinite where training failed. `test` is the test loss, NaN where training failed.
    `gradient_evaluations` and `seconds` are what this one run took.
    """

    search: str
    seed: int
    iteration: int
    value: float
    test: float
    status: str
    gradient_evaluations: float
    seconds: float


@dataclass(frozen=True, eq=False)
class OuterLoop(abc.ABC):
    """An outer loop of `iterations` training runs after the one at the start.

    - `start`: the start has this number in every element of an array.
    - `space`: hyperparameters stay within it. Its scales are linear, because the hyperparameters are the paper's own:
      logarithms of rates and the like.
    - `reseed`: each training run has initial parameters and batches of its own; else all runs of a seed share them.
    - `networks`: how many networks the problem trains at once. The loop is charged for each of them.
    """

    problem: TrainingProblem
    space: Mapping[str, Float]
    start: Mapping[str, float]
    iterations: int
    reseed: bool = False
    networks: int = 1

    def start_arrays(self) -> dict[str, np.ndarray]:
        """Return the hyperparameters at the start."""
        return {name: np.full(array.shape, self.start[name], np.float32) for name, array in self.space.items()}

    @abc.abstractmethod
    def run(self, name: str, seed: int, folder: Path) -> Iterator[Iteration]:
        """Yield all iterations: first those that `folder` holds already, then new ones."""

    @abc.abstractmethod
    def outcome(self, iterations: Sequence[Iteration]) -> Iteration:
        """Return the iteration at the hyperparameters that `found` returns."""

    @abc.abstractmethod
    def found(self, name: str, seed: int, folder: Path) -> dict[str, np.ndarray]:
        """Return the hyperparameters that the loop has found, from the files in `folder`."""


#: the iterations of each outer loop, by the loop's name and by seed
Histories = dict[str, list[list[Iteration]]]


def finish(
    loops: Mapping[str, OuterLoop],
    seeds: int,
    folder: Path,
    console: Console,
    keep: Callable[[Iteration], None] = lambda iteration: None,
) -> Histories:
    """Run each loop with each seed to its end, and return all iterations; `keep` is called with each of them."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    total = seeds * sum(loop.iterations + 1 for loop in loops.values())
    done: Histories = {name: [[] for _ in range(seeds)] for name in loops}
    iterations = (
        iteration for seed in range(seeds) for name, loop in loops.items() for iteration in loop.run(name, seed, folder)
    )
    for iteration in track(iterations, folder.name, total=total, console=console):
        done[iteration.search][iteration.seed].append(iteration)
        keep(iteration)
    return done


def record(loops: Mapping[str, OuterLoop], seeds: int, folder: Path, console: Console) -> Histories:
    """Do the same as `finish`, and write each iteration as a line of `folder/records.jsonl`."""
    path = folder / "records.jsonl"
    path.write_bytes(b"")
    return finish(loops, seeds, folder, console, lambda iteration: json_lines.append(path, iteration))
