"""`optimize_batched`: a study whose trials are trained several at a time, on one device."""

import contextlib
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import fail_stale_trials
from optuna.storages._heartbeat import get_heartbeat_thread, is_heartbeat_enabled
from optuna.trial import TrialState

from hypergrad_optuna.objective import Objective
from hypergrad_search.checks import number, whole_number


def optimize_batched(
    study: optuna.Study,
    objective: Objective,
    *,
    batch_size: int,
    n_trials: int | None = None,
    timeout: float | None = None,
) -> None:
    """Run trials as `study.optimize` does, but train `batch_size` of them at once, as one program on one device.

    A device that one small model leaves idle trains several in little more time. With `HypergradSampler` the trials of
    a batch are what as many workers would try: other steps from the head of a chain, other chains, explored points. So
    they are not as good as one after the other, and a batch pays where it takes less time than its trials would alone.
    A trial's value differs from that of `study.optimize` by rounding in float32, which long or chaotic training makes
    grow; `objective(study.best_trial)` is what one training run gives.

    Do not use it for models that fill the device by themselves, or with pruners. What is trained at once must share its
    whole numbers and choices; trials with others are trained after one another.

    Args:
        study: the study, with any sampler.
        objective: an `Objective` of a `TrainingProblem`, with `Reversible` as its method (the default), and without
            `report_every`.
        batch_size: the number of trials in a batch. Programs are for 1, 2, 4, 8 and so on, so take one of these.
        n_trials: the number of trials to run; None for no limit.
        timeout: no batch begins after so many seconds; None for no limit.

    Raises:
        ValueError: an argument does not fit, or both limits are None.
        Exception: what the objective raises; all trials of the batch have failed then.

    Example:
        >>> from hypergrad_optuna import optimize_batched
        >>> optimize_batched(study, objective, batch_size=2, n_trials=2)
    """
    if not isinstance(study, optuna.Study):
        raise ValueError(f"optimize_batched: study must be an optuna.Study, got {study!r}")
    if not isinstance(objective, Objective):
        raise ValueError(f"optimize_batched: objective must be an Objective(problem, space), got {objective!r}")
    objective.hosted.check_batches("optimize_batched")
    size = whole_number("optimize_batched: batch_size", batch_size, 1)
    if n_trials is None and timeout is None:
        raise ValueError("optimize_batched: give n_trials or timeout, since both are None")
    left = None if n_trials is None else whole_number("optimize_batched: n_trials", n_trials, 1)
    limit = None if timeout is None else number("optimize_batched: timeout", timeout, 0)
    started = time.monotonic()
    with _in_optimize_loop(study):
        while left != 0 and (limit is None or time.monotonic() - started < limit) and not study._stop_flag:
            now = size if left is None else min(size, left)
            left = None if left is None else left - now
            _run(study, objective, now)


@contextlib.contextmanager
def _in_optimize_loop(study: optuna.Study) -> Iterator[None]:
    """Allow samplers to call `study.stop()`, as in `study.optimize`."""
    study._stop_flag = False
    study._thread_local.in_optimize_loop = True
    try:
        yield
    finally:
        study._thread_local.in_optimize_loop = False


def _run(study: optuna.Study, objective: Objective, size: int) -> None:
    if is_heartbeat_enabled(study._storage):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(study)
    with contextlib.ExitStack() as alive:
        trials: list[optuna.Trial] = []
        hyperparameters: list[dict[str, Any]] = []
        try:
            for _ in range(size):
                trials.append(_ask(study))
                heartbeat = get_heartbeat_thread(trials[-1]._trial_id, study._storage)
                alive.enter_context(heartbeat)  # type: ignore[arg-type]  # Optuna types its __exit__ too narrowly
                hyperparameters.append(objective.suggest(trials[-1]))
            values = objective.evaluate_batch(trials, hyperparameters)
        except (Exception, KeyboardInterrupt):  # as `study.optimize` does it
            _tell(study, trials, [None] * len(trials))
            raise
    _tell(study, trials, values)


def _tell(study: optuna.Study, trials: Sequence[optuna.Trial], values: Sequence[float | None]) -> None:
    """Tell the value of each trial, or that it has failed; an error of one is raised after the others are told."""
    errors: list[Exception] = []
    for trial, value in zip(trials, values, strict=True):
        try:
            study.tell(trial, value, TrialState.FAIL if value is None else None, skip_if_finished=True)
        except Exception as error:  # it is raised when all are told
            errors.append(error)
    if errors:
        raise errors[0]


def _ask(study: optuna.Study) -> optuna.Trial:
    with warnings.catch_warnings():
        # Optuna says so of all trials but those of `study.optimize`; these give signs of life too.
        warnings.filterwarnings("ignore", "Heartbeat of storage is supposed to be used with Study.optimize")
        return study.ask()
