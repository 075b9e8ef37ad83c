"""Architecture through a hypernetwork: connections of a small network, chosen by generated weights (SMASH).

The network has `BLOCKS` hidden blocks in a row. Each block, and the output, may read the input and every block before.
Each of these connections has a number in [0, 1]: above 0.5 the connection is there. As Brock, Lim, Ritchie and Weston
(2018) do, one hypernetwork learns the weights as a function of these numbers, on architectures drawn at random; then
its weights rank many architectures by their validation loss, and the best of them are trained. The hypernetwork is
`Hypernet(algorithm=Global())`, and the numbers are a hyperparameter.

Random search trains as many random architectures as the same number of gradient evaluations allows.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr

from hypergrad_search import Evaluation, Float, Hypernet, Space, TrainingProblem, Unrolled, adam, evaluate
from hypergrad_search.hypergradient import Global, OneHidden
from hypergrad_studies import json_lines
from hypergrad_studies.budgets import interval
from hypergrad_studies.networks import Split
from hypergrad_studies.problems import digits

BLOCKS, WIDTH = 4, 16
INPUTS, OUTPUTS = 64, 10
STEPS, RATE = 300, 1e-2  # of a training run
ABSENT, PRESENT = 0.25, 0.75  # the mean numbers of connections that are not there, and of those that are
FINALISTS = 4  # architectures that are trained of those that generated weights ranked
RANKING = 1  # gradient evaluations that are charged for ranking one: a validation loss, without a gradient
SHARE = 2 / 3  # of the budget goes to the hypernetwork

CONNECTIONS = [(start, end) for end in range(1, BLOCKS + 2) for start in range(end)]
"""The connections, as pairs of places in the row: 0 is the input, and `BLOCKS + 1` the output."""

SPACE: Space = {"connections": Float(0.0, 1.0, shape=(len(CONNECTIONS),))}
Params = dict[str, list[jax.Array]]


def _sizes() -> list[int]:
    return [INPUTS, *[WIDTH] * BLOCKS, OUTPUTS]


def init(key: jax.Array, h: Mapping[str, Any]) -> Params:
    """Return a matrix for each connection, and the biases of each block and of the output."""
    sizes = _sizes()
    keys = jax.random.split(key, len(CONNECTIONS))
    return {
        "weights": [
            jax.random.normal(k, (sizes[start], sizes[end])) / jnp.sqrt(sizes[start])
            for k, (start, end) in zip(keys, CONNECTIONS, strict=True)
        ],
        "biases": [jnp.zeros(size) for size in sizes[1:]],
    }


def outputs(params: Params, connections: jax.Array, images: jax.Array) -> jax.Array:
    """Return the outputs of the network, shape `(n, OUTPUTS)`."""
    values, there = [images], jnp.round(connections)
    for end, biases in enumerate(params["biases"], 1):
        total = biases[None]
        for number, weights, (start, into) in zip(there, params["weights"], CONNECTIONS, strict=True):
            if into == end:
                total = total + number * (values[start] @ weights)
        values.append(total if end > BLOCKS else jnp.tanh(total))
    return values[-1]


def losses(params: Params, h: Mapping[str, Any], data: Split) -> jax.Array:
    """Return the cross-entropy of each image, in nats, shape `(n,)`."""
    log_probabilities = jax.nn.log_softmax(outputs(params, h["connections"], data.images))
    return -jnp.take_along_axis(log_probabilities, jnp.asarray(data.labels)[:, None], axis=1)[:, 0]


def problem(steps: int = STEPS) -> TrainingProblem:
    """Return the training of the network on scikit-learn's digits; its hyperparameter is `connections`."""
    return TrainingProblem(
        init=init,
        train_loss=lambda params, h, batch, key: jnp.mean(losses(params, h, batch)),
        valid_loss=lambda params, h: losses(params, h, digits.splits()[1]),
        test_loss=lambda params, h: losses(params, h, digits.splits()[2]),
        batches=digits.batches,
        optimizer=adam(RATE),
        steps=steps,
    )


@dataclass(frozen=True)
class Record:
    """The architecture that a way has found with a seed, and what its training gave.

    `connections` are those that are there. `gradient_evaluations` and `seconds` are those of the whole search.
    """

    way: str
    seed: int
    connections: list[tuple[int, int]]
    valid_loss: float
    test_loss: float
    gradient_evaluations: float
    seconds: float


@dataclass(frozen=True)
class Ranking:
    """How a seed's hypernetwork ranks `n` random architectures, by the validation loss: Spearman's correlations.

    `generated` is with the ranking by training runs, and `again` that of these with training runs from other initial
    weights, which no ranking can be expected to surpass by much.
    """

    seed: int
    n: int
    generated: float
    again: float


def measure(runs: int, seeds: int, console: Console) -> tuple[list[Record], list[Ranking]]:
    """Return what each way finds with each seed at the cost of so many training runs, and how architectures rank."""
    training = problem()
    found = [_of_seed(training, seed, runs) for seed in track(range(seeds), "seeds", console=console)]
    return [record for records, _ in found for record in records], [ranking for _, ranking in found]


