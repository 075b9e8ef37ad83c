"""`TrainingProblem`: a training run that the user describes by plain functions of pytrees."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import optax

from hypergrad_search.checks import check_arguments, shown, takes, whole_number
from hypergrad_search.optax_optimizers import OptaxOptimizer
from hypergrad_search.optimizers import Optimizer
from hypergrad_search.space import Space, check_space

Params = Any  # a pytree of float arrays

_ARGUMENTS = {
    "init": ("key", "hyperparameters"),
    "train_loss": ("params", "hyperparameters", "batch", "key"),
    "valid_loss": ("params", "hyperparameters"),
    "batches": ("step",),
    "test_loss": ("params", "hyperparameters"),
    "valid_batch_loss": ("params", "hyperparameters", "step"),
}


@dataclass(frozen=True, eq=False)
class TrainingProblem:
    """A training run from hyperparameters to a validation loss.

    - `init(key, hyperparameters) -> params`: a pytree of float32 arrays; initial scales may be hyperparameters.
    - `train_loss(params, hyperparameters, batch, key) -> scalar`: training descends it; `key` is new each step.
    - `valid_loss(params, hyperparameters) -> scalar`, or one loss for each validation example, shape `(n,)`: the search
      minimises the mean. Losses of examples are the better choice: results then have standard errors, and a search with
      many hyperparameters can hold back a part of the examples (`Fold`).
    - `batches(step) -> batch`: it must be deterministic, and JAX must be able to trace it. `step` is an int32 scalar
      array, so slice with `jax.lax.dynamic_slice_in_dim` or index with an array.
    - `optimizer`: `adamw(...)`, `ema(sgd(...), 0.99)` or another `Optimizer`, also one of your own; its settings may
      name hyperparameters. A function of the hyperparameters may return any transformation of optax instead, as in
      `lambda h: optax.lion(h["rate"])`; such training cannot be run backwards, so use `Unrolled`.
    - `steps`: the number of training steps, at least 1.
    - `test_loss(params, hyperparameters)`, optional, a scalar or shape `(n,)`: it is reported beside the validation
      loss, and no search ever sees it.
    - `valid_batch_loss(params, hyperparameters, step)`, optional, a scalar or shape `(n,)`: the validation loss on a
      minibatch, as deterministic as `batches`. Methods that take a validation step for each training step (`Hypernet`)
      descend it in place of the whole `valid_loss`, unless a fold is held back. The value of an evaluation is always
      the mean of `valid_loss`.

    `hyperparameters` is a dict from names to float arrays (numbers too) and, where the space has them, the plain
    values of integers and categoricals. The outer losses may depend on `hyperparameters` directly, and the
    hypergradient includes that. A problem is compared by identity: build it once and evaluate it often, so that its
    functions compile once.

    All functions must depend on their arguments alone, since JAX runs them once and then repeats what it has traced.
    What they draw from NumPy's generator, or take from a data loader, would be the same at every step; the first
    evaluation looks for that. It cannot see random numbers of an object that starts from the same state at each call,
    such as the dropout keys inside of a Flax NNX model that is merged anew: seed those with `key`.

    Raises `ValueError` where a part is missing or of the wrong kind, or a function takes other arguments.
    """

    init: Callable[[jax.Array, Any], Params]
    train_loss: Callable[[Params, Any, Any, jax.Array], jax.Array]
    valid_loss: Callable[[Params, Any], jax.Array]
    batches: Callable[[jax.Array], Any]
    optimizer: Optimizer | OptaxOptimizer
    steps: int
    test_loss: Callable[[Params, Any], jax.Array] | None = None
    valid_batch_loss: Callable[[Params, Any, jax.Array], jax.Array] | None = None

    def __post_init__(self) -> None:
        for name in ("init", "train_loss", "valid_loss", "batches"):
            if not callable(getattr(self, name)):
                raise ValueError(f"TrainingProblem: {name} must be a function, got {getattr(self, name)!r}")
        for name in ("test_loss", "valid_batch_loss"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise ValueError(f"TrainingProblem: {name} must be a function or None, got {getattr(self, name)!r}")
        for name, arguments in _ARGUMENTS.items():
            if getattr(self, name) is not None:
                check_arguments(f"TrainingProblem: {name}", getattr(self, name), arguments)
        if isinstance(self.optimizer, optax.GradientTransformation):
            raise ValueError(
                "TrainingProblem: optimizer must be a function that returns a transformation of optax, got the "
                "transformation itself; write lambda h: optax.adam(h['rate'])"
            )
        is_function = callable(self.optimizer) and takes(self.optimizer, ("hyperparameters",))
        if not isinstance(self.optimizer, Optimizer) and not is_function:
            raise ValueError(
                "TrainingProblem: optimizer must be an Optimizer, as sgd(...) and adamw(...) return it, or a function "
                f"of the hyperparameters that returns a transformation of optax, got {shown(self.optimizer)}"
            )
        object.__setattr__(self, "steps", whole_number("TrainingProblem: steps", self.steps, 1))


def check_problem(problem: TrainingProblem, space: Space) -> None:
    """Raise `ValueError` unless `space` is a space with every hyperparameter that the optimizer names."""
    if not isinstance(problem, TrainingProblem):
        raise ValueError(f"problem must be a TrainingProblem, got {problem!r}")
    check_space(space)
    check_names(problem, space)


def check_names(problem: TrainingProblem, hyperparameters: Mapping[str, Any]) -> None:
    """Raise `ValueError` where a setting of the optimizer names what is not among the hyperparameters."""
    if isinstance(problem.optimizer, Optimizer):
        problem.optimizer.check_names(hyperparameters)
