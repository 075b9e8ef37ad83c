"""The paper's own outer loop: gradient descent on the hyperparameters."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from hypergrad_search import Method, Reversible, Unrolled, evaluate
from hypergrad_studies import json_lines
from hypergrad_studies.papers.reversible_learning.outer import Iteration, OuterLoop


class _Progress(NamedTuple):
    """Where the descent stands, what its optimizer remembers, and all that it has done."""

    here: dict[str, np.ndarray]
    optimizer_state: Any
    done: list[Iteration]
    trajectory: dict[str, list[np.ndarray]]


@dataclass(frozen=True, eq=False)
class Descent(OuterLoop):
    """Gradient descent on the hyperparameters, by an optimizer of optax.

    Its outcome is the point where its last step led, not the best point on the way. As in the paper, it also follows
    exploded gradients as long as they are finite, since the optimizer deals with their size. An iteration whose
    gradient is not finite leaves the hyperparameters as they are.
    """

    optimizer: optax.GradientTransformation = optax.adam(0.04)  # noqa: RUF009 (functions alone)
    method: Method = Reversible(fallback=Unrolled())  # noqa: RUF009 (frozen)

    def run(self, name: str, seed: int, folder: Path) -> Iterator[Iteration]:
        """See `OuterLoop`."""
        path = _checkpoint(name, seed, folder)
        key = jax.random.key(seed)
        start = self.start_arrays()
        progress = _Progress(start, self.optimizer.init(start), [], {n: [x] for n, x in start.items()})
        if path.exists():
            progress = self._load(path, progress)
        yield from progress.done
        for i in range(len(progress.done), self.iterations + 1):
            started = time.perf_counter()
            last = i == self.iterations
            evaluation = evaluate(
                self.problem,
                progress.here,
                method=self.method,
                key=jax.random.fold_in(key, i) if self.reseed else key,
                gradient_below=-math.inf if last else math.inf,
            )
            progress.done.append(
                Iteration(
                    search=name,
                    seed=seed,
                    iteration=i,
                    value=evaluation.value,
                    test=math.nan if evaluation.test_loss is None else evaluation.test_loss,
                    status=str(evaluation.status),
                    gradient_evaluations=self.networks * float(evaluation.cost.gradient_evaluations),
                    seconds=time.perf_counter() - started,
                )
            )
            if not last:
                progress = self._stepped(progress, evaluation.gradient)
            _save(path, progress)
            yield progress.done[-1]

    def outcome(self, iterations: Sequence[Iteration]) -> Iteration:
        """See `OuterLoop`."""
        return iterations[-1]

    def found(self, name: str, seed: int, folder: Path) -> dict[str, np.ndarray]:
        """See `OuterLoop`."""
        return {n: path[-1] for n, path in self.trajectory(name, seed, folder).items()}

    def trajectory(self, name: str, seed: int, folder: Path) -> dict[str, np.ndarray]:
        """Return the hyperparameters at every iteration, arrays of shape `(iterations + 1, *shape)`."""
        with np.load(_checkpoint(name, seed, folder)) as file:
            return {n: file[f"trajectory:{n}"] for n in self.space}

    def _stepped(self, progress: _Progress, gradient: Mapping[str, Any] | None) -> _Progress:
        here, state = progress.here, progress.optimizer_state
        if gradient is not None:
            updates, state = self.optimizer.update({n: gradient[n] for n in self.space}, state, here)
            moved = optax.apply_updates(here, updates)
            here = {n: np.clip(moved[n], p.low, p.high) for n, p in self.space.items()}
        trajectory = {n: [*before, here[n]] for n, before in progress.trajectory.items()}
        return progress._replace(here=here, optimizer_state=state, trajectory=trajectory)

    def _load(self, path: Path, start: _Progress) -> _Progress:
        """Return the progress saved in `path`; its tree has the structure of the one at the start."""
        like = (start.here, start.optimizer_state)
        with np.load(path) as file:
            leaves = [file[f"state:{i}"] for i in range(len(jax.tree.leaves(like)))]
            done = [json_lines.parse(text, Iteration) for text in str(file["done"]).splitlines()]
            trajectory = {n: list(file[f"trajectory:{n}"]) for n in self.space}
        here, optimizer_state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return _Progress(here, optimizer_state, done, trajectory)


def _save(path: Path, progress: _Progress) -> None:
    """Write the whole file anew, so that a kill in the middle of this leaves the old file."""
    leaves = jax.tree.leaves((progress.here, progress.optimizer_state))
    arrays = {f"state:{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    arrays |= {f"trajectory:{n}": np.stack(x) for n, x in progress.trajectory.items()}
    arrays["done"] = np.array(b"".join(map(json_lines.line, progress.done)).decode())
    new = path.with_suffix(".new.npz")
    np.savez(new, allow_pickle=False, **arrays)
    new.replace(path)


def _checkpoint(name: str, seed: int, folder: Path) -> Path:
    return folder / f"{name}-{seed}.npz"
