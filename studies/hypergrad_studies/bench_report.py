"""What `hypergrad bench` measured, as tables for the terminal, as a plot, and as a section of a page."""

import os
from collections.abc import Iterable, Sequence
from importlib import metadata
from itertools import groupby
from pathlib import Path

import jax
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from hypergrad_studies import bench_convolutions
from hypergrad_studies.bench import Record
from hypergrad_studies.bench_convolutions import Timing
from hypergrad_studies.problems import digits

DASH = "\N{EN DASH}"
HEADINGS = ("", "time / training", "compiling", "memory", "a weight", "peak RSS", "of it running", "gradient off by")
COLOURS = {
    "plain": "#8c8c8c",
    "scan": "#cc79a7",
    "checkpointed": "#0072b2",
    "binomial": "#009e73",
    "reversible": "#d55e00",
}
NAMES = {
    "plain": "plain training",
    "scan": "`jax.grad` through `lax.scan`",
    "checkpointed": "the same with `jax.checkpoint`",
    "binomial": "equinox, binomial checkpoints",
    "reversible": "**reversible**",
}
EVALUATIONS = {
    "loop": "Python loop over a jitted step of optax",
    "unrolled-value": "`Unrolled`, value alone",
    "unrolled-gradient": "`Unrolled`, value and gradient",
    "reversible-value": "**`Reversible`**, value alone",
    "reversible-gradient": "**`Reversible`**, value and gradient",
}


def tables(records: Sequence[Record], timings: Sequence[Timing]) -> list[Table]:
    """Return a table for each case, with a row for each way, and one of the evaluations of a convolutional network."""
    return [*(_table(group) for group in by_case(records)), *([_of_evaluations(timings)] if timings else [])]


def _of_evaluations(timings: Sequence[Timing]) -> Table:
    view = Table("", "time / loop", title=_convolutional(), title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for timing in timings:
        view.add_row(timing.way, _spread(timing.ratio, timing.quartiles))
    return view


def _convolutional() -> str:
    return f"convolutional network, {bench_convolutions.weights():,} weights, {bench_convolutions.STEPS} steps"


def _table(group: Sequence[Record]) -> Table:
    reasons = [f"{r.optimizer}-{r.way} {r.status}: {r.reason}" for r in group if r.reason]
    view = Table(
        title=_case(group[0]),
        caption="\n".join(reasons) or None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    for heading in HEADINGS:
        view.add_column(heading.replace(" ", "\n", 1), justify="right" if heading else "left", no_wrap=True)
    for record in group:
        view.add_row(f"{record.optimizer}-{record.way}", *_cells(record))
    return view


def by_case(records: Iterable[Record]) -> list[list[Record]]:
    """Return the records of each case, in the order of the cases: the base case is the first."""
    return [list(group) for _, group in groupby(records, key=lambda r: (r.steps, r.decay, r.width))]


def markdown(records: Sequence[Record], timings: Sequence[Timing]) -> str:
    """Return the section of a page.

    It shows the base case, the case that needs most memory, all cases in short, the evaluations of a convolutional
    network, and the plot.
    """
    groups = by_case(records)
    base = groups[0]
    largest = max(groups, key=lambda group: max(record.xla_bytes or 0 for record in group))
    shown = [base] if largest is base else [base, largest]
    titles = [_case(group[0]) + ("" if _timed(group) else ", compiled but not run") for group in shown]
    before = size(max((record.rss_before for record in base if record.rss_before), default=None))
    parts = [
        f"`hypergrad bench`, on {os.cpu_count()} cores ({jax.default_backend().upper()}), with jax "
        f"{jax.__version__} and equinox {metadata.version('equinox')}. All ways differentiate the same validation loss "
        "of the same training of a tanh network on scikit-learn's digits, in batches of 200. Time is the median ratio "
        "to plain training, from quartile to quartile, measured in turns; memory is what XLA's own analysis says that "
        f"the program allocates; peak RSS is that of a process, of which Python and compiling take up to {before}.",
        *(f"{title}:\n\n{_rows(group)}" for title, group in zip(titles, shown, strict=True)),
        *([f"All cases: time / training, and memory a weight.\n\n{_overview(groups)}"] if len(groups) > 1 else []),
        *_verdicts(groups),
        *([_evaluations(timings)] if timings else []),
        "![Time of each way, and its memory by the number of steps](bench.svg)",
    ]
    return "\n\n".join(parts) + "\n"


def _evaluations(timings: Sequence[Timing]) -> str:
    """Return a sentence and a Markdown table on the evaluations of a convolutional network."""
    lines = [["", "time / loop"], ["---", "---:"]]
    lines += [[EVALUATIONS[timing.way], _spread(timing.ratio, timing.quartiles)] for timing in timings]
    return (
        f"Evaluations of a {_convolutional()} of AdamW in batches of {digits.BATCH}, beside the loop that one would "
        f"write without this package:\n\n{markdown_table(lines)}"
    )


def _spread(middle: float, quartiles: tuple[float, float]) -> str:
    return f"{middle:.2f} ({quartiles[0]:.2f}{DASH}{quartiles[1]:.2f})"


def _rows(group: Sequence[Record]) -> str:
    """Return a Markdown table of a case, without the columns that would be empty."""
    timed = _timed(group)
    headings = ["", "time / training", "compiling", "memory", "peak RSS"] if timed else ["", "compiling", "memory"]
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1)]
    for record in group:
        ratio, compiling, memory, _, rss, *_ = _cells(record)
        name = f"{record.optimizer}: {NAMES[record.way]}"
        lines.append([name, ratio, compiling, memory, rss] if timed else [name, compiling, memory])
    return markdown_table(lines)


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, whose first two lines are the headings and the rule below them."""
    return "\n".join("|" + "|".join(f" {cell} " if cell else " " for cell in line) + "|" for line in lines)


def _timed(group: Sequence[Record]) -> bool:
    return any(record.ratios for record in group)


def _overview(groups: Sequence[Sequence[Record]]) -> str:
    """Return a Markdown table with a row for each case."""
    ways = list(dict.fromkeys((r.optimizer, r.way) for group in groups for r in group if r.way != "plain"))
    lines = [["", *(f"{optimizer}: {way}" for optimizer, way in ways)], ["---"] + ["---:"] * len(ways)]
    for group in groups:
        found = {(record.optimizer, record.way): _short(record) for record in group}
        lines.append([_case(group[0]), *(found.get(way, "") for way in ways)])
    return markdown_table(lines)


def _short(record: Record) -> str:
    memory = None if record.xla_bytes is None else record.xla_bytes / record.weights
    return f"{record.status if record.ratio is None else f'{record.ratio:.1f}'}, {size(memory)}"


def _verdicts(groups: Sequence[Sequence[Record]]) -> list[str]:
    """Return a sentence on how often reversible training takes longer than the scan that keeps each step's weights."""
    texts = []
    for optimizer in ("sgd", "adam"):
        ratios = [{record.way: record.ratio for record in group if record.optimizer == optimizer} for group in groups]
        pairs = [(of["reversible"], of["checkpointed"]) for of in ratios if {"reversible", "checkpointed"} <= of.keys()]
        slower = [mine > other for mine, other in pairs if mine is not None and other is not None]
        if slower:
            texts.append(f"with {optimizer} in {sum(slower)} of the {len(slower)} cases where both ran")
    compared = "Reversible training takes longer than the scan with `jax.checkpoint`"
    return [f"{compared} {', '.join(texts)}."] if texts else []


