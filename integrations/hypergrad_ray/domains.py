"""Ray's own domains: the space that stands for them, and the way from its hyperparameters to a config and back."""

import functools
import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from ray.tune.search import sample

from hypergrad_ray.config import RESERVED, check_names, join, split
from hypergrad_ray.large_array import in_short
from hypergrad_search import Categorical, Float, Int, Space
from hypergrad_search.checks import shown
from hypergrad_search.nesting import flat
from hypergrad_search.space import floats, lifted
from hypergrad_search.trouble import see

STANDARD_DEVIATIONS = 3  # the distance of the bounds of `tune.randn` from its mean

_NOTHING = object()  # where there is not even a None

Parameter = Float | Int | Categorical
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Place:
    """A parameter, and where in a config its value is written.

    - `path`: the keys and indices that lead there.
    - `unit`: the number of which each value is a whole multiple, where the parameter is that whole number.
    - `choices`: what the config says instead, where the parameter is the position of a choice.
    """

    path: Path
    parameter: Parameter
    unit: float | int | None = None
    choices: tuple[Any, ...] | None = None

    @property
    def name(self) -> str:
        """The parameter's name in the space, such as `"net.rate"`."""
        return ".".join(map(str, self.path))

    @property
    def shown(self) -> str:
        """The parameter's name in messages, such as `"net/rate"`."""
        return "/".join(map(str, self.path))

    @property
    def in_array(self) -> Path:
        """The path in a config that has an array in the place of its coordinates, such as `"w[0,1]"`."""
        *folders, last = self.path
        array, index = split(str(last))
        return (*folders, array, *index) if index else self.path

    def write(self, value: Any) -> Any:
        """Return what a config says for a parameter's value."""
        if self.choices is not None:
            return self.choices[value]
        return in_short(value) if self.unit is None else value * self.unit

    def read(self, value: Any) -> Any:
        """Return the parameter's value for what a config says; what does not fit comes back as it is."""
        if self.choices is not None:
            return next((i for i, choice in enumerate(self.choices) if _equal(choice, value)), value)
        if self.unit is None or not isinstance(value, int | float):
            return value
        multiple = value / self.unit
        return round(multiple) if math.isfinite(multiple) and math.isclose(multiple, round(multiple)) else value


