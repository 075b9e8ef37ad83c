"""The commands `hypergrad sweep` and `hypergrad sweep status`."""

import shlex
import sys
from typing import Literal

import click
import optuna
from rich.console import Console

from hypergrad_studies.options import checked
from hypergrad_studies.spending import Budget
from hypergrad_studies.sweep import driver, progress
from hypergrad_studies.sweep.plan import Limits, Plan

STORAGE = "sqlite:///hypergrad-sweep.db"


class _Sweep(click.Group):
    """A group whose command may be left out: what is none of its names is a problem to run."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


_storage = click.option(
    "--storage",
    default=STORAGE,
    show_default=True,
    help="A URL of a database, such as postgresql+psycopg://user@host/database, journal:PATH, or grpc://HOST:PORT.",
)
_study = click.option("--study", help="The study's name in the storage.  [default: the problem's]")


@click.group(cls=_Sweep, context_settings={"help_option_names": ["-h", "--help"]})
def sweep() -> None:
    """Run one study by many processes: `sweep PROBLEM ...`; see `sweep run --help`."""


@sweep.command()
@click.argument("problem")
@_storage
@_study
@click.option(
    "--method",
    default="hypergrad",
    show_default=True,
    help="What searches: a name, as `hypergrad compare --help` lists them, or MODULE:FACTORY, which is called with "
    "seed= and makes a sampler.",
)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes on this machine.")
@click.option("--trials", type=click.IntRange(min=1), help="End when the study has so many trials, whoever ran them.")
@click.option(
    "--budget",
    type=checked(Budget.parse),
    metavar="NUMBER|TIME",
    help="End when the study's trials have cost so many gradient evaluations, or so much time, added up.",
)
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Stop here after so many seconds.")
@click.option("--direction", type=click.Choice(["minimize", "maximize"]), default="minimize", show_default=True)
def run(
    problem: str,
    storage: str,
    study: str | None,
    method: str,
    workers: int,
    trials: int | None,
    budget: Budget | None,
    timeout: float | None,
    direction: Literal["minimize", "maximize"],
) -> None:
    """Work on a study of PROBLEM, with processes on this machine; others may join by the same command.

    PROBLEM is package.module:make or path/to/file.py:make, where make() returns (problem, space) or an objective of
    Optuna, or the name of a registered problem. Ctrl-C lets the trials under way end, and a second one gives them up;
    the same command goes on. A study may get one trial more than --trials for each process but one.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plan = Plan(problem, storage, study or problem, method, direction, Limits(trials, budget))
    try:
        plan.check()
        joined = plan.join()
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    console = Console()
    try:
        done = driver.run(plan, workers, timeout, console)
    except driver.WorkerFailed as error:
        raise click.ClickException(str(error)) from None
    console.print(progress.table(joined))
    if not done:
        words = shlex.join(["hypergrad", *sys.argv[1:]])
        console.print(f"not done yet; to continue: {words}", soft_wrap=True, markup=False, highlight=False)


@sweep.command()
@click.argument("problem", required=False)
@_storage
@_study
def status(problem: str | None, storage: str, study: str | None) -> None:
    """Show how far a study is: that of PROBLEM, or the one named by --study."""
    name = study or problem
    if name is None:
        raise click.UsageError("name the problem, or the study by --study")
    try:
        found = progress.find(storage, name)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    Console().print(progress.table(found))
