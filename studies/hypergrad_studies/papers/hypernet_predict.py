"""hypernet-predict: how well a hypernetwork predicts the validation loss of settings that were never trained.

Lorraine and Duvenaud 2018, section 4: ten penalties, one for the weights of each class, log penalties drawn uniformly
from [-3, 3]; a linear model on 50,000 images of MNIST, batches of 100 (scikit-learn's digits at the small scale). True
is the loss after training from scratch. Predictions:

- "gp": a Gaussian process fitted to the losses of 25 trained settings. The paper's had a zero mean, an RBF kernel and
  no noise; this one normalises the losses, has a Matern kernel and learns a noise term.
- "hypernet, 25 settings": a linear hypernetwork trained on those 25 settings alone, with no limit on how often.
- "hypernet, stochastic": the same, trained on settings drawn anew at each step, as is "one hidden layer" of 50 ReLUs.

The paper held out 10,215 settings, this 2,000 (small: 200). Errors are predicted less true squared errors; the paper's,
of log likelihoods, are divided by 50.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from scipy.stats import spearmanr
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from hypergrad_search import (
    Float,
    Hypernet,
    Linear,
    OneHidden,
    Optimizer,
    Response,
    Space,
    TrainingProblem,
    evaluate,
    sgd,
)
from hypergrad_studies.papers import penalised
from hypergrad_studies.papers.penalised import PRECISION
from hypergrad_studies.papers.results import Result, Row, Scale, line, medians

REACH = 3.0  # of log penalties, from 0
SPACE: Space = {"l2_weights_0": Float(math.exp(-REACH), math.exp(REACH), log=True, shape=(penalised.OUTPUTS,))}
TRAINED = 25  # settings

Predict = Callable[[jax.Array], np.ndarray | jax.Array]  # of log penalties, shape (n, 10), to losses, shape (n,)

#: the lowest and the highest error, about, read off a figure
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
    """One held-out setting: its log penalties, the loss after training, and what a method says that it is."""

    seed: int
    method: str
    log_l2: list[float]
    true: float
    predicted: float


def study(scale: Scale, out: Path, seeds: int, console: Console) -> list[Result]:
    """Write `records.jsonl` and `hypernet-predict.svg` into the folder `out`, and return the numbers."""
    setup = SETUPS[scale]
    problem = penalised.problem(
        penalised.small() if scale == "small" else penalised.mnist(50_000),
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
            penalised.train(problem, {"l2_weights_0": np.exp(point)}, seed).value
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
    (out / "records.jsonl").write_text("".join(map(line, predictions)))
    draw_scatter(predictions, out / "hypernet-predict.svg")
    rows = [row for method in PAPER for row in errors(method, predictions, seeds)]
    return medians("hypernet-predict", rows, time.perf_counter() - started, scale)


def gaussian_process(points: np.ndarray, losses: list[float], seed: int) -> Predict:
    """The mean of a Gaussian process that has seen `losses`."""
    kernel = ConstantKernel() * Matern(nu=2.5, length_scale=REACH) + WhiteKernel()
    process = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=10, random_state=seed)
    return process.fit(points, losses).predict


def _adam(steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(3e-3, steps))


def on_settings(problem: TrainingProblem, network: Response, points: jax.Array, steps: int, seed: int) -> Predict:
    """A hypernetwork that is trained at `points` alone, log penalties of shape `(n, 10)`, one drawn at each step."""
    init_key, network_key, step_key = jax.random.split(jax.random.key(seed), 3)
    base, unravel = ravel_pytree(problem.init(init_key, {}))
    trained = base, network.init(network_key, points.shape[1], base.size)
    optimizer = _adam(steps)

    def params(trained: tuple, log_l2: jax.Array) -> penalised.Params:
        base, weights = trained
        return unravel(base + network(weights, log_l2 / (2 * REACH)))  # in units of the box, as in `Hypernet`

    def step(i: jax.Array, state: tuple) -> tuple:
        trained, slots = state
        key = jax.random.fold_in(step_key, i)
        log_l2 = jax.random.choice(key, points)

        def loss(trained: tuple) -> jax.Array:
            l2 = {"l2_weights_0": jnp.exp(log_l2)}
            return problem.train_loss(params(trained, log_l2), l2, problem.batches(i), key)

        updates, slots = optimizer.update(jax.grad(loss)(trained), slots, trained)
        return optax.apply_updates(trained, updates), slots

    train = jax.jit(lambda state: jax.lax.fori_loop(0, steps, step, state))
    trained, _ = train((trained, optimizer.init(trained)))
    return jax.jit(lambda points: jax.lax.map(lambda point: problem.valid_loss(params(trained, point)), points))


def stochastic(problem: TrainingProblem, network: Response, steps: int, seed: int) -> Predict:
    """A hypernetwork that is trained at settings drawn from the whole box."""
    method = Hypernet(
        network=network, algorithm="global", centred=False, optimizer=_adam(steps), steps=steps + 1, hyper_steps=1
    )
    key = jax.random.key(seed)
    done = evaluate(problem, penalised.alike(SPACE, 1.0), method=method, key=key, space=SPACE)
    if done.checkpoint is None:  # its training failed
        return lambda points: np.full(len(points), math.nan)
    return penalised.predicted(problem, SPACE, method, done.checkpoint, key)


def errors(method: str, predictions: list[Prediction], seeds: int) -> list[Row]:
    """How far the predictions of a method are off, for each seed."""
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
    """The paper's figure: predicted against true loss, a panel for each method, all seeds together."""
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    true = [p.true for p in predictions]
    ends = (min(true), max(true))
    for axes, method in zip(figure.subplots(1, len(PAPER), sharex=True, sharey=True), PAPER, strict=True):
        mine = [p for p in predictions if p.method == method]
        axes.plot(ends, ends, color="0.5", linewidth=1)
        axes.scatter([p.true for p in mine], [p.predicted for p in mine], s=4, alpha=0.5, linewidths=0)
        axes.set_title(method, fontsize="small")
        axes.set_xlabel("true validation loss")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("predicted")
    figure.savefig(path)
