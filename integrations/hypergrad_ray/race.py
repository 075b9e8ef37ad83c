"""Trials that Ray ends without telling the searcher: it can only guess which ones it need not wait for."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

#: A trial is taken to be lost when it has been running for more than twice as long as the longest one so far, and so
#: many trials that began later have ended.
ENOUGH = 5


@dataclass(frozen=True)
class Runner:
    """A trial under way: when it began, in seconds, and how many trials that began later have ended."""

    since: float
    overtaken: int = 0


@dataclass(frozen=True)
class Race:
    """The trials under way, in the order in which they began, and the longest time that one has taken, in seconds."""

    runners: Mapping[str, Runner] = field(default_factory=dict)
    longest: float = 0.0

    def begin(self, trial: str, now: float) -> Self:
        """Return the race after a trial has begun."""
        return replace(self, runners={**self.runners, trial: Runner(now)})

    def end(self, trial: str, now: float) -> Self:
        """Return the race after a trial that is under way has ended."""
        order = list(self.runners)
        earlier = set(order[: order.index(trial)])
        runners = {
            name: replace(runner, overtaken=runner.overtaken + (name in earlier))
            for name, runner in self.runners.items()
            if name != trial
        }
        return replace(self, runners=runners, longest=max(self.longest, now - self.runners[trial].since))

    def leave(self, trial: str) -> Self:
        """Return the race without a trial."""
        return replace(self, runners={name: runner for name, runner in self.runners.items() if name != trial})

    def lost(self, now: float) -> set[str]:
        """Return the trials under way that are taken to be lost."""
        return {
            name
            for name, runner in self.runners.items()
            if now - runner.since > 2 * self.longest and runner.overtaken >= ENOUGH
        }
