"""Studies of "Gradient-based Hyperparameter Optimization through Reversible Learning" (Maclaurin et al., 2015)."""
