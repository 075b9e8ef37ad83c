"""Schedules of settings, with gradients with respect to all that shapes them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hypergrad_search.checks import number_or_traced, whole_number


def warmup_cosine(peak: Any, warmup: Any, final: Any = 0.0, *, steps: int) -> Callable[[Any], jax.Array]:
    """Return a linear warm-up from 0, and then half a cosine down to `final`, as a function of the step.

    At whole numbers it is `optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, final)`, which cannot be traced
    in `warmup`; this function may have a gradient in all three. The cosine is that of Loshchilov and Hutter (2017). It
    is tied to the number of steps: where `steps` is tuned as well, or training goes on later, use another schedule.

    Args:
        peak: the largest value, which is reached after `warmup` steps.
        warmup: the length of the warm-up in steps, from 0 to `steps`; it need not be whole. At these two ends it has no
            gradient.
        final: the value after all `steps`.
        steps: the number of training steps, that of the problem.

    Raises:
        ValueError: `steps` is not a whole number from 1, or another argument is not a number that fits.

    Example:
        >>> from hypergrad_search import adamw, warmup_cosine
        >>> rate = lambda h, step: warmup_cosine(h["peak"], h["warmup"], h["final"], steps=1000)(step)
        >>> optimizer = adamw(rate, weight_decay="decay")
    """
    steps = whole_number("warmup_cosine: steps", steps, 1)
    warmup = number_or_traced("warmup_cosine: warmup", warmup, 0, steps)
    peak, final = (number_or_traced(f"warmup_cosine: {n}", x) for n, x in (("peak", peak), ("final", final)))

    def schedule(step: Any) -> jax.Array:
        now = jnp.asarray(step, jnp.result_type(float))
        rises, falls = now < warmup, warmup < steps  # a branch that is not taken must not divide by 0
        share = jnp.clip((now - warmup) / jnp.where(falls, steps - warmup, 1), 0.0, 1.0)
        falling = final + (peak - final) * 0.5 * (1 + jnp.cos(jnp.pi * share))
        return jnp.where(rises, peak * now / jnp.where(rises, warmup, 1), falling)

    return schedule
