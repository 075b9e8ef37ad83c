"""Training that can be run backwards to the bit, and the same training in plain floats."""

from hypergrad_search.training.floats import train_in_floats
from hypergrad_search.training.train import train

__all__ = ["train", "train_in_floats"]
