"""The costs of a hypergradient, measured side by side: every way differentiates the same function.

The function maps hyperparameters (a learning rate, the decays, and a penalty and an initial scale for each layer) to
the validation loss of a tanh network that is trained with them on scikit-learn's digits. The ways are `jax.grad`
through `jax.lax.scan`, the same with `jax.checkpoint` around a step, equinox's binomially checkpointed scan, and
reversible training. Their times are ratios to that of plain training.

Memory and compile time are measured in a process for each way, since the peak of a process never falls again. Times
are measured in one process, in which the ways take turns, so that what else the machine does hits all of them alike.
"""

import dataclasses
import itertools
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import equinox.internal
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hypergrad_search import TrainingProblem, adam, sgd, train
from hypergrad_search.training.floats import Body, FloatState, Scanned, float_training
from hypergrad_studies import json_lines
from hypergrad_studies.networks import Layers, Split, cross_entropy, network
from hypergrad_studies.problems import digits

T = TypeVar("T")

_computed: Callable[[T], T] = jax.block_until_ready

ROUNDS_SECONDS = 60.0  # no round of a case begins after so many seconds, except the first
B2 = 0.999  # Adam's b2; the decay of the case is its b1


class Way(NamedTuple):
    """An optimizer, and how its training is differentiated; the way "plain" trains without a gradient."""

    optimizer: str
    name: str

    def __str__(self) -> str:
        return f"{self.optimizer}-{self.name}"


WAYS = (
    Way("sgd", "plain"),
    Way("sgd", "scan"),
    Way("sgd", "checkpointed"),
    Way("sgd", "binomial"),
    Way("sgd", "reversible"),
    Way("adam", "plain"),
    Way("adam", "checkpointed"),
    Way("adam", "reversible"),
)
"""All ways; each optimizer's plain training comes first."""


@dataclass(frozen=True)
class Case:
    """A training run, by its steps, decay and width of hidden layers, and the ways in which it is differentiated.

    A `long` case is compiled in each way to learn how much memory it needs, and never run.
    """

    steps: int
    decay: float
    width: int
    ways: tuple[Way, ...]
    long: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many inputs, hidden units and outputs the network has, layer by layer."""
        return (64, self.width, self.width, 10)

    @property
    def weights(self) -> int:
        """How many weights the network has, biases included."""
        return sum((inputs + 1) * outputs for inputs, outputs in itertools.pairwise(self.sizes))

    def __str__(self) -> str:
        return f"{self.weights:,} weights, {self.steps:,} steps, decay {self.decay:g}"


@dataclass
class Record:
    """What is known of one way in one case; sizes are in bytes. `status` is "ok", "not run" or "failed".

    `seconds` has a number for each round, and `ratios` divides it by the seconds of plain training in the same round.
    `difference` is the distance of the gradient from the gradient of the optimizer's first way, relative to the
    latter's norm.
    """

    steps: int
    decay: float
    width: int
    weights: int
    optimizer: str
    way: str
    status: str = "ok"
    reason: str = ""
    compile_seconds: float | None = None
    xla_bytes: int | None = None
    rss_before: int | None = None
    rss_after: int | None = None
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    difference: float | None = None

    @classmethod
    def of(cls, case: Case, way: Way, **known: Any) -> "Record":
        """Return a record of a way in a case, with the fields in `known`."""
        return cls(case.steps, case.decay, case.width, case.weights, *way, **known)

    @property
    def ratio(self) -> float | None:
        """The median of the ratios; None where no time was measured."""
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """The lower and the upper quartile of the ratios; None where no time was measured."""
        low, high = np.quantile(self.ratios or [math.nan], [0.25, 0.75]).tolist()
        return (low, high) if self.ratios else None


def with_plain(ways: Iterable[Way]) -> tuple[Way, ...]:
    """Return the ways, and the plain training of their optimizers, in the order of `WAYS`."""
    chosen = set(ways)
    return tuple(w for w in WAYS if w in chosen or (w.name == "plain" and w.optimizer in {x.optimizer for x in chosen}))


def cases(
    steps: Sequence[int], decays: Sequence[float], widths: Sequence[int], ways: Sequence[Way], *, long: bool
) -> list[Case]:
    """Return the base case, then cases that vary one thing at a time, and last the long case if `long` is true.

    The base has 300 steps, decay 0.9 and width 512 where these are among the choices. Steps vary on the smallest
    network and sizes at the fewest steps, or the bench would take hours. A decay matters to reversible training
    alone, so cases with another decay leave out all other ways but plain training.
    """
    usual, decay, width = _base(300, steps), _base(0.9, decays), _base(512, widths)
    wanted = [(usual, decay, width)]
    wanted += [(n, decay, min(widths)) for n in steps]
    wanted += [(min(steps), decay, n) for n in widths]
    result = [Case(*one, tuple(ways)) for one in dict.fromkeys(wanted)]
    few = tuple(way for way in ways if way.name in ("plain", "reversible"))
    result += [Case(usual, other, width, few) for other in decays if other != decay]
    return [*result, Case(10_000, 0.9, 965, tuple(ways), long=True)] if long else result


def _base(preferred: T, choices: Sequence[T]) -> T:
    return preferred if preferred in choices else choices[0]


def problem(case: Case, optimizer: str) -> tuple[TrainingProblem, dict[str, jax.Array]]:
    """Return the training run of a case, and the hyperparameters at which it is differentiated."""
    layers = range(1, len(case.sizes))

    def init(key: jax.Array, h: dict[str, Any]) -> Layers:
        return network(key, case.sizes, [h[f"init_scale_{i}"] for i in layers])

    def train_loss(params: Layers, h: dict[str, Any], batch: Split, key: jax.Array) -> jax.Array:
        penalties: list[jax.Array] = [
            h[f"l2_{i}"] * jnp.sum(x["weights"] ** 2) for i, x in zip(layers, params, strict=True)
        ]
        return jnp.mean(cross_entropy(params, batch)) + sum(penalties)

    hyperparameters = {
        **{f"l2_{i}": 1e-4 for i in layers},
        **{f"init_scale_{i}": case.sizes[i - 1] ** -0.5 for i in layers},
        **({"rate": 0.3, "momentum": case.decay} if optimizer == "sgd" else {"rate": 1e-3, "b1": case.decay, "b2": B2}),
    }
    return TrainingProblem(
        init=init,
        train_loss=train_loss,
        valid_loss=digits.valid_loss,
        batches=digits.batches,
        optimizer=sgd("rate", "momentum", dampening=True) if optimizer == "sgd" else adam("rate", "b1", "b2", 1e-6),
        steps=case.steps,
    ), {name: jnp.float32(value) for name, value in hyperparameters.items()}


def _checkpointed(body: Body, state: FloatState, scanned: Scanned) -> FloatState:
    return jax.lax.scan(jax.checkpoint(body, prevent_cse=False), state, scanned)[0]


def _binomial(body: Body, state: FloatState, scanned: Scanned) -> FloatState:
    """Scan with equinox's own number of checkpoints, about sqrt(2 * steps): it computes a step at most three times."""
    return equinox.internal.scan(body, state, scanned, kind="checkpointed")[0]


