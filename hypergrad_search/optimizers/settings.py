"""The settings of optimizers: numbers, names, functions and pytrees of them, and the schedules that they stand for."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad_search.checks import check_arguments, takes
from hypergrad_search.nesting import OfNested
from hypergrad_search.optimizers.base import ByRank, Optimizer, Setting


def checked_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return an optimizer; raise `ValueError` where its transformation or a setting is of the wrong kind."""
    if optimizer.transform is not None:
        if not callable(optimizer.transform) or isinstance(optimizer.transform, optax.GradientTransformation):
            raise ValueError(
                f"{optimizer.name}: transform must be a function of the hyperparameters that returns a transformation "
                f"of optax, such as lambda h: optax.clip_by_global_norm(h['clip']), got {optimizer.transform!r}"
            )
        check_arguments(f"{optimizer.name}: transform", optimizer.transform, ("hyperparameters",))
    for name, leaf in optimizer.leaves():
        if not (isinstance(leaf, str) or callable(leaf) or _is_number(leaf)):
            raise ValueError(
                f"{optimizer.name}: {name} must be numbers, names of hyperparameters or functions of "
                f"(hyperparameters, step), got {leaf!r}"
            )
    return optimizer


def _of_step_alone(name: str, schedule: Callable[[Any], Any], step: jax.Array) -> Any:
    try:
        return schedule(step)
    except (TypeError, IndexError) as error:  # of which JAX's errors about traced values are subclasses
        raise ValueError(
            f"optimizer: {name}: a function of one argument gets the step, and this one failed "
            f"({type(error).__name__}); write lambda h, step: ... to use hyperparameters"
        ) from error


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, float | int | np.number | np.ndarray | jax.Array) and not isinstance(leaf, bool)


def resolve(
    optimizer: Optimizer, hyperparameters: Mapping[str, Any], params: Any, steps: int
) -> tuple[dict[str, jax.Array], tuple[int, ...]]:
    """Return every setting as an array of shape `(steps, groups)`, and the group of each leaf of `params`.

    Leaves that share all settings form a group. All settings have one type, the finest among them and the leaves, and
    float32 at least: rounded to half precision, Adam's usual b2 would be 1.
    """
    optimizer.check_names(hyperparameters)
    leaves = jax.tree.leaves(params)
    values, sources = {}, []
    for name, setting in optimizer.settings.items():
        values[name], source = _resolve(name, setting, hyperparameters, params, steps)
        sources.append(source)
    of_leaves = list(zip(*sources, strict=True))
    groups = list(dict.fromkeys(of_leaves))
    chosen = [x for schedules in values.values() for x in schedules if jnp.issubdtype(x.dtype, jnp.floating)]
    dtype = finest(*(leaf.dtype for leaf in leaves), *(x.dtype for x in chosen if not x.weak_type))
    settings = {
        name: jnp.stack([values[name][group[i]] for group in groups], axis=1).astype(dtype)
        for i, name in enumerate(values)
    }
    return settings, tuple(groups.index(group) for group in of_leaves)


def finest(*dtypes: Any) -> Any:
    """Return the widest of these floating-point types, float32 at least."""
    return max((jnp.dtype(jnp.float32), *dtypes), key=lambda dtype: dtype.itemsize)


def leaves_of(optimizer: Optimizer, params: Any, names_of: Callable[[Any], Collection[str]]) -> dict[str, list[int]]:
    """Return for each hyperparameter that a setting uses the indices of the leaves of `params` that it is for.

    `names_of` says which hyperparameters a leaf of a setting uses. Where several settings use one, the indices are
    those of the first; the list is empty where the settings differ in number.
    """
    found: dict[str, list[int]] = {}
    for setting in optimizer.settings.values():
        for part in (setting.matrices, setting.others) if isinstance(setting, ByRank) else (setting,):
            of_setting, structure = jax.tree.flatten(part)
            places = jax.tree.unflatten(structure, range(len(of_setting)))
            sources = jax.tree.leaves(jax.tree.broadcast(places, params))
            for i, leaf in enumerate(of_setting):
                leaves = [place for place, source in enumerate(sources) if source == i]
                for name in names_of(leaf):
                    first = found.setdefault(name, leaves)
                    found[name] = first if len(first) == len(leaves) else []
    return found


