"""Schedules of settings, with gradients with respect to all that shapes them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import least_squares

from hypergrad_search.checks import number_or_traced, shown, whole_number

#: The lengths of the warm-up, as shares of all steps, from which a fit starts, since it may end in a local minimum.
_FIRST_WARMUPS = (0.01, 0.1, 0.25, 0.5, 0.75)


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


def fit_warmup_cosine(schedule: Any) -> dict[str, float]:
    """Return the `peak`, `warmup` and `final` of the `warmup_cosine` that is nearest to a schedule, by least squares.

    Use it to say in three numbers what a search has found in hundreds; `warmup_cosine(**fit, steps=steps)` is the
    smooth schedule. Do not expect it to be as good as what was found: train with both.

    Args:
        schedule: the value at each step, shape `(steps,)`, or one such row for each leaf of the parameters, shape
            `(leaves, steps)`. All rows are fitted by one schedule.

    Raises:
        ValueError: `schedule` is no such array of at least two finite steps.

    Example:
        >>> from hypergrad_optuna import best_hyperparameters
        >>> from hypergrad_search import fit_warmup_cosine
        >>> fit = fit_warmup_cosine(best_hyperparameters(study)["rate"])
        >>> sorted(fit)
        ['final', 'peak', 'warmup']
    """
    rows = np.atleast_2d(np.asarray(schedule, np.float64))
    if rows.ndim > 2 or rows.shape[1] < 2 or not np.isfinite(rows).all():
        raise ValueError(
            "fit_warmup_cosine: schedule must have shape (steps,) or (leaves, steps), with at least 2 steps, and "
            f"finite numbers, got {shown(schedule)}"
        )
    steps, size = rows.shape[1], np.abs(rows).max() or 1.0
    now, mean = np.arange(steps), rows.mean(axis=0) / size  # the mean has the same nearest schedule as all rows

    def off(x: np.ndarray) -> np.ndarray:
        peak, warmup, final = x
        falling = final + (peak - final) * 0.5 * (1 + np.cos(np.pi * np.clip((now - warmup) / (steps - warmup), 0, 1)))
        return np.asarray(np.where(now < warmup, peak * now / max(warmup, 1e-9), falling) - mean)

    bounds = ([-np.inf, 0.0, -np.inf], [np.inf, steps - 1.0, np.inf])
    starts = [[mean.max(), max(share * (steps - 1), 1e-3), mean[-1]] for share in _FIRST_WARMUPS]
    fits = [least_squares(off, start, bounds=bounds) for start in starts]
    peak, warmup, final = min(fits, key=lambda fit: fit.cost).x
    return {"peak": float(size * peak), "warmup": float(warmup), "final": float(size * final)}
