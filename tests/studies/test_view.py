"""What a comparison shows while it runs."""

import io

from rich.console import Console

from hypergrad_studies.jobs import Job
from hypergrad_studies.problems import PROBLEMS
from hypergrad_studies.records import Record, Run
from hypergrad_studies.rivals import RIVALS
from hypergrad_studies.spending import Budget
from hypergrad_studies.view import View

TASK = PROBLEMS["synthetic-quadratic"]()
JOBS = [Job(TASK, RIVALS[name], seed, "optuna", Budget(100)) for seed in range(2) for name in ("tpe", "random")]


def ended(view: View, job: Job, losses: list[float], status: str = "ok") -> None:
    view.start(job)
    for trial, loss in enumerate(losses):
        view.show(job, Record(*job.key, trial, loss, None, 50 * (trial + 1), 0.1, 0.0, 0.0, status, None))
    view.end(job, Run(*job.key, 100, len(losses), 0.5))


def test_a_terminal_shows_what_runs_and_the_best_so_far() -> None:
    screen = Console(force_terminal=True, width=100, file=io.StringIO())
    with View(screen, JOBS) as view:
        for job, losses in zip(JOBS, ([0.5, 0.3], [0.9, 0.8], [0.1, 0.2]), strict=False):
            ended(view, job, losses)
        view.start(JOBS[3])
        shown = Console(width=100, file=io.StringIO())
        with shown.capture() as capture:
            shown.print(view.shown())
    lines = [line.split() for line in capture.get().splitlines()]
    assert ["tpe", "2", "0.2"] in lines  # the median of 0.3 and 0.1
    assert lines.index(["tpe", "2", "0.2"]) < lines.index(["random", "1", "0.8"])
    assert any(line[:4] == [TASK.name, "random", "seed", "1"] for line in lines)


def test_elsewhere_each_run_that_ended_is_a_line() -> None:
    file = io.StringIO()
    with View(Console(file=file, width=100), JOBS) as view:
        ended(view, JOBS[0], [0.5, 0.3])
        ended(view, JOBS[1], [float("inf")], status="nan")
    assert file.getvalue() == f"{TASK.name} tpe seed 0: 2 trials, 0.5 s\n{TASK.name} random seed 0: 1 trials, 0.5 s\n"