def has_places(value: Any, leaves: int, steps: int) -> bool:
    """Return whether a hyperparameter has a number for each leaf and step of a setting that is for so many leaves.

    Its shape is `(leaves, steps)`, where either may be 1. A function among the settings gets the number of its place.
    """
    return np.ndim(value) == 2 and np.shape(value)[0] in (1, leaves) and np.shape(value)[1] in (1, steps)


def gives_a_number(function: Callable[[Mapping[str, Any], Any], Any], hyperparameters: Mapping[str, Any]) -> bool:
    """Return whether a setting that is a function gives one number, and not a pytree of them."""
    return _shapes(function, hyperparameters) == [()]


def gives_arrays(function: Callable[[Mapping[str, Any], Any], Any], hyperparameters: Mapping[str, Any]) -> bool:
    """Return whether a setting that is a function gives anything but numbers, as of hyperparameters with places."""
    return any(shape != () for shape in _shapes(function, hyperparameters))


def is_elementwise(
    function: Callable[[Mapping[str, Any], Any], Any], hyperparameters: Mapping[str, Any], names: Collection[str]
) -> bool:
    """Return whether a setting that is a function gives an array where these numbers are arrays.

    One that takes their mean or maximum gives a number for all places at once.
    """
    shape = 2, 3
    try:
        found = _shapes(function, {**hyperparameters, **{name: jnp.zeros(shape) for name in names}})
    except (TypeError, ValueError, IndexError):  # it cannot compute with arrays, such as one that stacks numbers
        return False
    return found == [shape]


def _shapes(function: Callable[[Mapping[str, Any], Any], Any], hyperparameters: Mapping[str, Any]) -> list[Any]:
    """Return the shapes of what a function gives at a step; None for what is no number."""

    def numbers(step: jax.Array) -> list[Any]:
        return [
            leaf if _is_number(leaf) else None for leaf in jax.tree.leaves(of_nested(function)(hyperparameters, step))
        ]

    found = jax.tree.leaves(jax.eval_shape(numbers, jnp.int32(0)), is_leaf=lambda leaf: leaf is None)
    return [None if leaf is None else leaf.shape for leaf in found]


def of_nested(function: Callable[[Mapping[str, Any], Any], Any]) -> OfNested:
    """Return a setting that is a function of hyperparameters and step as one that takes the names of nested ones."""
    return OfNested(function, -2)


def takes_hyperparameters(function: Callable[..., Any]) -> bool:
    """Return whether a setting that is a function gets the hyperparameters too, and not the step alone."""
    return not takes(function, ("step",)) or takes(function, ("hyperparameters", "step"))


def _is_second(function: Callable[..., Any], name: str) -> bool:
    """Return whether the second parameter of a function has this name."""
    return [*inspect.signature(function).parameters, "", ""][1] == name


