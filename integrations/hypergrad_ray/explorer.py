"""The explorer: another searcher, which sees one number in the place of each array."""

import contextlib
import importlib.util
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher
from ray.tune.search.bohb import TuneBOHB
from ray.tune.search.optuna import OptunaSearch

from hypergrad_ray.config import join
from hypergrad_ray.param_space import param_space
from hypergrad_search import Space
from hypergrad_search.checks import shown, whole_number
from hypergrad_search.search.ask_tell import collect, levels, spread

LOSS = "loss"  # the name of the metric that the explorer minimises


class Explorer:
    """The searcher that chooses points, by default `OptunaSearch`; all values that it is told are losses.

    Raises `ValueError` where `searcher` cannot explore, and `ImportError` where the default one cannot be had.
    """

    def __init__(self, searcher: Searcher | None, seed: int | None) -> None:
        self.searcher = _default(seed) if searcher is None else _checked(searcher, seed)
        self.is_the_user_s = searcher is not None
        self._space: Space = {}

    def begin(self, space: Space) -> None:
        """Give the explorer its space, in which an array is one number."""
        if not self.searcher.set_search_properties(LOSS, "min", param_space(levels(space))):
            raise ValueError("HypergradSearch: explorer must be made without a space, which it gets here")
        self._space = space

    def choose(self, trial: str) -> dict[str, Any] | str | None:
        """Return hyperparameters for a trial, None to wait, or `Searcher.FINISHED`."""
        chosen: Any = self.searcher.suggest(trial)
        if chosen is None or isinstance(chosen, str):
            return chosen
        try:
            return spread(self._space, join(levels(self._space), chosen))
        except ValueError as error:
            raise ValueError(f"HypergradSearch: the explorer's choice does not fit the space: {error}") from None

    def report(self, trial: str, result: Mapping[str, Any], loss: float) -> None:
        """Tell of a result of a trial that the explorer chose, and that is running."""
        self.searcher.on_trial_result(trial, {**result, LOSS: loss})

    def end(self, trial: str, result: Mapping[str, Any] | None, loss: float, error: bool) -> None:
        """Tell how a trial ended that the explorer chose; `result` is None where it failed or was stopped."""
        told = None if result is None else {**result, LOSS: loss}
        self.searcher.on_trial_complete(trial, result=told, error=error)

    def add(
        self,
        hyperparameters: Mapping[str, Any],
        loss: float,
        *,
        error: bool = False,
        stopped: bool = False,
        reports: Mapping[int, float] | None = None,
    ) -> None:
        """Tell of a trial that the explorer did not choose.

        `reports` has its losses by training iteration, from 1.
        """
        point = collect(self._space, hyperparameters)
        losses = [loss for _, loss in sorted((reports or {}).items())]
        from_zero = [*losses[:1], *losses] if stopped else None  # as Ray counts the values of a list
        with contextlib.suppress(NotImplementedError):  # of searchers that cannot learn from points that others chose
            self.searcher.add_evaluated_point(point, loss, error=error, pruned=stopped, intermediate_values=from_zero)

    def save(self) -> bytes:
        """Return the explorer's own state."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "explorer")
            self.searcher.save(str(path))
            return path.read_bytes()

    def restore(self, saved: bytes) -> None:
        """Go on from what `save` returned; raise `ValueError` where it is of another explorer."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "explorer")
            path.write_bytes(saved)
            try:
                self.searcher.restore(str(path))
            except Exception as error:  # whatever the explorer makes of what another one has saved
                raise ValueError(
                    f"HypergradSearch: {type(self.searcher).__name__} cannot read the explorer's part of the state "
                    f"({shown(error)}); is it of another explorer?"
                ) from error


def _default(seed: int | None) -> Searcher:
    if importlib.util.find_spec("optuna") is None:
        raise ImportError(
            "HypergradSearch: the default explorer needs optuna; pip install 'hypergrad-search[ray]', "
            "or give another searcher as explorer"
        )
    return OptunaSearch(seed=None if seed is None else whole_number("HypergradSearch: seed", seed, 0, 2**32 - 1))


def _checked(searcher: Searcher, seed: int | None) -> Searcher:
    if not isinstance(searcher, Searcher):
        raise ValueError(f"HypergradSearch: explorer must be a ray.tune.search.Searcher, got {searcher!r}")
    if isinstance(searcher, TuneBOHB):
        raise ValueError(
            "HypergradSearch: explorer cannot be TuneBOHB, which needs the scheduler HyperBandForBOHB for itself; "
            "use the default one, OptunaSearch()"
        )
    if seed is not None:
        raise ValueError("HypergradSearch: give the seed to explorer, or leave it out")
    return searcher
