"""`Objective`: a training problem in a form that `study.optimize` can call."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FixedTrial, FrozenTrial

from hypergrad_optuna import arrays, attributes
from hypergrad_optuna.attributes import AnyTrial
from hypergrad_optuna.distributions import own_space
from hypergrad_optuna.hyperparameters import hyperparameters_of
from hypergrad_optuna.report import report_gradient
from hypergrad_optuna.sampler import sampler_of
from hypergrad_optuna.suggest import has_array, recorded_array, suggest_array
from hypergrad_search import Categorical, Evaluation, Float, Int, Method, Space, TrainingProblem
from hypergrad_search.checks import boolean
from hypergrad_search.from_function import FunctionProblem, refuse
from hypergrad_search.hosting import host, is_coordinate
from hypergrad_search.hypergradient import Progress
from hypergrad_search.search.ask_tell import same_model
from hypergrad_search.space import as_given, floats, lifted
from hypergrad_search.trouble import see


class Objective:
    """Train at the hyperparameters that a trial suggests, return the validation loss, and report its gradient.

    A finished trial, as in `objective(study.best_trial)`, gives its value again, to the bit, and stays as it is; so do
    the hyperparameters of a trial, as in `objective(optuna.trial.FixedTrial(best_hyperparameters(study)))`, but for
    `Hypernet`, which starts anew there. Trials of `optimize_batched` were rounded differently.

    It works with every sampler: under any but `HypergradSampler` no gradient is computed. A training run that fails has
    the value infinity, and the trial's user attributes say why (`hypergrad:status`, `hypergrad:message`). They hold
    the cost in gradient evaluations (`hypergrad:cost`), of a function in values of it, and, where the problem has one,
    the test loss (`hypergrad:test_loss`) too. The value of a trial is a loss: the study must minimise it.

    Where a `lift` holds back a part of the validation set, a step that fits this part no better has failed. Its value
    is its loss, and its status "overfitted": use `best_hyperparameters(study)`, which passes over it.

    Args:
        problem: the training run, or `from_function(function)`, which takes no method, key, reseed or report_every.
        space: a dict from names to `Float`, `Int` or `Categorical`, or to Optuna's own distributions without a step.
            Arrays are suggested by `suggest_array`. A number with a `lift` is an array under `HypergradSampler`, and a
            number under any other sampler. With dicts within it, such as `{"opt": {"rate": Float(...)}}`, the problem
            gets dicts within dicts too, and trials call this parameter `"opt/rate"`.
        method: the way to differentiate. By default it is exact; a trial whose reversal turns out inexact is
            differentiated in floats, and has the attribute `hypergrad:exact` False, so that a study does not end for
            it. With `Hypernet` a trial is a stretch of joint optimisation, and its parameters are where the stretch
            began; `best_hyperparameters(study)` returns where the best one ended.
        key: the source of the initial parameters and of each step's randomness; `jax.random.key(0)` by default.
        reseed: whether each trial has its own randomness, `jax.random.fold_in(key, trial.number)`, so that the search
            finds what is good for any seed. By default all trials have the same, which compares them best.
        report_every: the number of steps between two reports of the validation loss to the trial's pruner; None for no
            reports.
        artifact_store: the store that holds the arrays of finished trials, if the study's sampler was given one. It is
            needed only where such a trial is evaluated again, since it knows no study.

    Raises:
        ValueError: the optimizer names a hyperparameter that the space lacks, a name of the space is that of an
            element, such as "w[0]", `method` is not a `Method`, or `report_every` is not a whole number from 1. At the
            first trial: the study maximises, or has several objectives. Where the problem itself is wrong, its own
            errors are raised too. An error that comes of a trial's values alone is a trial with the value infinity and
            the status "refused", and a warning says so once.

    Example:
        >>> from hypergrad_optuna import Objective
        >>> from hypergrad_search import Reversible
        >>> objective = Objective(problem, space, method=Reversible(), key=jax.random.key(1))
    """

    def __init__(
        self,
        problem: TrainingProblem | FunctionProblem,
        space: Mapping[str, Any],
        *,
        method: Method | None = None,
        key: jax.Array | None = None,
        reseed: bool = False,
        report_every: int | None = None,
        artifact_store: Any | None = None,
    ) -> None:
        space = own_space("Objective", space)
        self.hosted = host("Objective", problem, space, method, key, report_every, lifts_settings=True)
        for name in space:
            if is_coordinate(name):
                raise ValueError(f"Objective: {name!r} in space is the name of an element of an array; rename it")
        arrays.check_store("Objective", artifact_store)
        self.reseed = boolean("Objective: reseed", reseed)
        if isinstance(problem, FunctionProblem):
            refuse("Objective", reseed=self.reseed or None)
        self.artifact_store = artifact_store

    def __call__(self, trial: AnyTrial) -> float:
        """Return the validation loss at the hyperparameters that the trial suggests."""
        return self.evaluate(trial, self.suggest(trial))

    def suggest(self, trial: AnyTrial) -> dict[str, Any]:
        """Return the trial's hyperparameters by their names in the trial; arrays are whole."""
        attributes.check_trial("Objective", trial)
        _check_directions(trial)
        attributes.flatten_given(trial)
        return {
            name: _suggest(trial, name, parameter, self.artifact_store)
            for name, parameter in self._searched(trial).items()
        }

    def evaluate(self, trial: AnyTrial, hyperparameters: dict[str, Any]) -> float:
        """Return the validation loss at given hyperparameters, and write the trial's attributes, if it is running."""
        _check_directions(trial)
        sampler = sampler_of(trial)
        store = self.artifact_store if sampler is None else sampler.artifact_store
        left = read_checkpoint(trial, store) if isinstance(trial, FrozenTrial) else None
        if left is not None:
            ended = hyperparameters_of(trial, artifact_store=store)
            space = as_given(self.hosted.liftable, ended)
            return self.hosted.method.value(self.hosted.problem, ended, key=self.key_of(trial), space=space, left=left)

        def on_the_way(now: Progress, cost: float) -> None:
            trial.report(now.loss, now.step)
            if trial.should_prune():
                trial.set_user_attr(attributes.COST, cost)
                raise optuna.TrialPruned(f"pruned after {now.step} steps")

        def checkpoint() -> bytes | None:
            parent = attributes.parent(trial)
            if parent is None:
                return None
            fits = same_model(self.hosted.space, parent.user_attrs.get(attributes.REFINED) or {}, hyperparameters)
            return read_checkpoint(parent, store) if fits else None

        if isinstance(trial, optuna.Trial):
            attributes.forget(trial.storage, trial)
        evaluation = self.hosted.evaluate(
            hyperparameters,
            attributes.wanted(trial),
            on_the_way=on_the_way,
            checkpoint=checkpoint,
            key=self.key_of(trial),
        )
        if not isinstance(trial, FrozenTrial):
            self._record(trial, evaluation, store)
        return evaluation.value

    def evaluate_batch(self, trials: Sequence[optuna.Trial], hyperparameters: Sequence[dict[str, Any]]) -> list[float]:
        """Do what `evaluate` does for several running trials, which are trained at once; see `optimize_batched`."""
        self.hosted.check_batches("Objective")
        for trial in trials:
            attributes.forget(trial.storage, trial)
        evaluations = self.hosted.evaluate_batch(
            hyperparameters, [attributes.wanted(trial) for trial in trials], [self.key_of(trial) for trial in trials]
        )
        for trial, evaluation in zip(trials, evaluations, strict=True):
            sampler = sampler_of(trial)
            self._record(trial, evaluation, self.artifact_store if sampler is None else sampler.artifact_store)
        return [evaluation.value for evaluation in evaluations]

    def key_of(self, trial: AnyTrial) -> jax.Array:
        """Return the key that decides a trial's randomness."""
        return jax.random.fold_in(self.hosted.key, trial.number) if self.reseed else self.hosted.key

    def _searched(self, trial: AnyTrial) -> Space:
        """Return the space of a trial's hyperparameters; one without a study tells by the arrays that it has."""
        if isinstance(trial, optuna.Trial):
            return self.hosted.searched(by_gradients=sampler_of(trial) is not None)
        space = self.hosted.liftable
        return {**space, **lifted({n: p for n, p in floats(space).items() if p.lift and has_array(trial, n, p.lift)})}

    def _record(self, trial: optuna.Trial | FixedTrial, evaluation: Evaluation, store: Any | None) -> None:
        facts = self.hosted.facts(evaluation, reseeded=self.reseed)
        gradient = facts.pop("gradient", None)
        if "refined" in facts:
            facts["refined"] = arrays.encode_all(facts["refined"], "<f8", trial, store)
        if evaluation.checkpoint is not None:
            kept = np.frombuffer(evaluation.checkpoint, "|u1")
            facts["checkpoint"] = arrays.encode(kept, "|u1", trial, store)
        for name in attributes.FACTS:
            if facts.get(name) not in (None, ""):
                trial.set_user_attr(attributes.PREFIX + name, facts[name])
        if gradient is not None:
            report_gradient(trial, gradient)


