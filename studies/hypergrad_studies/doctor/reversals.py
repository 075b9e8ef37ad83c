"""Settings that are trained and run backwards, and whether each came back to the bits from which it had started."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import jax

from hypergrad_search import Evaluation, evaluate
from hypergrad_search.cost import VALUE_AND_GRADIENT
from hypergrad_studies.doctor.settings import Setting

MOST_SHOWN = 300  # characters of an error; those of XLA may contain whole programs


class Outcome(StrEnum):
    """How the reversal of a setting ended.

    `ISOLATED`: exact, with a program whose gradient is compiled by itself. `NOT_TRAINED`: nothing was reversed, since
    training itself failed, as with an overflow. `INEXACT`: anything else, an error for example.
    """

    EXACT = "exact"
    ISOLATED = "isolated"
    NOT_TRAINED = "not trained"
    INEXACT = "inexact"


@dataclass(frozen=True)
class Reversal:
    """What came of a setting; `why` says what is wrong, and `gradient` is None unless a search could use it."""

    setting: Setting
    outcome: Outcome
    why: str = ""
    gradient: dict[str, Any] | None = None


def reverse(settings: Iterable[Setting]) -> Iterator[Reversal]:
    """Yield what comes of each setting, as soon as it is known.

    Settings of the same program should follow one another, since what is compiled for it is dropped with the next.
    """
    last = None
    for setting in settings:
        program, hyperparameters, seed = setting
        if program is not last:
            jax.clear_caches()  # type: ignore[no-untyped-call]  # JAX has no types here
            last = program
        try:
            found = evaluate(program.problem, hyperparameters, key=jax.random.key(seed), method=program.method)
        except Exception as error:  # whatever goes wrong in one setting, the others go on
            why = " ".join(f"{type(error).__name__}: {error}".split())
            yield Reversal(setting, Outcome.INEXACT, why[:MOST_SHOWN])
            continue
        yield Reversal(setting, _outcome(found, program.steps), found.message, found.usable_gradient)


def _outcome(found: Evaluation, steps: int) -> Outcome:
    exact = found.diagnostics["exact"]
    if exact is True:
        costs_more = found.cost.gradient_evaluations > VALUE_AND_GRADIENT * steps
        return Outcome.ISOLATED if costs_more else Outcome.EXACT
    return Outcome.NOT_TRAINED if exact is None else Outcome.INEXACT
