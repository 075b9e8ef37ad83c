"""First epochs for many, whole training runs for the best, as one tunes by hand.

Half of the budget goes to random points that train for the first tenth of the steps; the points that were best there
then train anew, from their first step to their last, in the order of their losses, as long as the budget lasts.
"""

from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState

from hypergrad_optuna import attributes


def first_epoch(steps: int) -> int:
    """Return how many steps a first epoch has in a training run of so many."""
    return max(steps // 10, 1)


class FirstEpochPruner(BasePruner):
    """Stops trials at their first report, until half of the budget is spent.

    Trials must record their costs, as those of an `Objective` do, and run one after another.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether first epochs are still under way."""
        return _in_first_epochs(study, self._budget)


class FirstEpochSampler(RandomSampler):
    """Samples at random until half of the budget is spent, and then repeats the best trials that were pruned."""

    def __init__(self, seed: int, budget: int) -> None:
        super().__init__(seed)
        self._budget = budget

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the space of the trial to repeat; empty where there is none."""
        repeated = self._repeated(study)
        return {} if repeated is None else repeated.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the point of the trial to repeat; empty where there is none."""
        repeated = self._repeated(study)
        return {} if repeated is None else repeated.params

    def _repeated(self, study: Study) -> FrozenTrial | None:
        """Return the pruned trial with the lowest loss of those that no later trial has repeated."""
        if _in_first_epochs(study, self._budget):
            return None
        trials = study.get_trials(deepcopy=False)
        others = [trial.params for trial in trials if trial.state is not TrialState.PRUNED]
        left = [t for t in trials if t.state is TrialState.PRUNED and t.params not in others]
        return min(left, key=_loss, default=None)


def _loss(pruned: FrozenTrial) -> float:
    return pruned.intermediate_values[max(pruned.intermediate_values)]


def _in_first_epochs(study: Study, budget: int) -> bool:
    spent = sum(trial.user_attrs.get(attributes.COST, 0) for trial in study.get_trials(deepcopy=False))
    return bool(2 * spent < budget)
