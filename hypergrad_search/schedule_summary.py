"""`summarize_schedules`: what a search found for each step, said in a few numbers, and what these are worth."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from hypergrad_search.checks import shown
from hypergrad_search.hypergradient import Unrolled, evaluate
from hypergrad_search.hyperparameters import split
from hypergrad_search.lifting import used_by
from hypergrad_search.nesting import flat, nested
from hypergrad_search.optimizers import Optimizer, gives_arrays, takes_hyperparameters
from hypergrad_search.problem import TrainingProblem, check_names
from hypergrad_search.schedules import fit_warmup_cosine, warmup_cosine
from hypergrad_search.space import Hyperparameters, NestedSpace, Space


@dataclass(frozen=True)
class ScheduleSummary:
    """Schedules in a few numbers.

    - `numbers`: by the name of each hyperparameter that is a schedule, its few numbers: `peak`, `warmup` and `final` of
      `warmup_cosine` for a learning rate, and `constant` for any other setting.
    - `hyperparameters`: all hyperparameters with these smooth schedules in place of what was found, ready for
      `evaluate`.
    - `value`, `test_loss`: the validation and test loss of training with them; `test_loss` is None where the problem
      has none.
    """

    numbers: dict[str, dict[str, float]]
    hyperparameters: dict[str, Any]
    value: float
    test_loss: float | None


def summarize_schedules(
    problem: TrainingProblem, hyperparameters: Hyperparameters, *, key: jax.Array, space: NestedSpace | None = None
) -> ScheduleSummary:
    """Return a summary of the optimizer's schedules, and the loss that training has with it.

    A learning rate with a number for each leaf and step becomes one warm-up and cosine for all leaves
    (`fit_warmup_cosine`); a momentum, a beta or another setting becomes its mean. What is not a schedule stays as it
    is. If the loss is much higher than that of `hyperparameters`, their details matter.

    Args:
        problem: the training run.
        hyperparameters: those that a search has found, such as `hypergrad_optuna.best_hyperparameters(study)`.
        key: the source of randomness, as for `evaluate`; take the search's own, `jax.random.key(0)` by default there.
        space: as for `evaluate`; needed only where there are integers, or dicts within the hyperparameters.

    Raises:
        ValueError: no setting of the optimizer uses a hyperparameter that is a schedule, and as `evaluate` does.

    Example:
        >>> from hypergrad_optuna import best_hyperparameters
        >>> from hypergrad_search import summarize_schedules
        >>> summary = summarize_schedules(problem, best_hyperparameters(study), key=key)
        >>> sorted(summary.numbers["rate"])
        ['final', 'peak', 'warmup']
    """
    if not isinstance(problem, TrainingProblem):
        raise ValueError(f"summarize_schedules: problem must be a TrainingProblem, got {shown(problem)}")
    box: Space | None = flat(space)
    if box is not space:
        summary = summarize_schedules(problem, flat(hyperparameters, box), key=key, space=box)
        return replace(summary, hyperparameters=nested(summary.hyperparameters))
    check_names(problem, hyperparameters)
    posed = problem.at(hyperparameters)
    settings = schedules_of(posed, hyperparameters)
    if not settings:
        raise ValueError("summarize_schedules: no setting of the optimizer uses a hyperparameter that is a schedule")
    numbers, smooth = {}, dict(hyperparameters)
    for name, setting in settings.items():
        found = np.asarray(hyperparameters[name])
        numbers[name] = fit_warmup_cosine(found) if is_rate(setting) else {"constant": float(found.mean())}
        smooth[name] = _values(numbers[name], posed.steps, found)
    result = evaluate(problem, smooth, key=key, method=Unrolled(), gradient_below=-np.inf, space=box)
    return ScheduleSummary(numbers, smooth, result.value, result.test_loss)


def schedules_of(problem: TrainingProblem, hyperparameters: Hyperparameters) -> Mapping[str, tuple[str, Any]]:
    """Return by the name of each hyperparameter with a number for each step the setting that uses it.

    The setting is its name, and what the user gave for it: the hyperparameter's name, or a function.
    """
    optimizer = problem.optimizer
    if not isinstance(optimizer, Optimizer):
        return {}
    used = functools.partial(used_at, hyperparameters=hyperparameters)
    return {
        name: (setting, leaf)
        for setting, leaf in optimizer.leaves()
        for name in used(leaf)
        if np.shape(hyperparameters[name])[-1:] == (problem.steps,)
    }


def used_at(leaf: Any, hyperparameters: Hyperparameters) -> set[str]:
    """Return the hyperparameters that a leaf of a setting uses, of which some have a number for each place.

    A function that computes with whole arrays, such as a table of the user's own, uses none.
    """
    dynamic, static = split(hyperparameters)
    if callable(leaf) and takes_hyperparameters(leaf) and not gives_arrays(leaf, {**dynamic, **dict(static)}):
        return set()
    numbers = {name: x[0, 0] if np.ndim(x) == 2 else x for name, x in dynamic.items()}
    return used_by(leaf, numbers, static)


def is_rate(setting: tuple[str, Any]) -> bool:
    """Return whether a setting is a learning rate that a hyperparameter is by itself."""
    name, leaf = setting
    return "learning_rate" in name and isinstance(leaf, str)


def _values(numbers: Mapping[str, float], steps: int, found: np.ndarray) -> np.ndarray:
    """Return what a few numbers stand for, in the shape of what was found; no rate is negative."""
    if "constant" in numbers:
        return np.full(found.shape, numbers["constant"])
    smooth = np.asarray(jax.vmap(warmup_cosine(**numbers, steps=steps))(np.arange(steps)), np.float64)
    return np.broadcast_to(np.clip(smooth, 0.0, None), found.shape)
