"""`first-epoch` trains many points for a tenth of the steps, and the best of them to the end."""

import jax
import numpy as np
import optuna
import pytest

from hypergrad_optuna import Objective, attributes
from hypergrad_studies import optuna_backend
from hypergrad_studies.first_epoch import FirstEpochPruner, FirstEpochSampler, first_epoch
from hypergrad_studies.problems import PROBLEMS
from hypergrad_studies.records import PRUNED, Record
from hypergrad_studies.rivals import RIVALS
from hypergrad_studies.spending import Budget


@pytest.mark.parametrize(("steps", "first"), [(1, 1), (9, 1), (50, 5), (100, 10)])
def test_a_first_epoch_is_a_tenth(steps: int, first: int) -> None:
    assert first_epoch(steps) == first


@pytest.mark.slow
def test_half_of_the_budget_goes_to_first_epochs() -> None:
    seen: list[Record] = []
    optuna_backend.run(PROBLEMS["digits-l2"](), RIVALS["first-epoch"], 0, Budget(300), seen.append)
    costs = np.diff([0, *(record.gradient_evaluations or 0 for record in seen)])
    assert list(costs) == [5] * 30 + [50] * 3
    assert [record.status for record in seen] == [PRUNED] * 30 + ["ok"] * 3


def test_the_best_train_again_in_the_order_of_their_losses() -> None:
    problem, space = PROBLEMS["digits-mlp"]().posed()
    study = optuna.create_study(sampler=FirstEpochSampler(0, 600), pruner=FirstEpochPruner(600))
    study.optimize(Objective(problem, space, key=jax.random.key(0), report_every=10), n_trials=33)
    first = [t for t in study.trials if t.state is optuna.trial.TrialState.PRUNED]
    again = [t for t in study.trials if t.state is optuna.trial.TrialState.COMPLETE]
    assert [t.number for t in first] == list(range(30))
    assert {t.user_attrs[attributes.COST] for t in first} == {10}
    best = sorted(first, key=lambda t: t.intermediate_values[10])
    assert [t.params for t in again] == [t.params for t in best[:3]]
    assert [t.intermediate_values[10] for t in again] == [t.intermediate_values[10] for t in best[:3]]
    assert {t.user_attrs[attributes.COST] for t in again} == {100}


def test_without_first_epochs_it_searches_at_random() -> None:
    study = optuna.create_study(sampler=FirstEpochSampler(0, 10), pruner=FirstEpochPruner(10))
    problem, space = PROBLEMS["synthetic-quadratic"]().posed()
    study.optimize(Objective(problem, space, report_every=1), n_trials=10)
    assert len({t.params["x0"] for t in study.trials}) == 10
