"""The search: it decides what to try next from what has been seen, in pure functions that know no host.

This is all that it takes to write a `Strategy`, or a `LocalStep` for `ExploreDescend`: `to_unit`, `from_unit` and
`gradient_to_unit` carry hyperparameters and gradients into the unit box and back.
"""

from hypergrad_search.fold import Fold
from hypergrad_search.search.continuation import Limits
from hypergrad_search.search.explore_descend import ExploreDescend
from hypergrad_search.search.observation import Attempt, Observation
from hypergrad_search.search.quasi_newton import QuasiNewton
from hypergrad_search.search.sign_steps import SignSteps
from hypergrad_search.search.strategy import Proposal, Strategy
from hypergrad_search.search.trust_region import ByDimension, LocalStep, Radii, TrustRegion
from hypergrad_search.space import Space, dimension, from_unit, gradient_to_unit, to_unit

__all__ = [
    "Attempt",
    "ByDimension",
    "ExploreDescend",
    "Fold",
    "Limits",
    "LocalStep",
    "Observation",
    "Proposal",
    "QuasiNewton",
    "Radii",
    "SignSteps",
    "Space",
    "Strategy",
    "TrustRegion",
    "dimension",
    "from_unit",
    "gradient_to_unit",
    "to_unit",
]
