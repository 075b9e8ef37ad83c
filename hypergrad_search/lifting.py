"""Lifting an optimizer's settings: one number becomes an array with a number for each leaf and each step."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from hypergrad_search import optax_optimizers
from hypergrad_search.hyperparameters import Static, split
from hypergrad_search.losses import examples
from hypergrad_search.nesting import flat, nested
from hypergrad_search.optax_optimizers import OptaxOptimizer
from hypergrad_search.optimizers import (
    Optimizer,
    ProximalOptimizer,
    gives_a_number,
    is_elementwise,
    leaves_of,
    takes_hyperparameters,
)
from hypergrad_search.optimizers.settings import of_nested
from hypergrad_search.problem import TrainingProblem, check_problem
from hypergrad_search.repeatable import example_arguments, reads
from hypergrad_search.space import Categorical, Float, Int, Space, centre, floats, unlifted

#: The most numbers that the settings of a problem are lifted to, all together, so that trials stay small.
MOST = 100_000

#: The fewest validation examples with which anything is lifted: a part of them must say whether a step has helped.
FEWEST_EXAMPLES = 8

#: Settings whose names have these words in them, and penalties of proximal steps, are lifted for each leaf alone, all
#: others for each step too.
_FOR_LEAVES_ALONE = ("weight_decay", "eps")

_FUNCTIONS = ("init", "train_loss", "valid_loss", "test_loss", "valid_batch_loss")


def lift_settings(problem: TrainingProblem, space: Space) -> dict[str, Float | Int | Categorical]:
    """Return the space with a `lift` for each number that is a setting of the optimizer, or that makes one.

    A setting names its hyperparameter, or computes one number from it, as in `lambda h, step: 1 - h["one_minus_b2"]`.

    The lift has the shape `(leaves, steps)`: a learning rate, a momentum, or a beta of Adam becomes a schedule for each
    leaf of the parameters. A weight decay or a penalty of `proximal_sgd` gets `(leaves, 1)`, one number for each leaf.
    `leaves` counts those that the setting is for, in the order of `jax.tree.leaves`. Where that makes more than 100,000
    numbers in all, the shape is `(1, steps)`, and else `(leaves, 1)`; so it is `(leaves, 1)` where `steps` is a
    hyperparameter.

    `hypergrad_optuna.Objective` lifts by itself. With Ray, call this for the space that both `HypergradSearch` and
    `trainable` get, since a searcher never sees the problem. A space with dicts within it comes back as such.

    A number stays as it is

    - with `Float(..., lift=False)`, or with a `lift` of your own;
    - if something else reads it too: a loss, `init`, `batches`, a transformation, or a setting that is a function of
      the step, which is a schedule already, in the shape that you gave it, or one that cannot compute with arrays;
    - if the space has an integer (but for `steps`) or a choice, which may decide what reads it, and how many leaves
      there are;
    - if there are fewer than 8 losses of examples (`valid_loss` may return a scalar), since only held-back examples
      can tell whether thousands of numbers are better than one, or only fit the validation set;
    - if the optimizer is a function that returns a transformation of optax, whose settings have no names;
    - if no learning rate is among what could be lifted: betas and decays alone gain less than it costs to hold back a
      quarter of the examples.

    Raises `ValueError` where the problem does not fit the space, and whatever the problem's own functions raise.

    Example:
        >>> from hypergrad_search import lift_settings
        >>> lift_settings(problem, space)["rate"].lift  # one leaf, 20 steps
        (1, 20)
    """
    if flat(space) is not space:
        return nested(lift_settings(problem, flat(space)))
    check_problem(problem, space)
    free = {
        name: parameter for name, parameter in floats(space).items() if not parameter.shape and parameter.lift is None
    }
    choices = [name for name, p in space.items() if not isinstance(p, Float) and name != problem.steps]
    if not isinstance(problem.optimizer, Optimizer) or not free or choices:
        return dict(space)
    middle, optimizer = centre(space), problem.optimizer
    posed, (dynamic, static) = problem.at(middle), split(middle, unlifted(space))
    arguments = example_arguments(posed, dynamic, static)
    *model, _ = arguments["valid_loss"]
    used = functools.partial(used_by, dynamic=dynamic, static=static)
    rates = {name for setting, leaf in optimizer.leaves() if "learning_rate" in setting for name in used(leaf)}
    penalties = optimizer.penalties if isinstance(optimizer, ProximalOptimizer) else ()
    with_steps = {
        name
        for setting, leaf in optimizer.leaves()
        if setting not in penalties and not any(word in setting for word in _FOR_LEAVES_ALONE)
        for name in used(leaf)
    }
    leaves = leaves_of(optimizer, model[0], used)
    unused = [leaf for _, leaf in optimizer.leaves() if callable(leaf) and not used(leaf)]
    candidates = free.keys() & leaves.keys() - _read(posed, unused, optimizer.transform, arguments, dynamic, static)
    trained = tuple(model) if problem.has_statistics else model[0]
    if candidates.isdisjoint(rates) or examples(posed, trained, {**dynamic, **dict(static)}) < FEWEST_EXAMPLES:
        return dict(space)
    steps = 1 if isinstance(problem.steps, str) else problem.steps
    shapes = {n: (len(leaves[n]) or 1, steps if n in with_steps else 1) for n in space if n in candidates}
    return {**space, **{name: replace(free[name], lift=shape) for name, shape in _small_enough(shapes).items()}}


def _small_enough(shapes: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Return the finest shapes that make no more than `MOST` numbers; those that are one number are left out."""
    forms = [
        shapes,
        {name: (1, columns) for name, (_, columns) in shapes.items()},
        {name: (rows, 1) for name, (rows, _) in shapes.items()},
    ]
    small = [form for form in forms if sum(rows * columns for rows, columns in form.values()) <= MOST]
    return {name: shape for name, shape in (small[0] if small else {}).items() if shape != (1, 1)}


