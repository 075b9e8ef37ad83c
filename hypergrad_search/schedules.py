"""Schedules of settings, with gradients with respect to all that shapes them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hypergrad_search.checks import whole_number


def warmup_cosine(peak: Any, warmup: Any, final: Any = 0.0, *, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Return a linear warm-up from 0, and then half a cosine down to `final`, as a function of the step.

    At whole numbers it is `optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, final)`, which cannot be traced
    in `warmup`; this function may have a gradient in all three. Do not let a search choose a `warmup` of 0 or of all
    `steps`, where the slope is infinite.

    Args:
        peak: the largest value, which is reached after `warmup` steps.
        warmup: the length of the warm-up in steps, a number above 0 and below `steps`; it need not be whole.
        final: the value after all `steps`.
        steps: the number of training steps, that of the problem.

    Raises:
        ValueError: `steps` is not a whole number from 1.

    Example:
        >>> from hypergrad_search import adamw, warmup_cosine
        >>> rate = lambda h, step: warmup_cosine(h["peak"], h["warmup"], h["final"], steps=1000)(step)
        >>> optimizer = adamw(rate, weight_decay="decay")
    """
    steps = whole_number("warmup_cosine: steps", steps, 1)

    def schedule(step: jax.Array) -> jax.Array:
        now = jnp.asarray(step, jnp.result_type(float))
        share = jnp.clip((now - warmup) / (steps - warmup), 0.0, 1.0)
        falling = final + (peak - final) * 0.5 * (1 + jnp.cos(jnp.pi * share))
        return jnp.where(now < warmup, peak * now / warmup, falling)

    return schedule