def _check_directions(trial: AnyTrial) -> None:
    """Raise `ValueError` where the trial's study has another goal than one loss that is minimised."""
    directions = trial.study.directions if isinstance(trial, optuna.Trial) else [StudyDirection.MINIMIZE]
    if directions != [StudyDirection.MINIMIZE]:
        wrong = "maximises" if len(directions) == 1 else f"has {len(directions)} objectives"
        raise ValueError(
            f"Objective: its value is one loss, but the study {wrong}; create the study with "
            f"direction='minimize'{see('direction')}"
        )


def read_checkpoint(trial: FrozenTrial, store: Any | None) -> bytes | None:
    """Return the checkpoint that a trial's evaluation left; None where it left none."""
    kept = trial.user_attrs.get(attributes.CHECKPOINT)
    return None if kept is None else arrays.decode(kept, store).tobytes()


def _suggest(trial: AnyTrial, name: str, parameter: Float | Int | Categorical, store: Any | None) -> Any:
    if isinstance(parameter, Categorical):
        return trial.suggest_categorical(name, parameter.choices)
    if isinstance(parameter, Int):
        return trial.suggest_int(name, parameter.low, parameter.high, log=parameter.log)
    low, high, log = parameter.low, parameter.high, parameter.log
    if not parameter.shape:
        return float(trial.suggest_float(name, low, high, log=log))  # an enqueued trial may have a whole number
    if isinstance(trial, FrozenTrial):
        return recorded_array(trial, name, parameter.shape, store)
    return suggest_array(trial, name, parameter.shape, low, high, log=log)
