"""One process of a sweep: it runs trials until the study is done, or it is told to stop."""

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from types import FrameType

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.storages._heartbeat import is_heartbeat_enabled

from hypergrad_optuna import optimize_batched
from hypergrad_studies.spending import IN_OPTUNA, NoCost
from hypergrad_studies.sweep.plan import Plan
from hypergrad_studies.sweep.progress import progress

POLL = 1.0  # seconds between two looks at a study whose last trials are under way elsewhere


class Stop:
    """Whether to stop, which the parent says by SIGTERM, or by its own end."""

    def __init__(self) -> None:
        self._asked, self._parent = False, os.getppid()
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's

    def __call__(self) -> bool:
        return self._asked or os.getppid() != self._parent

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True


def work(plan: Plan, stop: Callable[[], bool]) -> None:
    """Run trials until a limit is reached, or `stop()` is true; the trial under way ends first.

    Raises what the objective raises, `NoCost`, and `StorageInternalError` where a database stays away.
    """
    objective, study = plan.objective(), plan.join(plan.sampler())
    heartbeats = is_heartbeat_enabled(study._storage)
    while not stop():
        found = progress(study)
        if found.reached(plan.limits):
            return
        if plan.limits.counts and not found.says_costs:
            raise NoCost(f"a trial of {plan.problem}", IN_OPTUNA)
        # elsewhere a process that died leaves its trial running for ever
        if heartbeats and found.reached(plan.limits, with_running=True):
            _fail_stale(study)  # or nobody would take over the last ones
            time.sleep(POLL)
            continue
        try:
            if plan.batch == 1:
                study.optimize(objective, n_trials=1)
            else:
                size = int(min(plan.batch, found.left(plan.limits)))
                optimize_batched(study, objective, batch_size=size, n_trials=size)
        except Exception as error:
            # a trial that was taken to be dead has been taken over, and Optuna stumbles over that
            if not isinstance(error.__context__, UpdateFinishedTrialError):
                raise


def _fail_stale(study: optuna.Study) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        fail_stale_trials(study)


def main() -> None:
    """Run one process of the plan in the argument."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        work(Plan.from_json(sys.argv[1]), Stop())
    except NoCost as error:
        sys.exit(f"hypergrad: error: {error}")


if __name__ == "__main__":
    main()
