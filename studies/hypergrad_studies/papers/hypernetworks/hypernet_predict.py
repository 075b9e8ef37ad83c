"""hypernet-predict: how well a hypernetwork predicts the validation loss of settings that were never trained.

Lorraine and Duvenaud 2018, section 4: ten penalties, one for the weights of each class, log penalties drawn uniformly
from [-3, 3]; a linear model on 50,000 images of MNIST, batches of 100 (scikit-learn's digits at the small scale). The
true loss is the one after training from scratch. It is predicted by:

- "gp": a Gaussian process fitted to the losses of 25 trained settings. The paper's has a zero mean, an RBF kernel and
  no noise; this one normalises the losses, has a Matern kernel and learns a noise term.
- "hypernet, 25 settings": a linear hypernetwork trained on those 25 settings alone, with no limit on how often.
- "hypernet, stochastic": the same, trained on settings drawn anew at each step, as is "one hidden layer" of 50 ReLUs.

The paper holds out 10,215 settings, and this study holds out 2,000 (200 at the small scale). Errors are predicted minus
true squared errors. The paper's errors are those of log likelihoods, and are divided by 50 here.
"""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from rich.console import Console
from rich.progress import track
from scipy.stats import spearmanr
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from hypergrad_search import Float, Hypernet, Optimizer, Space, TrainingProblem, evaluate, sgd
from hypergrad_search.hypergradient import Global, Linear, OneHidden, Response
from hypergrad_studies import json_lines
from hypergrad_studies.networks import Layers
from hypergrad_studies.papers import figures
from hypergrad_studies.papers.hypernetworks import penalised, searches, splits
from hypergrad_studies.papers.hypernetworks.penalised import PRECISION
from hypergrad_studies.papers.hypernetworks.prediction import fading_adam, predicted
from hypergrad_studies.papers.results import Result, Row, Scale, medians

REACH = 3.0  # log penalties lie between -3 and 3
SPACE: Space = {"l2_weights_0": Float(math.exp(-REACH), math.exp(REACH), log=True, shape=(penalised.OUTPUTS,))}
TRAINED = 25  # a Gaussian process sees so many settings

#: from log penalties, shape (n, 10), to losses, shape (n,)
Predict = Callable[[jax.Array], np.ndarray | jax.Array]

#: about the lowest and the highest error, read off a figure of the paper
PAPER = {
    "gp": (-0.35 / PRECISION, 0.2 / PRECISION),
    "hypernet, 25 settings": (-0.25 / PRECISION, 0.6 / PRECISION),
    "hypernet, stochastic": (-0.15 / PRECISION, 0.10 / PRECISION),
    "hypernet, stochastic, one hidden layer": (None, None),
}


@dataclass(frozen=True)
class Setup:
    """What a scale means: pixels, how training runs, how many settings are held out, and a hypernetwork's steps."""

    pixels: int
    optimizer: Optimizer
    steps: int
    held_out: int
    hypernet_steps: int


SETUPS: dict[Scale, Setup] = {
    "small": Setup(64, sgd(0.1, 0.97, dampening=True), 300, 200, 20_000),
    "paper": Setup(784, sgd(0.003, 0.97, dampening=True), 2000, 2000, 50_000),
}


@dataclass(frozen=True)
class Prediction:
    """One held-out setting: its log penalties, the loss after training, and the loss that a method predicts."""

    seed: int
    method: str
    log_l2: list[float]
    true: float
    predicted: float


def study(scale: Scale, out: Path, seeds: int, console: Console) -> list[Result]:
    """Write `records.jsonl` and `hypernet-predict.svg` into the folder `out`, and return the numbers."""
    setup = SETUPS[scale]
    problem = penalised.problem(
        splits.load(scale, 50_000),
        (setup.pixels, penalised.OUTPUTS),
        optimizer=setup.optimizer,
        steps=setup.steps,
        batch=100,
    )
    started = time.perf_counter()
    predictions = []
    for seed in range(seeds):
        draw = np.random.default_rng(seed)
        points = draw.uniform(-REACH, REACH, (TRAINED + setup.held_out, penalised.OUTPUTS))
        losses = [
            searches.train(problem, {"l2_weights_0": np.exp(point)}, seed).value
            for point in track(points, f"hypernet-predict, seed {seed}", console=console)
        ]
        known, unknown = points[:TRAINED], jnp.asarray(points[TRAINED:])
        for method, predict in {
            "gp": gaussian_process(known, losses[:TRAINED], seed),
            "hypernet, 25 settings": on_settings(problem, Linear(), jnp.asarray(known), setup.hypernet_steps, seed),
            "hypernet, stochastic": stochastic(problem, Linear(), setup.hypernet_steps, seed),
            "hypernet, stochastic, one hidden layer": stochastic(problem, OneHidden(50), setup.hypernet_steps, seed),
        }.items():
            for point, true, guess in zip(points[TRAINED:], losses[TRAINED:], predict(unknown), strict=True):
                predictions.append(Prediction(seed, method, point.tolist(), true, float(guess)))
    json_lines.replace(out / "records.jsonl", predictions)
    draw_scatter(predictions, out / "hypernet-predict.svg")
    rows = [row for method in PAPER for row in errors(method, predictions, seeds)]
    return medians("hypernet-predict", rows, time.perf_counter() - started, scale)


