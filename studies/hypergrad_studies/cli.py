"""The command line, `hypergrad`."""

import shlex
import sys
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import get_args

import click
import optuna
from rich.console import Console

from hypergrad_search.cost import REVERSE_STEP, TRAINING_STEP
from hypergrad_studies import architecture as architectures
from hypergrad_studies import bench as measuring
from hypergrad_studies import bench_convolutions, bench_report, budgets_plot, data, json_lines, records
from hypergrad_studies import budgets as after_budgets
from hypergrad_studies import data_cleaning as cleaning
from hypergrad_studies import data_cleaning_cost as cleaning_cost
from hypergrad_studies import data_selection as selection
from hypergrad_studies import doctor as examination
from hypergrad_studies import initial_weights as learned_weights
from hypergrad_studies import methods as ways_to_gradients
from hypergrad_studies.comparison import CannotRun, check_workers, who_can_run
from hypergrad_studies.comparison import run as run_comparison
from hypergrad_studies.jobs import compute_on_one_core
from hypergrad_studies.loading import load
from hypergrad_studies.options import checked, names_of, numbers_of
from hypergrad_studies.overhead import measure as measure_overhead
from hypergrad_studies.overhead_ray import measure as measure_overhead_in_ray
from hypergrad_studies.page_sections import has_section, rewritten
from hypergrad_studies.papers import STUDIES, results
from hypergrad_studies.papers import page as of_papers
from hypergrad_studies.parallel import MOST
from hypergrad_studies.parallel import measure as measure_parallel
from hypergrad_studies.posing import backend_of, named
from hypergrad_studies.problems import PROBLEMS
from hypergrad_studies.problems.data_cleaning import L2, SIZES
from hypergrad_studies.report import table, verdicts, write_report
from hypergrad_studies.rivals import BACKENDS, BY_METHOD, DEAR, KNOWN, RIVALS, TRIED, Rival, of_factory
from hypergrad_studies.spending import Budget, NoCost
from hypergrad_studies.sweep.command import sweep
from hypergrad_studies.sweep.driver import WorkerFailed
from hypergrad_studies.sweep.speedup import measure as measure_speedup
from hypergrad_studies.tasks import Task
from hypergrad_studies.workers import WorkerLost


def _known(names: Collection[str], known: Collection[str], option: str) -> None:
    for name in names:
        if name not in known:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(known)}", param_hint=option)


def _seeds(value: str) -> range:
    """Return the seeds that a text states: their number, or the first one and the one after the last."""
    first, colon, end = value.rpartition(":")
    try:
        seeds = range(int(first) if colon else 0, int(end))
    except ValueError:
        raise ValueError(f"must be a whole number, or FROM:TO such as 5:10, got {value!r}") from None
    if not seeds or seeds.start < 0:
        raise ValueError(f"must be at least one seed from 0, got {value!r}")
    return seeds


