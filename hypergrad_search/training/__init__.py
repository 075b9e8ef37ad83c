"""Training that can be run backwards to the bit, and the same training in plain floats."""

from hypergrad_search.training.floats import float_training, judged_model, last_state, train_in_floats
from hypergrad_search.training.train import train

__all__ = ["float_training", "judged_model", "last_state", "train", "train_in_floats"]
