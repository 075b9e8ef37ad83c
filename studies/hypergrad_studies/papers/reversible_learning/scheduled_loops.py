"""The two outer loops that learn schedules, and how other studies use the runs of `schedules`."""

from pathlib import Path

from hypergrad_optuna import HypergradSampler
from hypergrad_search import Method, Reversible, Unrolled
from hypergrad_studies.papers.results import Scale, claim
from hypergrad_studies.papers.reversible_learning.descent import Descent
from hypergrad_studies.papers.reversible_learning.outer import OuterLoop
from hypergrad_studies.papers.reversible_learning.released_adam import released_adam
from hypergrad_studies.papers.reversible_learning.sampled import Sampled
from hypergrad_studies.papers.reversible_learning.scheduled_training import Setup, problem, space

ITERATIONS = 50
NETWORKS = 4  # "hypergrad" trains so many at once

START = {"log_learning_rate": -1.0, "logit_momentum": 0.0, "log_init_scale": -3.0}


def paper(setup: Setup, method: Method = Reversible(fallback=Unrolled())) -> Descent:  # noqa: B008 (frozen)
    """Return the paper's outer loop, in which each iteration has new initial weights and batches."""
    return Descent(
        problem(setup),
        space(setup.sizes),
        START,
        ITERATIONS,
        reseed=True,
        optimizer=released_adam(0.04),
        method=method,
    )


def hypergrad(setup: Setup) -> Sampled:
    """Return `HypergradSampler` on several networks at once, with the same weights and batches in each iteration."""
    return Sampled(
        problem(setup, NETWORKS),
        space(setup.sizes),
        START,
        ITERATIONS,
        networks=NETWORKS,
        sampler=lambda seed: HypergradSampler(seed=seed),
    )


def outer_loops(setup: Setup) -> dict[str, OuterLoop]:
    """Return the two outer loops of `schedules`, by name."""
    return {"paper": paper(setup), "hypergrad": hypergrad(setup)}


def folder_of_schedules(out: Path, scale: Scale) -> Path:
    """Return the folder that holds the runs of `schedules` for another study, which writes to `out`.

    It is the folder beside `out` if it has the runs already, and otherwise a folder inside `out`.
    """
    sibling = out.parent / "schedules"
    folder = sibling if (sibling / "records.jsonl").exists() else out / "schedules"
    claim(folder, "schedules", scale)
    return folder