def _resolve(
    name: str, setting: Setting, hyperparameters: Mapping[str, Any], params: Any, steps: int
) -> tuple[list[jax.Array], list[int]]:
    """Return the schedules of a setting, each of shape `(steps,)`, and for each leaf the index of its own."""
    if isinstance(setting, ByRank):
        values, sources = _resolve(name, setting.matrices, hyperparameters, params, steps)
        more, of_others = _resolve(name, setting.others, hyperparameters, params, steps)
        of_leaves = zip(jax.tree.leaves(params), sources, of_others, strict=True)
        return values + more, [i if leaf.ndim == 2 else len(values) + j for leaf, i, j in of_leaves]

    def over_time(leaf: Any, leaves: int) -> Any:
        if isinstance(leaf, str):
            return hyperparameters[leaf]
        if callable(leaf):
            at = functools.partial(_of_step_alone, name, leaf)  # such as a schedule of optax
            if takes(leaf, ("step",)) and takes_hyperparameters(leaf) and not _is_second(leaf, "step"):
                raise ValueError(
                    f"optimizer: {name} must take either (step) or (hyperparameters, step), got a function that takes "
                    f"both, {inspect.signature(leaf)}; give no argument a default"
                )
            if takes_hyperparameters(leaf):
                check_arguments(f"optimizer: {name}", leaf, ("hyperparameters", "step"))
                return over_places(leaf, leaves)
            return over_steps(at)
        return leaf

    def over_steps(at: Callable[[jax.Array], Any]) -> Any:
        return jax.tree.map(of_one_step, jax.vmap(lambda step: checked(at(step)))(jnp.arange(steps, dtype=jnp.int32)))

    def over_places(function: Callable[[Mapping[str, Any], jax.Array], Any], leaves: int) -> Any:
        """Return what a function gives at each step.

        One that would give arrays, since hyperparameters have a number for each leaf and step, gets these one by one.
        """
        by_place = {
            name: jnp.broadcast_to(jnp.asarray(x), (leaves, steps))
            for name, x in hyperparameters.items()
            if has_places(x, leaves, steps)
        }
        if not by_place or not gives_arrays(function, hyperparameters):
            return over_steps(functools.partial(of_nested(function), hyperparameters))

        def of_leaf(schedules: dict[str, jax.Array]) -> Any:
            return over_steps(lambda step: of_nested(function)({**hyperparameters, **_at(schedules, step)}, step))

        return jax.vmap(of_leaf)(by_place)

    def of_one_step(schedule: jax.Array) -> jax.Array:
        if schedule.shape != (steps,):
            raise ValueError(
                f"optimizer: {name} must return a number for each leaf, got the shape {schedule.shape[1:]} at a step"
            )
        return schedule

    def checked(found: Any) -> Any:
        for leaf in jax.tree.leaves(found) or [found]:
            if not _is_number(leaf):
                raise ValueError(f"optimizer: {name} must be numbers, got {leaf!r} for {setting!r}")
        return found

    numbers = jax.tree.map(
        lambda leaf, leaves: checked(over_time(leaf, leaves)), setting, _counts(name, setting, params)
    )
    values, sources = jax.tree.leaves(numbers), _sources(name, numbers, params)
    schedules: list[jax.Array] = []
    indices = dict.fromkeys(range(len(sources)), 0)
    for i, value in enumerate(values):
        leaves = [leaf for leaf, source in enumerate(sources) if source == i]
        rows = _rows(name, jnp.asarray(value), len(leaves), steps)
        indices |= {leaf: len(schedules) + min(place, len(rows) - 1) for place, leaf in enumerate(leaves)}
        schedules += rows
    return schedules, list(indices.values())


def _sources(name: str, values: Any, params: Any) -> list[int]:
    """Return for each leaf of the parameters the index of the leaf of a setting that it has."""
    leaves, structure = jax.tree.flatten(values)
    try:
        found: list[int] = jax.tree.leaves(
            jax.tree.broadcast(jax.tree.unflatten(structure, range(len(leaves))), params)
        )
    except ValueError as error:
        raise ValueError(
            f"optimizer: {name} must be one value or a pytree prefix of the parameters, got the structure "
            f"{structure} for parameters of structure {jax.tree.structure(params)}"
        ) from error
    return found


def _counts(name: str, setting: Any, params: Any) -> Any:
    """Return a setting with the number of leaves of the parameters that each of its own leaves is for."""
    leaves, structure = jax.tree.flatten(setting)
    sources = _sources(name, setting, params)
    return jax.tree.unflatten(structure, [sources.count(i) for i in range(len(leaves))])


def _at(schedules: Mapping[str, jax.Array], step: jax.Array) -> dict[str, jax.Array]:
    return {name: schedule[step] for name, schedule in schedules.items()}


def _rows(name: str, value: jax.Array, leaves: int, steps: int) -> list[jax.Array]:
    """Return the schedules that a value holds, each of shape `(steps,)`: one for all leaves, or one for each."""
    rows, columns = (1, 1, *value.shape)[-2:]
    if value.ndim > 2 or rows not in (1, leaves) or columns not in (1, steps):
        raise ValueError(
            f"optimizer: {name} must be a number or a schedule of length steps={steps} for each leaf, or an array that "
            f"broadcasts to one row for each of the {leaves} leaves that it is for, shape ({leaves}, {steps}), "
            f"got shape {value.shape}"
        )
    return list(jnp.broadcast_to(value, (rows, steps)))
