"""The commands `hypergrad sweep` and `hypergrad sweep status`."""

import shlex
import sys
from typing import Literal

import click
import optuna
from ray.tune.experiment import Trial
from rich.console import Console

from hypergrad_studies.options import checked
from hypergrad_studies.spending import Budget
from hypergrad_studies.sweep import driver, progress, ray_engine
from hypergrad_studies.sweep.plan import Limits, Plan

STORAGES = {"optuna": "sqlite:///hypergrad-sweep.db", "ray": "hypergrad-sweep"}


class _Sweep(click.Group):
    """A group whose command may be left out: what is none of its names is a problem to run."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


_storage = click.option(
    "--storage",
    help="Of Optuna: a URL of a database, such as postgresql+psycopg://user@host/database, journal:PATH, or "
    "grpc://HOST:PORT; of Ray: a folder that all nodes see.  "
    f"[default: {STORAGES['optuna']}, or the folder {STORAGES['ray']}]",
)
_engine = click.option(
    "--engine",
    type=click.Choice(["optuna", "ray"]),
    default="optuna",
    show_default=True,
    help="What spreads the trials: processes that share a storage of Optuna, or Ray Tune.",
)
_direction = click.option(
    "--direction", type=click.Choice(["minimize", "maximize"]), default="minimize", show_default=True
)
_metric = click.option("--metric", default="loss", show_default=True, help="What counts of a trainable's result.")
_study = click.option("--study", help="The study's name in the storage.  [default: the problem's]")


@click.group(cls=_Sweep, context_settings={"help_option_names": ["-h", "--help"]})
def sweep() -> None:
    """Run one study by many processes: `sweep PROBLEM ...`; see `sweep run --help`."""


@sweep.command()
@click.argument("problem")
@_engine
@_storage
@_study
@click.option(
    "--method",
    default="hypergrad",
    show_default=True,
    help="What searches: a name, as `hypergrad compare --help` lists them, or MODULE:FACTORY, which is called with "
    "seed= and makes a sampler.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes on this machine; of Ray, trials at once.  [default: 1; of Ray, one for each core]",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Trials that a process trains at once, on its device.",
)
@click.option("--address", help="A Ray cluster, one of whose nodes this is: auto, or HOST:PORT of its head.")
@click.option("--trials", type=click.IntRange(min=1), help="End when the study has so many trials, whoever ran them.")
@click.option(
    "--budget",
    type=checked(Budget.parse),
    metavar="NUMBER|TIME",
    help="End when the study's trials have cost so many gradient evaluations, or so much time, added up.",
)
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Stop here after so many seconds.")
@_direction
@_metric
def run(
    problem: str,
    engine: Literal["optuna", "ray"],
    storage: str | None,
    study: str | None,
    method: str,
    workers: int | None,
    batch: int,
    address: str | None,
    trials: int | None,
    budget: Budget | None,
    timeout: float | None,
    direction: Literal["minimize", "maximize"],
    metric: str,
) -> None:
    """Work on a study of PROBLEM, with processes on this machine; others may join by the same command.

    PROBLEM is package.module:make or path/to/file.py:make, where make() returns (problem, space) or an objective of
    Optuna, or the name of a registered problem. Ctrl-C lets the trials under way end, and a second one gives them up;
    the same command goes on. A study may get one trial, or one batch, more than --trials for each process but one.
    """
    if engine == "optuna" and address is not None:
        raise click.UsageError("--address is for --engine ray; processes of Optuna meet at --storage")
    if address is not None and address.startswith("ray://"):
        raise click.UsageError(f"--address {address}: run this on a node of the cluster, with --address auto")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    limits = Limits(trials, budget)
    plan = Plan(
        problem, storage or STORAGES[engine], study or problem, method, direction, limits, engine, metric, batch
    )
    try:
        plan.check()
        if engine == "ray":
            ray_engine.run(plan, workers, timeout, address)
            ended = _show_ray(plan.storage, plan.study, metric, direction)
            done = trials is None or ended >= trials
        else:
            joined = plan.join()
            done = driver.run(plan, workers or 1, timeout, Console())
            Console().print(progress.table(joined))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except (driver.WorkerFailed, ray_engine.AllFailed) as error:
        raise click.ClickException(str(error)) from None
    if not done:
        words = shlex.join(["hypergrad", *sys.argv[1:]])
        Console().print(f"not done yet; to continue: {words}", soft_wrap=True, markup=False, highlight=False)


@sweep.command()
@click.argument("problem", required=False)
@_engine
@_storage
@_study
@_direction
@_metric
def status(
    problem: str | None, engine: str, storage: str | None, study: str | None, direction: str, metric: str
) -> None:
    """Show how far a study is: that of PROBLEM, or the one named by --study; --direction and --metric are for Ray."""
    name, where = study or problem, storage or STORAGES[engine]
    if name is None:
        raise click.UsageError("name the problem, or the study by --study")
    try:
        if engine == "ray":
            _show_ray(where, name, metric, direction)
        else:
            Console().print(progress.table(progress.find(where, name)))
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _show_ray(storage: str, study: str, metric: str, direction: str) -> int:
    """Show a sweep of Ray, and return how many of its trials have ended."""
    analysis = ray_engine.find(storage, study)
    Console().print(ray_engine.table(analysis, metric, maximise=direction == "maximize"))
    return sum(trial.status in (Trial.TERMINATED, Trial.ERROR) for trial in analysis.trials or ())
