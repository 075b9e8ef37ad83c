"""`HypergradSearch`: Ray Tune's side of the search. It stores and fetches, and decides nothing itself."""

import base64
import contextlib
import importlib.util
import json
import math
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from hypergrad_ray.param_space import RESERVED, check_names, join, param_space
from hypergrad_ray.race import Race
from hypergrad_ray.trainable import RUNNING
from hypergrad_search import Space
from hypergrad_search.checks import shown, whole_number
from hypergrad_search.search import Observation, Strategy
from hypergrad_search.search.ask_tell import OVERFITTED, AskTell, MissingGradients, Outcome, collect, levels, spread
from hypergrad_search.search.doubts import Doubts
from hypergrad_search.space import centre, floats, lifted

LOSS = "loss"  # the name of the metric that the explorer minimises


class HypergradSearch(Searcher):
    """Search where the gradient of the metric points, taking turns with another searcher, the explorer.

    Floats follow gradients, which `trainable` reports, or any other trainable as `"gradient": {name: array}` (see
    `wants_gradient`). The explorer chooses integers and categoricals, which stay as they are along a chain of descent.
    If no trial reports a gradient, the explorer alone decides, and a warning says so once.

    An array hyperparameter, or a number with a `lift`, is one ndarray in a trial's config. The explorer sees one number
    in its place: it chooses one value for all elements, and it is told the mean (of logarithms, with `log=True`) of an
    array that a chain has moved.

    A trial that failed, or whose last result has the status `"running"` because a scheduler stopped it, is a failed
    step. Its cost counts nevertheless: `"gradient_evaluations"` if the trainable reports that, else 4 with a gradient
    and 1 without.

    Ray ends some trials without a word: at the end of a time budget, or where a restored run skips them. A trial that
    has been running for more than twice as long as the longest one so far, while five that began later have ended, is
    taken to be lost, and its chain goes on without it; its result is used nevertheless if it comes. A trial that a
    restored run runs again, under its own name or another one, takes the place of the trial with the same
    hyperparameters that failed or did not end.

    Args:
        space: a dict from names to `Float`, `Int` or `Categorical`. Leave Ray's own `param_space` empty, but for
            constants.
        metric: the key of the result to optimise, `"loss"` for `trainable`. Give it here: Ray passes the metric and the
            mode of `tune.run` or `tune.TuneConfig` on only together with constants in `param_space`.
        mode: `"min"` or `"max"`.
        explorer: the other searcher, made without a space; by default `OptunaSearch` (TPE), which needs optuna. By
            default the first trial is at the centre of the space; an explorer that you give chooses that one too.
        strategy: the way to spend the budget; `hypergrad_search.search.ExploreDescend()` by default.
        seed: the seed of the default explorer; the rest of the search is deterministic.

    Raises:
        ValueError: an argument does not fit; the message says which and what to do.
        ImportError: the default explorer is wanted, and optuna is missing.
        RuntimeError: at the first trial, neither this searcher nor Ray was told the metric and the mode.

    Do not use it for several metrics, nor inside `Repeater`, which drops the gradients. To limit concurrency, wrap this
    searcher, not its explorer.
    """

    def __init__(
        self,
        space: Space,
        *,
        metric: str | None = None,
        mode: str | None = None,
        explorer: Searcher | None = None,
        strategy: Strategy[Any] | None = None,
        seed: int | None = None,
    ) -> None:
        check_names(space)
        _check_goal(metric, mode)
        super().__init__(metric=metric, mode=mode)
        self._space = lifted(space)
        self._explorer = _check_explorer(explorer, seed)
        self._own_explorer = explorer is not None
        if not self._explorer.set_search_properties(LOSS, "min", param_space(levels(self._space))):
            raise ValueError("HypergradSearch: explorer must be made without a space, which it gets here")
        self._mind = AskTell.begin(self._space, strategy, maximise=mode == "max")
        remedy = "use hypergrad_ray.trainable, or report 'gradient': {name: array}"
        self._missing_gradients = MissingGradients("HypergradSearch", "trainable", self._explorer, remedy)
        self._doubts = Doubts("HypergradSearch")
        self._observations: dict[str, Observation] = {}
        self._running: dict[str, Observation] = {}  # unfinished trials, with their results so far
        self._race = Race()  # among the unfinished trials
        self._adopted: set[str] = set()  # trials that took the place of others, of which the explorer does not know
        self._checkpoints: dict[str, str] = {}  # the path of each trial's checkpoint, if it has one
        self._said: set[str] = set()  # the warnings so far, each of which is given once

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Take metric and mode where none were given, and return False, since Ray must not set the search space.

        Where this searcher has another metric of its own, that of Ray only decides which trial Ray calls the best.
        Raises `ValueError` where the metric is the same and the mode is not.
        """
        _check_goal(metric, mode)
        if self._metric is not None and metric not in (None, self._metric):
            return False
        if self._mode is not None and mode not in (None, self._mode):
            raise ValueError(
                f"HypergradSearch: it was made with mode={self._mode!r}, and Ray has mode={mode!r} for the metric "
                f"{metric or self._metric!r}; give both the same"
            )
        self._metric = self._metric or metric
        self._mode = self._mode or mode
        self._mind = replace(self._mind, maximise=self._mode == "max")
        return False

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the config of the next trial: a step, a second look at its start, or the explorer's choice.

        Raises `RuntimeError` where metric or mode is unknown: the wrong direction would go unnoticed.
        """
        if self._metric is None or self._mode is None:
            raise RuntimeError(
                f"HypergradSearch: metric ({self._metric}) or mode ({self._mode}) have not been set. Pass both when "
                'instantiating it, HypergradSearch(space, metric="loss", mode="min"), since Ray passes those of '
                "tune.TuneConfig() on only together with a param_space."
            )
        lost = self._race.lost(time.monotonic())
        suggestion = self._mind.ask([trial.parent for name, trial in self._running.items() if name not in lost])
        wanted = suggestion.wanted
        at_the_centre = suggestion.centre and not self._own_explorer
        if at_the_centre:
            hyperparameters = centre(self._space)
        elif wanted.parent is None:
            chosen: Any = self._explorer.suggest(trial_id)
            if chosen is None or isinstance(chosen, str):  # it waits, or it has finished
                return chosen  # type: ignore[return-value]  # FINISHED is a str, which Ray's own type leaves out
            hyperparameters = spread(self._space, self._read_choice(chosen))
        else:
            before = self._observations[wanted.parent].hyperparameters
            hyperparameters = join(self._space, {**before, **(suggestion.moved or {})})
            wanted = replace(wanted, checkpoint=self._checkpoints.get(wanted.parent))
        self._begin(
            Observation(
                trial_id,
                wanted.parent,
                hyperparameters,
                again=wanted.again,
                left_out=wanted.left_out,
                centre=at_the_centre,
            )
        )
        return {**hyperparameters, RESERVED: wanted.to_json()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep the result of a running trial, and tell the explorer of its own trials."""
        _check_result(result)
        trial = self._begun(trial_id, result)
        if trial is None:
            _warn(f"a result of trial {trial_id!r}, which is not running, was ignored")
            return
        self._running[trial_id] = self._read(trial, result)
        if trial_id not in self._adopted:
            if trial.parent is None and not trial.centre:
                self._explorer.on_trial_result(trial_id, {**result, LOSS: self._mind.loss(self._value(result))})
        elif result.get("status") != RUNNING:  # a ConcurrencyLimiter keeps to itself how such trials end
            self.on_trial_complete(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Learn from a trial that completed, was stopped early (perhaps without a result) or failed."""
        result = {} if result is None else result
        _check_result(result)
        known = self._observations.get(trial_id)
        if known is not None and (math.isinf(known.value) if error else trial_id in self._adopted):
            return  # it says nothing new
        trial = self._begun(trial_id, result)
        if trial is None:
            _warn(f"the end of trial {trial_id!r}, which is not running, was ignored")
            return
        del self._running[trial_id]
        self._race = self._race.end(trial_id, time.monotonic())
        trial = self._read(trial, result) if result else trial
        trial = replace(trial, value=math.inf, gradient=None) if error else trial
        reported = trial.gradient is not None or any(
            key.startswith("gradient") and value is not None for key, value in result.items()
        )
        self._missing_gradients.check(self._mind, trial.value, reported=reported)
        self._observations[trial_id] = trial
        if trial.refined is not None and {"trial_path", "checkpoint_dir_name"} <= result.keys():
            self._checkpoints[trial_id] = f"{result['trial_path']}/{result['checkpoint_dir_name']}"
        self._mind = self._mind.tell(trial)
        self._doubts.look_at_value(trial, result.get("message"))
        if "status" not in result:  # the user's own gradient
            self._doubts.look(self._space, trial, maximise=self._mind.maximise)
        stopped = math.isinf(trial.value) and (not result or result.get("status") == RUNNING)
        self._tell_explorer(trial, result, stopped, error)

    def get_state(self) -> dict[str, Any]:
        """Return all that is needed to go on elsewhere, as plain JSON; the explorer's own state is in base64."""
        return {
            "observations": [trial.to_json() for trial in self._observations.values()],
            "running": [trial.to_json() for trial in self._running.values()],
            "adopted": sorted(self._adopted),
            "checkpoints": self._checkpoints,
            "explorer": base64.b64encode(_saved(self._explorer)).decode(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`, in a searcher that was made with the same arguments.

        Raises `ValueError` where `state` did not come from there, or the searcher has another space.
        """
        try:
            observations = [Observation.from_json(data) for data in state["observations"]]
            running = [Observation.from_json(data) for data in state["running"]]
            adopted = set(state.get("adopted", ()))  # earlier versions had none
            checkpoints, explorer = dict(state["checkpoints"]), base64.b64decode(state["explorer"])
        except (TypeError, ValueError, KeyError, AttributeError):
            raise ValueError(f"HypergradSearch: state must be what get_state returned, got {shown(state)}") from None
        for trial in (*observations, *running):
            join(self._space, trial.hyperparameters)
        _restore(self._explorer, explorer)
        self._observations = {trial.trial: trial for trial in observations}
        self._running, self._race = {}, Race()
        for trial in running:
            self._begin(trial)
        self._adopted, self._checkpoints = adopted, checkpoints
        self._mind = self._remembered()

    def save(self, checkpoint_path: str) -> None:
        """Write `get_state` to a file."""
        Path(checkpoint_path).write_text(json.dumps(self.get_state()), encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Read the file that `save` wrote. Restore only files that you trust: explorers save themselves by pickle."""
        try:
            state = json.loads(Path(checkpoint_path).read_text(encoding="utf-8"))
        except ValueError:
            raise ValueError(
                f"HypergradSearch: checkpoint_path must name a file that save wrote, got {shown(checkpoint_path)}"
            ) from None
        self.set_state(state)

    def _begin(self, trial: Observation) -> None:
        self._running[trial.trial] = trial
        self._race = self._race.begin(trial.trial, time.monotonic())

    def _begun(self, trial_id: str, result: Mapping[str, Any]) -> Observation | None:
        """Return the running trial of this name; one that Ray runs again takes the place of its first attempt."""
        if trial_id in self._running:
            return self._running[trial_id]
        first = self._first_attempt(trial_id, result)
        if first is None:
            return None
        self._adopted.add(trial_id)
        if self._running.pop(first.trial, None) is not None:
            self._race = self._race.leave(first.trial)
        else:
            del self._observations[first.trial]
            self._mind = self._remembered()
        self._begin(
            Observation(
                trial_id,
                first.parent,
                first.hyperparameters,
                again=first.again,
                left_out=first.left_out,
                centre=first.centre,
            )
        )
        return self._running[trial_id]

    def _first_attempt(self, trial_id: str, result: Mapping[str, Any]) -> Observation | None:
        """Return the trial that failed or did not end, and that a result of an unknown trial stands for."""
        own = self._observations.get(trial_id)
        if own is not None:
            return own if math.isinf(own.value) or trial_id in self._adopted else None
        config = {key.removeprefix("config/"): value for key, value in result.items() if key.startswith("config/")}
        with contextlib.suppress(ValueError):
            point = join(self._space, config)
            failed = [trial for trial in self._observations.values() if math.isinf(trial.value)]
            return next((t for t in [*self._running.values(), *failed] if _same(point, t.hyperparameters)), None)
        return None

    def _remembered(self) -> AskTell:
        """Return the search after all that was observed."""
        mind = AskTell.begin(self._space, self._mind.strategy, maximise=self._mind.maximise)
        for trial in self._observations.values():
            mind = mind.tell(trial)
        return mind

    def _read(self, begun: Observation, result: Mapping[str, Any]) -> Observation:
        """Return a trial after one more result, which is the last one unless its status is `"running"`."""
        cost = result.get("gradient_evaluations")
        if result.get("status") == RUNNING:
            return self._mind.read(begun, Outcome(cost=cost))
        differentiable = floats(self._space)
        outcome = Outcome(
            value=self._value(result),
            gradient=self._gradient(result),
            cost=cost,
            held_back=result.get("held_back"),
            blocks=result.get("blocks"),
            cross_validated=result.get("cross_validated"),
            refined={name: result.get(f"refined/{name}") for name in differentiable},
            status=result.get("status"),
            deterministic=result.get("deterministic"),
        )
        return self._mind.read(begun, outcome)

    def _value(self, result: Mapping[str, Any]) -> Any:
        if self._metric not in result:
            self._warn_once(
                f"{self._metric!r} is missing from a result, which is a failed step; report it, or set metric"
            )
        return result.get(str(self._metric))

    def _gradient(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Return the derivatives in a result, in which Ray has made `{"gradient": {"x": 1.0}}` one key."""
        reported = {k.removeprefix("gradient/"): g for k, g in result.items() if k.startswith("gradient/")}
        known = floats(self._space)
        for name, derivative in reported.items():
            if name not in known and derivative is not None:
                self._warn_once(f"gradient[{name!r}] was ignored: the floats of the space are {sorted(known)}")
        whole = result.get("gradient")
        if whole is not None and not isinstance(whole, Mapping):
            self._warn_once(f"a gradient was ignored: it must be a dict {{name: array}}, got {shown(whole)}")
        return {name: reported.get(name) for name in known}

    def _read_choice(self, chosen: Any) -> dict[str, Any]:
        """Return what the explorer has chosen, one number for each array."""
        try:
            return join(levels(self._space), chosen)
        except ValueError as error:
            raise ValueError(f"HypergradSearch: the explorer's choice does not fit the space: {error}") from None

    def _warn_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            _warn(message)

    def _tell_explorer(self, trial: Observation, result: dict[str, Any], stopped: bool, error: bool) -> None:
        overfitted = result.get("status") == OVERFITTED and not error  # a failed step, with a value that is sound
        loss = self._mind.loss(self._value(result)) if overfitted else trial.value
        if trial.parent is None and not trial.centre and trial.trial not in self._adopted:
            told = None if stopped or error else {**result, LOSS: loss}
            self._explorer.on_trial_complete(trial.trial, result=told, error=error)
            return
        point = collect(self._space, trial.hyperparameters)
        with contextlib.suppress(NotImplementedError):  # of searchers that cannot learn from points that others chose
            self._explorer.add_evaluated_point(point, loss, error=error, pruned=stopped)


def _check_goal(metric: Any, mode: Any) -> None:
    if metric is not None and not isinstance(metric, str):
        raise ValueError(f"HypergradSearch: metric must be one name, got {metric!r}")
    if mode is not None and (not isinstance(mode, str) or mode not in ("min", "max")):
        raise ValueError(f"HypergradSearch: mode must be 'min' or 'max', got {mode!r}")


def _check_result(result: Any) -> None:
    if not isinstance(result, Mapping):
        raise ValueError(f"HypergradSearch: result must be a dict, got {shown(result)}")


def _check_explorer(explorer: Searcher | None, seed: int | None) -> Searcher:
    if explorer is None:
        if importlib.util.find_spec("optuna") is None:
            raise ImportError(
                "HypergradSearch: the default explorer needs optuna; pip install 'hypergrad-search[ray]', "
                "or give another searcher as explorer"
            )
        return OptunaSearch(seed=None if seed is None else whole_number("HypergradSearch: seed", seed, 0, 2**32 - 1))
    if not isinstance(explorer, Searcher):
        raise ValueError(f"HypergradSearch: explorer must be a ray.tune.search.Searcher, got {explorer!r}")
    if seed is not None:
        raise ValueError("HypergradSearch: give the seed to explorer, or leave it out")
    return explorer


def _same(point: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(np.array_equal(value, other[name]) for name, value in point.items())


def _saved(explorer: Searcher) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "explorer")
        explorer.save(str(path))
        return path.read_bytes()


def _restore(explorer: Searcher, saved: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "explorer")
        path.write_bytes(saved)
        try:
            explorer.restore(str(path))
        except Exception as error:  # whatever the explorer makes of what another one has saved
            raise ValueError(
                f"HypergradSearch: {type(explorer).__name__} cannot read the explorer's part of the state "
                f"({shown(error)}); is it of another explorer?"
            ) from error


def _warn(message: str) -> None:
    warnings.warn(f"HypergradSearch: {message}", stacklevel=3)
