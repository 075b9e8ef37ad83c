"""Checks of what the callers of a searcher hand in."""

from collections.abc import Mapping
from typing import Any

from hypergrad_ray.domains import Domains
from hypergrad_search.checks import number, shown
from hypergrad_search.search import Observation


def check_goal(metric: Any, mode: Any) -> None:
    """Raise `ValueError` unless metric and mode are ones that a search of one metric can have, or None."""
    if metric is not None and not isinstance(metric, str):
        raise ValueError(f"HypergradSearch: metric must be one name, got {metric!r}")
    if mode is not None and (not isinstance(mode, str) or mode not in ("min", "max")):
        raise ValueError(f"HypergradSearch: mode must be 'min' or 'max', got {mode!r}")


def check_result(result: Any) -> None:
    """Raise `ValueError` unless a result is a dict."""
    if not isinstance(result, Mapping):
        raise ValueError(f"HypergradSearch: result must be a dict, got {shown(result)}")


def check_state(state: Any) -> None:
    """Raise `ValueError` unless a state has all the parts of `HypergradSearch.get_state`."""
    kinds = {"domains": Domains, "strategy": tuple, "finished": tuple, "running": list, "losses": dict, "given": list}
    kinds |= {"explored": set, "adopted": set, "checkpoints": dict, "explorer": bytes}
    fits = isinstance(state, Mapping) and {"metric", "mode"} <= state.keys()
    fits = fits and all(isinstance(state.get(name), kind) for name, kind in kinds.items())
    if not fits or not all(isinstance(trial, Observation) for trial in (*state["finished"][0], *state["running"])):
        raise ValueError(f"HypergradSearch: state must be what get_state returned, got {shown(state)}")


def checked_points(points: Any, rewards: Any) -> list[tuple[Mapping[str, Any], float | None]]:
    """Return the points that a user knows, each with its value or None; raise `ValueError` where they do not fit."""
    if points is None and rewards is None:
        return []
    if not isinstance(points, list | tuple) or not all(isinstance(point, Mapping) for point in points):
        raise ValueError(f"HypergradSearch: points_to_evaluate must be a list of configs, got {shown(points)}")
    if rewards is None:
        return [(point, None) for point in points]
    if not isinstance(rewards, list | tuple) or len(rewards) != len(points):
        raise ValueError(
            f"HypergradSearch: evaluated_rewards must be a list of {len(points)} numbers, one for each of "
            f"points_to_evaluate, got {shown(rewards)}"
        )
    named = [number(f"HypergradSearch: evaluated_rewards[{i}]", reward) for i, reward in enumerate(rewards)]
    return list(zip(points, named, strict=True))
