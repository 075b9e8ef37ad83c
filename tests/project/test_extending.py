"""A new method or strategy is one file and one rival; nothing else needs to know of it."""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from hypergrad_search import Cost, Evaluation, Method, TrainingProblem
from hypergrad_search.hypergradient import Request, judge, outer_losses, split
from hypergrad_search.search import Attempt, Observation, Proposal, Strategy
from hypergrad_search.space import Hyperparameters, Space, dimension, gradient_to_unit, to_unit
from hypergrad_search.training import train_in_floats
from hypergrad_studies import Rival, compare
from hypergrad_studies.rivals import by_gradients


@dataclass(frozen=True)
class ForwardDifferences(Method):
    """A toy: the gradient by one more training run for each hyperparameter."""

    step: float = 1e-2

    def evaluate(
        self, problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array, request: Request
    ) -> Evaluation:
        dynamic, static = split(hyperparameters, request.space)

        def at(changed: Hyperparameters) -> Evaluation:
            whole = {**changed, **dict(static)}
            return judge(outer_losses(problem, train_in_floats(problem, whole, key), whole), request.fold)

        here = at(dynamic)
        if not here.value < request.gradient_below:
            return replace(here, cost=Cost(problem.steps, 0.0))
        moved = {name: at({**dynamic, name: value + self.step}) for name, value in dynamic.items()}
        gradient = {name: np.asarray((there.value - here.value) / self.step) for name, there in moved.items()}
        return replace(here, gradient=gradient, cost=Cost((1 + len(moved)) * problem.steps, 0.0))


@dataclass(frozen=True)
class Best:
    """What the toy strategy knows: the best point with a gradient, and its value, gradient and trial."""

    space: Space
    value: float = math.inf
    point: np.ndarray | None = None
    gradient: np.ndarray | None = None
    trial: str | None = None


@dataclass(frozen=True)
class SteepestDescent(Strategy[Best]):
    """A toy: one explored point, and then fixed steps from the best point."""

    length: float = 0.1

    def init(self, space: Space) -> Best:
        return Best(space)

    def fold(self, state: Best, observation: Observation) -> Best:
        if observation.gradient is None or not observation.value < state.value or not dimension(state.space):
            return state
        point = to_unit(state.space, observation.hyperparameters)
        gradient = gradient_to_unit(state.space, observation.hyperparameters, observation.gradient)
        return Best(state.space, observation.value, point, gradient, observation.trial)

    def propose(self, state: Best, running: Collection[Attempt]) -> Proposal:
        if state.point is None or state.gradient is None or Attempt(state.trial) in running:
            return self.explore(state)
        step = self.length * state.gradient / (np.linalg.norm(state.gradient) or 1.0)
        return Proposal(np.clip(state.point - step, 0.0, 1.0), state.trial, math.inf)

    def explore(self, state: Best) -> Proposal:
        return Proposal(None, None, math.inf)


@pytest.mark.parametrize(
    "toy",
    [
        pytest.param(by_gradients("toy", how=ForwardDifferences()), marks=pytest.mark.slow, id="method"),
        pytest.param(by_gradients("toy", strategy=SteepestDescent()), id="strategy"),
    ],
)
def test_a_rival_is_all_that_a_comparison_needs(toy: Rival, tmp_path: Path) -> None:
    quiet = Console(quiet=True)
    compared = compare("synthetic-quadratic", budget=40, methods=[toy, "random"], seeds=1, out=tmp_path, console=quiet)
    found = compared.study.records
    ours, random = ([r.value for r in found if r.method == name] for name in ("toy", "random"))
    assert {r.status for r in found} == {"ok"}
    assert min(ours) < ours[0]  # it descended
    assert len(ours) < len(random)  # and paid for its gradients
