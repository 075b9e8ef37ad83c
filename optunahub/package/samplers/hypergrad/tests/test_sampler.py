"""The package searches as its README says, loaded from a folder that stands for the registry."""

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import optunahub
import pytest

PACKAGES = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def module() -> Any:
    return optunahub.load_local_module(package="samplers/hypergrad", registry_root=str(PACKAGES))


def test_it_follows_gradients(module: Any) -> None:
    def objective(trial: optuna.Trial) -> float:
        x = module.suggest_array(trial, "x", (100,), -1.0, 1.0)
        value = float(((x - 0.3) ** 2).sum())
        if module.wants_gradient(trial, value):
            module.report_gradient(trial, {"x": 2 * (x - 0.3)})
        return value

    study = optuna.create_study(sampler=module.HypergradSampler(seed=0))
    study.optimize(objective, n_trials=20)
    found = module.best_hyperparameters(study)["x"]
    assert study.best_value < 1e-2
    np.testing.assert_allclose(found, 0.3, atol=0.02)
