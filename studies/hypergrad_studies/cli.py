"""The command line, `hypergrad`."""

import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import get_args

import click
import optuna
from rich.console import Console

from hypergrad_studies import data, records
from hypergrad_studies.compare import compare as run_comparison
from hypergrad_studies.methods import BACKENDS
from hypergrad_studies.papers import STUDIES, results
from hypergrad_studies.problems import PROBLEMS
from hypergrad_studies.report import table, write_report


class Names(click.ParamType):
    """Names separated by commas, each of them known."""

    name = "NAME,..."

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        return [name.strip() for name in value.split(",") if name.strip()]


def _known(names: Collection[str], known: Collection[str], option: str) -> None:
    for name in names:
        if name not in known:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(known)}", param_hint=option)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hypergrad-search")
def cli() -> None:
    """Hyperparameter search with exact hypergradients, compared with its rivals at the same compute."""


@cli.command()
@click.option(
    "--problem",
    "problems",
    type=Names(),
    multiple=True,
    default=["digits-mlp"],
    help=f"One or more of {', '.join(PROBLEMS)}.",
)
@click.option(
    "--methods",
    type=Names(),
    help="By default all that the backend has. "
    + "; ".join(f"{backend}: {', '.join(methods)}" for backend, methods in BACKENDS.items())
    + ".",
)
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    default=5000,
    show_default=True,
    help="Of each run, in gradient evaluations: a training step is 1, a step of the reverse pass 3.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="How many.")
@click.option("--backend", type=click.Choice(list(BACKENDS)), default="optuna", show_default=True)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for records and report.",
)
def compare(
    problems: tuple[list[str], ...],
    methods: list[str] | None,
    budget: int,
    seeds: int,
    backend: str,
    out: Path,
) -> None:
    """Compare methods on problems at the same budget; run it again to continue where it was cut off."""
    chosen = list(dict.fromkeys(name for names in problems for name in names))
    rivals = list(dict.fromkeys(methods)) if methods else list(BACKENDS[backend])
    _known(chosen, PROBLEMS, "--problem")
    _known(rivals, BACKENDS[backend], f"--methods (with --backend {backend})")
    console = Console()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        run_comparison(out, chosen, rivals, budget=budget, seeds=seeds, backend=backend, console=console)
    except KeyboardInterrupt:
        raise click.ClickException(f"stopped; the same command continues, hypergrad report {out} reports") from None
    _show(out, console)


@cli.command()
@click.argument("out", type=click.Path(exists=True, file_okay=False, path_type=Path))
def report(out: Path) -> None:
    """Make the table and the report again, from the records in folder OUT."""
    _show(out, Console())


@cli.command()
@click.argument("name", type=click.Choice(list(STUDIES)))
@click.option(
    "--scale",
    type=click.Choice(get_args(results.Scale)),
    default="small",
    show_default=True,
    help="small: scikit-learn's digits, under a minute; paper: the paper's own data and sizes.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="How many.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for records, figure and results.json.  [default: out/reproduce/NAME]",
)
def reproduce(name: str, scale: results.Scale, seeds: int, out: Path | None) -> None:
    """Repeat the study NAME of a paper, and show its numbers beside the paper's."""
    out = out or Path("out", "reproduce", name)
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    found = STUDIES[name](scale, out, seeds, console)
    results.write(out / "results.json", found)
    console.width = max(console.width, 100)
    console.print(results.table(found))
    console.print(f"results: {out / 'results.json'}")


def _show(out: Path, console: Console) -> None:
    study = records.Study.load(out)
    console.width = max(console.width, 100)  # narrower, the table would lose figures
    console.print(table(study.records, study.runs))
    console.print(f"report: {write_report(out)}")


def main(command: Callable[..., object] = cli) -> None:
    """Run the command line; every error is one line that says what to do."""
    try:
        command(standalone_mode=False)
        return
    except click.ClickException as error:
        message, code = error.format_message(), error.exit_code
    except (data.MissingData, records.BrokenRecords, records.OtherStudy) as error:
        message, code = str(error), 1
    except (click.Abort, KeyboardInterrupt):
        message, code = "stopped", 130
    click.echo(f"hypergrad: error: {' '.join(message.split())}", err=True)
    sys.exit(code)
