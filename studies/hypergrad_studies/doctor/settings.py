"""Random settings: few training programs, since each takes seconds to compile, at many hyperparameters and keys."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from hypergrad_search import Optimizer, Reversible, TrainingProblem, adam, adamw, sgd, warmup_cosine
from hypergrad_studies.doctor.kinds import CLASSES, FEATURES, KINDS, LENGTH, Params

T = TypeVar("T")

ROWS = 64  # of training examples
VALID_ROWS = 32

#: The optimizers, given a learning rate and a transformation of the gradient.
OPTIMIZERS: dict[str, Callable[[Any, Any], Optimizer]] = {
    "sgd": lambda rate, transform: sgd(rate, "momentum", transform=transform),
    "adamw": lambda rate, transform: adamw(rate, "b1", "b2", "eps", weight_decay="decay", transform=transform),
    "dampened sgd": lambda rate, transform: sgd(rate, "momentum", dampening=True, transform=transform),
    "adam": lambda rate, transform: adam(rate, "b1", "b2", "eps", transform=transform),
}
TRANSFORMS: dict[str, Any] = {
    "none": None,
    "global norm": lambda h: optax.clip_by_global_norm(h["clip"]),
    "value": lambda h: optax.clip(h["clip"]),
}
SCHEDULES = ("constant", "warmup_cosine")
WIDTHS = (8, 16, 32)
BATCHES = (4, 8, 16)
STEPS = (4, 9, 16, 36)  # squares, whose segments in `Unrolled` all have one length and are compiled once
WEIGHT_BITS = (None, 36, 60)  # None for the optimizer's own
SETTINGS_OF_A_PROGRAM = 70  # about; compiling a program takes as long as hundreds of settings

#: From where to where hyperparameters are drawn, in natural units.
UNIFORM = {"momentum": (0.01, 0.999), "b1": (0.1, 0.99), "b2": (0.8, 0.9999), "drop": (0.01, 0.7)}
LOG_UNIFORM = {
    "eps": (1e-6, 1e-2),
    "decay": (1e-5, 1e-1),
    "l2": (1e-6, 1e-1),
    "scale": (0.1, 3.0),
    "noise": (1e-3, 1.0),
    "final": (1e-5, 1e-2),
    "clip": (1e-2, 10.0),
}
RATES = {"sgd": (1e-3, 10.0), "adam": (1e-4, 1.0)}


@dataclass(frozen=True)
class Program:
    """All that is compiled in: the kind, the optimizer and its parts, and the sizes."""

    kind: str
    optimizer: str
    transform: str
    schedule: str
    width: int
    batch: int
    steps: int
    weight_bits: int | None

    @property
    def method(self) -> Reversible:
        """Reversible training in this program's units; it has no fallback, so that what is inexact is an error."""
        return Reversible() if self.weight_bits is None else Reversible(fraction_bits={"weights": self.weight_bits})

    @functools.cached_property
    def problem(self) -> TrainingProblem:
        """The training run. Its examples, to which each step adds noise, are the same for all hyperparameters."""
        kind = KINDS[self.kind]
        drawn = np.random.default_rng(0)
        inputs = drawn.normal(size=(ROWS + VALID_ROWS, LENGTH, FEATURES)).astype(np.float32)
        labels = np.eye(CLASSES, dtype=np.float32)[drawn.integers(CLASSES, size=len(inputs))]

        def losses(params: Params, x: jax.Array, rows: Any, keep: Any) -> jax.Array:
            y = jnp.asarray(labels, x.dtype)[rows]
            found: jax.Array = -jnp.sum(jax.nn.log_softmax(kind.scores(params, x, keep)) * y, axis=1)
            return found

        def train_loss(params: Params, h: Any, rows: jax.Array, key: jax.Array) -> jax.Array:
            noise = jax.random.uniform(key, (self.batch, LENGTH, FEATURES), jnp.float32, -1.7, 1.7)
            x = jnp.asarray(inputs, h["noise"].dtype)[rows] + h["noise"] * noise

            def keep(shape: tuple[int, ...]) -> jax.Array:
                drawn = jax.random.uniform(jax.random.fold_in(key, 1), shape, jnp.float32)
                return jnp.where(drawn < h["drop"].astype(jnp.float32), 0, 1 / (1 - h["drop"]))

            penalty = h["l2"] * sum(jnp.sum(w**2) for w in params.values())
            found: jax.Array = jnp.mean(losses(params, x, rows, keep)) + penalty
            return found

        def valid_loss(params: Params, h: Any) -> jax.Array:
            rows = np.arange(ROWS, ROWS + VALID_ROWS)
            return losses(params, jnp.asarray(inputs[rows], h["noise"].dtype), rows, None)

        return TrainingProblem(
            init=lambda key, h: kind.init(key, self.width, h["scale"]),
            train_loss=train_loss,
            valid_loss=valid_loss,
            batches=lambda step: (step * self.batch + jnp.arange(self.batch, dtype=jnp.int32)) % ROWS,
            optimizer=OPTIMIZERS[self.optimizer](self._rate(), TRANSFORMS[self.transform]),
            steps=self.steps,
        )

    def _rate(self) -> Any:
        if self.schedule == "constant":
            return "rate"
        return lambda h, step: warmup_cosine(h["rate"], h["warmup"], h["final"], steps=self.steps)(step)


class Setting(NamedTuple):
    """A program at hyperparameters, float32 arrays of shape `()` in natural units, and the seed of its key."""

    program: Program
    hyperparameters: dict[str, NDArray[np.float32]]
    seed: int


def settings(count: int, seed: int) -> list[Setting]:
    """Return `count` random settings, program by program; each kind has as many as the others, or one less."""
    drawn = np.random.default_rng(seed)
    each_kind = max(1, round(count / SETTINGS_OF_A_PROGRAM / len(KINDS)))
    programs = [_program(kind, i + j, drawn) for i in range(each_kind) for j, kind in enumerate(KINDS)]
    counts = [len(range(i, count, len(programs))) for i in range(len(programs))]
    return [
        Setting(program, _hyperparameters(program, drawn), int(drawn.integers(2**31)))
        for program, n in zip(programs, counts, strict=True)
        for _ in range(n)
    ]


def _program(kind: str, turn: int, drawn: np.random.Generator) -> Program:
    """Return a random program, whose optimizer is chosen in turn, so that a few programs have all of them."""

    def one_of(choices: Sequence[T]) -> T:
        return choices[int(drawn.integers(len(choices)))]

    return Program(
        kind=kind,
        optimizer=list(OPTIMIZERS)[turn % len(OPTIMIZERS)],
        transform=one_of(list(TRANSFORMS)),
        schedule=one_of(SCHEDULES),
        width=one_of(WIDTHS),
        batch=one_of(BATCHES),
        steps=one_of(STEPS),
        weight_bits=one_of(WEIGHT_BITS),
    )


def _hyperparameters(program: Program, drawn: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Draw all hyperparameters; a program leaves those unused that its optimizer does not have."""
    found = {name: drawn.uniform(low, high) for name, (low, high) in UNIFORM.items()}
    rates = RATES["adam" if "adam" in program.optimizer else "sgd"]
    for name, (low, high) in {**LOG_UNIFORM, "rate": rates}.items():
        found[name] = np.exp(drawn.uniform(np.log(low), np.log(high)))
    found["warmup"] = program.steps * drawn.uniform(0.05, 0.95)
    return {name: np.asarray(value, np.float32) for name, value in found.items()}