@dataclass(frozen=True)
class Domains:
    """A config in which some values are still to be chosen: Ray's domains, or a `Float`, `Int` or `Categorical`.

    `template` is the config as the user wrote it. `space` maps a name for each place, such as `"net.rate"` or
    `"layers.0"`, to the parameter there, in which a number that has a `lift` is an array.
    """

    template: Mapping[str, Any] = field(default_factory=dict)
    places: tuple[Place, ...] = ()
    space: Space = field(default_factory=dict)

    @classmethod
    def of(cls, template: Mapping[str, Any]) -> Self:
        """Return the domains in a config; there may be none.

        Raises `ValueError` where the config is not a dict, or a domain is of a kind that cannot be searched.
        """
        if not isinstance(template, Mapping):
            raise ValueError(f"space must be a dict from names to Float, Int or Categorical, got {shown(template)}")
        places = tuple(_places(template, ()))
        space: dict[str, Parameter] = {}
        for place in places:
            if place.name in space:
                raise ValueError(f"space: {place.name!r} stands for two things; rename one of them")
            space[place.name] = place.parameter
        if space:
            check_names(space)
        return cls(template, places, lifted(space))

    def of_same_space(self, other: Self) -> bool:
        """Return whether both have the same parameters in the same places."""
        return self.space == other.space and [x.path for x in self.places] == [x.path for x in other.places]

    def only(self) -> Self:
        """Return these domains without the top-level keys of the config that hold constants alone."""
        keys = {place.path[0] for place in self.places}
        return type(self)({k: v for k, v in self.template.items() if k in keys}, self.places, self.space)

    def config(self, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config with a value in each place, and everything else as the user wrote it."""
        values = {place.path: place.write(hyperparameters[place.name]) for place in self.places}
        config: dict[str, Any] = _filled(self.template, (), values)
        return config

    def hyperparameters(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the hyperparameters in a config.

        One number for an array stands for each of its elements. Raises `ValueError` where a value is missing, does not
        fit, or is out of bounds.
        """
        found = {place.name: place.read(value) for place, value in self.find(config)}
        self._check_whole(config, found)
        for name, parameter in floats(self.space).items():
            if name in found and parameter.shape and np.ndim(found[name]) == 0:
                found[name] = np.full(parameter.shape, found[name])
        hyperparameters = join(self.space, found)
        for name, bounded in self.space.items():
            if isinstance(bounded, Float | Int) and not _within(bounded, hyperparameters[name]):
                raise ValueError(f"{name!r} = {shown(hyperparameters[name])} is out of the bounds of {bounded}")
        return hyperparameters

    def _check_whole(self, config: Mapping[str, Any], found: Collection[str]) -> None:
        """Raise `ValueError` where a config has no value for a parameter; it names what is not in the space instead."""
        missing = [place.shown for place in self.places if place.name not in found]
        if not missing:
            return
        known = self.keys(self.space) | flat(self.template).keys() | {RESERVED}
        unknown = [str(key) for key in flat(config, known) if key not in known]
        instead = f"; {_listed(unknown)} not in the space" if unknown else ""
        raise ValueError(f"{_listed(missing)} missing{instead}; give a value for each of the space's names")

    def keys(self, names: Collection[str]) -> set[str]:
        """Return the keys under which a flat config may have the values of some parameters, or lists of them."""
        paths = [path for place in self.places if place.name in names for path in (place.path, place.in_array)]
        return {"/".join(map(str, path[:length])) for path in paths for length in range(1, len(path) + 1)}

    def find(self, config: Mapping[str, Any]) -> list[tuple[Place, Any]]:
        """Return the places that a config has a value for, each with this value.

        The config may be nested, or flat with `/` between the keys. An array may stand in the place of its coordinates.
        """
        values = [(place, _found(config, place.path) or _found(config, place.in_array)) for place in self.places]
        return [(place, value[0]) for place, value in values if value]


def own_space(space: Any) -> Any:
    """Return a space in which each of Ray's domains is a `Float`, `Int` or `Categorical`, with one dict for all names.

    What is no domain stays as it is, for others to refuse. Raises `ValueError` where a domain has no such form, or a
    dict is what Ray itself would take apart, such as a grid search.
    """
    _check_dicts(space, ())
    flat_space = flat(space)
    if not isinstance(flat_space, Mapping):
        return flat_space
    return {name: _own(name, p) if isinstance(p, sample.Domain) else p for name, p in flat_space.items()}


def _check_dicts(value: Any, path: Path) -> None:
    """Raise `ValueError` where a dict, or one within it, is what Ray itself would take apart."""
    if isinstance(value, Mapping):
        _check_dict(value, path)
        for key, item in value.items():
            _check_dicts(item, (*path, key))


def _check_dict(value: Mapping[Any, Any], path: Path) -> None:
    if value.keys() in ({"grid_search"}, {"eval"}):
        _refuse(path, next(iter(value)))


def _own(name: str, domain: sample.Domain) -> Parameter:
    place = _place((name,), domain)
    if place.unit is not None:
        raise ValueError(
            f"space[{name!r}]: a quantised domain has no gradient; leave q out, or use tune.choice of the values"
        )
    try:
        return place.parameter if place.choices is None else Categorical(place.choices)
    except ValueError as error:
        raise ValueError(f"space[{name!r}]: {error}; use tune.choice of their names") from None


def _found(config: Mapping[str, Any], path: Path) -> tuple[Any] | None:
    """Return what a path leads to in a config that may be flat, as a tuple; None where it leads nowhere."""
    for length in range(len(path), 0, -1):
        value = config.get("/".join(map(str, path[:length])), _NOTHING)
        if value is not _NOTHING:
            try:
                return (functools.reduce(operator.getitem, path[length:], value),)
            except (LookupError, TypeError):
                return None
    return None


def _within(parameter: Float | Int, value: Any) -> bool:
    return bool(np.all((parameter.low <= np.asarray(value)) & (np.asarray(value) <= parameter.high)))


def _filled(value: Any, path: Path, values: Mapping[Path, Any]) -> Any:
    """Return what a config says at `path`; what holds no place is the user's own object."""
    if path in values:
        return values[path]
    if not any(place[: len(path)] == path for place in values):
        return value
    if isinstance(value, Mapping):
        return {key: _filled(item, (*path, key), values) for key, item in value.items()}
    items = [_filled(item, (*path, i), values) for i, item in enumerate(value)]
    return items if isinstance(value, list) else tuple(items)


def _places(value: Any, path: Path) -> Iterator[Place]:
    if isinstance(value, sample.Domain | Parameter):
        yield _place(path, value)
    elif isinstance(value, type) and issubclass(value, sample.Domain | Parameter):
        raise ValueError(f"space[{_shown(path)}] must be a Float, Int or Categorical, or a domain of Ray, got a class")
    elif isinstance(value, Mapping):
        _check_dict(value, path)
        for key, item in value.items():
            for place in _places(item, (*path, key)):
                if not isinstance(key, str):
                    raise ValueError(f"space: names must be strings, got {key!r}")
                if "/" in key:
                    raise ValueError(
                        f"space: {key!r} must not contain '/', which Ray puts between nested keys; nest it"
                    )
                yield place
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _places(item, (*path, i))


def _place(path: Path, domain: Any) -> Place:
    if isinstance(domain, Parameter):
        return Place(path, domain)
    if domain.is_grid():
        return _refuse(path, "grid_search")
    try:
        if isinstance(domain, sample.Categorical):
            return _choice(path, tuple(domain.categories))
        if isinstance(domain, sample.Float | sample.Integer):
            return _number(path, domain)
    except ValueError as error:
        raise ValueError(f"space[{_shown(path)}]: {error}") from None
    return _refuse(path, "sample_from" if isinstance(domain, sample.Function) else type(domain).__name__)


def _choice(path: Path, choices: tuple[Any, ...]) -> Place:
    if not choices:
        raise ValueError("tune.choice needs at least one value")
    if any(True for _ in _places(choices, path)):
        raise ValueError("a choice cannot hold domains; search them beside it, and let the trainable use one of them")
    return Place(path, Categorical(range(len(choices))), choices=choices)


def _number(path: Path, domain: Any) -> Place:
    """Return a number's place; one that is quantised is a whole number of units, which the explorer chooses."""
    sampler: Any = domain.get_sampler()
    unit, whole = None, isinstance(domain, sample.Integer)
    if isinstance(sampler, sample.Quantized):
        sampler, unit = sampler.sampler, int(sampler.q) if whole else float(sampler.q)
    low, high, log = domain.lower, domain.upper, isinstance(sampler, sample.LogUniform)
    if isinstance(sampler, sample.Normal):
        reach = STANDARD_DEVIATIONS * sampler.sd
        low, high = sampler.mean - reach, sampler.mean + reach
    elif not isinstance(sampler, sample.Uniform | sample.LogUniform):
        return _refuse(path, type(sampler).__name__)
    if unit is None and not whole:
        return Place(path, Float(low, high, log=log))
    if unit in (None, 1) and whole:  # then Ray's upper bound is left out
        return Place(path, Int(low, high - 1, log=log))
    first, last = _multiple(low / unit, math.ceil), _multiple(high / unit, math.floor)
    if first > last:
        raise ValueError(f"there is no multiple of q={unit!r} from {low!r} to {high!r}")
    return Place(path, Int(first, last, log=log), unit=unit)


def _multiple(ratio: float, rounded: Callable[[float], int]) -> int:
    """Return a bound of the multiples, which is `ratio` itself where that is a whole number but for rounding."""
    return round(ratio) if math.isclose(ratio, round(ratio)) else rounded(ratio)


def _refuse(path: Path, kind: str) -> Place:
    remedies = {
        "grid_search": "use tune.choice, or run one search for each value",
        "sample_from": "compute it in the trainable, from what is searched",
        "eval": "compute it in the trainable, from what is searched",
    }
    remedy = remedies.get(kind, "use one of Ray's own domains, or Float, Int or Categorical")
    raise ValueError(f"space[{_shown(path)}]: {kind} cannot be searched; {remedy}{see('space')}")


def _shown(path: Path) -> str:
    return repr("/".join(map(str, path)))


def _listed(names: Collection[str]) -> str:
    """Return names and their verb, such as "'a' and 'b' are"."""
    *others, last = map(repr, names)
    return f"{', '.join(others)} and {last} are" if others else f"{last} is"


def _equal(some: Any, other: Any) -> bool:
    """Return whether two values of a choice are the same, in kind too; what cannot be compared is not."""
    if some is other:
        return True
    try:
        return type(some) is type(other) and bool(some == other)
    except (TypeError, ValueError):  # as of arrays
        return False
