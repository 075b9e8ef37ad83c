"""`trainable`: a training problem in a form that Ray Tune can run."""

import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from ray import tune
from ray.tune import Checkpoint
from ray.tune.search.repeater import TRIAL_INDEX

from hypergrad_ray.config import METRIC, RESERVED, check_bounds, check_names, join
from hypergrad_ray.domains import own_space
from hypergrad_ray.large_array import in_short
from hypergrad_ray.results import RUNNING
from hypergrad_ray.trial_errors import passable
from hypergrad_search import Evaluation, Method, Space, TrainingProblem
from hypergrad_search.checks import shown
from hypergrad_search.from_function import FunctionProblem
from hypergrad_search.hosting import HostedProblem, host
from hypergrad_search.hypergradient import Progress
from hypergrad_search.nesting import flat, nested
from hypergrad_search.search.ask_tell import Wanted
from hypergrad_search.trouble import see

CHECKPOINT_FILE = "checkpoint"  # the file in a checkpoint's folder from which later trials go on
SNAPSHOT_FILE = "snapshot"  # the one from which the trial itself goes on
KEPT = 4  # the number of problems that a process remembers; Ray keeps a process for one run

_problems: dict[str, HostedProblem] = {}  # the last ones of this process, so that each compiles once


def trainable(
    problem: TrainingProblem | FunctionProblem,
    space: Mapping[str, Any],
    *,
    method: Method | None = None,
    key: jax.Array | None = None,
    report_every: int | None = None,
) -> Callable[[dict[str, Any]], None]:
    """Return a function that trains at the hyperparameters in a trial's config, and reports the loss and its gradient.

    It works with every searcher. Under any but `HypergradSearch` no gradient is computed, and the domains to search are
    `param_space(space)`. A number with a `lift` is an array under `HypergradSearch`, and a number under any other
    searcher. The last result of a trial holds

    - `loss`: the validation loss, infinite where training failed; `status` and `message` say why. A step that fits what
      was held back no better than before keeps its true loss, with the status "overfitted".
    - `gradient`: for each float of the space a number or an array, as in the config, in natural units. It is missing
      where none was wanted, and where it is of no use.
    - `gradient_evaluations`: the cost in minibatch training gradients; of a function, in values of it.
    - `steps`: the number of steps trained, or 1 for a function; `seconds`: the time that they took.
    - `test_loss`: the test loss, where the problem has one.
    - `held_back`: the loss on each fold of the validation set, where one was held back; `blocks`: those on each fold's
      blocks; `cross_validated`: the loss that counts each example where its fold was held back.
    - `exact`: whether the reversal was exact, where there was one.
    - `trust`: for some floats of the space, how far the method believes their derivatives, from 0 to 1, where there is
      a gradient.
    - `refined`: with a method such as `Hypernet`, the hyperparameters where the trial's stretch of joint optimisation
      ended; `loss` is the loss at them. The trial's checkpoint (a file called `checkpoint`) holds all that the method
      needs to go on from there, as later trials of the same chain do.

    Earlier results, which come only with `report_every`, hold `loss`, `steps`, `gradient_evaluations` and the status
    `"running"`. `best_hyperparameters(results, space)` returns the hyperparameters of the best trial.

    With `report_every` and `Reversible`, a trial that is lost with its process or node goes on where it reported last,
    and its loss and gradient are those of an undisturbed trial, to the bit. Ray runs it again under
    `FailureConfig(max_failures=...)`, and where a run is restored with `resume_errored=True`. A trial that a scheduler
    such as `HyperBandScheduler` has paused goes on likewise. The cost counts each step up to the last report once, and
    those that were lost after it do not count. A checkpoint takes at least 8 bytes for each weight and for each of the
    optimizer's numbers, and a byte more for each 8 bits that a decay has spilled (with a momentum of 0.9, every 53
    steps). Ray keeps all of them, unless `RunConfig(checkpoint_config=CheckpointConfig(num_to_keep=1))` says that each
    trial keeps its last one, which is enough. On several nodes, `RunConfig(storage_path=...)` must be a storage that
    all of them reach. With other methods a trial begins again at its first step.

    JAX compiles once a process, and Ray starts a process for each trial by default: pass `reuse_actors=True` to
    `tune.run` or `tune.TuneConfig`, and keep compiled programs on disk by setting `JAX_COMPILATION_CACHE_DIR` (and
    `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0`) before Ray starts. Eight trials of a small network on two CPU cores
    took 85 s with neither, 58 s with the first, 19 s with the second, 5 s with both.

    Arrays of more than 1000 numbers, in configs and in results, are in Ray's logs in short. Under `HypergradSearch` the
    state of Ray's experiment names them only: each is one file `array-....pkl` in the experiment's folder, 8 MB for a
    million numbers, which moves with the folder. In a run that was restored, `numpy.asarray` reads them.

    Args:
        problem: the training run, or `from_function(function)`, which takes no method, key or report_every. It reaches
            the workers, with its data, by cloudpickle through Ray's object store; functions from a module that the
            workers cannot import must be made inside another function. After `ray.shutdown()` make the trainable anew.
        space: a dict from names to `Float`, `Int` or `Categorical`, the same as that of `HypergradSearch`. Ray's own
            domains may stand for these, without `q`. With dicts within it, such as `{"opt": {"rate": Float(...)}}`, the
            problem gets dicts within dicts too, and messages call this one `"opt/rate"`.
        method: the way to differentiate. By default it is exact; a trial whose reversal turns out inexact is
            differentiated in floats, so that a run does not end for it.
        key: the source of the initial parameters and of each step's randomness, the same for all trials;
            `jax.random.key(0)` by default.
        report_every: the number of steps between two reports of the validation loss, by which a scheduler can stop the
            trial; None for no reports. Use it with `ASHAScheduler(time_attr="steps")`. With `Reversible`, each report
            has a checkpoint too (a file called `snapshot`), from which the trial goes on; see above.

    Raises:
        ValueError: the optimizer names a hyperparameter that the space lacks, a name of the space cannot be used in
            Ray, `method` is not a `Method`, or `report_every` is not a whole number from 1. Inside a trial: the
            searcher maximises the loss, has another metric, wider bounds, or is inside `Repeater`, or the config does
            not fit the space. An error that Ray cannot pass on is raised as a `TypeError` or `ValueError` of its text.

    Example:
        >>> from hypergrad_ray import trainable
        >>> train = trainable(problem, space)  # for tune.run(train, ...) or tune.Tuner(train, ...)
    """
    space = own_space(space)
    host("trainable", problem, space, method, key, report_every)  # so that errors are raised here, not in a trial
    check_names(space)
    token = uuid.uuid4().hex

    def train(config: dict[str, Any], problem: TrainingProblem | FunctionProblem) -> None:
        try:
            evaluate(config, problem)
        except Exception as error:  # whatever it is, it is raised, in a form that Ray can pass on
            passed = passable(error)
            if passed is error:
                raise
            raise passed from passed.__cause__

    def evaluate(config: dict[str, Any], problem: TrainingProblem | FunctionProblem) -> None:
        hyperparameters = join(space, flat(config))
        wanted = _wanted(config)
        _check_search(config, wanted, space, hyperparameters)
        config.pop(RESERVED, None)  # so that it is not in the config of a result
        hosted = _remembered(token, lambda: host("trainable", problem, space, method, key, report_every))
        evaluation = hosted.evaluate(
            hyperparameters,
            wanted,
            on_the_way=_report_on_the_way,
            checkpoint=lambda: _read_checkpoint(wanted.checkpoint),
            snapshot=_read_snapshot,
        )
        _report(hosted, evaluation)

    wrapped: Callable[[dict[str, Any]], None] = tune.with_parameters(train, problem=problem)
    return wrapped