def _folders(metavar: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the argument of a command that reads one or more folders of records."""
    folder = click.Path(exists=True, file_okay=False, path_type=Path)
    return click.argument("folders", metavar=metavar, type=folder, nargs=-1, required=True)


def _page_option(section: str, more: str = ".") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option of a command that writes a section of a file; its help ends with `more`."""
    return click.option(
        "--page",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help=f"Rewrite this file between <!-- {section} --> and <!-- /{section} -->{more}",
    )


def _out_option(folder: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option of a command that names the folder of its records, by default one in `out`."""
    return click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("out", folder),
        show_default=True,
        help="The folder of the records.",
    )


_models_option = click.option(
    "--model",
    "models",
    type=click.Choice(list(SIZES)),
    multiple=True,
    default=["linear"],
    show_default=True,
    help="A model to clean the data with; may be given several times.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hypergrad-search")
def cli() -> None:
    """Hyperparameter search with exact hypergradients, compared with its rivals at the same compute."""


cli.add_command(sweep)


@cli.command()
@click.option(
    "--problem",
    "problems",
    type=names_of,
    metavar="NAME,...",
    multiple=True,
    default=["digits-mlp"],
    help="One or more of your own, package.module:make or file.py:make, where make() returns (problem, space), an "
    "objective of Optuna, or (trainable, space) of Ray Tune; or of "
    f"{', '.join(PROBLEMS)}.",
)
@click.option(
    "--methods",
    type=names_of,
    metavar="NAME,...",
    help="By default all that the backend has and that can run on the problem, but for "
    f"{', '.join(DEAR | BY_METHOD | TRIED)}. "
    + "; ".join(f"{b}: {', '.join(n for n, rival in RIVALS.items() if rival.runs_in(b))}" for b in BACKENDS)
    + ".",
)
@click.option(
    "--method",
    "own",
    metavar="NAME=MODULE:FACTORY",
    multiple=True,
    help="A method of your own beside the others: the factory is called with seed=, and makes a sampler of Optuna or a "
    "searcher of Ray Tune, as in qmc=optuna.samplers:QMCSampler. It may be given several times.",
)
@click.option(
    "--budget",
    type=checked(Budget.parse),
    metavar="NUMBER|TIME",
    default="5000",
    show_default=True,
    help="What each run may spend: a number of gradient evaluations "
    f"(a training step costs {TRAINING_STEP}, a step of the reverse pass {REVERSE_STEP}), or a time such as 90s, "
    "10min or 1h, which an objective needs that does not say its costs.",
)
@click.option(
    "--seeds",
    type=checked(_seeds),
    metavar="NUMBER|FROM:TO",
    default="5",
    show_default=True,
    help="How many seeds, from 0; or from one to another, which is left out: 5:10 are five more.",
)
@click.option("--backend", type=click.Choice(BACKENDS), help="[default: ray for trainables of Ray Tune, else optuna]")
@click.option(
    "--direction",
    type=click.Choice(["minimize", "maximize"]),
    default="minimize",
    show_default=True,
    help="Of objectives and trainables of your own.",
)
@click.option("--metric", default="loss", show_default=True, help="What counts of a trainable's result.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Runs at once, each in a process of its own with one core. [default: 1, or all cores of the cluster at "
    "--address]",
)
@click.option(
    "--address",
    help="A Ray cluster, one of whose nodes this is, to spread runs over: auto, or HOST:PORT of its head. "
    "All nodes must have this package installed.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for records and report.",
)
def compare(
    problems: tuple[list[str], ...],
    methods: list[str] | None,
    own: tuple[str, ...],
    budget: Budget,
    seeds: range,
    backend: str | None,
    direction: str,
    metric: str,
    workers: int | None,
    address: str | None,
    out: Path,
) -> None:
    """Compare methods on problems at the same budget; run it again to continue where it was cut off."""
    names = list(dict.fromkeys(name for each in problems for name in each))
    tasks = [_task(name, direction, metric) for name in names]
    hosts = {backend_of(task) for task in tasks} if backend is None else {backend}
    if len(hosts) > 1:
        raise click.UsageError("trainables of Ray Tune run in ray, the other problems in optuna; compare them apart")
    (host,) = hosts
    try:
        check_workers(host, workers, address)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    compute_on_one_core()
    console = Console()
    chosen, users = _chosen(methods, host), [_own(text) for text in own]
    try:
        able = {task: who_can_run(task, chosen, users, host, budget, console) for task in tasks}
    except CannotRun as error:
        raise click.UsageError(str(error)) from None
    try:
        run_comparison(
            out, able, budget=budget, seeds=seeds, backend=host, console=console, workers=workers, address=address
        )
    except KeyboardInterrupt:
        raise click.ClickException(
            f"stopped; run the same command again to continue, or `hypergrad report {out}` for a report so far"
        ) from None
    _show(out, console)


def _task(name: str, direction: str, metric: str) -> Task:
    try:
        return named(name, maximise=direction == "maximize", metric=metric)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--problem") from None


def _chosen(methods: list[str] | None, host: str) -> list[Rival]:
    """Return the rivals that were named; none where all shall run."""
    known = {name: rival for name, rival in KNOWN.items() if rival.runs_in(host)}
    _known(methods or (), known, f"--methods (with --backend {host})")
    return [known[name] for name in dict.fromkeys(methods or ())]


def _own(text: str) -> Rival:
    name, equals, reference = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"must be NAME=MODULE:FACTORY, got {text!r}", param_hint="--method")
    if name in KNOWN:
        raise click.BadParameter(f"there is a method {name!r} already; choose another name", param_hint="--method")
    try:
        return of_factory(name, load(reference))
    except ValueError as error:
        raise click.BadParameter(f"{text}: {error}", param_hint="--method") from None


@cli.command()
@click.argument("out", type=click.Path(exists=True, file_okay=False, path_type=Path))
def report(out: Path) -> None:
    """Make the table and the report again, from the records in folder OUT."""
    _show(out, Console())


@cli.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@_folders("FROM...")
def merge(out: Path, folders: tuple[Path, ...]) -> None:
    """Add the finished runs in folders FROM to folder OUT, as of other seeds or methods at the same budget."""
    console = Console()
    with records.held(out):
        for folder in folders:
            console.print(f"{records.merge(out, folder)} runs added from {folder}", soft_wrap=True)
    _show(out, console)


@cli.command()
@_folders("OUT...")
@click.option(
    "--runs",
    type=numbers_of(click.IntRange(min=1)),
    metavar="NUMBER,...",
    default="25,50,100,200",
    show_default=True,
    help="Numbers of training runs.",
)
@_page_option("budgets", ", instead of printing, and a picture beside it, with the suffix .svg.")
def budgets(folders: tuple[Path, ...], runs: list[int], page: Path | None) -> None:
    """Show what each method had found after so many training runs, from the records in folders OUT."""
    command = shlex.join(["hypergrad", "budgets", *map(str, folders), "--runs", ",".join(map(str, runs))])
    tables: dict[str, list[after_budgets.Row]] = {}
    for folder in folders:
        study = records.Study.load(folder)
        _known({record.problem for record in study.records}, PROBLEMS, str(folder))
        steps = {record.problem: PROBLEMS[record.problem]().problem.steps for record in study.records}
        for problem, of_problem in after_budgets.rows(study, steps, runs).items():
            tables.setdefault(problem, []).extend(of_problem)
    content = after_budgets.markdown(tables, runs, command) + "\n"
    if page is None:
        click.echo(content, nl=False)
    else:
        _rewrite(page, "budgets", content)
        ours = [name for name, rival in KNOWN.items() if rival.gradients]
        found = {problem: after_budgets.ratios(table, ours) for problem, table in tables.items()}
        if any(map(any, found.values())):
            budgets_plot.write_plot(found, runs, page.with_suffix(".svg"))


@cli.command()
@click.option(
    "--steps",
    type=numbers_of(click.IntRange(min=1)),
    metavar="NUMBER,...",
    help="Training steps. [default: 100,300,1000,3000,10000]",
)
@click.option(
    "--decays",
    type=numbers_of(click.FloatRange(1 / 256, 1, max_open=True)),
    metavar="NUMBER,...",
    help="Momentum, and Adam's b1. [default: 0.5,0.9,0.98,0.999]",
)
@click.option(
    "--widths",
    type=numbers_of(click.IntRange(min=1)),
    metavar="NUMBER,...",
    help="Widths of the two hidden layers. [default: 50,512,1700: 6,000, 300,000 and 3 million weights]",
)
@click.option(
    "--ways",
    type=names_of,
    metavar="NAME,...",
    help="What to measure beside plain training. By default all of "
    + ", ".join(str(way) for way in measuring.WAYS if way.name != "plain")
    + ".",
)
@click.option("--quick", is_flag=True, help="Other defaults: 100,300 steps, decay 0.9, widths 50,512; no long case.")
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Rounds, in each of which every way runs once.",
)
@click.option(
    "--memory-limit",
    type=click.FloatRange(min=0, min_open=True),
    help="GB of memory; what needs more is compiled, not run. [default: half of the machine's]",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("out/bench"),
    show_default=True,
    help="Folder for records and plot.",
)
@_page_option("bench", ", and bench.svg beside it.")
def bench(
    steps: list[int] | None,
    decays: list[float] | None,
    widths: list[int] | None,
    ways: list[str] | None,
    quick: bool,
    repeats: int,
    memory_limit: float | None,
    out: Path,
    page: Path | None,
) -> None:
    """Measure time and memory of hypergradients: reversible training beside jax.grad, checkpoints and equinox.

    One thing varies at a time, from 300 steps, decay 0.9 and width 512 (or the first of the choices); each way's time
    is a ratio to plain training. Without --ways, evaluations of a small convolutional network are timed too, beside a
    Python loop of optax.
    """
    known = {str(way): way for way in measuring.WAYS if way.name != "plain"}
    _known(ways or (), known, "--ways")
    _check_section(page, "bench")
    plan = measuring.cases(
        steps or ([100, 300] if quick else [100, 300, 1000, 3000, 10_000]),
        decays or ([0.9] if quick else [0.5, 0.9, 0.98, 0.999]),
        widths or ([50, 512] if quick else [50, 512, 1700]),
        measuring.with_plain(known[name] for name in ways or known),
        long=not quick,
    )
    console = Console()
    limit = memory_limit * 1e9 if memory_limit else measuring.half_of_memory()
    measured = measuring.run(out, plan, repeats=repeats, limit=limit, console=console)
    timings = [] if ways else measuring.in_a_process(partial(bench_convolutions.measure, repeats))
    json_lines.replace(out / "convolutions.jsonl", timings)
    console.width = max(console.width, 100)
    console.print(*bench_report.tables(measured, timings))
    console.print(f"plot: {bench_report.write_plot(measured, out / 'bench.svg')}")
    if page is not None:
        _rewrite(page, "bench", bench_report.markdown(measured, timings))
        bench_report.write_plot(measured, page.parent / "bench.svg")


@cli.command()
@click.option(
    "--trials", type=click.IntRange(min=10), default=1000, show_default=True, help="How many trials each study has."
)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Pairs of studies beside TPE."
)
@click.option("--engine", type=click.Choice(["optuna", "ray"]), default="optuna", show_default=True)
def overhead(trials: int, repeats: int, engine: str) -> None:
    """Measure the time that HypergradSampler itself takes for a trial.

    It is measured beside TPE, in a study of ten times as many trials, in memory and in SQLite, and with an array of
    100,000 numbers. With --engine ray it is what a trial of Ray Tune takes, with few numbers and with a million.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    console = Console()
    console.width = max(console.width, 100)
    if engine == "ray":
        console.print(measure_overhead_in_ray(trials))
        return
    console.print(measure_overhead(trials, repeats))


@cli.command()
@click.option(
    "--problem",
    help="Measure with real processes on this problem, a name as for `hypergrad sweep`.  [default: in virtual time, on "
    "functions that are known]",
)
@click.option("--workers", type=click.IntRange(min=1), default=4, show_default=True, help="How many workers.")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="With --problem: how many trials each of them trains at once.",
)
@click.option(
    "--trials",
    type=click.IntRange(10, MOST),
    default=60,
    show_default=True,
    help="The target is what one worker finds in so many trials.",
)
@click.option("--repeats", type=click.IntRange(min=1), help="How many searches.  [default: 8; with --problem, 3]")
def parallel(problem: str | None, workers: int, batch: int, trials: int, repeats: int | None) -> None:
    """Measure how much sooner several workers, or one that trains several trials at once, find a loss than one."""
    if problem is None and batch > 1:
        raise click.UsageError("--batch needs a --problem, whose trials are trained at once")
    console = Console()
    console.width = max(console.width, 100)
    if problem is None:
        console.print(measure_parallel(workers, trials, repeats or 8))
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        console.print(measure_speedup(problem, workers, batch, trials, repeats or 3))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except WorkerFailed as error:
        raise click.ClickException(str(error)) from None


@cli.command()
@click.option(
    "--steps",
    type=click.IntRange(min=100),
    default=1000,
    show_default=True,
    help="No case has more training steps; up to 4,000 are worth while.",
)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="How often times are taken.")
@click.option(
    "--method",
    "only",
    multiple=True,
    type=click.Choice(list(ways_to_gradients.METHODS)),
    help="A method to measure; it may be given several times.  [default: all]",
)
@_out_option("methods")
@_page_option("methods")
def methods(steps: int, repeats: int, only: tuple[str, ...], out: Path, page: Path | None) -> None:
    """Hold the ways to the gradient against float64: error, time and cost as training grows.

    It takes some minutes for each hundred steps, most of them to compile. The records go to methods.jsonl in --out.
    """
    _check_section(page, "methods")
    console = Console()
    found = ways_to_gradients.measure(steps, repeats, console, only)
    ways_to_gradients.write(found, out)
    console.width = max(console.width, 100)
    console.print(*ways_to_gradients.tables(found))
    if page is not None:
        chosen = [word for name in only for word in ("--method", name)]
        command = shlex.join(["hypergrad", "methods", "--steps", str(steps), "--repeats", str(repeats), *chosen])
        _rewrite(page, "methods", ways_to_gradients.markdown(found, command))


