"""omniglot-sharing: how much ten networks, one for each alphabet, are to share in each layer.

Maclaurin, Duvenaud and Adams 2015, section 3.4: five alphabets of Omniglot and the same turned by 90 degrees, a network
784-400-200-55 for each, trained for 50 steps on all of its images, rate 1, decay 0.9. In each layer the networks'
weights are w = T z, where T is a matrix of 10 x 10 and z has the initial scale e^-2 and the penalty e^-4. T = I keeps
the networks separate, T = 1/10 everywhere ties them. The 300 elements of the three matrices are the hyperparameters.
Characters have 12 drawings to train and 3 to test; of the 12 the outer loop trains on 10 and validates on 2. There are
two outer loops: "paper", gradient descent with step 0.2, and "hypergrad", `HypergradSampler`, both from T = I/2 + 1/20.

The paper does not name its alphabets; these are those that its figure shows. The drawings are assigned to training,
validation and test once for all seeds, where the authors' code draws anew each iteration. The small study has two
alphabets, the digits below 5 and the others, of scikit-learn's digits, and networks 64-40-20-5.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from sklearn.datasets import load_digits

from hypergrad_optuna import HypergradSampler
from hypergrad_search import Float, TrainingProblem, Unrolled, evaluate, sgd
from hypergrad_search.space import Hyperparameters
from hypergrad_studies import data
from hypergrad_studies.networks import Split, cross_entropy, normal_network
from hypergrad_studies.papers import figures
from hypergrad_studies.papers.results import Result, Row, Scale, medians
from hypergrad_studies.papers.reversible_learning import comparison, outer
from hypergrad_studies.papers.reversible_learning.descent import Descent
from hypergrad_studies.papers.reversible_learning.outer import Histories, OuterLoop
from hypergrad_studies.papers.reversible_learning.sampled import Sampled

ALPHABETS = (
    "Aurek-Besh",
    "Blackfoot_(Canadian_Aboriginal_Syllabics)",
    "Hebrew",
    "N_Ko",
    "Ojibwe_(Canadian_Aboriginal_Syllabics)",
)
DRAWINGS, TEST, VALID = 15, 3, 2  # drawings of each character: all, those to test, and those to validate
STEPS, ITERATIONS = 50, 20
INITIAL_SCALE, L2 = math.exp(-2), math.exp(-4)
OWN, SHARED = 0.5, 0.5  # at the start a network's weights are half its own, and half the mean of all networks
REPORTED = {"separate": (0.607, 1.342), "tied": (0.897, 1.246), "paper": (0.604, 1.130), "hypergrad": (0.604, 1.130)}

Alphabet = tuple[np.ndarray, np.ndarray]  # images (characters, drawings, side, side), and a label for each character


@dataclass(frozen=True)
class Setup:
    """What a scale means: the networks' layers, and the alphabets, which have at most as many labels as outputs."""

    sizes: tuple[int, ...]
    alphabets: Callable[[int], list[Alphabet]]


def _omniglot(outputs: int) -> list[Alphabet]:
    drawings = data.omniglot()
    random = np.random.default_rng(0)
    found = []
    for name in ALPHABETS:
        mine = (drawings.alphabet == drawings.names.index(name)) & (drawings.drawer <= DRAWINGS)
        order = np.lexsort((drawings.drawer[mine], drawings.character[mine]))
        images = drawings.images[mine][order].reshape(-1, DRAWINGS, 28, 28)
        found.append((images, random.permutation(outputs)[: len(images)]))
    return found


def _digits(outputs: int) -> list[Alphabet]:
    images, labels = load_digits(return_X_y=True)
    by_class = [images[labels == c][:DRAWINGS].reshape(DRAWINGS, 8, 8).astype(np.float32) / 16 for c in range(10)]
    return [(np.stack(by_class[first : first + outputs]), np.arange(outputs)) for first in (0, outputs)]


SETUPS: dict[Scale, Setup] = {
    "small": Setup((64, 40, 20, 5), _digits),
    "paper": Setup((784, 400, 200, 55), _omniglot),
}