def wants_gradient(config: Mapping[str, Any], value: float) -> bool:
    """Return whether `HypergradSearch` would use the gradient of this trial, whose metric came out as `value`.

    Call it in trainables that compute gradients themselves, and report them as `"gradient": {name: array}`, the
    derivatives of the metric itself in natural units, whether it is minimised or maximised; with more than 1000 numbers
    as `in_short(gradient)`, since Ray would write all of them several times. A gradient costs several
    times as much as a value, and the gradient of a failed step is worth nothing. The result is always False under
    another searcher.

    Raises `ValueError` where `config` is not a trial's config, `value` is not a number, or the searcher is inside
    `Repeater`, which drops gradients.

    Example:
        >>> from hypergrad_ray import HypergradSearch, wants_gradient
        >>> config = HypergradSearch(space, metric="loss", mode="min").suggest("first")
        >>> wants_gradient(config, 0.5), wants_gradient(config, float("inf"))
        (True, False)
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"wants_gradient: config must be the trial's config, a dict, got {shown(config)}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"wants_gradient: value must be a number, got {shown(value)}") from None
    return _wanted(config).wants_gradient(number)


def _wanted(config: Mapping[str, Any]) -> Wanted:
    """Return what the searcher wants of a trial; raise `ValueError` where it would never hear of a gradient."""
    if config.get(RESERVED) is not None and TRIAL_INDEX in config:
        raise ValueError(
            "HypergradSearch: it cannot be used inside ray.tune.search.Repeater, which drops gradients; leave Repeater "
            "out, and report the mean of several values and of their gradients"
        )
    request = config.get(RESERVED)
    try:
        return Wanted.from_json(request and {name: value for name, value in request.items() if name != METRIC})
    except (TypeError, ValueError, KeyError, AttributeError):
        raise ValueError(
            f"the trial's config has {RESERVED!r} = {shown(config[RESERVED])}; leave this key to HypergradSearch"
        ) from None


def _check_search(config: Mapping[str, Any], wanted: Wanted, space: Space, hyperparameters: Mapping[str, Any]) -> None:
    """Raise `ValueError` where this is a trial of `HypergradSearch` with another goal, or with wider bounds."""
    request = config.get(RESERVED)
    if request is None:
        return
    if wanted.maximise:
        raise ValueError(f"trainable: it reports a loss, so search with mode='min', not 'max'{see('direction')}")
    if (metric := request.get(METRIC, "loss")) != "loss":
        raise ValueError(
            f"trainable: its gradients are those of 'loss', so search with HypergradSearch(..., metric='loss'), not "
            f"{metric!r}"
        )
    check_bounds(space, hyperparameters)


def _remembered(token: str, make: Callable[[], HostedProblem]) -> HostedProblem:
    """Return the problem of this token that this process has compiled, since Ray unpickles a new one for each trial."""
    _problems[token] = _problems.pop(token) if token in _problems else make()
    while len(_problems) > KEPT:
        del _problems[next(iter(_problems))]
    return _problems[token]


def _read_checkpoint(path: str | None) -> bytes | None:
    """Return what is in a checkpoint, whose path is relative to the experiment's folder, wherever that is now."""
    if path is None:
        return None
    storage = tune.get_context().get_storage()
    whole = f"{storage.experiment_fs_path}/{path}"
    with Checkpoint(whole, filesystem=storage.storage_filesystem).as_directory() as folder:
        return Path(folder, CHECKPOINT_FILE).read_bytes()


