"""What a run may spend, and in which unit."""

import re
from dataclasses import dataclass
from typing import Self

GRADIENT_EVALUATIONS = "gradient evaluations"
"""The gradient of one minibatch counts as 1, so that a run's results do not depend on the machine."""

SECONDS = "seconds"
"""Wall seconds of evaluating, asking and telling, compiling included."""

_SECONDS = {"s": 1, "min": 60, "h": 3600}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?) *(s|min|h)?")


IN_OPTUNA = "as in report_gradient(trial, gradient, cost=...)"
"""How an objective says what a trial cost."""

IN_RAY = "as 'gradient_evaluations'"
"""How a trainable says what a trial cost."""


class NoCost(ValueError):
    """The budget is in gradient evaluations, and a trial does not say what it cost. The message is one line."""

    def __init__(self, trial: str, how: str) -> None:
        super().__init__(
            f"{trial} does not say what it cost; report it, {how}, or give the budget in seconds, as in 60s"
        )
        self._arguments = trial, how

    def __reduce__(self) -> tuple[type["NoCost"], tuple[str, str]]:
        return NoCost, self._arguments  # so that it comes from a worker as it is


@dataclass(frozen=True)
class Budget:
    """So many gradient evaluations, or so many seconds: `unit` is `GRADIENT_EVALUATIONS` or `SECONDS`."""

    amount: float
    unit: str = GRADIENT_EVALUATIONS

    def __post_init__(self) -> None:
        if not self.amount > 0:
            raise ValueError(f"budget must be positive, got {self}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the budget that a text such as "2500", "90s", "10min" or "1.5h" states. Raises `ValueError`."""
        found = _AMOUNT.fullmatch(text.strip())
        number, suffix = found.groups() if found else ("", None)
        if not number or (suffix is None and "." in number):
            raise ValueError(
                "budget must be a whole number of gradient evaluations, or a time such as 90s, 10min or 1h, "
                f"got {text!r}"
            )
        if suffix is None:
            return cls(int(number))
        return cls(float(number) * _SECONDS[suffix], SECONDS)

    def __str__(self) -> str:
        return f"{self.amount:,g} {'s' if self.unit == SECONDS else self.unit}"

    @property
    def option(self) -> str:
        """The budget as `parse` reads it."""
        return f"{self.amount!r}s" if self.unit == SECONDS else str(self.amount)

    def times(self, factor: int) -> Self:
        """Return a budget that is `factor` times as large."""
        return type(self)(self.amount * factor, self.unit)


def plus(spent: int | float | None, cost: float | None) -> int | float | None:
    """Return gradient evaluations with those of one more trial; None where one of them is not known."""
    if spent is None or cost is None:
        return None
    return spent + (int(cost) if float(cost).is_integer() else cost)