def _of_seed(training: TrainingProblem, seed: int, runs: int) -> tuple[list[Record], Ranking]:
    random, key = np.random.default_rng(seed), jax.random.key(seed)
    drawn = architectures(random, runs)
    started = time.perf_counter()
    trained = [train(training, one, key) for one in drawn]
    of_random = _record("random search", seed, drawn, trained, 0.0, started)
    started = time.perf_counter()
    net = Generated.learned(training, key, round(SHARE * runs * training.steps))
    left = runs * training.steps - net.cost - FINALISTS * training.steps
    candidates = architectures(random, int(left // RANKING))
    best = candidates[np.argsort(net.values(candidates))[:FINALISTS]]
    spent = net.cost + RANKING * len(candidates)
    of_net = _record("generated weights", seed, best, [train(training, one, key) for one in best], spent, started)
    started = time.perf_counter()
    whole = np.full((1, len(CONNECTIONS)), PRESENT, np.float32)
    of_whole = _record("all connections", seed, whole, [train(training, whole[0], key)], 0.0, started)
    one = _record("one at random", seed, drawn[:1], trained[:1], 0.0, started)
    values = [run.value for run in trained]
    again = [train(training, one, jax.random.fold_in(key, 1)).value for one in drawn]
    ranking = Ranking(seed, runs, _correlation(net.values(drawn), values), _correlation(again, values))
    return [of_random, of_net, of_whole, one], ranking


def architectures(random: np.random.Generator, n: int) -> np.ndarray[Any, Any]:
    """Return random architectures, shape `(n, connections)`."""
    return np.where(random.integers(0, 2, (n, len(CONNECTIONS))), PRESENT, ABSENT).astype(np.float32)


def train(training: TrainingProblem, architecture: np.ndarray[Any, Any], key: jax.Array) -> Evaluation:
    """Return the evaluation of an architecture, which is trained from scratch."""
    return evaluate(training, {"connections": architecture}, method=Unrolled(), key=key, gradient_below=-np.inf)


@dataclass(frozen=True, eq=False)
class Generated:
    """A hypernetwork that has learned weights for all architectures; `cost` is in gradient evaluations."""

    method: Hypernet
    training: TrainingProblem
    key: jax.Array
    checkpoint: bytes
    cost: float

    @classmethod
    def learned(cls, training: TrainingProblem, key: jax.Array, steps: int) -> "Generated":
        """Return a hypernetwork after so many steps, each on an architecture drawn at random from the box."""
        method = Hypernet(network=OneHidden(), algorithm=Global(hyper_steps=1), steps=steps)
        middle = {"connections": np.full(len(CONNECTIONS), 0.5, np.float32)}
        found = evaluate(training, middle, method=method, key=key, space=SPACE)
        if found.checkpoint is None:
            raise ArithmeticError(f"the hypernetwork has learned nothing: {found.message}")
        return cls(method, training, key, found.checkpoint, found.cost.gradient_evaluations)

    def values(self, architectures: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the validation loss of each architecture with generated weights, shape `(n,)`."""

        def value(connections: jax.Array) -> jax.Array:
            h = {"connections": connections}
            params = self.method.params(self.training, h, key=self.key, space=SPACE, checkpoint=self.checkpoint)
            return jnp.mean(self.training.valid_loss(params, h))

        return np.asarray(jax.jit(lambda each: jax.lax.map(value, each))(jnp.asarray(architectures)))


def _record(
    way: str,
    seed: int,
    architectures: np.ndarray[Any, Any],
    trained: Sequence[Evaluation],
    spent: float,
    started: float,
) -> Record:
    """Return the record of the trained architecture with the lowest validation loss; `spent` is what came before."""
    best = min(range(len(trained)), key=lambda i: trained[i].value)
    test = trained[best].test_loss
    assert test is not None
    return Record(
        way,
        seed,
        [pair for pair, x in zip(CONNECTIONS, architectures[best], strict=True) if x == PRESENT],
        trained[best].value,
        test,
        spent + sum(run.cost.gradient_evaluations for run in trained),
        time.perf_counter() - started,
    )


def _correlation(one: Sequence[float] | np.ndarray[Any, Any], other: Sequence[float]) -> float:
    return float(spearmanr(one, other).statistic)


def tables(records: Sequence[Record], rankings: Sequence[Ranking]) -> list[Table]:
    """Return what each way has found, and how well generated weights rank."""
    by_way: dict[str, dict[int, Record]] = {}
    for record in records:
        by_way.setdefault(record.way, {})[record.seed] = record
    ours = by_way["generated weights"]
    found = Table(
        "architecture",
        "test loss",
        "validation loss",
        "connections",
        "generated lower",
        "gradient evaluations",
        "n",
        title="What was found: medians over seeds, with 95 % bootstrap intervals; lower test losses are counted",
    )
    for way, mine in sorted(by_way.items(), key=lambda each: float(np.median([r.test_loss for r in each[1].values()]))):
        wins = sum(ours[seed].test_loss < mine[seed].test_loss for seed in mine)
        found.add_row(
            way,
            _interval([record.test_loss for record in mine.values()]),
            _interval([record.valid_loss for record in mine.values()]),
            f"{np.median([len(record.connections) for record in mine.values()]):.0f}",
            "" if mine is ours else f"{wins} of {len(mine)}",
            f"{np.median([record.gradient_evaluations for record in mine.values()]):,.0f}",
            str(len(mine)),
        )
    ranks = Table("ranking", "Spearman (95 % interval)", "architectures", "n", title="Against ranking by training")
    for name, numbers in {
        "generated weights": [ranking.generated for ranking in rankings],
        "training from other initial weights": [ranking.again for ranking in rankings],
    }.items():
        ranks.add_row(name, _interval(numbers), str(rankings[0].n), str(len(rankings)))
    return [found, ranks]


def _interval(numbers: Sequence[float]) -> str:
    found = interval(numbers)
    return f"{found.median:.3f} ({found.low:.3f} to {found.high:.3f})"


def write(records: Sequence[Record], rankings: Sequence[Ranking], folder: Path) -> None:
    """Write `records.jsonl` and `rankings.jsonl` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    json_lines.replace(folder / "records.jsonl", records)
    json_lines.replace(folder / "rankings.jsonl", rankings)
