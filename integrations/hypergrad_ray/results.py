"""What a result of Ray says: a flat dict, in which anything may be missing or wrong."""

import warnings
from collections.abc import Mapping
from typing import Any

from ray.tune.result import TRAINING_ITERATION  # type: ignore[attr-defined]  # Ray's module has it without an __all__

from hypergrad_ray.domains import Domains
from hypergrad_search.checks import shown
from hypergrad_search.search.ask_tell import Outcome
from hypergrad_search.space import floats

RUNNING = "running"  # the status of a result that is not the last


class Reader:
    """Reads results, and says what is wrong with them, each thing once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def outcome(self, result: Mapping[str, Any], metric: str, domains: Domains) -> Outcome:
        """Return what a trial has reported; of a result with the status `"running"`, the cost alone counts."""
        cost = result.get("gradient_evaluations")
        if result.get("status") == RUNNING:
            return Outcome(cost=cost)
        return Outcome(
            value=self.value(result, metric),
            gradient=self._gradient(result, domains),
            cost=cost,
            held_back=result.get("held_back"),
            blocks=result.get("blocks"),
            cross_validated=result.get("cross_validated"),
            refined=_of_floats(result, "refined", domains),
            status=result.get("status"),
            deterministic=result.get("deterministic"),
            trust=_of_floats(result, "trust", domains),
        )

    def value(self, result: Mapping[str, Any], metric: str) -> Any:
        """Return the metric, or None where it is missing."""
        if metric not in result:
            self._warn_once(f"{metric!r} is missing from a result, which is a failed step; report it, or set metric")
        return result.get(metric)

    def _gradient(self, result: Mapping[str, Any], domains: Domains) -> dict[str, Any]:
        """Return the derivatives in a result, in which Ray has made `{"gradient": {"x": 1.0}}` one key."""
        reported = {k.removeprefix("gradient/"): g for k, g in result.items() if k.startswith("gradient/")}
        known = floats(domains.space)
        for name in sorted(reported.keys() - domains.keys(known)):
            if reported[name] is not None:
                self._warn_once(f"gradient[{name!r}] was ignored: the floats of the space are {sorted(known)}")
        whole = result.get("gradient")
        if whole is not None and not isinstance(whole, Mapping):
            self._warn_once(f"a gradient was ignored: it must be a dict {{name: array}}, got {shown(whole)}")
        return _of_floats(result, "gradient", domains)

    def _warn_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            warnings.warn(f"HypergradSearch: {message}", stacklevel=3)


def _of_floats(result: Mapping[str, Any], fact: str, domains: Domains) -> dict[str, Any]:
    """Return what a result says of each float, in which Ray has made `{"gradient": {"x": 1.0}}` one key."""
    told = {key.removeprefix(f"{fact}/"): value for key, value in result.items() if key.startswith(f"{fact}/")}
    found = {place.name: value for place, value in domains.find(told)}
    return {name: found.get(name) for name in floats(domains.space)}


def has_gradient(result: Mapping[str, Any]) -> bool:
    """Return whether a result has a gradient, or says what one cost."""
    return any(key.startswith("gradient") and value is not None for key, value in result.items())


def iteration(result: Mapping[str, Any]) -> int | None:
    """Return the number of a result in its trial, from 1; None where it does not say."""
    number = result.get(TRAINING_ITERATION)
    return number if isinstance(number, int) else None


def config_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a result's trial, nested as it was."""
    config: dict[str, Any] = {}
    for key, value in result.items():
        first, *folders = key.split("/")
        if first == "config" and folders:
            inner = config
            for folder in folders[:-1]:
                inner = inner.setdefault(folder, {})
            inner[folders[-1]] = value
    return config