def _read_snapshot() -> bytes | None:
    """Return the snapshot that this trial took last, if it was lost or paused."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        path = Path(folder, SNAPSHOT_FILE)
        return path.read_bytes() if path.exists() else None


def _report_on_the_way(now: Progress, cost: float) -> None:
    result = {"loss": now.loss, "status": RUNNING, "steps": now.step, "gradient_evaluations": cost}
    if now.snapshot is None:
        tune.report(result)
    else:
        _report_with(SNAPSHOT_FILE, now.snapshot(), result)


def _report(hosted: HostedProblem, evaluation: Evaluation) -> None:
    """Report the last result of a trial, with its checkpoint and the folder in which a later trial finds it."""
    facts = hosted.facts(evaluation)
    result = {"loss": evaluation.value, "gradient_evaluations": facts.pop("cost"), **facts}
    for name in result.keys() & {"gradient", "refined", "trust"}:
        result[name] = in_short(nested(result[name]))
    if evaluation.checkpoint is None:
        tune.report(result)
        return
    where = {"trial_dir": tune.get_context().get_storage().trial_dir_name}
    _report_with(CHECKPOINT_FILE, evaluation.checkpoint, {**result, **where})


def _report_with(name: str, content: bytes, result: dict[str, Any]) -> None:
    """Report a result with a checkpoint that is one file of this name."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, name).write_bytes(content)
        tune.report(result, checkpoint=Checkpoint.from_directory(folder))
