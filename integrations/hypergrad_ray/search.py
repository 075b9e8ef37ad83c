"""`HypergradSearch`: Ray Tune's side of the search strategy. It translates, and decides nothing itself."""

import base64
import contextlib
import importlib.util
import json
import math
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from hypergrad_ray.param_space import RESERVED, check_names, collect, join, levels, param_space, spread
from hypergrad_ray.trainable import RUNNING, want
from hypergrad_search import Space
from hypergrad_search.search import strategy
from hypergrad_search.search.observation import Observation
from hypergrad_search.space import floats, from_unit, lifted

LOSS = "loss"  # the default metric, and what the explorer is told to minimise


class HypergradSearch(Searcher):
    """Search where the gradient of the metric points, taking turns with another searcher, the explorer.

    Floats follow gradients, which `trainable` reports, or any other trainable as `"gradient": {name: array}`
    (see `wants_gradient`). Integers, categoricals, and whatever the gradient has no say in go to the
    explorer; along a chain of descent they stay as they are. Where no trial reports a gradient it behaves as
    the explorer, and warns once.

    An array hyperparameter, which a number with a `lift` is here too, is one ndarray in a trial's config. The explorer
    sees one number in its place: an array that it chooses is the same everywhere, and it is told the mean (of
    logarithms, with `log=True`) of an array that a chain has led elsewhere.

    A trial that failed, or whose last result has the status `"running"` because a scheduler stopped it, is a
    failed step, which still counts for what it cost: `"gradient_evaluations"` if the trainable reports that,
    else 4 with a gradient and 1 without.

    Args:
        space: names to `Float`, `Int` or `Categorical`. Leave Ray's own `param_space` empty, but for
            constants.
        metric: the key of the result to optimise. Without it, that of `tune.run` or `tune.TuneConfig`; which
            Ray hands on only together with constants in `param_space`; else `"loss"`.
        mode: `"min"` or `"max"`, likewise; else `"min"`.
        explorer: the other searcher, made without a space; `OptunaSearch` (TPE), which needs optuna, by
            default.
        seed: of the default explorer; the rest of the search is deterministic.

    Raises:
        ValueError: an argument does not fit; the message says which and what to do.
        ImportError: the default explorer is wanted, and optuna is missing.

    Not for several metrics, nor inside `Repeater`, which drops the gradients. To limit concurrency wrap this
    searcher, not its explorer.
    """

    def __init__(
        self,
        space: Space,
        *,
        metric: str | None = None,
        mode: str | None = None,
        explorer: Searcher | None = None,
        seed: int | None = None,
    ) -> None:
        check_names(space)
        if metric is not None and not isinstance(metric, str):
            raise ValueError(f"HypergradSearch: metric must be one name, got {metric!r}")
        if mode not in (None, "min", "max"):
            raise ValueError(f"HypergradSearch: mode must be 'min' or 'max', got {mode!r}")
        super().__init__(metric=metric, mode=mode)
        self._space = lifted(space)
        self._explorer = _check_explorer(explorer, seed)
        if not self._explorer.set_search_properties(LOSS, "min", param_space(levels(self._space))):
            raise ValueError("HypergradSearch: explorer must be made without a space, which it gets here")
        self._observations: dict[str, Observation] = {}
        self._state = strategy.State(self._space)
        self._running: dict[str, Observation] = {}  # unfinished ones: value infinite until the last result
        self._held: dict[str, dict[str, Any]] = {}  # the integers and categoricals of each trial
        self._checkpoints: dict[str, str] = {}  # where each trial's checkpoint is, of those that have one
        self._warned = False

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Take metric and mode where none were given; False, as the search space is not Ray's to set."""
        self._metric = self._metric or metric
        self._mode = self._mode or mode
        return False

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """A step along a gradient, its start once more, or the explorer's choice; and what is wanted of the trial."""
        differentiable = floats(self._space)
        proposal = strategy.propose(self._state, [trial.parent for trial in self._running.values()])
        if proposal.point is None or proposal.parent is None:
            suggestion = self._explorer.suggest(trial_id)
            if not isinstance(suggestion, dict):
                return suggestion
            hyperparameters = spread(self._space, suggestion)
        else:
            parent = self._observations[proposal.parent]
            again = proposal.again  # then as they are: the way to the unit box and back would change last bits
            chosen = join(differentiable, parent.hyperparameters) if again else from_unit(self._space, proposal.point)
            hyperparameters = {**self._held[proposal.parent], **chosen}
        self._held[trial_id] = {name: hyperparameters[name] for name in self._space if name not in differentiable}
        self._running[trial_id] = Observation(
            trial=trial_id,
            parent=proposal.parent,
            hyperparameters={name: hyperparameters[name] for name in differentiable},
            value=math.inf,
            gradient=None,
            cost=1.0,
        )
        wanted = want(
            self._mode or "min", gradient_below=proposal.gradient_below, held_back_below=proposal.held_back_below
        )
        if proposal.parent in self._checkpoints:
            wanted["checkpoint"] = self._checkpoints[proposal.parent]
        return {**{name: hyperparameters[name] for name in self._space}, RESERVED: wanted}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep what a running trial brought; the explorer is told of its own trials."""
        trial = self._running.get(trial_id)
        if trial is None:
            _warn(f"a result of trial {trial_id!r}, which is not running, was ignored")
            return
        self._running[trial_id] = self._read(trial, result)
        if trial.parent is None:
            self._explorer.on_trial_result(trial_id, {**result, LOSS: self._loss(result)})

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Learn from a trial that completed, was stopped early (perhaps without a result) or failed."""
        trial = self._running.pop(trial_id, None)
        if trial is None:
            _warn(f"the end of trial {trial_id!r}, which is not running, was ignored")
            return
        trial = self._read(trial, result) if result else trial
        trial = replace(trial, value=math.inf, gradient=None) if error else trial
        self._warn_if_silent(trial, result)
        self._observations[trial_id] = trial
        if trial.refined is not None and result and result.get("checkpoint_dir_name"):
            self._checkpoints[trial_id] = f"{result['trial_path']}/{result['checkpoint_dir_name']}"
        self._state = strategy.fold(self._state, trial)
        stopped = math.isinf(trial.value) and (not result or result.get("status") == RUNNING)
        self._tell_explorer(trial, result or {}, stopped, error)

    def get_state(self) -> dict[str, Any]:
        """All that is needed to go on elsewhere, as plain JSON; what the explorer saves is in base64."""
        return {
            "observations": [trial.to_json() for trial in self._observations.values()],
            "running": [trial.to_json() for trial in self._running.values()],
            "held": self._held,
            "checkpoints": self._checkpoints,
            "explorer": base64.b64encode(_saved(self._explorer)).decode(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`, in a searcher that was made with the same arguments."""
        observations = [Observation.from_json(trial) for trial in state["observations"]]
        self._observations = {trial.trial: trial for trial in observations}
        running = [Observation.from_json(trial) for trial in state["running"]]
        self._running = {trial.trial: trial for trial in running}
        self._held = dict(state["held"])
        self._checkpoints = dict(state["checkpoints"])
        self._state = strategy.State(self._space)
        for trial in observations:
            self._state = strategy.fold(self._state, trial)
        _restore(self._explorer, base64.b64decode(state["explorer"]))

    def save(self, checkpoint_path: str) -> None:
        """Write `get_state` to a file."""
        Path(checkpoint_path).write_text(json.dumps(self.get_state()), encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Read what `save` wrote. Only from files that you trust: explorers save themselves by pickle."""
        self.set_state(json.loads(Path(checkpoint_path).read_text(encoding="utf-8")))

    def _read(self, trial: Observation, result: Mapping[str, Any]) -> Observation:
        """A trial after one more result, which is its last unless it says that it is running."""
        running = result.get("status") == RUNNING
        gradient = None if running else self._gradient(result)
        cost = _number(result.get("gradient_evaluations"))
        default_cost = 1.0 if gradient is None else strategy.GRADIENT_COST
        return replace(
            trial,
            value=math.inf if running else self._loss(result),
            gradient=gradient,
            cost=default_cost if cost is None else cost,
            held_back=_number(result.get("held_back_loss")),
            refined=None if running else self._refined(result),
        )

    def _loss(self, result: Mapping[str, Any]) -> float:
        """The metric as something to minimise; infinite where it is missing or not a finite number."""
        metric = self._metric or LOSS
        if metric not in result:
            _warn(f"{metric!r} is missing from a result, which is a failed step; set metric and mode here")
        value = _number(result.get(metric))
        if value is None:
            return math.inf
        return -value if self._mode == "max" else value

    def _gradient(self, result: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """The loss's derivatives, 0 for floats that are not mentioned; None where there is no usable one."""
        differentiable = floats(self._space)
        reported = {name: result.get(f"gradient/{name}") for name in differentiable}
        if all(derivative is None for derivative in reported.values()):
            return None
        sign = -1.0 if self._mode == "max" else 1.0
        gradient = {}
        for name, parameter in differentiable.items():
            derivative = np.zeros(parameter.shape) if reported[name] is None else _array(reported[name])
            if derivative is None or derivative.shape != parameter.shape:
                _warn(
                    f"a gradient was ignored: gradient[{name!r}] must be numbers of shape {parameter.shape}, "
                    f"got {reported[name]!r}"
                )
                return None
            gradient[name] = sign * derivative
        return gradient

    def _refined(self, result: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """The hyperparameters that the trial moved to; None where it moved none."""
        reported = {name: result.get(f"refined/{name}") for name in floats(self._space)}
        if not reported or any(value is None for value in reported.values()):
            return None
        return {name: np.asarray(value) for name, value in reported.items()}

    def _tell_explorer(self, trial: Observation, result: dict[str, Any], stopped: bool, error: bool) -> None:
        if trial.parent is None:
            told = None if stopped or error else {**result, LOSS: trial.value}
            self._explorer.on_trial_complete(trial.trial, result=told, error=error)
            return
        point = collect(self._space, {**trial.hyperparameters, **self._held[trial.trial]})
        with contextlib.suppress(NotImplementedError):  # by searchers that cannot learn from points of others
            self._explorer.add_evaluated_point(point, trial.value, error=error, pruned=stopped)

    def _warn_if_silent(self, trial: Observation, result: Mapping[str, Any] | None) -> None:
        silent = trial.gradient is None and "gradient_evaluations" not in (result or {})
        if silent and math.isfinite(trial.value) and not self._state.has_gradients and not self._warned:
            self._warned = True
            _warn(
                f"the trainable reported no gradient, so this search is {type(self._explorer).__name__}'s "
                "alone; use hypergrad_ray.trainable, or report 'gradient': {name: array}"
            )


def _check_explorer(explorer: Searcher | None, seed: int | None) -> Searcher:
    if explorer is None:
        if importlib.util.find_spec("optuna") is None:
            raise ImportError(
                "HypergradSearch: the default explorer needs optuna; pip install 'hypergrad-search[ray]', "
                "or give another searcher as explorer"
            )
        return OptunaSearch(seed=seed)
    if not isinstance(explorer, Searcher):
        raise ValueError(f"HypergradSearch: explorer must be a ray.tune.search.Searcher, got {explorer!r}")
    if seed is not None:
        raise ValueError("HypergradSearch: give the seed to explorer, or leave that out")
    return explorer


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _array(values: Any) -> np.ndarray | None:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return None


def _saved(explorer: Searcher) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "explorer")
        explorer.save(str(path))
        return path.read_bytes()


def _restore(explorer: Searcher, saved: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "explorer")
        path.write_bytes(saved)
        explorer.restore(str(path))


def _warn(message: str) -> None:
    warnings.warn(f"HypergradSearch: {message}", stacklevel=3)
