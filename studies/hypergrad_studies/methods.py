"""The ways to the gradient, held against float64: error, time and cost of each as training grows.

Each case is a network on scikit-learn's digits, trained with momentum, or ridge regression. Its hyperparameters are
penalties, on which the training loss depends, and a learning rate and a momentum, which the optimizer alone reads. A
method that cannot see the latter is held against the penalties alone.
"""

import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from hypergrad_search import (
    DrMAD,
    Evaluation,
    Float,
    Forward,
    Implicit,
    Method,
    Reversible,
    Smoothed,
    Space,
    TrainingProblem,
    Unrolled,
    evaluate,
    sgd,
)
from hypergrad_search.hypergradient import ConjugateGradients, Identity, Neumann
from hypergrad_search.programs import planned_memory
from hypergrad_studies import json_lines
from hypergrad_studies.networks import Layers, Split, cross_entropy, in_turn
from hypergrad_studies.problems import digits

OF_THE_OPTIMIZER = ("rate", "momentum")
MOST_TANGENTS = 100  # `Forward` with more numbers would take hours

METHODS: dict[str, Method] = {
    "Reversible": Reversible(),
    "Unrolled": Unrolled(),
    "Forward": Forward(),
    "Implicit, CG": Implicit(solver=ConjugateGradients(damping=0.01), batches=5),
    "Implicit, Neumann": Implicit(solver=Neumann(rate=0.3), batches=5),
    "Implicit, identity": Implicit(solver=Identity(), batches=5),
    "DrMAD": DrMAD(),
    "Smoothed": Smoothed(),
}
"""The methods that give a gradient; those that continue move hyperparameters instead."""


