"""The plot of schedules of `hypergrad_optuna.visualization`."""

from hypergrad_optuna.visualization import plot_schedules as plot_hypergradient_schedules

__all__ = ["plot_hypergradient_schedules"]
