"""What to try next, from what has been seen: pure, and independent of any host.

This is all that it takes to write a `Strategy`, or a `LocalStep` for the present one.
"""

from hypergrad_search.search.continuation import Limits
from hypergrad_search.search.explore_descend import ExploreDescend
from hypergrad_search.search.observation import Observation
from hypergrad_search.search.quasi_newton import QuasiNewton
from hypergrad_search.search.sign_steps import SignSteps
from hypergrad_search.search.strategy import Proposal, Strategy
from hypergrad_search.search.trust_region import ByDimension, LocalStep, Radii, TrustRegion

__all__ = [
    "ByDimension",
    "ExploreDescend",
    "Limits",
    "LocalStep",
    "Observation",
    "Proposal",
    "QuasiNewton",
    "Radii",
    "SignSteps",
    "Strategy",
    "TrustRegion",
]
