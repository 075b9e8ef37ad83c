"""Optuna's own suite for samplers, on every way to construct ours."""

import tempfile
import warnings
from collections.abc import Callable

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)

from hypergrad_optuna import HypergradSampler

CONSTRUCTIONS: dict[str, Callable[[], BaseSampler]] = {
    "default": HypergradSampler,
    "seed": lambda: HypergradSampler(seed=1),
    "artifacts": lambda: HypergradSampler(artifact_store=FileSystemArtifactStore(tempfile.gettempdir())),
    "random": lambda: HypergradSampler(explorer=optuna.samplers.RandomSampler(seed=1)),
}


class Constructions:
    @pytest.fixture(params=CONSTRUCTIONS)
    def sampler(self, request: pytest.FixtureRequest) -> Callable[[], BaseSampler]:
        return CONSTRUCTIONS[request.param]


@pytest.fixture(autouse=True)
def without_the_warning_that_no_gradient_came() -> object:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="HypergradSampler: the objective reported no gradient")
        yield


class TestBasic(Constructions, BasicSamplerTestCase):
    pass


class TestRelative(Constructions, RelativeSamplerTestCase):
    pass


class TestSingleOnly(Constructions, SingleOnlySamplerTestCase):
    pass