def _scan(body: Body, state: FloatState, scanned: Scanned) -> FloatState:
    return jax.lax.scan(body, state, scanned)[0]


LOOPS: dict[str, Callable[[Body, FloatState, Scanned], FloatState]] = {
    "plain": _scan,
    "scan": _scan,
    "checkpointed": _checkpointed,
    "binomial": _binomial,
}


def program(case: Case, way: Way) -> tuple[jax.stages.Wrapped, dict[str, jax.Array]]:
    """Return a jitted function and its argument.

    The function returns the validation loss, together with its gradient unless the way is plain.
    """
    run, hyperparameters = problem(case, way.optimizer)
    key = jax.random.key(0)
    # These are below the true decays by float32's rounding error, so that no decay is smaller than its buffer allows.
    decays = {"velocity": case.decay} if way.optimizer == "sgd" else {"mu": case.decay, "nu": B2}
    smallest = {name: decay * (1 - 1e-6) for name, decay in decays.items()}

    def reversibly(h: dict[str, jax.Array]) -> jax.Array:
        return jnp.mean(run.valid_loss(train(run, h, key, smallest_decays=smallest), h))

    def in_floats(h: dict[str, jax.Array]) -> jax.Array:
        return jnp.mean(run.valid_loss(LOOPS[way.name](*float_training(run, h, key)).params, h))

    loss = reversibly if way.name == "reversible" else in_floats
    return jax.jit(loss if way.name == "plain" else jax.value_and_grad(loss)), hyperparameters