def parts(setup: Setup) -> dict[str, list[Split]]:
    """Return the images of each alphabet in the parts "fitted", "valid", "train" and "test"; turned ones come last.

    "train" is "fitted" and "valid" together. An alphabet that is turned keeps its labels. The mean of all images is
    subtracted from each.
    """
    random = np.random.default_rng(0)
    upright = setup.alphabets(setup.sizes[-1])
    turned = [(np.rot90(images, axes=(2, 3)), labels) for images, labels in upright]
    mean = np.concatenate([images.reshape(-1, setup.sizes[0]) for images, _ in upright + turned]).mean(axis=0)
    ends = {"fitted": (0, DRAWINGS - TEST - VALID), "valid": (DRAWINGS - TEST - VALID, DRAWINGS - TEST)}
    ends |= {"train": (0, DRAWINGS - TEST), "test": (DRAWINGS - TEST, DRAWINGS)}
    result: dict[str, list[Split]] = {name: [] for name in ends}
    for images, labels in upright + turned:
        flat = (images.reshape(len(images), DRAWINGS, -1) - mean).astype(np.float32)
        flat = np.stack([random.permutation(drawings) for drawings in flat])
        for name, (first, last) in ends.items():
            chosen = flat[:, first:last].reshape(-1, setup.sizes[0])
            result[name].append(Split(jnp.asarray(chosen), jnp.asarray(np.repeat(labels, last - first))))
    return result


def problem(setup: Setup, data: Mapping[str, list[Split]], train: str, valid: str) -> TrainingProblem:
    """Return the training of all networks at once, on the sum of their losses. The outer loss is the mean.

    `train` and `valid` name parts of `data`. The parameters are z, with the networks as their first axis.
    """
    networks = len(data[train])

    def init(key: jax.Array, hyperparameters: Hyperparameters) -> Any:
        keys = jax.random.split(key, networks)
        return jax.vmap(lambda k: normal_network(k, setup.sizes, INITIAL_SCALE))(keys)

    def loss(params: Any, hyperparameters: Hyperparameters, images: list[Split]) -> jax.Array:
        matrices = OWN * jnp.eye(networks) + hyperparameters["sharing"]
        mixed = [
            jax.tree.map(partial(jnp.tensordot, matrix, axes=1), layer)
            for matrix, layer in zip(matrices, params, strict=True)
        ]
        each = [jax.tree.map(operator.itemgetter(i), mixed) for i in range(len(images))]
        return jnp.sum(jnp.stack([jnp.mean(cross_entropy(*pair)) for pair in zip(each, images, strict=True)]))

    def train_loss(params: Any, hyperparameters: Hyperparameters, batch: None, key: jax.Array) -> jax.Array:
        squares = sum(jnp.sum(z**2) for z in jax.tree.leaves(params))
        return loss(params, hyperparameters, data[train]) + L2 * squares

    def mean_loss(part: str) -> Callable[[Any, Hyperparameters], jax.Array]:
        return lambda params, hyperparameters: loss(params, hyperparameters, data[part]) / networks

    return TrainingProblem(
        init=init,
        train_loss=train_loss,
        valid_loss=mean_loss(valid),
        test_loss=mean_loss("test"),
        batches=lambda step: None,
        optimizer=sgd(1.0, 0.9, dampening=True),
        steps=STEPS,
    )


def outer_loops(setup: Setup, data: Mapping[str, list[Split]]) -> dict[str, OuterLoop]:
    """Return the paper's outer loop, and `HypergradSampler`."""
    training = problem(setup, data, "fitted", "valid")
    networks = len(data["train"])
    start = {"sharing": SHARED / networks}
    shape = (len(setup.sizes) - 1, networks, networks)
    return {
        "paper": Descent(
            training, {"sharing": Float(-2.0, 2.0, shape=shape)}, start, ITERATIONS, optimizer=optax.sgd(0.2)
        ),
        "hypergrad": Sampled(
            training,
            {"sharing": Float(-0.5, 0.5, shape=shape)},
            start,
            ITERATIONS,
            sampler=lambda s: HypergradSampler(seed=s),
        ),
    }


