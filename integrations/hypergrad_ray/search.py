"""`HypergradSearch`: Ray Tune's side of the search. It stores and fetches, and decides nothing itself."""

import contextlib
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from pyarrow.fs import LocalFileSystem
from ray.tune.result import DEFAULT_METRIC
from ray.tune.search import Searcher

from hypergrad_ray import state_file
from hypergrad_ray.arguments import check_goal, check_result, check_state, checked_points
from hypergrad_ray.config import METRIC, RESERVED, join
from hypergrad_ray.domains import Domains
from hypergrad_ray.explorer import Explorer
from hypergrad_ray.finished import Finished, digest
from hypergrad_ray.large_array import Home, read_from
from hypergrad_ray.race import Race
from hypergrad_ray.results import RUNNING, Reader, config_of, has_gradient, iteration
from hypergrad_search.checks import shown
from hypergrad_search.search import Observation, Strategy
from hypergrad_search.search.ask_tell import OVERFITTED, AskTell, MissingGradients, Suggestion
from hypergrad_search.search.doubts import Doubts
from hypergrad_search.space import centre, check_space


class HypergradSearch(Searcher):
    """Search where the gradient of the metric points, taking turns with another searcher, the explorer.

    Floats follow gradients, which `trainable` reports, or any other trainable as `"gradient": {name: array}` (see
    `wants_gradient`), nested as in the config. The explorer chooses integers and categoricals, which stay as they are
    along a chain of descent. If no trial reports a gradient, the explorer alone decides, and a warning says so once.

    The space may be given here, or as Ray's `param_space`. It may hold Ray's own domains too, in dicts and lists, and
    constants beside them. `tune.uniform` and `tune.loguniform` are floats, and so is `tune.randn`, from three standard
    deviations below the mean to three above it. The explorer alone chooses what `tune.choice` and the domains of
    integers stand for, and also quantised floats such as `tune.quniform`: a short step would be rounded back to where
    it began, and its failure would say nothing about the gradient. `tune.grid_search` is refused. Ray computes what
    `tune.sample_from` says in `param_space`, from what was chosen.

    An array hyperparameter, or a number with a `lift`, is one ndarray in a trial's config. The explorer sees one number
    in its place: it chooses one value for all elements, and it is told the mean (of logarithms, with `log=True`) of an
    array that a chain has moved.

    A trial that failed is a failed step. So is a step whose last result has the status `"running"`, since a scheduler
    stopped it; the explorer is told of its losses so far. The cost of both counts nevertheless:
    `"gradient_evaluations"` if the trainable reports that, else 4 with a gradient and 1 without.

    Ray ends some trials without a word: at the end of a time budget, or where a restored run skips them. A trial that
    has been running for more than twice as long as the longest one so far, while five that began later have ended, is
    taken to be lost, and its chain goes on without it; its result is used nevertheless if it comes. A trial that a
    restored run runs again, under its own name or another one, takes the place of the trial with the same
    hyperparameters that failed or did not end.

    Args:
        space: a dict of domains, as above; None to search what Ray's `param_space` holds. With a space given here,
            leave `param_space` empty, but for constants.
        metric: the key of the result to optimise, `"loss"` for `trainable`, and `"_metric"` for a function that returns
            a number. Without a `param_space` give it here, since Ray passes on the metric and the mode of `tune.run` or
            `tune.TuneConfig` only together with that.
        mode: `"min"` or `"max"`.
        explorer: the other searcher, made without a space; by default `OptunaSearch` (TPE), which needs optuna. By
            default the first trial is at the centre of the space; an explorer that you give chooses that one too.
        strategy: the way to spend the budget; `hypergrad_search.search.ExploreDescend()` by default.
        seed: the seed of the default explorer; the rest of the search is deterministic.
        points_to_evaluate: configs for the first trials, each with a value for every domain. One number for an array
            stands for each of its elements.
        evaluated_rewards: the metric at each of these points, where it is known; then they are not run, but for the
            best, which is run once more for its gradient.

    Raises:
        ValueError: an argument does not fit; the message says which and what to do.
        ImportError: the default explorer is wanted, and optuna is missing.
        RuntimeError: at the first trial, there is no space, or neither this searcher nor Ray was told the metric and
            the mode.

    Do not use it for several metrics, nor inside `Repeater`, which drops the gradients, nor with the schedulers
    `PopulationBasedTraining`, `PB2` and `HyperBandForBOHB`. To limit concurrency, wrap this searcher, not its explorer.

    Example:
        >>> from hypergrad_ray import HypergradSearch
        >>> searcher = HypergradSearch(space, metric="loss", mode="min")
        >>> config = searcher.suggest("first")  # the centre of the space
        >>> float(round(config["l2"], 6))
        0.001
    """

    def __init__(
        self,
        space: Mapping[str, Any] | None = None,
        *,
        metric: str | None = None,
        mode: str | None = None,
        explorer: Searcher | None = None,
        strategy: Strategy[Any] | None = None,
        seed: int | None = None,
        points_to_evaluate: Sequence[Mapping[str, Any]] | None = None,
        evaluated_rewards: Sequence[float] | None = None,
    ) -> None:
        check_goal(metric, mode)
        super().__init__(metric=metric, mode=mode)
        self._explorer = Explorer(explorer, seed)
        self._domains = Domains()
        self._mind = AskTell.begin({}, strategy, maximise=mode == "max")
        remedy = (
            "use hypergrad_ray.trainable, or report 'gradient': {name: array}; ray.tune.search.Repeater drops gradients"
        )
        self._missing_gradients = MissingGradients("HypergradSearch", "trainable", self._explorer.searcher, remedy)
        self._doubts = Doubts("HypergradSearch")
        self._reader = Reader()
        self._points = checked_points(points_to_evaluate, evaluated_rewards)
        self._given: list[tuple[dict[str, Any], float | None]] = []  # what is left of these points, as hyperparameters
        self._observations = Finished({})
        self._running: dict[str, Observation] = {}  # unfinished trials, with their results so far
        self._losses: dict[str, dict[int, float]] = {}  # their losses on the way, by training iteration
        self._explored: set[str] = set()  # those that the explorer chose
        self._race = Race()  # among the unfinished trials
        self._adopted: set[str] = set()  # trials that took the place of others, of which the explorer does not know
        self._checkpoints: dict[str, str] = {}  # of trials that have one, as a path in the experiment's folder
        self._home = Home()  # of the run's large arrays
        if space is not None:
            domains = Domains.of(space)
            check_space(domains.space)
            self._search_in(domains)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Take the space, the metric and the mode where none were given; return whether the space is taken.

        Where this searcher has another metric of its own, that of Ray only decides which trial Ray calls the best.
        Raises `ValueError` where the metric is the same and the mode is not, or a domain cannot be searched.
        """
        check_goal(metric, mode)
        self._aim_at(metric, mode)
        if self._mode is not None:
            self._metric = self._metric or DEFAULT_METRIC  # as Ray calls a number that a function returns
        for trial in list(self._running):  # a new run begins, so that they will never end
            self._leave(trial)
        self._home = Home()
        domains = Domains.of(config).only()
        if not domains.space:
            return False
        if not self._domains.space:
            self._search_in(domains)
        elif not self._domains.of_same_space(domains):
            raise ValueError(
                f"HypergradSearch: it has a space of its own, {shown(list(self._domains.space))}, and param_space has "
                f"{shown(list(domains.space))} to search too; give the whole space in one place"
            )
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the config of the next trial: a step, a second look at its start, or the explorer's choice.

        Raises `RuntimeError` where space, metric or mode is unknown: the wrong direction would go unnoticed.
        """
        self._check_ready()
        self._tell_of_evaluated_points()
        if self._given:
            suggestion = self._mind.explore()
            hyperparameters, _ = self._given.pop(0)
        else:
            lost = self._race.lost(time.monotonic())
            suggestion = self._mind.ask([trial.attempt for name, trial in self._running.items() if name not in lost])
            chosen = self._choose(trial_id, suggestion)
            if chosen is None or isinstance(chosen, str):  # the explorer waits, or it has finished
                return chosen  # type: ignore[return-value]  # FINISHED is a str, which Ray's own type leaves out
            hyperparameters = chosen
        wanted = suggestion.wanted
        self._begin(
            Observation(
                trial_id,
                wanted.parent,
                hyperparameters,
                again=wanted.again,
                left_out=wanted.left_out,
                variant=wanted.variant,
                centre=self._at_the_centre(suggestion),
            )
        )
        wanted = replace(wanted, checkpoint=self._checkpoints.get(str(wanted.parent)))
        config = {**self._domains.config(hyperparameters), RESERVED: {**wanted.to_json(), METRIC: self._metric}}
        self._home.take(config)
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep the result of a running trial, and tell the explorer of its own trials."""
        check_result(result)
        self._home.take(result)
        trial = self._begun(trial_id, result)
        if trial is None:
            _warn(f"a result of trial {trial_id!r}, which is not running, was ignored")
            return
        self._running[trial_id] = self._read(trial, result)
        self._report(trial_id, result)
        if trial_id in self._adopted and result.get("status") != RUNNING:
            self.on_trial_complete(trial_id, result)  # a ConcurrencyLimiter keeps to itself how such trials end

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Learn from a trial that completed, was stopped early (perhaps without a result) or failed."""
        result = {} if result is None else result
        check_result(result)
        self._home.take(result)
        known = self._observations.get(trial_id)
        if known is not None and (math.isinf(known.value) if error else trial_id in self._adopted):
            return  # it says nothing new
        trial = self._begun(trial_id, result)
        if trial is None:
            _warn(f"the end of trial {trial_id!r}, which is not running, was ignored")
            return
        trial = self._read(trial, result) if result else trial
        trial = replace(trial, value=math.inf, gradient=None) if error else trial
        stopped = math.isinf(trial.value) and not error and (not result or result.get("status") == RUNNING)
        if stopped and result:
            self._report(trial_id, result)
        reported = trial.gradient is not None or has_gradient(result)
        self._missing_gradients.check(self._mind, trial.value, reported=reported)
        if trial.refined is not None and {"trial_dir", "checkpoint_dir_name"} <= result.keys():
            self._checkpoints[trial_id] = f"{result['trial_dir']}/{result['checkpoint_dir_name']}"
        self._mind = self._mind.tell(trial)
        if not stopped:
            self._doubts.look_at_value(trial, result.get("message"))
        if "status" not in result:  # the user's own gradient
            self._doubts.look(self._mind.space, trial, maximise=self._mind.maximise)
        self._tell_explorer(trial, result, stopped, error)
        self._leave(trial_id, time.monotonic())
        self._observations.keep(trial, self._mind.parents)

    def on_pause(self, trial_id: str) -> NoReturn:
        """Refuse `HyperBandForBOHB`, which alone calls this.

        Raises `ValueError`.
        """
        raise ValueError(
            "HypergradSearch: the scheduler HyperBandForBOHB works with TuneBOHB alone; use ASHAScheduler or "
            "HyperBandScheduler"
        )

    def add_evaluated_point(
        self,
        parameters: Mapping[str, Any],
        value: float | None,
        error: bool = False,
        pruned: bool = False,
        intermediate_values: Sequence[float] | None = None,
    ) -> None:
        """Learn from a config that was evaluated elsewhere; the best one is run once more, for its gradient.

        Args:
            parameters: the config, with a value for every domain.
            value: the metric there; None where it failed.
            error: whether it failed.
            pruned: whether it was stopped early; then it is for the explorer alone.
            intermediate_values: the metric after each report of a trial that was stopped early.

        Raises `ValueError` where `parameters` does not fit the space, and `RuntimeError` where space, metric or mode is
        unknown.
        """
        self._check_ready()
        self._tell_of_evaluated_points()
        losses = {i: self._mind.loss(each) for i, each in enumerate(intermediate_values or (), 1)}
        loss = math.inf if error else self._mind.loss(value)
        point = self._point(parameters, "add_evaluated_point: parameters")
        self._explorer.add(point, loss, error=error, stopped=pruned, reports=losses)
        if math.isfinite(loss) and not pruned:
            self._add(point, loss)

    def get_state(self) -> dict[str, Any]:
        """Return all that is needed to go on elsewhere; it can be pickled, and no more of it changes."""
        return {
            "metric": self._metric,
            "mode": self._mode,
            "domains": self._domains,
            "strategy": (self._mind.state, self._mind.has_gradients),
            "finished": self._observations.to_state(),
            "running": list(self._running.values()),
            "losses": {trial: dict(losses) for trial, losses in self._losses.items()},
            "explored": set(self._explored),
            "adopted": set(self._adopted),
            "checkpoints": dict(self._checkpoints),
            "given": list(self._given),
            "explorer": self._explorer.save(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`, in a searcher that was made with the same arguments.

        What this searcher was not told, as where Ray passed on space, metric and mode, comes from the state. Raises
        `ValueError` where `state` did not come from there, or the searcher has another space, metric or mode.
        """
        check_state(state)
        domains: Domains = state["domains"]
        if self._domains.space and not self._domains.of_same_space(domains):
            raise ValueError(
                f"HypergradSearch: state is of a search in {shown(domains.space)}, and not in "
                f"{shown(self._domains.space)}; give the searcher the space that it had"
            )
        for name, own in {"metric": self._metric, "mode": self._mode}.items():
            if own is not None and state[name] not in (None, own):
                raise ValueError(f"HypergradSearch: state is of a search with {name}={state[name]!r}, and not {own!r}")
        if domains.space and not self._domains.space:
            self._search_in(domains)
        self._explorer.restore(state["explorer"])
        self._aim_at(state["metric"], state["mode"])
        told, has_gradients = state["strategy"]
        self._mind = replace(self._mind, state=told, has_gradients=has_gradients)
        self._observations = Finished.from_state(self._mind.space, state["finished"])
        self._running, self._race = {}, Race()
        for trial in state["running"]:
            self._begin(trial)
        self._losses = {trial: dict(losses) for trial, losses in state["losses"].items()}
        self._explored, self._adopted = set(state["explored"]), set(state["adopted"])
        self._checkpoints, self._given = dict(state["checkpoints"]), list(state["given"])

    def save(self, checkpoint_path: str) -> None:
        """Write `get_state` to a file, in binary."""
        self._keep_arrays_beside(checkpoint_path)
        state_file.write(checkpoint_path, self.get_state())

    def restore(self, checkpoint_path: str) -> None:
        """Read the file that `save` wrote. Restore only files that you trust: they are read by pickle."""
        self._keep_arrays_beside(checkpoint_path)
        self.set_state(state_file.read(checkpoint_path))

    def _keep_arrays_beside(self, path: str) -> None:
        """Let the large arrays of this run be files beside its state, if this is the path of a file of Ray's own."""
        of_ray, _, _ = self.CKPT_FILE_TMPL.partition("{")
        if of_ray in Path(path).name:
            self._home.folder = Path(path).absolute().parent
            read_from(LocalFileSystem(), str(self._home.folder))

    def _search_in(self, domains: Domains) -> None:
        """Begin to search a space."""
        self._explorer.begin(domains.space)
        self._domains, self._observations = domains, Finished(domains.space)
        self._mind = AskTell.begin(domains.space, self._mind.strategy, maximise=self._mind.maximise)
        named = [(f"points_to_evaluate[{i}]", *point) for i, point in enumerate(self._points)]
        self._given = [(self._point(point, name), reward) for name, point, reward in named]

    def _aim_at(self, metric: str | None, mode: str | None) -> None:
        """Take a metric and a mode where none were given."""
        if self._metric is not None and metric not in (None, self._metric):
            return
        if self._mode is not None and mode not in (None, self._mode):
            raise ValueError(
                f"HypergradSearch: it was made with mode={self._mode!r}, and Ray has mode={mode!r} for the metric "
                f"{metric or self._metric!r}; give both the same"
            )
        self._metric = self._metric or metric
        self._mode = self._mode or mode
        self._mind = replace(self._mind, maximise=self._mode == "max")

    def _check_ready(self) -> None:
        if not self._domains.space:
            raise RuntimeError(
                "HypergradSearch: there is no space to search; make it as HypergradSearch(space, ...), or put domains "
                "such as tune.uniform(0, 1) into param_space"
            )
        if self._metric is None or self._mode is None:
            raise RuntimeError(
                f"HypergradSearch: metric ({self._metric}) or mode ({self._mode}) have not been set. Pass both when "
                'instantiating it, HypergradSearch(space, metric="loss", mode="min"), since Ray passes those of '
                'tune.TuneConfig() on only together with a param_space. A number that a function returns is "_metric".'
            )

    def _choose(self, trial_id: str, suggestion: Suggestion) -> dict[str, Any] | str | None:
        """Return the hyperparameters of the next trial, or what the explorer says instead."""
        parent = suggestion.wanted.parent
        if self._at_the_centre(suggestion):
            return centre(self._mind.space)
        if parent is not None:
            return join(self._mind.space, {**self._observations[parent].hyperparameters, **(suggestion.moved or {})})
        chosen = self._explorer.choose(trial_id)
        if isinstance(chosen, dict):
            self._explored.add(trial_id)
        return chosen

    def _at_the_centre(self, suggestion: Suggestion) -> bool:
        return suggestion.centre and not self._explorer.is_the_user_s

    def _tell_of_evaluated_points(self) -> None:
        """Tell of the user's points whose values are known, now that the mode is known too."""
        for point, reward in self._given:
            if reward is not None:
                loss = self._mind.loss(reward)
                self._explorer.add(point, loss)
                self._add(point, loss)
        self._given = [(point, reward) for point, reward in self._given if reward is None]

    def _add(self, point: dict[str, Any], loss: float) -> None:
        """Learn from a point that no trial of this search has evaluated."""
        name = next(name for n in count() if (name := f"evaluated {n}") not in self._observations)
        trial = Observation(name, None, point, value=loss, unasked=True)
        self._mind = self._mind.tell(trial)
        self._observations.keep(trial, self._mind.parents)

    def _point(self, config: Mapping[str, Any], name: str) -> dict[str, Any]:
        try:
            return self._domains.hyperparameters(config)
        except ValueError as error:
            raise ValueError(f"HypergradSearch: {name} does not fit the space: {error}") from None

    def _begin(self, trial: Observation) -> None:
        self._running[trial.trial] = trial
        self._race = self._race.begin(trial.trial, time.monotonic())

    def _leave(self, trial_id: str, ended: float | None = None) -> None:
        """Forget that a trial is running; `ended` is when it ended, if it has."""
        self._race = self._race.leave(trial_id) if ended is None else self._race.end(trial_id, ended)
        del self._running[trial_id]
        self._losses.pop(trial_id, None)
        self._explored.discard(trial_id)

    def _begun(self, trial_id: str, result: Mapping[str, Any]) -> Observation | None:
        """Return the running trial of this name; one that Ray runs again takes the place of its first attempt."""
        if trial_id in self._running:
            return self._running[trial_id]
        first = self._first_attempt(trial_id, result)
        if first is None:
            return None
        self._adopted.add(trial_id)
        if first.trial in self._running:
            self._leave(first.trial)
        else:
            self._observations.drop(first.trial)
        self._begin(
            Observation(
                trial_id,
                first.parent,
                first.hyperparameters,
                again=first.again,
                left_out=first.left_out,
                variant=first.variant,
                centre=first.centre,
            )
        )
        return self._running[trial_id]

    def _first_attempt(self, trial_id: str, result: Mapping[str, Any]) -> Observation | None:
        """Return the trial that failed or did not end, and that a result of an unknown trial stands for."""
        point = None
        with contextlib.suppress(ValueError):  # of a config from another space, which stands for no trial here
            point = self._domains.hyperparameters(config_of(result))
        if trial_id in self._observations:
            again = self._observations.has_failed(trial_id) or trial_id in self._adopted
            return self._observations.whole(trial_id, point) if again else None
        if point is None:
            return None
        known = digest(self._mind.space, point)
        running = (t for t in self._running.values() if digest(self._mind.space, t.hyperparameters) == known)
        return next(running, None) or self._observations.failed_at(point)

    def _read(self, begun: Observation, result: Mapping[str, Any]) -> Observation:
        """Return a trial after one more result, which is the last one unless its status is `"running"`."""
        return self._mind.read(begun, self._reader.outcome(result, str(self._metric), self._domains))

    def _loss(self, result: Mapping[str, Any]) -> float:
        return self._mind.loss(self._reader.value(result, str(self._metric)))

    def _report(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Keep the loss of a running trial, and tell the explorer of it, unless this result came before."""
        number, losses = iteration(result), self._losses.setdefault(trial_id, {})
        if number is None or number in losses:
            return
        losses[number] = self._loss(result)
        if trial_id in self._explored:
            self._explorer.report(trial_id, result, losses[number])

    def _tell_explorer(self, trial: Observation, result: dict[str, Any], stopped: bool, error: bool) -> None:
        overfitted = result.get("status") == OVERFITTED and not error  # a failed step, with a value that is sound
        loss = self._loss(result) if overfitted else trial.value
        if trial.trial in self._explored:
            self._explorer.end(trial.trial, None if stopped or error else result, loss, error)
        else:
            reports = self._losses.get(trial.trial)
            self._explorer.add(trial.hyperparameters, loss, error=error, stopped=stopped, reports=reports)


def _warn(message: str) -> None:
    warnings.warn(f"HypergradSearch: {message}", stacklevel=3)
