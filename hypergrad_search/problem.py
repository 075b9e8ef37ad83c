"""`TrainingProblem`: a training run that the user describes by plain functions of pytrees."""

import functools
import inspect
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import optax

from hypergrad_search.checks import check_arguments, shown, takes, whole_number
from hypergrad_search.nesting import OfNested, is_nested
from hypergrad_search.optax_optimizers import OptaxOptimizer
from hypergrad_search.optimizers import Optimizer
from hypergrad_search.space import Categorical, Hyperparameters, Int, Space, check_space

Params = Any  # a pytree of float arrays
Statistics = Any  # a pytree of arrays; None where a problem has none
Trained = Any  # what `init` returns: parameters, or a pair of parameters and statistics

#: What the functions are called with. Where there are statistics, they come after the parameters.
_ARGUMENTS = {
    "init": ("key", "hyperparameters"),
    "train_loss": ("params", "hyperparameters", "batch", "key"),
    "valid_loss": ("params", "hyperparameters"),
    "test_loss": ("params", "hyperparameters"),
    "valid_batch_loss": ("params", "hyperparameters", "step"),
}
_OF_STEP = ("step",)
_OF_STEP_AND_HYPERPARAMETERS = ("step", "hyperparameters")


@dataclass(frozen=True, eq=False)
class TrainingProblem:
    """A training run from hyperparameters to a validation loss.

    - `init(key, hyperparameters) -> params`: a pytree of float32 arrays; initial scales may be hyperparameters.
    - `train_loss(params, hyperparameters, batch, key) -> scalar`: training descends it; `key` is new each step.
    - `valid_loss(params, hyperparameters) -> scalar`, or one loss for each validation example, shape `(n,)`: the search
      minimises the mean. Losses of examples are the better choice: results then have standard errors, and a search with
      many hyperparameters can hold back a part of the examples (`Fold`).
    - `batches(step) -> batch`, or `batches(step, hyperparameters) -> batch`, for example with the strength of an
      augmentation or the shares of several sources: it must be deterministic, and JAX must be able to trace it. `step`
      is an int32 scalar array, so slice with `jax.lax.dynamic_slice_in_dim` or index with an array. `batch` is any
      pytree of arrays. `HostBatches` loads data on the host.
    - `optimizer`: `adamw(...)`, `ema(sgd(...), 0.99)` or another `Optimizer`, also one of your own; its settings may
      name hyperparameters. A function of the hyperparameters may return any transformation of optax instead, as in
      `lambda h: optax.lion(h["rate"])`; such training cannot be run backwards, so use `Unrolled`.
    - `steps`: the number of training steps, at least 1; or the name of a hyperparameter that is an `Int`.
    - `test_loss(params, hyperparameters)`, optional, a scalar or shape `(n,)`: it is reported beside the validation
      loss, and no search ever sees it.
    - `valid_batch_loss(params, hyperparameters, step)`, optional, a scalar or shape `(n,)`: the validation loss on a
      minibatch, as deterministic as `batches`. Methods that take a validation step for each training step (`Hypernet`)
      descend it in place of the whole `valid_loss`, unless a fold is held back. The value of an evaluation is always
      the mean of `valid_loss`.

    **Statistics**, such as the running means of batch normalisation, are arrays that training carries along and does
    not descend. A problem has them if `train_loss` takes five arguments. Then

    - `init(key, hyperparameters) -> (params, statistics)`: a pytree of arrays of any type;
    - `train_loss(params, statistics, hyperparameters, batch, key) -> (scalar, statistics)`: the new statistics have the
      structure, shapes and types of the old ones;
    - `valid_loss(params, statistics, hyperparameters)`, `test_loss(params, statistics, hyperparameters)` and
      `valid_batch_loss(params, statistics, hyperparameters, step)`.

    Their effect on the outer losses is part of the hypergradient. `Reversible` keeps of each step what its way back
    reads of them: nothing for batch normalisation that normalises by the batch at hand, and all of them where a
    training loss reads them or they decay by a hyperparameter.

    `hyperparameters` is a dict from names to float arrays (numbers too) and, where the space has them, the plain
    values of integers and categoricals. Where the space is nested, so are they: `h["opt"]["rate"]`, which settings of
    the optimizer and `steps` name `"opt/rate"`. The outer losses may depend on `hyperparameters` directly, and the
    hypergradient includes that. A problem is compared by identity: build it once and evaluate it often, so that its
    functions compile once.

    All functions must depend on their arguments alone, since JAX runs them once and then repeats what it has traced.
    What they draw from NumPy's generator, or take from a data loader, would be the same at every step; the first
    evaluation looks for that. It cannot see random numbers of an object that starts from the same state at each call,
    such as the dropout keys inside of a Flax NNX model that is merged anew: seed those with `key`.

    Raises `ValueError` where a part is missing or of the wrong kind, or a function takes other arguments.

    Example:
        >>> import jax.numpy as jnp
        >>> from hypergrad_search import TrainingProblem, adam
        >>> problem = TrainingProblem(
        ...     init=lambda key, h: jnp.zeros(3),
        ...     train_loss=lambda w, h, rows, key: jnp.mean((x[rows] @ w - y[rows]) ** 2) + h["l2"] * jnp.sum(w**2),
        ...     valid_loss=lambda w, h: (x[40:] @ w - y[40:]) ** 2,
        ...     batches=lambda step: (jnp.arange(20) + 20 * step) % 40,
        ...     optimizer=adam("rate"),
        ...     steps=20,
        ... )
    """

    init: Callable[..., Any]
    train_loss: Callable[..., Any]
    valid_loss: Callable[..., jax.Array]
    batches: Callable[..., Any]
    optimizer: Optimizer | OptaxOptimizer
    steps: Any  # an int, or a str
    test_loss: Callable[..., jax.Array] | None = None
    valid_batch_loss: Callable[..., jax.Array] | None = None

    def __post_init__(self) -> None:
        for name in ("init", "train_loss", "valid_loss", "batches"):
            if not callable(getattr(self, name)):
                raise ValueError(f"TrainingProblem: {name} must be a function, got {getattr(self, name)!r}")
        for name in ("test_loss", "valid_batch_loss"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise ValueError(f"TrainingProblem: {name} must be a function or None, got {getattr(self, name)!r}")
        for name, arguments in _ARGUMENTS.items():
            if getattr(self, name) is not None:
                with_statistics = self.has_statistics and name != "init"
                expected = _with_statistics(arguments) if with_statistics else arguments
                check_arguments(f"TrainingProblem: {name}", getattr(self, name), expected)
        if not takes(self.batches, _OF_STEP) and not takes(self.batches, _OF_STEP_AND_HYPERPARAMETERS):
            raise ValueError(
                "TrainingProblem: batches must take (step) or (step, hyperparameters), got a function that takes "
                f"{inspect.signature(self.batches)}"
            )
        if _may_take_hyperparameters(self.batches):
            raise ValueError(
                "TrainingProblem: batches must take either (step) or (step, hyperparameters), got a function that "
                f"takes both, {inspect.signature(self.batches)}; give the hyperparameters no default"
            )
        if isinstance(self.optimizer, optax.GradientTransformation):
            raise ValueError(
                "TrainingProblem: optimizer must be a function that returns a transformation of optax, got the "
                "transformation itself; write lambda h: optax.adam(h['rate'])"
            )
        is_function = callable(self.optimizer) and takes(self.optimizer, ("hyperparameters",))
        if not isinstance(self.optimizer, Optimizer) and not is_function:
            raise ValueError(
                "TrainingProblem: optimizer must be an Optimizer, as sgd, adam and adamw return it, or a function "
                f"of the hyperparameters that returns a transformation of optax, got {shown(self.optimizer)}"
            )
        if not isinstance(self.steps, str) or self.steps.isdecimal():
            object.__setattr__(self, "steps", whole_number("TrainingProblem: steps", self.steps, 1))

    @functools.cached_property
    def has_statistics(self) -> bool:
        """Whether training carries statistics, as the number of arguments of `train_loss` tells."""
        plain = _ARGUMENTS["train_loss"]
        return not takes(self.train_loss, plain) and takes(self.train_loss, _with_statistics(plain))

    def batch(self, step: jax.Array, hyperparameters: Hyperparameters) -> Any:
        """Return the batch of a step."""
        return self.batches(step) if takes(self.batches, _OF_STEP) else self.batches(step, hyperparameters)

    def at(self, hyperparameters: Mapping[str, Any]) -> "TrainingProblem":
        """Return the problem for hyperparameters, which is the same each time.

        It has the number of steps that they say. Where names are paths, as in "opt/rate", its functions take them, and
        call the user's functions with dicts within dicts.

        Raises `ValueError` where `steps` names a hyperparameter that is not there, or that is no whole number from 1.
        """
        steps, nests = self.steps, is_nested(hyperparameters) and not isinstance(self.init, OfNested)
        if isinstance(steps, str):
            check_names(self, hyperparameters)
            steps = whole_number(f"hyperparameter {steps!r}, the number of steps,", hyperparameters[steps], 1)
        elif not nests:
            return self
        known = _AT.setdefault(self, {})
        if (steps, nests) not in known:
            known[steps, nests] = replace(self, steps=steps, **(_of_nested(self) if nests else {}))
        return known[steps, nests]


def _may_take_hyperparameters(batches: Callable[..., Any]) -> bool:
    """Return whether a second argument may be left out and be None; a default of another kind is the user's own."""
    if not takes(batches, _OF_STEP) or not takes(batches, _OF_STEP_AND_HYPERPARAMETERS):
        return False
    second = [*inspect.signature(batches).parameters.values(), None][1]
    return second is not None and second.default is None


# The problems that `TrainingProblem.at` returned, by the problem that they were made of, their number of steps, and
# whether their functions were made to take nested hyperparameters.
_AT: "weakref.WeakKeyDictionary[TrainingProblem, dict[tuple[int, bool], TrainingProblem]]" = weakref.WeakKeyDictionary()


def _of_nested(problem: TrainingProblem) -> dict[str, OfNested]:
    """Return the functions of a problem that take hyperparameters, by name, as functions of flat ones."""
    places = {name: names.index("hyperparameters") - len(names) for name, names in _ARGUMENTS.items()}
    if not takes(problem.batches, _OF_STEP):
        places["batches"] = -1
    functions = {name: getattr(problem, name) for name in places}
    return {name: OfNested(function, places[name]) for name, function in functions.items() if function is not None}


def _with_statistics(arguments: tuple[str, ...]) -> tuple[str, ...]:
    return "params", "statistics", *arguments[1:]


def check_problem(problem: TrainingProblem, space: Space) -> None:
    """Raise `ValueError` unless `space` is a space with every hyperparameter that the problem names."""
    if not isinstance(problem, TrainingProblem):
        raise ValueError(f"problem must be a TrainingProblem, or from_function(function), got {problem!r}")
    check_space(space)
    check_names(problem, space)
    if isinstance(problem.steps, str):
        named = space[problem.steps]
        if not isinstance(named, Int | Categorical) or (isinstance(named, Int) and named.low < 1):
            raise ValueError(f"steps names {problem.steps!r}, which must be an Int from 1 in space, got {named}")


def check_names(problem: TrainingProblem, hyperparameters: Mapping[str, Any]) -> None:
    """Raise `ValueError` where the optimizer or `steps` names what is not among the hyperparameters."""
    if isinstance(problem.optimizer, Optimizer):
        problem.optimizer.check_names(hyperparameters)
    if isinstance(problem.steps, str) and problem.steps not in hyperparameters:
        raise ValueError(
            f"steps names the hyperparameter {problem.steps!r}, which is not among {sorted(hyperparameters)}; add it "
            "there, or correct the name"
        )
