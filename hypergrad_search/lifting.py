"""Lifting an optimizer's settings: one number becomes an array with a number for each leaf and each step."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from hypergrad_search import optax_optimizers
from hypergrad_search.hyperparameters import Static, split
from hypergrad_search.losses import examples
from hypergrad_search.optimizers import Optimizer, leaves_of, takes_hyperparameters
from hypergrad_search.problem import TrainingProblem, check_problem
from hypergrad_search.repeatable import example_arguments, reads
from hypergrad_search.space import Categorical, Float, Int, Space, centre, floats, unlifted

#: The most numbers that the settings of a problem are lifted to, all together, so that trials stay small.
MOST = 100_000

#: The fewest validation examples with which anything is lifted: a part of them must say whether a step has helped.
FEWEST_EXAMPLES = 8

#: Settings whose names have these words in them are lifted for each leaf alone, all others for each step too.
_FOR_LEAVES_ALONE = ("weight_decay", "eps")

_FUNCTIONS = ("init", "train_loss", "valid_loss", "test_loss", "valid_batch_loss")


def lift_settings(problem: TrainingProblem, space: Space) -> dict[str, Float | Int | Categorical]:
    """Return the space with a `lift` for each number that is a setting of the optimizer.

    The lift has the shape `(leaves, steps)`: a learning rate, a momentum, or a beta of Adam becomes a schedule for each
    leaf of the parameters. A weight decay gets `(leaves, 1)`, one number for each leaf. `leaves` counts those that the
    setting is for, in the order of `jax.tree.leaves`. Where that makes more than 100,000 numbers in all, the shape is
    `(1, steps)`, and else `(leaves, 1)`; so it is `(leaves, 1)` where `steps` is a hyperparameter.

    `hypergrad_optuna.Objective` lifts by itself. With Ray, call this for the space that both `HypergradSearch` and
    `trainable` get, since a searcher never sees the problem.

    A number stays as it is

    - with `Float(..., lift=False)`, or with a `lift` of your own;
    - if something else reads it too: a loss, `init`, `batches`, a transformation or a function among the settings;
    - if the space has an integer (but for `steps`) or a choice, which may decide what reads it, and how many leaves
      there are;
    - if there are fewer than 8 losses of examples (`valid_loss` may return a scalar), since only held-back examples
      can tell whether thousands of numbers are better than one, or only fit the validation set;
    - if the optimizer is a function that returns a transformation of optax, whose settings have no names;
    - if no learning rate is among what could be lifted: betas and decays alone gain less than it costs to hold back a
      quarter of the examples.

    Raises `ValueError` where the problem does not fit the space, and whatever the problem's own functions raise.

    Example:
        >>> lift_settings(problem, {"rate": Float(1e-3, 1.0, log=True)})["rate"].lift
        (4, 100)
    """
    check_problem(problem, space)
    if not isinstance(problem.optimizer, Optimizer):
        return dict(space)
    named = {leaf for _, leaf in problem.optimizer.leaves() if isinstance(leaf, str)}
    candidates = {n for n, p in floats(space).items() if n in named and not p.shape and p.lift is None}
    choices = [name for name, p in space.items() if not isinstance(p, Float) and name != problem.steps]
    if not candidates or choices:
        return dict(space)
    middle = centre(space)
    posed, (dynamic, static) = problem.at(middle), split(middle, unlifted(space))
    arguments = example_arguments(posed, dynamic, static)
    candidates -= _read(posed, problem.optimizer, arguments, dynamic, static)
    rates = {leaf for setting, leaf in problem.optimizer.leaves() if "learning_rate" in setting}
    *model, _ = arguments["valid_loss"]
    trained = tuple(model) if problem.has_statistics else model[0]
    if candidates.isdisjoint(rates) or examples(posed, trained, {**dynamic, **dict(static)}) < FEWEST_EXAMPLES:
        return dict(space)
    leaves = {name: len(of_name) or 1 for name, of_name in leaves_of(problem.optimizer, model[0]).items()}
    steps = 1 if isinstance(problem.steps, str) else problem.steps
    numbers = {name: parameter for name, parameter in floats(space).items() if name in candidates}
    return {**space, **_with_lifts(numbers, problem.optimizer, leaves, steps)}


def _with_lifts(
    numbers: Mapping[str, Float], optimizer: Optimizer, leaves: Mapping[str, int], steps: int
) -> dict[str, Float]:
    """Return the numbers with their lifts, in the finest form that is small enough."""
    with_steps = {
        leaf for setting, leaf in optimizer.leaves() if not any(word in setting for word in _FOR_LEAVES_ALONE)
    }
    columns = {name: steps if name in with_steps else 1 for name in numbers}
    forms = [
        {name: (leaves[name], columns[name]) for name in numbers},
        {name: (1, columns[name]) for name in numbers},
        {name: (leaves[name], 1) for name in numbers},
    ]
    small = [form for form in forms if sum(rows * length for rows, length in form.values()) <= MOST]
    chosen = small[0] if small else {}
    return {name: replace(numbers[name], lift=shape) for name, shape in chosen.items() if shape != (1, 1)}


def _read(
    problem: TrainingProblem,
    optimizer: Optimizer,
    arguments: Mapping[str, tuple[Any, ...]],
    dynamic: dict[str, Any],
    static: Static,
) -> set[str]:
    """Return the hyperparameters that anything but a named setting reads."""
    params, key, step = arguments["optimizer"][0], jax.random.key(0), jnp.int32(0)
    functions: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [(problem.batch, arguments["batches"])]
    functions += [(getattr(problem, n), arguments[n]) for n in _FUNCTIONS if getattr(problem, n) is not None]
    functions += [(f, (dynamic, step)) for _, f in optimizer.leaves() if callable(f) and takes_hyperparameters(f)]
    transform = optimizer.transform
    if transform is not None:
        functions.append(
            (lambda h, g: optax_optimizers.transformed(transform, h, g, g, key), (dynamic, params)),
        )
    return set().union(*(reads(function, given, dynamic, static) for function, given in functions))