def alone(case: Case, way: Way, limit: float) -> Record:
    """Compile a way, read how much memory XLA needs, and run it once if that is at most `limit` bytes.

    Call it in a process of its own; otherwise the peaks of memory include all that ran before.
    """
    jitted, hyperparameters = program(case, way)
    _computed(jax.jit(jnp.sin)(1.0))  # JAX starts up at the first program
    started = time.perf_counter()
    compiled = jitted.lower(hyperparameters).compile()
    record = Record.of(case, way, compile_seconds=time.perf_counter() - started)
    analysis = compiled.memory_analysis()
    assert analysis is not None, "XLA has no account of memory on this backend"
    record.xla_bytes = analysis.temp_size_in_bytes
    if record.xla_bytes > limit:
        return dataclasses.replace(record, status="not run", reason=f"needs more than {limit / 1e9:.3g} GB")
    if case.long:
        return dataclasses.replace(record, status="not run", reason="compiled for its memory only")
    record.rss_before = peak_rss()
    result = _computed(compiled(hyperparameters))
    record.rss_after = peak_rss()
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(result)):
        return dataclasses.replace(record, status="failed", reason="the gradient is not finite")
    return record


def together(case: Case, ways: Sequence[Way], repeats: int) -> dict[Way, tuple[list[float], float | None]]:
    """Return the seconds of each round for each way, and the distance of its gradient from that of the first way.

    The first way is the first with the same optimizer that has a gradient. The distance is relative to the norm of its
    gradient, and None for a way without a gradient.
    """
    programs = {}
    for way in ways:
        jitted, hyperparameters = program(case, way)
        programs[way] = partial(jitted.lower(hyperparameters).compile(), hyperparameters)
    results = {way: _computed(run()) for way, run in programs.items()}  # warms up
    seconds: dict[Way, list[float]] = {way: [] for way in ways}
    started = time.perf_counter()
    for _ in range(repeats):
        for way, run in programs.items():
            began = time.perf_counter()
            _computed(run())
            seconds[way].append(time.perf_counter() - began)
        if time.perf_counter() - started > ROUNDS_SECONDS:
            break
    gradients = {way: _vector(result[1]) for way, result in results.items() if way.name != "plain"}
    first = {way.optimizer: gradients[way] for way in reversed(gradients)}
    return {
        way: (seconds[way], _difference(gradients[way], first[way.optimizer]) if way in gradients else None)
        for way in ways
    }


def _vector(gradient: dict[str, jax.Array]) -> NDArray[np.float64]:
    return np.array([float(gradient[name]) for name in sorted(gradient)])


def _difference(gradient: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(gradient - reference) / np.linalg.norm(reference))


def peak_rss() -> int:
    """Return the largest memory that this process has had so far, in bytes."""
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def half_of_memory() -> float:
    """Return half of the machine's memory, in bytes; infinity where the machine does not say how much it has."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    except (AttributeError, ValueError):
        return math.inf


def run(out: Path, plan: Sequence[Case], *, repeats: int, limit: float, console: Console) -> list[Record]:
    """Measure every case, and return the records; `out/records.jsonl` gets those of a case as soon as it is done."""
    out.mkdir(parents=True, exist_ok=True)
    json_lines.replace(out / "records.jsonl", [])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    records: list[Record] = []
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=sum(len(case.ways) + (not case.long) for case in plan))
        for case in plan:
            progress.update(task, description=str(case))
            done: list[Record] = []
            for measured in _measure(case, repeats, limit):
                done += measured
                progress.advance(task)
            json_lines.append(out / "records.jsonl", *done)
            records += done
    return records


def _measure(case: Case, repeats: int, limit: float) -> Iterator[list[Record]]:
    """Measure one case, and yield after each process: an empty list, or after the last process all records."""
    records: dict[Way, Record] = {}
    for way in case.ways:
        if records:
            yield []
        try:
            records[way] = in_a_process(partial(alone, case, way, limit))
        except Exception as error:  # whatever goes wrong in one way, the others go on
            records[way] = Record.of(case, way, status="failed", reason=_one_line(error))
    fit = [way for way, record in records.items() if record.status == "ok"]
    if not case.long:
        yield []
        try:
            _add_times(records, in_a_process(partial(together, case, fit, repeats)))
        except Exception as error:  # a way that fails is a record that says so
            for way in fit:
                records[way] = dataclasses.replace(records[way], status="failed", reason=_one_line(error))
    yield list(records.values())


def _add_times(records: dict[Way, Record], times: dict[Way, tuple[list[float], float | None]]) -> None:
    for way, (seconds, difference) in times.items():
        plain, _ = times.get(Way(way.optimizer, "plain"), ([], None))
        ratios = [mine / training for mine, training in zip(seconds, plain, strict=False)]
        records[way] = dataclasses.replace(records[way], seconds=seconds, ratios=ratios, difference=difference)


def in_a_process(function: Callable[[], T]) -> T:
    """Return what `function` returns in a new process, or raise what it raises there."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function).result()


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