def used_by(leaf: Any, dynamic: dict[str, Any], static: Static) -> set[str]:
    """Return the hyperparameters that a leaf of a setting names, or that it computes one number from.

    A function that reads the step is a schedule already, in the shape that the user gave it; it uses none. Nor does one
    that cannot compute with arrays in the place of numbers.
    """
    if isinstance(leaf, str):
        return {leaf}
    if not callable(leaf) or not takes_hyperparameters(leaf):
        return set()
    hyperparameters, now = {**dynamic, **dict(static)}, {"step": jnp.int32(0)}
    if not gives_a_number(leaf, hyperparameters) or reads(
        lambda step: of_nested(leaf)(hyperparameters, step["step"]), (now,), now, Static((), ())
    ):
        return set()
    found = reads(of_nested(leaf), (dynamic, now["step"]), dynamic, static)
    return found if is_elementwise(leaf, hyperparameters, found) else set()


def _read(
    problem: TrainingProblem,
    settings: Sequence[Callable[..., Any]],
    transform: OptaxOptimizer | None,
    arguments: Mapping[str, tuple[Any, ...]],
    dynamic: dict[str, Any],
    static: Static,
) -> set[str]:
    """Return the hyperparameters that the problem's functions read, or the transformation, or one of these settings."""
    params, key = arguments["optimizer"][0], jax.random.key(0)
    functions: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [(problem.batch, arguments["batches"])]
    functions += [(getattr(problem, n), arguments[n]) for n in _FUNCTIONS if getattr(problem, n) is not None]
    functions += [
        (of_nested(setting), (dynamic, jnp.int32(0))) for setting in settings if takes_hyperparameters(setting)
    ]
    if transform is not None:
        functions.append(
            (lambda h, g: optax_optimizers.transformed(transform, h, g, g, key), (dynamic, params)),
        )
    return set().union(*(reads(function, given, dynamic, static) for function, given in functions))
