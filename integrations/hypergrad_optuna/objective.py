"""`Objective`: a training problem as something that `study.optimize` can call."""

from typing import Any

import jax
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from hypergrad_optuna import attributes, refined
from hypergrad_optuna.report import report_gradient
from hypergrad_optuna.sampler import sampler_of
from hypergrad_optuna.suggest import suggest_array
from hypergrad_search import (
    Categorical,
    Evaluation,
    Float,
    Int,
    Method,
    Reversible,
    Space,
    Status,
    TrainingProblem,
    Unrolled,
    evaluate,
)
from hypergrad_search.problem import check_problem
from hypergrad_search.space import floats, lifted


class Objective:
    """Train at the hyperparameters that a trial suggests; return the validation loss, report its gradient.

    Works with every sampler: under any but `HypergradSampler` no gradient is computed. A training run that fails has
    the value infinity, and the trial's user attributes say why (`hypergrad:status`, `hypergrad:message`); they hold
    the cost in gradient evaluations and, where the problem has one, the test loss too.

    Args:
        problem: what to train.
        space: names to `Float`, `Int` or `Categorical`. Arrays are those of `suggest_array`. A number with a `lift` is
            an array too under `HypergradSampler`, and a number under any other.
        method: how to differentiate. By default exactly, and a trial whose reversal turns out inexact, which its
            attribute `hypergrad:exact` then says, is differentiated in floats: a study does not end for it. With
            `Hypernet` a trial is a stretch of joint optimisation: `best_refined(study)` has what it found.
        key: decides initial parameters and each step's randomness; `jax.random.key(0)` by default.
        reseed: whether each trial has randomness of its own, `jax.random.fold_in(key, trial.number)`: so that what is
            found is good for any seed, not for one. All trials have the same by default, which compares them best.
        report_every: report the validation loss to the trial's pruner every so many steps; None for never.

    Raises:
        ValueError: the optimizer names a hyperparameter that the space lacks; or the study maximises a loss.
    """

    def __init__(
        self,
        problem: TrainingProblem,
        space: Space,
        *,
        method: Method = Reversible(fallback=Unrolled()),  # noqa: B008 (frozen)
        key: jax.Array | None = None,
        reseed: bool = False,
        report_every: int | None = None,
    ) -> None:
        check_problem(problem, space)
        if report_every is not None and report_every < 1:
            raise ValueError(f"Objective: report_every must be a whole number above 0 or None, got {report_every!r}")
        self.problem = problem
        self.space = space
        self.method = method
        self.key = jax.random.key(0) if key is None else key
        self.reseed = reseed
        self.report_every = report_every

    def __call__(self, trial: optuna.Trial) -> float:
        """The validation loss at what the trial suggests."""
        return self.evaluate(trial, self.suggest(trial))

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """The trial's hyperparameters, arrays put together."""
        space = self.space if sampler_of(trial.study) is None else lifted(self.space)
        return {name: _suggest(trial, name, parameter) for name, parameter in space.items()}

    def evaluate(self, trial: optuna.Trial, hyperparameters: dict[str, Any]) -> float:
        """The validation loss at given hyperparameters; writes the trial's attributes."""
        if trial.study.direction != StudyDirection.MINIMIZE:
            raise ValueError("Objective: its value is a loss, so create the study with direction='minimize'")

        def report(step: int, valid_loss: float) -> None:
            trial.report(valid_loss, step)
            if trial.should_prune():
                trial.set_user_attr(attributes.COST, self.method.cost(self.problem, step))
                raise optuna.TrialPruned(f"pruned after {step} steps")

        sampler = sampler_of(trial.study)
        parent = attributes.parent(trial) if self.method.continues else None
        store = None if sampler is None else sampler.artifact_store
        evaluation = evaluate(
            self.problem,
            hyperparameters,
            method=self.method,
            key=jax.random.fold_in(self.key, trial.number) if self.reseed else self.key,
            gradient_below=attributes.gradient_below(trial),
            held_back_below=attributes.held_back_below(trial),
            report=None if self.report_every is None else report,
            report_every=self.report_every or self.problem.steps,
            space=self.space if sampler is None else lifted(self.space),
            checkpoint=None if parent is None else self._checkpoint(parent, hyperparameters, store),
        )
        _record(trial, self.space, evaluation)
        refined.keep(trial, evaluation, store)
        return evaluation.value

    def _checkpoint(self, parent: FrozenTrial, hyperparameters: dict[str, Any], store: Any | None) -> bytes | None:
        """What the chain goes on from; None where an integer or categorical is not what it was there."""
        before = refined.hyperparameters(parent, store) or {}
        held = hyperparameters.keys() - floats(self.space).keys()
        same = all(name in before and before[name] == hyperparameters[name] for name in held)
        return refined.checkpoint(parent, store) if same else None


def _suggest(trial: optuna.Trial, name: str, parameter: Float | Int | Categorical) -> Any:
    if isinstance(parameter, Categorical):
        return trial.suggest_categorical(name, parameter.choices)
    if isinstance(parameter, Int):
        return trial.suggest_int(name, parameter.low, parameter.high, log=parameter.log)
    low, high, log = parameter.low, parameter.high, parameter.log
    if not parameter.shape:
        return trial.suggest_float(name, low, high, log=log)
    return suggest_array(trial, name, parameter.shape, low, high, log=log)


def _record(trial: optuna.Trial, space: Space, evaluation: Evaluation) -> None:
    trial.set_user_attr(attributes.COST, evaluation.cost.gradient_evaluations)
    for name in ("status", "message", "held_back_loss", "test_loss", "exact"):
        if evaluation.diagnostics[name] not in (None, ""):
            trial.set_user_attr(f"hypergrad:{name}", evaluation.diagnostics[name])
    if evaluation.gradient is None or evaluation.status is Status.EXPLODED:
        return
    report_gradient(trial, {name: evaluation.gradient[name] for name in floats(space)})