@dataclass(frozen=True)
class Case:
    """A training run: its model ("ridge", "softmax" or "network"), and what shapes it; `penalties` is their number."""

    model: str = "network"
    steps: int = 100
    momentum: float = 0.9
    rate: float = 0.1
    penalties: int = 2

    @property
    def sizes(self) -> tuple[int, ...]:
        """Inputs, hidden units and outputs of the model, layer by layer."""
        return {"ridge": (64, 1), "softmax": (64, 10), "network": (64, 50, 10)}[self.model]

    @property
    def space(self) -> Space:
        """The box in which a penalty lies from 1e-6 to 0.1."""
        return {
            "l2": Float(1e-6, 0.1, log=True, shape=(self.penalties,)),
            "rate": Float(1e-4, 10.0, log=True),
            "momentum": Float(0.1, 0.999),
        }

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Where the gradient is taken."""
        return {"l2": np.full(self.penalties, 1e-3), "rate": self.rate, "momentum": self.momentum}


@dataclass(frozen=True)
class Record:
    """What is known of a method in a case.

    - `status`: that of the evaluation, or "not run".
    - `error`, `cosine`: of the gradient by the penalties, in the unit box, against float64: the norm of the difference
      as a share of the norm, and the cosine of the angle.
    - `optimizer_error`: the same error by the learning rate and the momentum; None where these are not seen.
    - `cost`: in training runs. `ratios`: seconds as ratios to those of the value alone, round by round.
    - `memory`: of its largest program, as XLA plans it, and of what is kept beside the programs, as a ratio to that of
      the value alone.
    """

    case: str
    method: str
    status: str
    error: float | None = None
    cosine: float | None = None
    optimizer_error: float | None = None
    cost: float | None = None
    ratios: list[float] = field(default_factory=list)
    memory: float | None = None


def cases(most_steps: int) -> list[Case]:
    """Return a base case, and cases that vary one thing at a time, with no more steps than `most_steps`."""
    base = Case()
    varied = [
        *(replace(base, steps=steps) for steps in (100, 400, 1000, 4000)),
        *(replace(base, momentum=momentum) for momentum in (0.5, 0.98)),
        *(replace(base, rate=rate) for rate in (0.03, 0.3, 1.0, 3.0)),
        *(replace(base, penalties=penalties) for penalties in (64, 3200)),
        *(replace(base, model=model, steps=steps) for model in ("ridge", "softmax") for steps in (100, 1000)),
    ]
    return [case for case in dict.fromkeys([base, *varied]) if case.steps <= most_steps]


@functools.cache
def problem(case: Case) -> TrainingProblem:
    """Return the training run of a case, which computes in the type of its hyperparameters."""
    sizes = case.sizes

    def init(key: jax.Array, h: dict[str, Any]) -> Layers:
        shapes = list(itertools.pairwise(sizes))
        keys = jax.random.split(key, len(shapes))
        dtype = h["l2"].dtype  # drawn in float32, so that float64 begins at the same weights
        return [
            {
                "weights": (jax.random.normal(k, shape, jnp.float32) * 0.1).astype(dtype),
                "biases": jnp.zeros(shape[1], dtype),
            }
            for k, shape in zip(keys, shapes, strict=True)
        ]

    def train_loss(params: Layers, h: dict[str, Any], batch: Split, key: jax.Array) -> jax.Array:
        weights = jnp.concatenate([layer["weights"].ravel() for layer in params])
        groups = jnp.arange(weights.size) * case.penalties // weights.size
        return jnp.mean(_losses(case, params, batch)) + jnp.sum(h["l2"][groups] * weights**2)

    def valid_loss(params: Layers, h: dict[str, Any]) -> jax.Array:
        return _losses(case, params, _in_type(digits.splits()[1], h["l2"].dtype))

    return TrainingProblem(
        init=init,
        train_loss=lambda params, h, batch, key: train_loss(params, h, _in_type(batch, h["l2"].dtype), key),
        valid_loss=valid_loss,
        batches=lambda step: in_turn(digits.splits()[0], step, digits.BATCH),
        optimizer=sgd("rate", "momentum"),
        steps=case.steps,
    )


def _in_type(data: Split, dtype: Any) -> Split:
    return Split(jnp.asarray(data.images, dtype), data.labels)


def _losses(case: Case, params: Layers, data: Split) -> jax.Array:
    if case.model != "ridge":
        return cross_entropy(params, data)
    predicted = (data.images @ params[0]["weights"] + params[0]["biases"])[:, 0]
    wanted = (jnp.asarray(data.labels) - 4.5) / 4.5  # the digit itself, between -1 and 1
    errors: jax.Array = (predicted - wanted.astype(predicted.dtype)) ** 2
    return errors


def truth(case: Case) -> dict[str, np.ndarray[Any, Any]] | None:
    """Return the gradient in float64, in the unit box; None where it is not finite."""
    with jax.enable_x64(True):
        h = {name: jnp.asarray(x, jnp.float64) for name, x in _as_float32(case.hyperparameters).items()}
        found = evaluate(problem(case), h, key=jax.random.key(0), method=Unrolled())
    return None if found.gradient is None else _in_box(case, found.gradient)


def _as_float32(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(x, np.float32) for name, x in hyperparameters.items()}


def _in_box(case: Case, gradient: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return a gradient in units of the box, in which penalties and rates are logarithms."""
    scaled = {}
    for name, slope in gradient.items():
        parameter = case.space[name]
        assert isinstance(parameter, Float)
        here = np.asarray(case.hyperparameters[name], float)
        width = here * math.log(parameter.high / parameter.low) if parameter.log else parameter.high - parameter.low
        scaled[name] = np.asarray(slope, float) * width
    return scaled


def measure(most_steps: int, repeats: int, console: Console, only: Sequence[str] = ()) -> list[Record]:
    """Return a record of each method in each case; times are taken `repeats` times, in turns."""
    names = [name for name in METHODS if not only or name in only]
    plan = cases(most_steps)
    return [record for case in track(plan, "cases", console=console) for record in _of_case(case, names, repeats)]


