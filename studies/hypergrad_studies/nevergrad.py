"""Nevergrad's wizard (Meunier et al. 2022), as `Outside` asks and tells it: it picks an optimizer for the budget."""

import warnings
from collections.abc import Mapping
from typing import Any

import nevergrad
from nevergrad.parametrization.core import Parameter
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hypergrad_studies.outside import Distributions, Outside


class Nevergrad(Outside[Parameter]):
    """NGOpt, which starts from the centre of the space.

    Categoricals are known by the indices of their choices, which may be of any kind.
    """

    def __init__(self, space: Distributions, *, seed: int, trials: int) -> None:
        self._distributions = space
        self._space = nevergrad.p.Dict(**{name: _parameter(name, d) for name, d in space.items()})
        self._space.random_state.seed(seed)
        self._wizard = nevergrad.optimizers.NGOpt(parametrization=self._space, budget=trials)

    def ask(self) -> Parameter:
        """Return what to try next."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "COBYLA: Invalid")  # of settings that the wizard gives, and SciPy mends
            return self._wizard.ask()

    def tell(self, point: Parameter, loss: float) -> None:
        """Learn the loss of a point."""
        self._wizard.tell(point, loss)

    def values(self, point: Parameter) -> dict[str, Any]:
        """Return a point as Optuna knows it."""
        return {name: d.to_external_repr(point.value[name]) for name, d in self._distributions.items()}

    def point(self, values: Mapping[str, Any]) -> Parameter:
        """Return the point of values that Optuna knows."""
        known = {name: d.to_internal_repr(values[name]) for name, d in self._distributions.items()}
        return self._space.spawn_child(new_value=known)


def _parameter(name: str, distribution: BaseDistribution) -> Parameter:
    match distribution:
        case CategoricalDistribution(choices=choices):
            return nevergrad.p.Choice(range(len(choices)))
        case IntDistribution(low=low, high=high, log=True):
            return nevergrad.p.Log(lower=low, upper=high).set_integer_casting()
        case IntDistribution(low=low, high=high):
            return nevergrad.p.Scalar(lower=low, upper=high).set_integer_casting()
        case FloatDistribution(low=low, high=high, log=True):
            return nevergrad.p.Log(lower=low, upper=high)
        case FloatDistribution(low=low, high=high):
            return nevergrad.p.Scalar(lower=low, upper=high)
    raise ValueError(f"nevergrad: {name!r} must be a float, an int or a categorical, got {distribution!r}")
