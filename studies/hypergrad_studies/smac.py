"""SMAC (Lindauer et al. 2022), as `Outside` asks and tells it: a random forest, and expected improvement."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ConfigSpace import Categorical, Configuration, ConfigurationSpace, Float, Integer
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from smac import HyperparameterOptimizationFacade, Scenario
from smac.runhistory import TrialInfo, TrialValue

from hypergrad_studies.outside import Distributions, Outside

SEED = 0  # of all trials: SMAC repeats none where the objective is deterministic


class Smac(Outside[TrialInfo]):
    """SMAC with its defaults for hyperparameters.

    A quarter of the `trials`, or ten for each hyperparameter where these are fewer, come from a Sobol sequence.
    Categoricals are known by the indices of their choices, which may be of any kind.
    """

    def __init__(self, space: Distributions, *, seed: int, trials: int) -> None:
        self._distributions = space
        self._space = ConfigurationSpace(seed=seed)
        self._space.add([_parameter(name, distribution) for name, distribution in space.items()])
        with tempfile.TemporaryDirectory() as folder:  # it writes there when it is made
            scenario = Scenario(
                self._space, deterministic=True, n_trials=trials, seed=seed, output_directory=Path(folder)
            )
            self._smac = HyperparameterOptimizationFacade(scenario, _untold, logging_level=False)

    def ask(self) -> TrialInfo:
        """Return what to try next."""
        return self._smac.ask()

    def tell(self, point: TrialInfo, loss: float) -> None:
        """Learn the loss of a point."""
        self._smac.tell(point, TrialValue(cost=loss), save=False)

    def values(self, point: TrialInfo) -> dict[str, Any]:
        """Return a point as Optuna knows it."""
        return {name: d.to_external_repr(float(point.config[name])) for name, d in self._distributions.items()}

    def point(self, values: Mapping[str, Any]) -> TrialInfo:
        """Return the point of values that Optuna knows."""
        known = {name: d.to_internal_repr(values[name]) for name, d in self._distributions.items()}
        whole = {n: v if isinstance(self._distributions[n], FloatDistribution) else int(v) for n, v in known.items()}
        return TrialInfo(Configuration(self._space, values=whole), seed=SEED)


def _parameter(name: str, distribution: BaseDistribution) -> Any:
    match distribution:
        case CategoricalDistribution(choices=choices):
            return Categorical(name, range(len(choices)))
        case IntDistribution(low=low, high=high, log=log):
            return Integer(name, (low, high), log=log)
        case FloatDistribution(low=low, high=high, log=log):
            return Float(name, (low, high), log=log)
    raise ValueError(f"smac: {name!r} must be a float, an int or a categorical, got {distribution!r}; leave it out")


def _untold(config: Configuration, seed: int = SEED) -> float:
    """Stand for the objective, which SMAC wants to see and never calls."""
    raise NotImplementedError("smac: SMAC is asked and told; it must not run trials itself")
