"""digits-mlp: 10 hyperparameters of a 64-50-50-10 tanh network, 100 steps on scikit-learn's digits.

Penalties may be lifted to one for each weight; the package lifts rates and momentum by itself. digits-noisy is the same
problem with a new seed each trial.
"""

import functools

from hypergrad_search import Space, TrainingProblem
from hypergrad_studies.problems import digits, tuned_mlp

SIZES = (64, 50, 50, 10)
STEPS = 100

SPACE = tuned_mlp.space(SIZES)


def problem() -> tuple[TrainingProblem, Space]:
    """Return the problem and its space."""
    return (
        TrainingProblem(
            init=functools.partial(tuned_mlp.init, SIZES),
            train_loss=tuned_mlp.train_loss,
            valid_loss=digits.valid_loss,
            test_loss=digits.test_loss,
            batches=digits.batches,
            optimizer=tuned_mlp.optimizer(SIZES),
            steps=STEPS,
        ),
        SPACE,
    )