def _of_case(case: Case, names: Sequence[str], repeats: int) -> Iterator[Record]:
    exact = truth(case)
    runs: dict[str, Callable[[], Evaluation]] = {"value": _run(case, Unrolled(), case.space, -math.inf)}
    records: dict[str, Record] = {}
    for name in names:
        if name == "Forward" and case.penalties > MOST_TANGENTS:
            records[name] = Record(_title(case), name, "not run")
            continue
        space = case.space
        try:
            METHODS[name].check(problem(case), case.hyperparameters, space=space)
        except ValueError:
            space = {"l2": space["l2"]}
        runs[name] = _run(case, METHODS[name], space, math.inf)
        found = runs[name]()
        records[name] = _judge(case, name, found, exact, seen=set(space))
    memory = {name: _memory(run) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    for name in names:
        ratios = [one / value for one, value in zip(seconds.get(name, ()), seconds["value"], strict=False)]
        yield replace(records[name], ratios=ratios, memory=memory[name] / memory["value"] if name in memory else None)


def _memory(run: Callable[[], Evaluation]) -> int:
    """Return the bytes of the largest program of an evaluation, and of what `Reversible` keeps beside its programs."""
    with planned_memory() as planned:
        found = run()
    return max(planned) + int(found.diagnostics.get("spilled_bytes", 0))


def _run(case: Case, method: Method, space: Space, below: float) -> Callable[[], Evaluation]:
    return functools.partial(
        evaluate,
        problem(case),
        case.hyperparameters,
        key=jax.random.key(0),
        method=method,
        gradient_below=below,
        space=space,
    )


def _judge(case: Case, name: str, found: Evaluation, exact: dict[str, Any] | None, seen: set[str]) -> Record:
    record = Record(_title(case), name, str(found.status), cost=found.cost.gradient_evaluations / case.steps)
    if exact is None or found.gradient is None:
        return record
    ours = _in_box(case, found.gradient)
    of_optimizer = [n for n in OF_THE_OPTIMIZER if n in seen]
    return replace(
        record,
        error=_error(ours, exact, ["l2"]),
        cosine=_cosine(ours["l2"], exact["l2"]),
        optimizer_error=_error(ours, exact, of_optimizer) if of_optimizer else None,
    )


def _error(ours: dict[str, Any], exact: dict[str, Any], names: Sequence[str]) -> float:
    one, other = (np.concatenate([np.ravel(slopes[name]) for name in names]) for slopes in (ours, exact))
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def _cosine(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    return float(np.ravel(one) @ np.ravel(other) / (np.linalg.norm(one) * np.linalg.norm(other)))


def _title(case: Case) -> str:
    numbers = f"{case.penalties:,} penalt{'y' if case.penalties == 1 else 'ies'}"
    return f"{case.model}, {case.steps:,} steps, momentum {case.momentum:g}, rate {case.rate:g}, {numbers}"


def tables(records: Sequence[Record]) -> list[Table]:
    """Return a table for each case."""
    found: dict[str, Table] = {}
    for record in records:
        if record.case not in found:
            found[record.case] = Table(*_COLUMNS, title=record.case)
        found[record.case].add_row(
            record.method,
            record.status,
            _short(record.error),
            "" if record.cosine is None else f"{record.cosine:.3f}",
            _short(record.optimizer_error),
            "" if record.cost is None else f"{record.cost:.1f}",
            _time(record),
            _memory_ratio(record),
        )
    return list(found.values())


_COLUMNS = "method", "status", "error", "cosine", "of rate, momentum", "cost", "time / value's", "memory / value's"


def _short(number: float | None) -> str:
    return "" if number is None else f"{number:.1e}"


def markdown(records: Sequence[Record], command: str) -> str:
    """Return the section of a page that `command` makes: a row for each case, and a column for each method."""
    sheets = {
        "Error by the penalties, as a share of the gradient in float64": _error_by_penalties,
        "Cosine of the angle between them": lambda record: "" if record.cosine is None else f"{record.cosine:.3f}",
        "Error by the learning rate and the momentum": lambda record: _short(record.optimizer_error),
        "Time, in training runs for the value alone": _time,
        "Memory that XLA plans for the largest program, and that `Reversible` fills beside it with bits, as a ratio to "
        "that for the value alone": _memory_ratio,
    }
    methods = list(dict.fromkeys(record.method for record in records))
    cells = {(record.case, record.method): record for record in records}
    parts = [f"`{command}` makes these tables."]
    for title, cell in sheets.items():
        rows = [["case", *methods], ["---"] + ["---:"] * len(methods)]
        for case in dict.fromkeys(record.case for record in records):
            found = [cells.get((case, method)) for method in methods]
            rows.append([case, *("" if record is None else cell(record) for record in found)])
        parts.append(f"{title}:\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(parts) + "\n"


def _error_by_penalties(record: Record) -> str:
    if record.status in ("ok", "not run"):
        return _short(record.error) or record.status
    return f"{_short(record.error)} ({record.status})".strip()


def _time(record: Record) -> str:
    return f"{statistics.median(record.ratios):.1f}" if record.ratios else ""


def _memory_ratio(record: Record) -> str:
    return "" if record.memory is None else f"{record.memory:.1f}"


def write(records: Sequence[Record], folder: Path) -> None:
    """Write the records to `methods.jsonl` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    json_lines.replace(folder / "methods.jsonl", records)
