"""Networks from hyperparameters to weights: they model how the best weights change with the hyperparameters.

Each maps a vector of hyperparameters, shape `(inputs,)` in units of the search box, to a change of all of a model's
weights, shape `(outputs,)`. The weights themselves start from the model's own initial ones, so that every network
begins with no change at all.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from hypergrad_search.checks import whole_number

Weights = dict[str, jax.Array]


class Response(abc.ABC):
    """A network from hyperparameters to a change of a model's weights."""

    @abc.abstractmethod
    def init(self, key: jax.Array, inputs: int, outputs: int) -> Weights:
        """Return the network's own weights, with which its output is 0 for any input."""

    @abc.abstractmethod
    def __call__(self, weights: Weights, x: jax.Array) -> jax.Array:
        """Return the change, shape `(outputs,)`, for hyperparameters of shape `(inputs,)`."""


@dataclass(frozen=True)
class Linear(Response):
    """A matrix, with `inputs` numbers for each of the model's weights; use it for few hyperparameters.

    Example:
        >>> from hypergrad_search import Hypernet
        >>> from hypergrad_search.hypergradient import Linear
        >>> method = Hypernet(network=Linear())
    """

    def init(self, key: jax.Array, inputs: int, outputs: int) -> Weights:
        """See `Response`."""
        return {"matrix": jnp.zeros((outputs, inputs))}

    def __call__(self, weights: Weights, x: jax.Array) -> jax.Array:
        """See `Response`."""
        return weights["matrix"] @ x


@dataclass(frozen=True)
class LowRank(Response):
    """Two matrices, with `rank` numbers for each hyperparameter and each weight; use it for thousands or more.

    Example:
        >>> from hypergrad_search import Hypernet
        >>> from hypergrad_search.hypergradient import LowRank
        >>> method = Hypernet(network=LowRank(rank=4))
    """

    rank: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", whole_number("LowRank: rank", self.rank, 1))

    def init(self, key: jax.Array, inputs: int, outputs: int) -> Weights:
        """See `Response`."""
        into = jax.random.normal(key, (self.rank, inputs)) / jnp.sqrt(inputs)
        return {"into": into, "out": jnp.zeros((outputs, self.rank))}

    def __call__(self, weights: Weights, x: jax.Array) -> jax.Array:
        """See `Response`."""
        return weights["out"] @ (weights["into"] @ x)


@dataclass(frozen=True)
class OneHidden(Response):
    """A network with one hidden layer of `width` units; use it where responses bend over a box of few dimensions.

    Example:
        >>> from hypergrad_search import Hypernet
        >>> from hypergrad_search.hypergradient import Global, OneHidden
        >>> method = Hypernet(network=OneHidden(width=20), algorithm=Global())
    """

    width: int = 50
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", whole_number("OneHidden: width", self.width, 1))
        if not callable(self.activation):
            raise ValueError(f"OneHidden: activation must be a function such as jax.nn.relu, got {self.activation!r}")

    def init(self, key: jax.Array, inputs: int, outputs: int) -> Weights:
        """See `Response`."""
        into, biases = jax.random.split(key)
        return {
            "into": jax.random.normal(into, (self.width, inputs)) / jnp.sqrt(inputs),
            "biases": jax.random.normal(biases, (self.width,)),
            "out": jnp.zeros((outputs, self.width)),
        }

    def __call__(self, weights: Weights, x: jax.Array) -> jax.Array:
        """See `Response`."""
        return weights["out"] @ self.activation(weights["into"] @ x + weights["biases"])


@dataclass(frozen=True)
class Diagonal(Response):
    """One number for each weight: how much the weight changes with the hyperparameter at the same place.

    Use it where each weight has a penalty of its own. `inputs` must equal `outputs`, and the hyperparameters, flattened
    in the order of the space, must have the order of the parameters, flattened as `jax.flatten_util.ravel_pytree` does.
    The effect of a hyperparameter on all other weights is ignored.

    Example:
        >>> from hypergrad_search import Hypernet
        >>> from hypergrad_search.hypergradient import Diagonal
        >>> method = Hypernet(network=Diagonal())
    """

    def init(self, key: jax.Array, inputs: int, outputs: int) -> Weights:
        """See `Response`. Raises `ValueError` unless there are as many hyperparameters as weights."""
        if inputs != outputs:
            raise ValueError(
                f"Diagonal: needs one hyperparameter for each weight, got {inputs} for {outputs} weights; "
                "use LowRank(10)"
            )
        return {"slopes": jnp.zeros(outputs)}

    def __call__(self, weights: Weights, x: jax.Array) -> jax.Array:
        """See `Response`."""
        return weights["slopes"] * x
