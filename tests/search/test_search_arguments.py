"""The search's public classes, made with wrong things: each error names the argument in one line."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hypergrad_search.search
from hypergrad_search import Float
from hypergrad_search.search import (
    ByDimension,
    ExploreDescend,
    Limits,
    Proposal,
    QuasiNewton,
    Radii,
    SignSteps,
    Strategy,
    dimension,
    from_unit,
    gradient_to_unit,
    to_unit,
)
from hypergrad_search.search.ask_tell import AskTell

Call = Callable[[], Any]
SPACE = {"x": Float(0.0, 1.0), "a": Float(0.0, 1.0, shape=(2,))}


class Answers(Strategy[None]):
    """A strategy of a user's own that gives a fixed answer."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def init(self, space: Any) -> None: ...

    def fold(self, state: None, observation: Any) -> None: ...

    def propose(self, state: None, running: Any) -> Any:
        return self.answer

    def explore(self, state: None) -> Any:
        return self.answer

    def goes_on(self, state: None) -> bool:
        return True


WRONG: dict[str, list[tuple[Call, str]]] = {
    "ExploreDescend": [
        (lambda: ExploreDescend(startup_trials=1.5), "ExploreDescend: startup_trials must be a whole number"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: ExploreDescend(smallest_share=0.6), "ExploreDescend: smallest_share must be a number from 0 to 0.5"),
        (lambda: ExploreDescend(memory="long"), "ExploreDescend: memory must be a number from 0 to 1"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: ExploreDescend(doubts=0), "ExploreDescend: doubts must be a whole number from 1"),
        (lambda: ExploreDescend(restart=0), "ExploreDescend: restart must be a whole number from 1"),
        (lambda: ExploreDescend(folds=1), "ExploreDescend: folds must be a whole number from 2"),
        (lambda: ExploreDescend(step="signs"), "ExploreDescend: step must be a LocalStep"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: ExploreDescend(limits=3), "ExploreDescend: limits must be a Limits"),  # type: ignore[arg-type]  # wrong on purpose
    ],
    "Limits": [(lambda: Limits(stalls=0), "Limits: stalls"), (lambda: Limits(failures=None), "Limits: failures")],  # type: ignore[arg-type]  # wrong on purpose
    "Radii": [
        (lambda: Radii(start="x"), "Radii: start must be a number"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Radii(largest=math.nan), "Radii: largest must be a number"),
        (lambda: Radii(start=0.9), "Radii: 0 < smallest <= start <= largest"),
    ],
    "QuasiNewton": [
        (lambda: QuasiNewton(growth="x"), "QuasiNewton: growth must be a number"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: QuasiNewton(rejection=1.5), "QuasiNewton: growth must be at least 1 and rejection between"),
        (lambda: QuasiNewton(radii=0.1), "QuasiNewton: radii must be a Radii"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: QuasiNewton(curvatures=3), "QuasiNewton: curvatures must be two numbers"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: QuasiNewton(curvatures=("a", "b")), "QuasiNewton: curvatures must be a number"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: QuasiNewton(damping=2.0), "QuasiNewton: damping must be between"),
    ],
    "SignSteps": [
        (lambda: SignSteps(shrinkage=None), "SignSteps: shrinkage must be a number"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: SignSteps(radii="x"), "SignSteps: radii must be a Radii"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: SignSteps(growth=0.5), "SignSteps: growth must be at least 1"),
    ],
    "ByDimension": [
        (lambda: ByDimension(few=SignSteps(), many=3), "ByDimension: many must be a LocalStep"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: ByDimension(few=SignSteps(), many=SignSteps(), most=-1), "ByDimension: most must be a whole number"),
    ],
    "Proposal": [
        (lambda: Proposal(None, "1", math.inf), "Proposal: a point needs a parent"),
        (lambda: Proposal(np.zeros(3), None, math.inf), "Proposal: a point needs a parent"),
    ],
    "Strategy": [
        (lambda: AskTell.begin(SPACE, ExploreDescend), "strategy must be a Strategy such as ExploreDescend"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: AskTell.begin(SPACE, Answers(None)).ask([]), "Answers.propose must return a Proposal, got None"),
        (lambda: AskTell.begin(SPACE, Answers(3)).explore(), "Answers.explore must return a Proposal, got 3"),
        (
            lambda: AskTell.begin(SPACE, Answers(Proposal(np.zeros(2), "0", 1.0))).ask([]),
            "Answers.propose must return a point of 3 finite numbers",
        ),
        (
            lambda: AskTell.begin(SPACE, Answers(Proposal(np.full(3, np.nan), "0", 1.0))).ask([]),
            "Answers.propose must return a point of 3 finite numbers",
        ),
    ],
    "to_unit": [
        (lambda: to_unit(SPACE, {"x": 0.5}), "hyperparameter 'a' is missing"),
        (lambda: to_unit(SPACE, {"x": "low", "a": np.ones(2)}), "hyperparameter 'x' must be numbers, got 'low'"),
        (lambda: to_unit(SPACE, {"x": 0.5, "a": np.ones(3)}), r"hyperparameter 'a' must have shape \(2,\)"),
    ],
    "gradient_to_unit": [
        (lambda: gradient_to_unit(SPACE, {"x": 0.5, "a": np.ones(2)}, {"x": 1.0}), "hyperparameter 'a' is missing")
    ],
    "from_unit": [(lambda: from_unit(SPACE, np.zeros(2)), "vector must have 3 numbers, got 2")],
    "dimension": [(lambda: dimension(3), "space must be a dict")],  # type: ignore[arg-type]  # wrong on purpose
}

#: Abstract classes, plain data and types.
NOT_CALLED = {"Attempt", "Fold", "LocalStep", "Observation", "Space", "TrustRegion"}
ROWS = [pytest.param(*row, id=f"{name} {i}") for name, rows in WRONG.items() for i, row in enumerate(rows)]


def test_the_table_has_every_public_name() -> None:
    assert WRONG.keys() | NOT_CALLED == set(hypergrad_search.search.__all__)


@pytest.mark.parametrize(("call", "message"), ROWS)
def test_a_wrong_argument_is_named(call: Call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
