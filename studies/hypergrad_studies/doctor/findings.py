"""The whole examination, what it finds, and what of that is wrong."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hypergrad_studies.doctor import costs
from hypergrad_studies.doctor.costs import MethodCost
from hypergrad_studies.doctor.gradients import Agreement, compare
from hypergrad_studies.doctor.kinds import KINDS
from hypergrad_studies.doctor.machine import Machine, Verdict
from hypergrad_studies.doctor.reversals import Outcome, Reversal, reverse
from hypergrad_studies.doctor.settings import settings


@dataclass(frozen=True)
class Findings:
    """What an examination has found; all but the machine is empty where a setting of the machine is missing."""

    machine: Machine
    reversals: Sequence[Reversal] = ()
    agreements: Sequence[Agreement] = ()
    costs: Sequence[MethodCost] = ()

    def outcomes(self, kind: str) -> Counter[Outcome]:
        """Return how many settings of a kind ended how."""
        return Counter(x.outcome for x in self.reversals if x.setting.program.kind == kind)

    def agreement(self, kind: str) -> Agreement | None:
        """Return the errors of a kind's gradients; None where none could be compared."""
        return next((x for x in self.agreements if x.kind == kind), None)

    def fault(self, kind: str) -> str:
        """Return what is wrong with a kind, or not known of it; "" where it can be trusted."""
        inexact = [x for x in self.reversals if x.setting.program.kind == kind and x.outcome is Outcome.INEXACT]
        if inexact:
            return f"{len(inexact):,} not reversed to the bit ({inexact[0].why})"
        agreement = self.agreement(kind)
        if agreement is None:
            return "no gradient could be compared; take more --settings"
        return "" if agreement.is_close(self.machine.coarseness) else "gradients are too far off"

    @property
    def kinds(self) -> list[str]:
        """The kinds of which there are settings."""
        present = {x.setting.program.kind for x in self.reversals}
        return [kind for kind in KINDS if kind in present]

    @property
    def failures(self) -> list[str]:
        """All that is wrong, in sentences; exact hypergradients can be trusted where there is nothing."""
        missing = [x for x in self.machine.checks if x.verdict is Verdict.MISSING]
        faults = {kind: self.fault(kind) for kind in self.kinds}
        return [f"{x.name}: missing; set {x.advice}" for x in missing] + [
            f"{kind}: {fault}" for kind, fault in faults.items() if fault
        ]


def examine(count: int, seed: int, console: Console) -> Findings:
    """Examine this machine with `count` random settings; a bar on the console shows how far it has come."""
    machine = Machine.here()
    if Findings(machine).failures:
        return Findings(machine)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        drawn = settings(count, seed)
        reversals = list(progress.track(reverse(drawn), total=len(drawn), description="running backwards"))
        kinds = Findings(machine, reversals).kinds
        compared = [
            compare(kind, reversals) for kind in progress.track(kinds, description="comparing gradients with float64")
        ]
        progress.add_task("measuring time and memory", total=None)
        with jax.enable_x64(False):  # the network has JAX's default type, which must be float32 to be reversed
            measured = costs.measure()
    return Findings(machine, reversals, [x for x in compared if x is not None], measured)
