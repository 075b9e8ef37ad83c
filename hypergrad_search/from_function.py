"""`from_function`: a training function of the user's own, as a problem that can be evaluated and searched."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from hypergrad_search.checks import check_arguments, shown
from hypergrad_search.space import Hyperparameters

#: Why a function takes none of the settings of a training problem, by name.
_WHY_REFUSED = {
    "method": "JAX differentiates the function itself",
    "key": "the function draws its own random numbers",
    "reseed": "the function draws its own random numbers",
    "report": "nobody sees the function's steps",
    "report_every": "nobody sees the function's steps",
    "checkpoint": "each call of the function starts anew",
    "snapshot": "each call of the function starts anew",
}


@dataclass(frozen=True, eq=False)
class FunctionProblem:
    """A training function of the user's own; made by `from_function`, which describes it.

    `steps` is 1, since nobody sees the steps that the function takes: a value costs 1.
    """

    function: Callable[[Any], jax.Array]
    steps: ClassVar[int] = 1

    @property
    def name(self) -> str:
        """How errors call the function."""
        return str(getattr(self.function, "__name__", shown(self.function)))

    def at(self, hyperparameters: Hyperparameters) -> "FunctionProblem":
        """Return the problem itself, since no hyperparameter changes its steps; compare `TrainingProblem.at`."""
        return self


def from_function(function: Callable[[Any], jax.Array]) -> FunctionProblem:
    """Return a problem whose validation loss is what `function` returns, and whose gradient JAX takes through it.

    Use it for a training loop that you have already: a Python loop over NumPy batches that calls a jitted step, for
    example. `Objective` of Optuna and `trainable` of Ray take the result in place of a `TrainingProblem`, and so do
    `evaluate` and `check_gradient`. They do not take the settings of training problems (a method, a key, reports).

    The value of a trial is a plain call of the function. Only where the search wants the gradient is the function
    called again, by `jax.vjp`; where it is sure to want it, one such call gives both, and the value may differ from
    that of a plain call in its last bits.

    Do not use it for long training: every step's intermediate results are kept until the gradient has come back
    through them, and a jitted step takes JAX some milliseconds to differentiate, however small it is. A
    `TrainingProblem` has neither fault. Where no gradient is wanted, a plain objective of Optuna or trainable of Ray
    does as well.

    A gradient that is NaN while the loss is finite (the status "exploded") mostly comes of a square root at 0, as Adam
    takes it for a weight that has no gradient: `optax.adam(rate, eps_root=1e-8)` keeps it off.

    Cost:
        A value costs 1. A value with its gradient costs its measured time as a multiple of that of a value: the ratio
        of the median seconds of both, of the calls in this process. The first value and the first gradient with each
        choice of integers and categoricals are left out, since they compile; while there is no ratio yet, it is taken
        for 4, as for training problems. A search spends its budget by these costs, so the same seed may give another
        search on another day.

    Args:
        function: takes a dict of the hyperparameters, and returns the validation loss: a floating-point JAX array, a
            scalar or one loss for each validation example, shape `(n,)`. The value is the mean. A search with a `lift`
            can hold back a part of the examples. In the dict each `Float` is a JAX array of its shape, and each `Int`
            or `Categorical` its plain value. The function may branch on a `Float`, but must not turn one, or
            what follows from it, into a Python number or a NumPy array: `float()`, `math` and NumPy's functions end in
            an error, but JAX lets `int()` and `.item()` pass and takes the result for a constant. `check_gradient`
            finds that. The function should be deterministic, with its random numbers from fixed seeds.

    Raises:
        ValueError: `function` is not a function of one argument. When it is evaluated: it returns something else, or
            JAX cannot differentiate it. Where the first gradient is 0 in all hyperparameters, a warning says so.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, optax
        >>> from hypergrad_search import evaluate, from_function
        >>> from sklearn.datasets import load_digits
        >>> images, labels = load_digits(return_X_y=True)
        >>> images = np.float32(images / 16)
        >>> def losses(weights, x, y):
        ...     return -jnp.take_along_axis(jax.nn.log_softmax(x @ weights), y[:, None], axis=1)[:, 0]
        >>> @jax.jit
        ... def step(weights, state, x, y, h):
        ...     penalised = lambda weights: losses(weights, x, y).mean() + h["l2"] * jnp.sum(weights**2)
        ...     updates, state = optax.sgd(h["rate"], momentum=0.9).update(jax.grad(penalised)(weights), state)
        ...     return optax.apply_updates(weights, updates), state
        >>> def train(h):
        ...     weights = jnp.zeros((64, 10))
        ...     state = optax.sgd(h["rate"], momentum=0.9).init(weights)
        ...     for rows in np.random.default_rng(0).integers(1000, size=(50, 100)):
        ...         weights, state = step(weights, state, images[rows], labels[rows], h)
        ...     return losses(weights, images[1000:1400], labels[1000:1400])
        >>> result = evaluate(from_function(train), {"rate": 0.1, "l2": 1e-3})
        >>> result.value < 0.6, sorted(result.gradient)
        (True, ['l2', 'rate'])
    """
    if not callable(function):
        raise ValueError(f"from_function: function must be a function of the hyperparameters, got {shown(function)}")
    check_arguments("from_function: function", function, ("hyperparameters",))
    return FunctionProblem(function)


def refuse(owner: str, **settings: Any) -> None:
    """Raise `ValueError` where a setting is given that training problems have, and functions do not."""
    for name, value in settings.items():
        if value is not None:
            raise ValueError(
                f"{owner}: {name} is for a TrainingProblem, and not for from_function(...), since "
                f"{_WHY_REFUSED[name]}; leave it out"
            )
