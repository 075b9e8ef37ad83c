"""The cost model: it counts evaluations in minibatch training gradients.

A training step takes one gradient. A step of the reverse pass takes one gradient to step back, and a Hessian-vector
product, which is worth two. All methods and the search count in these units, so that a budget means the same for all.
"""

from dataclasses import dataclass

from hypergrad_search.checks import number

TRAINING_STEP = 1
HESSIAN_VECTOR_PRODUCT = 2
REVERSE_STEP = TRAINING_STEP + HESSIAN_VECTOR_PRODUCT

#: A value with its gradient costs this much, where a value alone costs 1.
VALUE_AND_GRADIENT = TRAINING_STEP + REVERSE_STEP


@dataclass(frozen=True)
class Cost:
    """The cost of an evaluation: minibatch training gradients, or what is worth as many, and wall seconds.

    Raises `ValueError` where one is not a number from 0.

    Example:
        >>> from hypergrad_search import evaluate
        >>> evaluate(problem, point, key=key).cost.gradient_evaluations  # 20 steps, and three times as many back
        80
    """

    gradient_evaluations: float
    seconds: float

    def __post_init__(self) -> None:
        number("Cost: gradient_evaluations", self.gradient_evaluations, 0)
        number("Cost: seconds", self.seconds, 0)