def _case(record: Record) -> str:
    return f"{record.weights:,} weights, {record.steps:,} steps, decay {record.decay:g}"


def _cells(record: Record) -> tuple[str, ...]:
    """Return the texts of a row, one for each of `HEADINGS` but the first."""
    ratio = record.status
    if record.ratio is not None and record.quartiles is not None:
        ratio = _spread(record.ratio, record.quartiles)
    running = None if record.rss_after is None else record.rss_after - (record.rss_before or 0)
    return (
        "1" if record.way == "plain" and record.ratios else ratio,
        DASH if record.compile_seconds is None else f"{record.compile_seconds:.1f} s",
        size(record.xla_bytes),
        DASH if record.xla_bytes is None else f"{record.xla_bytes / record.weights:,.0f} B",
        size(record.rss_after),
        size(running),
        DASH if record.difference is None else f"{record.difference:.0e}",
    )


def size(of: float | None) -> str:
    """Return a number of bytes as it is shown; a dash for None."""
    if of is None:
        return DASH
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if of >= factor:
            return f"{of / factor:.1f} {unit}" if of < 100 * factor else f"{of / factor:,.0f} {unit}"
    return f"{of / 1e3:.0f} kB" if of >= 1e3 else f"{of:.0f} B"


def write_plot(records: Sequence[Record], path: Path) -> Path:
    """Plot the times of the base case among those of all other cases, and memory against steps; return `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(11.5, 4.0), layout="constrained")
    times, memory = figure.subplots(1, 2)
    _draw_times(times, records)
    _draw_memory(memory, records)
    for axes in (times, memory):
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    with matplotlib.rc_context({"svg.hashsalt": "bench"}):  # so that the same records give the same figure
        figure.savefig(path, metadata={"Date": None})
    return path


def _draw_times(axes: Axes, records: Sequence[Record]) -> None:
    base = [record for record in by_case(records)[0] if record.way != "plain"]
    for row, record in enumerate(base):
        colour = COLOURS[record.way]
        same = [r.ratio for r in records if (r.optimizer, r.way) == (record.optimizer, record.way) and r.ratio]
        axes.scatter(same, [row] * len(same), s=22, color=colour, alpha=0.35, linewidths=0)
        if record.ratio and record.quartiles:
            axes.plot(record.quartiles, [row, row], color=colour, linewidth=2.2)
            axes.scatter([record.ratio], [row], marker="D", s=46, color=colour)
    axes.set_yticks(range(len(base)), [f"{record.optimizer}, {record.way}" for record in base])
    axes.set_ylim(len(base) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"time / plain training (diamond: {_case(records[0])})", loc="right")


def _draw_memory(axes: Axes, records: Sequence[Record]) -> None:
    """Draw the network and decay for which most numbers of steps were measured."""
    kinds = [(record.width, record.decay) for record in records]
    width, decay = max(kinds, key=lambda kind: len({r.steps for r in records if (r.width, r.decay) == kind}))
    chosen = [r for r in records if (r.width, r.decay) == (width, decay) and r.xla_bytes]
    for optimizer, way in dict.fromkeys((record.optimizer, record.way) for record in chosen):
        mine = sorted((r.steps, r.xla_bytes or 0) for r in chosen if (r.optimizer, r.way) == (optimizer, way))
        steps, sizes = np.array(mine).T
        dashes = "-" if optimizer == "sgd" else "--"
        label = f"{optimizer}, {way}"
        axes.plot(steps, sizes / chosen[0].weights, dashes, marker=".", color=COLOURS[way], label=label)
    axes.set(xscale="log", yscale="log", xlabel="steps")
    weights = f"{chosen[0].weights:,} weights, " if chosen else ""
    axes.set_ylabel(f"bytes a weight ({weights}decay {decay:g})")
    if chosen:
        axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
