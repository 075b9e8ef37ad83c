"""The package has the plot, loaded from a folder that stands for the registry."""

from pathlib import Path

import optunahub


def test_it_has_the_plot() -> None:
    packages = Path(__file__).parents[3]
    module = optunahub.load_local_module(
        package="visualization/plot_hypergradient_schedules", registry_root=str(packages)
    )
    assert callable(module.plot_hypergradient_schedules)
