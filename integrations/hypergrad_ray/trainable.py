"""`trainable`: a training problem as something that Ray Tune can run."""

import math
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ray import tune
from ray.tune import Checkpoint

from hypergrad_ray.param_space import RESERVED, check_names, join
from hypergrad_search import Evaluation, Method, Reversible, Space, Status, TrainingProblem, Unrolled, evaluate
from hypergrad_search.problem import check_problem
from hypergrad_search.space import floats, lifted

CHECKPOINT_FILE = "hypernet.npz"  # in a checkpoint's folder
RUNNING = "running"  # the status of a result that is not the last

_problems: dict[str, TrainingProblem] = {}  # those that this process has run, so that each compiles once


def trainable(
    problem: TrainingProblem,
    space: Space,
    *,
    method: Method = Reversible(fallback=Unrolled()),  # noqa: B008 (frozen)
    key: jax.Array | None = None,
    report_every: int | None = None,
) -> Callable[[dict[str, Any]], None]:
    """Train at the hyperparameters in a trial's config; report the validation loss, and its gradient.

    Works with every searcher: under any but `HypergradSearch` no gradient is computed, and
    `param_space(space)` is what to search. The problem gets an array for a number with a `lift` under
    `HypergradSearch`, else the number. The last result of a trial holds

    - `loss`: the validation loss, infinite where training failed; `status` and `message` say why.
    - `gradient`: for each float of the space a number or an array, as in the config, in natural units; left out
      where none was wanted, or it is not finite.
    - `gradient_evaluations`: the cost in minibatch training gradients; `steps` trained; `seconds`.
    - `test_loss` and `held_back_loss`, where the problem has them.
    - `refined`, with a method such as `Hypernet`, of which a trial is a stretch of joint optimisation: the
      hyperparameters that `loss` is at. The trial's checkpoint holds what the method needs to go on from there
      (`hypernet.npz`), as trials of the same chain do.

    Earlier results, which come only with `report_every`, hold `loss`, `steps`, `gradient_evaluations` and the
    status `"running"`.

    JAX compiles once a process, and Ray starts a process for each trial unless told otherwise: pass
    `reuse_actors=True` to `tune.run` or `tune.TuneConfig`, and keep what was compiled on disk by setting
    `JAX_COMPILATION_CACHE_DIR` (and `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0`) before Ray starts. Eight
    trials of a small network on two CPU cores took 85 s with neither, 58 s with the first, 19 s with the
    second, 5 s with both.

    Args:
        problem: what to train. It reaches the workers by cloudpickle through Ray's object store, data and
            all; functions from a module that the workers cannot import must be made inside another function.
            After `ray.shutdown()` make the trainable anew.
        space: names to `Float`, `Int` or `Categorical`: the same as `HypergradSearch` gets.
        method: how to differentiate. By default exactly, and a trial whose reversal turns out inexact is
            differentiated in floats: a run does not end for it.
        key: decides initial parameters and each step's randomness, the same for all trials;
            `jax.random.key(0)` by default.
        report_every: report the validation loss every so many steps, so that a scheduler can stop the trial;
            None for never. Use it with `ASHAScheduler(time_attr="steps")`; not with schedulers that pause
            trials, such as `HyperBandScheduler`: a paused trial starts again from its first step.

    Raises:
        ValueError: the optimizer names a hyperparameter that the space lacks, a name of the space cannot be
            used in Ray, or `report_every` is below 1. Inside a trial: the searcher maximises the loss, or the
            config does not fit the space.

    Not for arrays of more than about 100,000 numbers: Ray writes every config and result to its logs as text.
    """
    check_problem(problem, space)
    check_names(space)
    if report_every is not None and report_every < 1:
        raise ValueError(f"trainable: report_every must be None or a whole number above 0, got {report_every!r}")
    token = uuid.uuid4().hex

    def train(config: dict[str, Any], problem: TrainingProblem) -> None:
        def report(step: int, loss: float) -> None:
            tune.report(
                {
                    "loss": math.inf if math.isnan(loss) else loss,
                    "status": RUNNING,
                    "steps": step,
                    "gradient_evaluations": method.cost(same_problem, step),
                }
            )

        same_problem = _problems.setdefault(token, problem)
        evaluation = evaluate(
            same_problem,
            join(space, config),
            method=method,
            key=jax.random.key(0) if key is None else key,
            **_thresholds(config),
            report=None if report_every is None else report,
            report_every=report_every or same_problem.steps,
            space=lifted(space) if RESERVED in config else space,
            checkpoint=_parents_checkpoint(config),
        )
        _report(_result(space, evaluation), evaluation.checkpoint)

    return tune.with_parameters(train, problem=problem)