@cli.command("data-cleaning")
@_models_option
@click.option(
    "--method",
    "methods",
    type=click.Choice(list(cleaning.METHODS)),
    multiple=True,
    default=["Reversible"],
    show_default=True,
    help="A way to the gradient; may be given several times.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="How many, from 1 on.")
@click.option("--trials", type=click.IntRange(min=1), default=8, show_default=True, help="How many in each study.")
@click.option("--l2", type=click.FloatRange(min=0), default=L2, show_default=True, help="The penalty of training.")
@_out_option("data-cleaning")
def data_cleaning(
    models: tuple[str, ...], methods: tuple[str, ...], seeds: int, trials: int, l2: float, out: Path
) -> None:
    """Find the wrong half of the labels of 5,000 images of MNIST by the gradients of 6,000 weights.

    1,000 of them are of planted errors. A study takes about a minute with the linear model, and some minutes with the
    network. The records go to data_cleaning.jsonl in --out.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    console = Console()
    try:
        found = cleaning.measure(models, methods, seeds, trials, l2, console)
    except data.MissingData as error:
        raise click.ClickException(str(error)) from None
    cleaning.write(found, out)
    console.width = max(console.width, 100)
    console.print(*cleaning.tables(found))


@cli.command("data-cleaning-cost")
@_models_option
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="How often times are taken.")
@_out_option("data-cleaning")
def data_cleaning_cost(models: tuple[str, ...], repeats: int, out: Path) -> None:
    """Measure the time and memory of a gradient by the weights of data-cleaning, beside those of training.

    The records go to data_cleaning_cost.jsonl in --out.
    """
    try:
        found = [cleaning_cost.measure(model, repeats) for model in models]
    except data.MissingData as error:
        raise click.ClickException(str(error)) from None
    cleaning_cost.write(found, out)
    Console().print(cleaning_cost.table(found))


@cli.command("data-selection")
@click.option("--model", type=click.Choice(list(SIZES)), default="linear", show_default=True, help="What is trained.")
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="How many, from 1 on.")
@click.option("--gradients", type=click.IntRange(min=1), default=8, show_default=True, help="How many a choice takes.")
@_out_option("data-selection")
def data_selection(model: str, seeds: int, gradients: int, out: Path) -> None:
    """Choose 500 of 5,000 images of MNIST, of which half have wrong labels, by the gradients of their weights.

    With the linear model it takes some minutes. The records go to data_selection.jsonl in --out.
    """
    console = Console()
    try:
        found = selection.measure(model, seeds, gradients, console)
    except data.MissingData as error:
        raise click.ClickException(str(error)) from None
    selection.write(found, out)
    console.width = max(console.width, 100)
    console.print(selection.table(found))


@cli.command("initial-weights")
@click.option("--steps", type=click.IntRange(min=1), default=200, show_default=True, help="Outer steps of MAML.")
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="How many seeds.")
@_out_option("initial-weights")
def initial_weights(steps: int, seeds: int, out: Path) -> None:
    """Learn initial weights for few-shot tasks of Omniglot: MAML by exact hypergradients, and its rivals.

    All spend as many gradient evaluations. Choices rest on validation tasks, results on test tasks of other alphabets.
    The records go to records.jsonl and reductions.jsonl in --out.
    """
    console = Console()
    console.width = max(console.width, 120)
    try:
        characters = learned_weights.characters(data.omniglot())
    except data.MissingData as error:
        raise click.ClickException(str(error)) from None
    found, reductions = learned_weights.measure(characters, steps, seeds, console)
    learned_weights.write(found, reductions, out)
    console.print(*learned_weights.tables(found, reductions))


@cli.command()
@click.option(
    "--runs",
    type=click.IntRange(min=20),
    default=40,
    show_default=True,
    help="What each search may spend, in training runs.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="How many seeds.")
@_out_option("architecture")
def architecture(runs: int, seeds: int, out: Path) -> None:
    """Choose connections of a small network by the weights that a hypernetwork generates, and by random search.

    Both spend as many gradient evaluations. The records go to records.jsonl and rankings.jsonl in --out.
    """
    console = Console()
    console.width = max(console.width, 140)
    found, rankings = architectures.measure(runs, seeds, console)
    architectures.write(found, rankings, out)
    console.print(*architectures.tables(found, rankings))


@cli.command()
@click.option(
    "--settings", type=click.IntRange(min=1), default=1000, show_default=True, help="How many random settings."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The seed that draws them.")
@_page_option("doctor")
def doctor(settings: int, seed: int, page: Path | None) -> None:
    """Examine whether exact hypergradients can be trusted on this machine; it fails where they cannot.

    Random training runs are run backwards to the bit, and their gradients compared with float64 on the CPU.
    """
    _check_section(page, "doctor")
    console = Console()
    found = examination.examine(settings, seed, console)
    console.width = max(console.width, 100)
    console.print(*examination.tables(found))
    if page is not None:
        command = f"hypergrad doctor --settings {settings} --seed {seed}"
        _rewrite(page, "doctor", examination.markdown(found, command))
    if found.failures:
        raise click.ClickException(examination.verdict(found))
    console.print(examination.verdict(found), soft_wrap=True)


@cli.command()
@click.argument("names", metavar="NAME...", type=click.Choice([*STUDIES, "all"]), nargs=-1, required=True)
@click.option(
    "--scale",
    type=click.Choice(get_args(results.Scale)),
    default="small",
    show_default=True,
    help="small: scikit-learn's digits, a few minutes at most; paper: the paper's own data and sizes.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="How many seeds.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for records, figures and results.json; each of several studies gets a folder of its own in it.  "
    "[default: out/reproduce/SCALE, and for one study out/reproduce/SCALE/NAME]",
)
@_page_option("reproduce")
def reproduce(names: tuple[str, ...], scale: results.Scale, seeds: int, out: Path | None, page: Path | None) -> None:
    """Repeat studies of papers, and show their numbers beside the papers'; "all" or several also make a page.

    Outer loops and chaos go on where they were cut off; all other studies begin again. Where several studies are named,
    those that have finished are not run again.
    """
    _check_section(page, "reproduce")
    chosen = list(STUDIES) if "all" in names else list(dict.fromkeys(names))
    several = len(chosen) > 1
    whole = out or Path("out", "reproduce", scale)
    console = Console()
    found: dict[str, list[results.Result]] = {}
    try:
        for name in chosen:
            folder = whole / name if several or out is None else whole
            results.claim(folder, name, scale)
            path = folder / "results.json"
            found[name] = results.read(path, name, scale, seeds) if several else []
            if not found[name]:
                found[name] = STUDIES[name](scale, folder, seeds, console)
                results.write(path, found[name])
    except KeyboardInterrupt:
        raise click.ClickException("stopped; run the same command again to continue") from None
    console.width = max(console.width, 100)
    for rows in found.values():
        console.print(results.table(rows))
    command = ["hypergrad", "reproduce", *names, "--scale", scale, "--seeds", str(seeds)]
    if several:
        console.print(
            f"page: {of_papers.write_page(whole, found, STUDIES, shlex.join([*command, '--out', str(whole)]))}"
        )
    else:
        console.print(f"results: {path}")
    if page is not None:
        _rewrite(page, "reproduce", of_papers.markdown(found, shlex.join(command)))


def _check_section(page: Path | None, name: str) -> None:
    if page is not None and not has_section(page.read_text(encoding="utf-8"), name):
        raise click.BadParameter(
            f"the file has no <!-- {name} --> ... <!-- /{name} -->; add these two lines", param_hint="--page"
        )


def _rewrite(page: Path, section: str, content: str) -> None:
    page.write_text(rewritten(page.read_text(encoding="utf-8"), section, content), encoding="utf-8")


def _show(out: Path, console: Console) -> None:
    study = records.Study.load(out)
    console.width = max(console.width, 100)  # a narrower table would lose figures
    console.print(table(*study.parts))
    for found in verdicts(study).values():
        console.print(str(found), soft_wrap=True, markup=False, highlight=False)
    console.print(f"report: {write_report(out)}")


def main(command: Callable[..., object] = cli) -> None:
    """Run the command line; an error that the user can mend is one line that says what to do."""
    try:
        command(standalone_mode=False)
        return
    except click.ClickException as error:
        message, code = error.format_message(), error.exit_code
    except (
        data.MissingData,
        json_lines.BrokenRecords,
        records.OtherStudy,
        records.Busy,
        NoCost,
        WorkerLost,
        OSError,
    ) as error:
        message, code = str(error), 1
    except (click.Abort, KeyboardInterrupt):
        message, code = "stopped", 130
    click.echo(f"hypergrad: error: {' '.join(message.split())}", err=True)
    sys.exit(code)
