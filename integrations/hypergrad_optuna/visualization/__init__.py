"""Pictures of what a study has found, as Plotly figures, in the manner of `optuna.visualization`.

Each function takes a study first and returns a `plotly.graph_objects.Figure`. `to_matplotlib` draws one of them where
Plotly does not run, and `save_to_dashboard` shows them all in Optuna Dashboard.
"""

from hypergrad_optuna.visualization.plot_array import plot_array
from hypergrad_optuna.visualization.plot_chains import plot_chains
from hypergrad_optuna.visualization.plot_cost_shares import plot_cost_shares
from hypergrad_optuna.visualization.plot_held_back import plot_held_back
from hypergrad_optuna.visualization.plot_schedules import plot_schedules
from hypergrad_optuna.visualization.plot_trust import plot_trust
from hypergrad_optuna.visualization.save_to_dashboard import save_to_dashboard
from hypergrad_optuna.visualization.to_matplotlib import to_matplotlib

__all__ = [
    "plot_array",
    "plot_chains",
    "plot_cost_shares",
    "plot_held_back",
    "plot_schedules",
    "plot_trust",
    "save_to_dashboard",
    "to_matplotlib",
]