def wants_gradient(config: Mapping[str, Any], value: float) -> bool:
    """Whether `HypergradSearch` would use the gradient of this trial, whose metric came out as `value`.

    For trainables that compute gradients themselves, and report them as `"gradient": {name: array}`: the
    derivative of the metric itself in natural units, whether it is minimised or maximised. A gradient costs
    several times a value, and that of a step that failed is worth nothing. Always False under another
    searcher.
    """
    wanted = config.get(RESERVED)
    if wanted is None:
        return False
    loss = -value if wanted["mode"] == "max" else value
    return loss < float(wanted["gradient_below"])


def want(mode: str, **thresholds: float) -> dict[str, Any]:
    """What `wants_gradient` reads; an infinite threshold is stored as text, since JSON has no infinity."""
    return {"mode": mode, **{name: x if math.isfinite(x) else str(x) for name, x in thresholds.items()}}


def _thresholds(config: Mapping[str, Any]) -> dict[str, Any]:
    wanted = config.get(RESERVED)
    if wanted is None:
        return {"gradient_below": -math.inf}
    if wanted["mode"] == "max":
        raise ValueError("trainable: it reports a loss, so search with mode='min', not 'max'")
    return {name: float(value) for name, value in wanted.items() if name not in ("mode", "checkpoint")}


def _parents_checkpoint(config: Mapping[str, Any]) -> bytes | None:
    path = config.get(RESERVED, {}).get("checkpoint")
    if path is None:
        return None
    with Checkpoint(path, filesystem=tune.get_context().get_storage().storage_filesystem).as_directory() as folder:
        return Path(folder, CHECKPOINT_FILE).read_bytes()


def _report(result: dict[str, Any], checkpoint: bytes | None) -> None:
    """The last result of a trial; with where a later trial finds its checkpoint."""
    if checkpoint is None:
        tune.report(result)
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, CHECKPOINT_FILE).write_bytes(checkpoint)
        where = {"trial_path": tune.get_context().get_storage().trial_fs_path}
        tune.report({**result, **where}, checkpoint=Checkpoint.from_directory(folder))


def _result(space: Space, evaluation: Evaluation) -> dict[str, Any]:
    diagnostics = evaluation.diagnostics
    result: dict[str, Any] = {
        "loss": evaluation.value,
        "status": diagnostics["status"],
        "message": diagnostics["message"],
        "steps": diagnostics["steps"],
        "gradient_evaluations": evaluation.cost.gradient_evaluations,
        "seconds": evaluation.cost.seconds,
    }
    result |= {n: diagnostics[n] for n in ("held_back_loss", "test_loss") if diagnostics[n] is not None}
    if evaluation.gradient is not None and evaluation.status is not Status.EXPLODED:
        result["gradient"] = _plain(space, evaluation.gradient)
    if evaluation.refined is not None:
        result["refined"] = _plain(space, evaluation.refined)
    return result


def _plain(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """The floats of a space as numpy arrays, or as numbers."""
    arrays = {name: np.asarray(values[name]) for name in floats(space)}
    return {name: array if array.shape else float(array) for name, array in arrays.items()}
