"""How `Implicit` applies the inverse of a Hessian to a vector: exactly, by a series, or not at all."""

import abc
import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse.linalg import LinearOperator, cg

from hypergrad_search.checks import number, whole_number

#: It takes a vector of shape `(weights,)`, and returns the product of the Hessian with it. Each call is charged for.
Product = Callable[[jax.Array], jax.Array]


class Solution(NamedTuple):
    """The vector that a solver returns.

    - `residual`: the norm of `right - hessian @ vector` as a share of that of `right`, or a bound of it; None where it
      is not known.
    - `useless`: why the vector is not what was asked for; "" where it is.
    """

    vector: jax.Array
    residual: float | None = None
    useless: str = ""


class Solver(abc.ABC):
    """A way to solve `hessian @ vector = right`, given products with the Hessian alone."""

    @abc.abstractmethod
    def solve(self, product: Product, right: jax.Array) -> Solution:
        """Return the vector, of the shape and type of `right`. It calls `product` from Python, so that JAX compiles
        one product and not the solver, and calls can be counted."""


@dataclass(frozen=True)
class ConjugateGradients(Solver):
    """Conjugate gradients, by SciPy (HOAG, Pedregosa 2016, in which the same tolerance holds for training itself).

    It is exact up to its tolerance. It takes about `sqrt(condition) * log(1 / tolerance)` products, and no more than
    there are weights, where `condition` is the ratio of the Hessian's largest and smallest curvature.

    - `tolerance`: it ends where the residual is at most this share of the right side.
    - `iterations`: it ends after so many products at the latest, with a larger residual, which is in the
      evaluation's diagnostics. One product more tells the residual.
    - `damping`: this number is added to the diagonal of the Hessian, which makes the gradient that of a training loss
      with a penalty `damping / 2 * |weights - where they are|^2`.

    Do not use it where the Hessian has negative curvature, as that of a network that is far from a minimum: a step of
    the solver that meets some ends the evaluation as "exploded". Raise the damping there, or use `Neumann`. Raises
    `ValueError` where a setting does not fit.

    Example:
        >>> from hypergrad_search import Implicit
        >>> from hypergrad_search.hypergradient import ConjugateGradients
        >>> method = Implicit(solver=ConjugateGradients(damping=0.01))
    """

    _: KW_ONLY
    tolerance: float = 1e-3
    iterations: int = 100
    damping: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tolerance", number("ConjugateGradients: tolerance", self.tolerance, 0, 1))
        object.__setattr__(self, "iterations", whole_number("ConjugateGradients: iterations", self.iterations, 1))
        object.__setattr__(self, "damping", _finite("ConjugateGradients: damping", self.damping))

    def solve(self, product: Product, right: jax.Array) -> Solution:
        """See `Solver`."""
        # Only the products are rounded to the type of the weights.
        wanted, found = np.asarray(right, np.float64), np.zeros(right.shape)

        def multiply(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return np.asarray(product(jnp.asarray(vector, right.dtype)), np.float64) + self.damping * vector

        def checked(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            result = multiply(vector)
            if not np.isfinite(result).all():
                raise _UselessError(_NOT_FINITE)
            if vector.any() and not vector @ result > 0:
                raise _UselessError(_NO_MINIMUM)
            return result

        def note(vector: np.ndarray[Any, Any]) -> None:
            found[:] = vector

        useless = ""
        with np.errstate(all="ignore"):
            try:
                operator = LinearOperator((found.size, found.size), matvec=checked, dtype=np.float64)
                cg(operator, wanted, rtol=self.tolerance, maxiter=self.iterations, callback=note)
            except _UselessError as error:
                useless = str(error)
            size = np.linalg.norm(wanted)
            residual = float(np.linalg.norm(wanted - multiply(found)) / size) if size else 0.0
        return Solution(jnp.asarray(found, right.dtype), residual, useless)


class _UselessError(ArithmeticError):
    """A product has shown that there is nothing to solve."""


_NOT_FINITE = (
    "the value is sound, but its gradient is useless: a product with the training loss's Hessian is not finite"
)
_NO_MINIMUM = (
    "the value is sound, but its gradient is useless: the training loss has no minimum at the weights, since its "
    "curvature is not positive in all directions; train longer, raise ConjugateGradients(damping=...), or use "
    "Implicit(solver=Neumann(...))"
)


@dataclass(frozen=True)
class Neumann(Solver):
    """The first terms of a Neumann series (Lorraine, Vicol and Duvenaud 2020, algorithm 3).

    It returns `rate * sum over j from 0 to terms of (1 - rate * hessian)^j @ right`, which takes `terms` products. In a
    direction of curvature c its relative error is `(1 - rate * c)^(terms + 1)`: it falls geometrically, and slowly
    where the curvature is small. So few terms act like a damping. Where training is gradient descent with this rate,
    it is the gradient of the last `terms + 1` steps, had all of them been at the last weights.

    - `terms`: the number of products, from 0.
    - `rate`: it must be below 2 divided by the largest curvature, or the series diverges, which is seen by its terms
      and ends the evaluation as "exploded".

    Raises `ValueError` where a setting does not fit.

    Example:
        >>> from hypergrad_search import Implicit
        >>> from hypergrad_search.hypergradient import Neumann
        >>> method = Implicit(solver=Neumann(rate=0.1))
    """

    _: KW_ONLY
    terms: int = 20
    rate: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", whole_number("Neumann: terms", self.terms, 0))
        object.__setattr__(self, "rate", _finite("Neumann: rate", self.rate))
        if not self.rate:
            raise ValueError("Neumann: rate must be above 0, or all terms are the same; got 0")

    def solve(self, product: Product, right: jax.Array) -> Solution:
        """See `Solver`."""
        rate = jnp.asarray(self.rate, right.dtype)
        term, total, sizes = right, right, [_norm(right)]
        for _ in range(self.terms):
            term = term - rate * product(term)
            total = total + term
            sizes.append(_norm(term))
        # Norms of the powers of a symmetric matrix grow from some term on, or never.
        grows = len(sizes) > 1 and not sizes[-1] <= sizes[-2]
        residual = sizes[-1] / sizes[0] if sizes[0] else 0.0
        return Solution(rate * total, residual, _DIVERGES if grows else "")


_DIVERGES = (
    "the value is sound, but its gradient is useless: the Neumann series diverges, since its terms grow; lower "
    "Neumann(rate=...), or train longer where the training loss has no minimum at the weights"
)


@dataclass(frozen=True)
class Identity(Solver):
    """The right side itself, as if the Hessian were the identity (T1-T2, Luketina et al. 2016).

    It takes no product, so it is the cheapest solver and the most biased one: it is right where all curvatures are 1.
    Where they are not, the derivative of the validation loss through the weights has another size than it should have,
    and perhaps another sign.

    Example:
        >>> from hypergrad_search import Implicit
        >>> from hypergrad_search.hypergradient import Identity
        >>> method = Implicit(solver=Identity())
    """

    def solve(self, product: Product, right: jax.Array) -> Solution:
        """See `Solver`."""
        return Solution(right)


def _finite(name: str, value: float) -> float:
    checked = number(name, value, 0)
    if math.isinf(checked):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return checked


def _norm(vector: jax.Array) -> float:
    return float(jnp.linalg.norm(vector))
