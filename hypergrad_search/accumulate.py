"""Gradient accumulation: a batch that does not fit the device is gone through in parts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hypergrad_search.checks import shown, takes, whole_number

_WITH_STATISTICS = ("params", "statistics", "hyperparameters", "batch", "key")


def accumulate_gradients(train_loss: Callable[..., Any], micro_batches: int) -> Callable[..., Any]:
    """Return a training loss that is the mean over equal parts of a batch, which are computed one after the other.

    Its gradient is the sum that gradient accumulation makes, as `optax.MultiSteps` does, with one step of the optimizer
    for each batch. Only the activations of one part are in memory at a time, and each is computed twice. Training stays
    exactly reversible, and every method takes it.

    Args:
        train_loss: a training loss as `TrainingProblem` describes it, with or without statistics. It is a mean over the
            examples of the batch that it gets. Statistics go from part to part.
        micro_batches: the number of parts, from 1. It must divide the length of the first axis of every array in the
            batch. Each part has a key of its own.

    Returns:
        A function with the arguments of `train_loss`.

    Raises:
        ValueError: `train_loss` is not a function, `micro_batches` is not a whole number from 1, or, when it is called,
            the batch cannot be divided.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from hypergrad_search import accumulate_gradients
        >>> train_loss = lambda w, h, batch, key: jnp.mean((batch @ w) ** 2)
        >>> in_parts = accumulate_gradients(train_loss, 4)
        >>> x, w = jnp.arange(24.0).reshape(8, 3), jnp.ones(3)
        >>> bool(jnp.allclose(in_parts(w, {}, x, jax.random.key(0)), train_loss(w, {}, x, None)))
        True

    Do not use it where parts depend on each other, as they do in batch normalisation, which then normalises by the
    part at hand.
    """
    if not callable(train_loss):
        raise ValueError(f"accumulate_gradients: train_loss must be a function, got {shown(train_loss)}")
    count = whole_number("accumulate_gradients: micro_batches", micro_batches, 1)

    def parts_of(batch: Any) -> Any:
        for path, x in jax.tree_util.tree_leaves_with_path(batch):
            if jnp.ndim(x) == 0 or jnp.shape(x)[0] % count:
                raise ValueError(
                    f"accumulate_gradients: batch{jax.tree_util.keystr(path)} of shape {jnp.shape(x)} cannot be "
                    f"divided into micro_batches={count} equal parts"
                )
        return jax.tree.map(lambda x: jnp.reshape(x, (count, -1, *jnp.shape(x)[1:])), batch)

    def plain(params: Any, hyperparameters: Any, batch: Any, key: jax.Array) -> Any:
        @jax.checkpoint
        def part(_: None, at: tuple[Any, jax.Array]) -> tuple[None, jax.Array]:
            return None, train_loss(params, hyperparameters, *at)

        return jnp.mean(jax.lax.scan(part, None, (parts_of(batch), jax.random.split(key, count)))[1])

    def with_statistics(params: Any, statistics: Any, hyperparameters: Any, batch: Any, key: jax.Array) -> Any:
        @jax.checkpoint
        def part(statistics: Any, at: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
            loss, statistics = train_loss(params, statistics, hyperparameters, *at)
            return statistics, loss

        at = parts_of(batch), jax.random.split(key, count)
        statistics, losses = jax.lax.scan(part, statistics, at)
        return jnp.mean(losses), statistics

    without = tuple(name for name in _WITH_STATISTICS if name != "statistics")
    return plain if takes(train_loss, without) or not takes(train_loss, _WITH_STATISTICS) else with_statistics