def gaussian_process(points: np.ndarray, losses: list[float], seed: int) -> Predict:
    """Predict by the mean of a Gaussian process that is fitted to `losses`."""
    kernel = ConstantKernel() * Matern(nu=2.5, length_scale=REACH) + WhiteKernel()
    process = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=10, random_state=seed)
    with warnings.catch_warnings():  # losses have hardly any noise, so the estimate of it lies at its lower bound
        warnings.simplefilter("ignore", ConvergenceWarning)
        predict: Predict = process.fit(points, losses).predict
    return predict


def on_settings(problem: TrainingProblem, network: Response, points: jax.Array, steps: int, seed: int) -> Predict:
    """Predict by a hypernetwork that is trained at `points` alone, one of them drawn at each step.

    `points` are log penalties of shape `(n, 10)`.
    """
    init_key, network_key, step_key = jax.random.split(jax.random.key(seed), 3)
    base, unravel = ravel_pytree(problem.init(init_key, {}))
    trained = base, network.init(network_key, points.shape[1], base.size)
    optimizer = fading_adam(steps)

    def params(trained: Any, log_l2: jax.Array) -> Layers:
        base, weights = trained
        layers: Layers = unravel(base + network(weights, log_l2 / (2 * REACH)))  # in units of the box, as in `Hypernet`
        return layers

    def step(i: jax.Array, state: tuple[Any, Any]) -> tuple[Any, Any]:
        trained, slots = state
        key = jax.random.fold_in(step_key, i)
        log_l2 = jax.random.choice(key, points)

        def loss(trained: Any) -> jax.Array:
            value: jax.Array = problem.train_loss(params(trained, log_l2), penalties(log_l2), problem.batches(i), key)
            return value

        updates, slots = optimizer.update(jax.grad(loss)(trained), slots, trained)
        return optax.apply_updates(trained, updates), slots

    train = jax.jit(lambda state: jax.lax.fori_loop(0, steps, step, state))
    trained, _ = train((trained, optimizer.init(trained)))

    def valid_loss(log_l2: jax.Array) -> jax.Array:
        return problem.valid_loss(params(trained, log_l2), penalties(log_l2))

    return jax.jit(lambda points: jax.lax.map(valid_loss, points))


def penalties(log_l2: jax.Array) -> dict[str, jax.Array]:
    """Return the hyperparameters with these log penalties."""
    return {"l2_weights_0": jnp.exp(log_l2)}


def stochastic(problem: TrainingProblem, network: Response, steps: int, seed: int) -> Predict:
    """Predict by a hypernetwork that is trained at settings drawn from the whole box."""
    method = Hypernet(network=network, algorithm=Global(hyper_steps=1), optimizer=fading_adam(steps), steps=steps + 1)
    key = jax.random.key(seed)
    done = evaluate(problem, penalised.alike(SPACE, 1.0), method=method, key=key, space=SPACE)
    if done.checkpoint is None:  # the hypernetwork's training failed
        return lambda points: np.full(len(points), math.nan)
    return predicted(problem, SPACE, method, done.checkpoint, key)


def errors(method: str, predictions: list[Prediction], seeds: int) -> list[Row]:
    """Return how far a method's predictions are from the truth, for each seed."""
    off: list[np.ndarray] = []
    ranks: list[float] = []
    for seed in range(seeds):
        mine = [p for p in predictions if (p.method, p.seed) == (method, seed)]
        true, guess = np.array([p.true for p in mine]), np.array([p.predicted for p in mine])
        off.append(guess - true)
        ranks.append(float(spearmanr(true, guess).statistic))
    lowest, highest = PAPER[method]
    return [
        Row(f"{method}: mean absolute error", None, [float(np.abs(x).mean()) for x in off]),
        Row(f"{method}: rank correlation", None, ranks),
        Row(f"{method}: lowest error", lowest, [float(x.min()) for x in off]),
        Row(f"{method}: highest error", highest, [float(x.max()) for x in off]),
    ]


def draw_scatter(predictions: list[Prediction], path: Path) -> None:
    """Draw the paper's figure: predicted against true loss, a panel for each method, all seeds together."""
    figure, panels = figures.panels(1, len(PAPER), width=3, height=3.4)
    true = [p.true for p in predictions]
    ends = (min(true), max(true))
    for axes, method in zip(panels, PAPER, strict=True):
        mine = [p for p in predictions if p.method == method]
        axes.plot(ends, ends, color="0.5", linewidth=1)
        axes.scatter([p.true for p in mine], [p.predicted for p in mine], s=4, alpha=0.5, linewidths=0)
        axes.set_title(method, fontsize="small")
        axes.set_xlabel("true validation loss")
    for axes in panels[1:]:
        axes.sharex(panels[0])
        axes.sharey(panels[0])
    panels[0].set_ylabel("predicted")
    figure.savefig(path)