def by_hand(networks: int, shared: Sequence[float]) -> np.ndarray:
    """Return the `sharing` that makes a part `shared` of each layer the mean of all networks; the rest is their own."""
    ones = np.full((networks, networks), 1 / networks)
    return np.stack([(1 - s - OWN) * np.eye(networks) + s * ones for s in shared]).astype(np.float32)


def study(scale: Scale, out: Path, seeds: int, console: Console) -> list[Result]:
    """Write `records.jsonl` and `omniglot-sharing.svg` into the folder `out`, and return the numbers."""
    setup = SETUPS[scale]
    data = parts(setup)
    networks = len(data["train"])
    loops = outer_loops(setup, data)
    done = outer.record(loops, seeds, out, console)
    nothing = [0.0] * (len(setup.sizes) - 1)
    found = {
        "separate": [by_hand(networks, nothing)] * seeds,
        "tied": [by_hand(networks, [1.0, *nothing[1:]])] * seeds,
        **{name: [loop.found(name, seed, out)["sharing"] for seed in range(seeds)] for name, loop in loops.items()},
    }
    final = problem(setup, data, "train", "train")
    rows = comparison.rows(loops, done, "validation loss", None)
    for name, mine in found.items():
        losses = [final_losses(final, sharing, seed) for seed, sharing in enumerate(mine)]
        rows.append(Row(f"{name}, final: training loss", REPORTED[name][0], [x for x, _ in losses]))
        rows.append(Row(f"{name}, final: test loss", REPORTED[name][1], [x for _, x in losses]))
    for name in loops:
        for layer in range(len(nothing)):
            pairs = [turned_and_others(correlations(sharing[layer])) for sharing in found[name]]
            of = f"{name}: correlation in layer {layer + 1}"
            rows.append(Row(f"{of}, an alphabet and the same turned", None, [turned for turned, _ in pairs]))
            rows.append(Row(f"{of}, other pairs", None, [others for _, others in pairs]))
    draw(done, {name: mine[0] for name, mine in found.items()}, out / "omniglot-sharing.svg")
    return medians("omniglot-sharing", rows, comparison.seconds(done), scale)


def final_losses(final: TrainingProblem, sharing: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the losses on the training set and on the test set after training with this sharing."""
    key = jax.random.key(seed)
    done = evaluate(final, {"sharing": sharing}, method=Unrolled(), key=key, gradient_below=-math.inf)
    return done.value, math.nan if done.test_loss is None else done.test_loss


def correlations(sharing: np.ndarray) -> np.ndarray:
    """Return how the networks' weights in one layer correlate if z is independent, shape `(networks, networks)`."""
    matrix = OWN * np.eye(len(sharing)) + sharing
    covariance = matrix @ matrix.T
    deviation = np.sqrt(np.diag(covariance))
    correlation: np.ndarray = covariance / np.outer(deviation, deviation)
    return correlation


def turned_and_others(correlation: np.ndarray) -> tuple[float, float]:
    """Return the mean correlation of the networks of an alphabet and of the same turned, and of all other pairs."""
    upper = np.triu(correlation, 1)
    turned = np.diag(correlation, len(correlation) // 2)
    pairs = len(correlation) * (len(correlation) - 1) // 2
    return float(turned.mean()), float((upper.sum() - turned.sum()) / (pairs - len(turned)))


def draw(done: Histories, found: Mapping[str, np.ndarray], path: Path) -> None:
    """Draw the correlations that each way of sharing has in each layer, and the outer loops."""
    layers = len(next(iter(found.values())))
    figure, axes = figures.panels(len(found) + 1, layers)
    for row, (name, mine) in enumerate(found.items()):
        for layer, sharing in enumerate(mine):
            panel = axes[row * layers + layer]
            panel.imshow(correlations(sharing), cmap="gray_r", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[], title=f"{name}, layer {layer + 1}")
    *unused, losses = axes[-layers:]
    for panel in unused:
        panel.remove()
    comparison.draw(losses, done, None, "validation loss")
    figure.savefig(path)
