"""The strategy that Optuna and Ray use by default: explore and descend in turns.

The first point is the centre of the space, and its gradient founds a chain. Then two arms share the budget. One
*explores*: the host's explorer chooses, and a point that is better than all that the explorer has found before gets its
gradient and founds a chain. Once all chains have ended, a point that is better than the last few founds one too, since
the best of all gets hard to beat. The other arm *descends*: it extends the best chain by trust-region steps. The share
of each follows its recent gain: how much it lowered the best value for its cost.

While the search explores, all elements of an array have one value, its level. While it descends, each element moves by
itself. So thousands of hyperparameters are found in two stages: first the levels, and then the elements.

Thousands of hyperparameters can fit the validation set. Where parts of it are held back, each gradient leaves one part
out, and the step along it must lower the loss on that part too. The parts take turns, with each step and where steps
have failed.

Where one point can have several values (a new seed each trial), the head of a chain may owe its low value to luck, and
then all steps from it would seem to fail. Before a head is given up, it is therefore evaluated again, and its value and
gradient are averaged. Where the second value equals the first, or training is known to be deterministic, values do not
vary, and no head is evaluated again for that reason.

Where several workers share a search, one extends the best chain as a worker alone would. Two others try other steps
from the same head at the same time (`variants`), after new heads have got their first step; and the first that is
better makes the next head. A step that ends
after that is compared with the head that its chain has reached by then. Further workers extend other chains, and
exploring keeps its share.

A search may take over a history that another has made, whose points have no gradients. The best of them is evaluated
once more, with its gradient, if it is better than all that has a chain.

`fold` is incremental: an observation costs the same however many came before.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import numpy as np

from hypergrad_search.checks import number, whole_number
from hypergrad_search.fold import Fold
from hypergrad_search.search.continuation import Continuation, Limits
from hypergrad_search.search.observation import Attempt, Observation
from hypergrad_search.search.sign_steps import SignSteps
from hypergrad_search.search.strategy import Proposal, Strategy
from hypergrad_search.search.trust_region import LocalStep, TrustRegion
from hypergrad_search.search.variants import Slope
from hypergrad_search.space import Space, dimension, floats, gradient_to_unit, to_unit

#: How many heads that better steps have replaced are remembered: steps from older ones seldom are still under way.
PASSED = 16
#: How many numbers these heads may have in all; the last one is remembered however large it is.
PASSED_NUMBERS = 1_000_000


@dataclass(frozen=True)
class Account:
    """The recent cost of an arm, its number of trials, and how much these lowered the best value."""

    cost: float = 0.0
    trials: float = 0.0
    gain: float = 0.0


@dataclass(frozen=True)
class Unasked:
    """A trial of which no gradient was ever wanted, its value, and its point in the unit box."""

    value: float
    trial: str
    point: np.ndarray


@dataclass(frozen=True)
class Passed:
    """The region around a head that a better step has replaced, and the trial of that step, the new head."""

    region: TrustRegion
    heir: str


@dataclass(frozen=True)
class State:
    """All that the strategy keeps of the history.

    `chains` maps the trial at each chain's head to the trust region around it, or to a `Continuation` if its evaluation
    moved the hyperparameters itself. `noisy` tells whether one point may have several values; it is None while no
    point has been evaluated twice. `unasked` is the best trial without a gradient that another search ran, until it has
    been evaluated once more. `passed` maps the trials at the last heads that were replaced, from which steps may be
    under way, to what came of them. `unfollowed` are the values of the last points that were explored since all chains
    have ended.
    """

    space: Space
    trials: int = 0
    best_value: float = math.inf
    best_explored: float = math.inf
    has_gradients: bool = False
    noisy: bool | None = None
    exploring: Account = Account()
    descending: Account = Account()
    chains: Mapping[str, TrustRegion | Continuation] = field(default_factory=dict)
    unasked: Unasked | None = None
    passed: Mapping[str, Passed] = field(default_factory=dict)
    unfollowed: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ExploreDescend(Strategy[State]):
    """Explore and descend in turns; each gets the share of the cost that it has lately earned.

    - `startup_trials`: the number of points before the first descent. The first of all points is the centre of the box:
      its gradient shows at once where to go, and users choose bounds around what they expect.
    - `smallest_share`: the share of the cost that each arm gets at least, from 0 to 0.5: the better arm may change.
    - `memory`: the factor, from 0 to 1, by which a trial loses weight in an arm's account with each trial that follows.
      With 0.9 the last ten trials count most, which is about as long as a chain keeps paying.
    - `doubts`: the number of failed steps after which a head is evaluated again. Fewer failures happen to good heads
      too.
    - `folds`: the number of parts that the validation set is split into. A gradient leaves one part out, and the step
      along it must lower the loss on this part too, so that thousands of hyperparameters cannot fit the whole set.
      The parts take turns. None holds nothing back.
    - `standard_errors`: by how many standard errors of the examples' differences the loss on that part must fall. 1 is
      the one-standard-error rule, since a gain that a few lucky examples make is none. From more than 32 examples it
      is less (`Fold.margin`).
    - `turns`: the number of failed steps after which the next part is left out of the gradient at the same head.
    - `tolerance`: a chain ends when the local model expects less than this share of the value from its next step, or
      when a step has lowered the cross-validated loss by less than this share of it: what such a step gains on the
      whole is the fit to examples that it has seen.
    - `step`: the local step. In few dimensions, where the value is smooth, `QuasiNewton()` may need fewer trials.
    - `restart`: once all chains have ended, a point that is better than this many before it gets its gradient, and
      founds a chain. More would make the starts better, and fewer of them.
    - `limits`: the limits beyond which a chain of evaluations that move the hyperparameters themselves is given up.

    Raises `ValueError` where a setting is out of its range.

    Example:
        >>> from hypergrad_optuna import HypergradSampler
        >>> from hypergrad_search.search import ExploreDescend, QuasiNewton
        >>> sampler = HypergradSampler(strategy=ExploreDescend(step=QuasiNewton(), folds=None))
    """

    startup_trials: int = 1
    smallest_share: float = 0.1
    memory: float = 0.9
    doubts: int = 3
    folds: int | None = 4
    standard_errors: float = 1.0
    turns: int = 2
    tolerance: float = 1e-3
    step: LocalStep = field(default_factory=SignSteps)
    restart: int = 20
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        whole_number("ExploreDescend: startup_trials", self.startup_trials, 0)
        whole_number("ExploreDescend: doubts", self.doubts, 1)
        whole_number("ExploreDescend: turns", self.turns, 1)
        whole_number("ExploreDescend: restart", self.restart, 1)
        if self.folds is not None:
            whole_number("ExploreDescend: folds", self.folds, 2)
        for name, most in (("smallest_share", 0.5), ("memory", 1.0), ("tolerance", 1.0), ("standard_errors", math.inf)):
            number(f"ExploreDescend: {name}", getattr(self, name), 0, most)
        if not isinstance(self.step, LocalStep):
            raise ValueError(f"ExploreDescend: step must be a LocalStep such as SignSteps(), got {self.step!r}")
        if not isinstance(self.limits, Limits):
            raise ValueError(f"ExploreDescend: limits must be a Limits such as Limits(stalls=3), got {self.limits!r}")

    def init(self, space: Space) -> State:
        """See `Strategy`."""
        return State(space)

    def fold(self, state: State, observation: Observation) -> State:
        """See `Strategy`."""
        value = observation.value if math.isfinite(observation.value) else math.inf
        point, gradient = to_unit(state.space, observation.hyperparameters), None
        if observation.gradient is not None and value < math.inf:
            gradient = gradient_to_unit(state.space, observation.hyperparameters, observation.gradient)
            gradient = gradient if np.isfinite(gradient).all() else None  # it may overflow on its way into the box
        held_back, left_out = observation.held_back, observation.left_out
        trust = _trust(state.space, observation)
        chains, passed, noisy = dict(state.chains), dict(state.passed), state.noisy
        if noisy is None and observation.deterministic:
            noisy = False
        region = chains.pop(observation.parent, None) if observation.parent is not None else None
        if observation.refined and dimension(state.space) and value < math.inf:
            end = to_unit(state.space, observation.refined)
            chain = region if isinstance(region, Continuation) else Continuation(end, math.inf, limits=self.limits)
            chains[observation.trial] = chain.follow(end, value, held_back)
        elif isinstance(region, Continuation):
            chains[str(observation.parent)] = region.fail()
        elif region is None and observation.parent in passed:
            if gradient is not None and not observation.again:
                self._arrive_late(chains, passed, observation, point, gradient, trust)
        elif region is None and gradient is not None:
            around = self.step.around(point, value, gradient)
            chains[observation.trial] = replace(around, trust=trust, **_on_folds(observation))
        elif region is not None and observation.parent is not None:
            if observation.again and value < math.inf:
                noisy = noisy or value != region.value
                looked = region.look(value, gradient, held_back, observation.blocks, trust) if noisy else region
                if gradient is not None and left_out != region.left_out:
                    forgives = not noisy and region.held_back is not None  # so that the gradient is another one
                    forgiven = looked.resize(1 / looked.rejection) if forgives else looked
                    looked = replace(forgiven, gradient=gradient, trust=trust, left_out=left_out, failed=())
                chains[observation.parent] = replace(looked, rejections=0)
            elif gradient is not None and value < region.value:
                passed[observation.parent] = Passed(region, observation.trial)
                if self._pays(region, observation):
                    followed = region.follow(point, value, gradient, observation.variant)
                    chains[observation.trial] = replace(followed, trust=trust, **_on_folds(observation))
            elif observation.variant:
                chains[observation.parent] = region.fail(observation.variant)
            else:
                chains[observation.parent] = region.reject(point if value < math.inf else region.step())

        started = state.trials >= self.startup_trials and math.isfinite(state.best_value)
        if observation.parent is None and state.chains and not state.descending.cost:
            started = False  # it began beside the first points, before a step could be taken
        gain = max(state.best_value - value, 0.0) if started else 0.0  # the gains of the first points are luck
        unasked = state.unasked
        founding = unasked is not None and observation.parent == unasked.trial  # as explored points do
        if founding:
            unasked = None
        elif observation.unasked and gradient is None and dimension(state.space):
            better = value < (math.inf if unasked is None else unasked.value)
            unasked = Unasked(value, observation.trial, point) if better else unasked
        descended = observation.parent is not None and not founding
        chains = {trial: region for trial, region in chains.items() if not self._spent(region)}
        return replace(
            state,
            trials=state.trials + 1,
            best_value=min(state.best_value, value),
            best_explored=state.best_explored if descended else min(state.best_explored, value),
            has_gradients=state.has_gradients or gradient is not None,
            noisy=noisy,
            exploring=self._enter(state.exploring, None if descended else (observation.cost, gain)),
            descending=self._enter(state.descending, (observation.cost, gain) if descended else None),
            chains=chains,
            unasked=unasked,
            passed=_last(passed, state.space),
            unfollowed=() if chains or descended else (*state.unfollowed, value)[-self.restart :],
        )

    def propose(self, state: State, running: Collection[Attempt]) -> Proposal:
        """See `Strategy`."""
        unasked, best = state.unasked, min((region.value for region in state.chains.values()), default=math.inf)
        if unasked is not None and unasked.value < best and Attempt(unasked.trial) not in running:
            return Proposal(unasked.point, unasked.trial, math.inf, self._first_fold, again=True)
        if not state.trials and not running:
            return replace(self.explore(state), centre=True)
        starting = state.trials + len(running) < self.startup_trials
        step = None if starting or self._explored_too_little(state, running) else next(_free(state, running), None)
        if step is None:
            return self.explore(state)
        trial, variant, point = step
        region = state.chains[trial]
        if not variant and self._doubtful(state, region):
            return Proposal(region.point, trial, math.inf, self._next_fold(region, None), again=True)
        return Proposal(point, trial, region.value, self._next_fold(region, region.held_back), variant=variant)

    def explore(self, state: State) -> Proposal:
        """See `Strategy`."""
        return Proposal(None, None, self._worth_a_gradient(state), self._first_fold)

    def parents(self, state: State) -> Collection[str]:
        """See `Strategy`."""
        return {*state.chains, *([] if state.unasked is None else [state.unasked.trial])}

    def goes_on(self, state: State) -> bool:
        """See `Strategy`."""
        return bool(state.chains) or state.unasked is not None

    def _arrive_late(
        self,
        chains: dict[str, TrustRegion | Continuation],
        passed: dict[str, Passed],
        observation: Observation,
        point: np.ndarray,
        gradient: np.ndarray,
        trust: np.ndarray | float,
    ) -> None:
        """Take account of a step whose parent's chain has gone on meanwhile: it may be better than where that has come.

        Where it is not, its gradient tells of the curvature there. Where the chain has ended, it tells nothing.
        """
        region, head = passed[str(observation.parent)].region, str(observation.parent)
        while head in passed:
            head = passed[head].heir
        reached = chains.get(head)
        if not isinstance(reached, TrustRegion) or observation.trial == head or observation.trial in passed:
            return  # the chain has ended, or a host tells of the same trial again
        here = Slope(point, gradient)
        if not _better(observation, reached) or not self._pays(region, observation):
            chains[head] = reached.pass_by(here)
            return
        del chains[head]
        passed[head] = Passed(reached, observation.trial)
        followed = region.follow(point, observation.value, gradient, observation.variant)
        chains[observation.trial] = replace(
            followed.pass_by(Slope(reached.point, reached.gradient)),
            trust=trust,
            **_on_folds(observation),
        )

    @property
    def _first_fold(self) -> Fold | None:
        return None if self.folds is None else Fold(0, self.folds)

    def _next_fold(self, region: TrustRegion | Continuation, below: tuple[float, ...] | None) -> Fold | None:
        """Return the fold for a trial on a chain; with the losses `below`, it must lower what its step left out."""
        if self.folds is None:
            return None
        if isinstance(region, Continuation):
            return Fold(0, self.folds, below[0], 0) if self._fits(below) else Fold(0, self.folds)
        judge, index = region.left_out, (region.left_out + 1) % self.folds
        if not self._fits(below):
            return Fold(index, self.folds, cross_validated=region.cross_validated if below is None else None)
        blocks = region.blocks[judge] if region.blocks is not None and len(region.blocks) == self.folds else ()
        return Fold(index, self.folds, below[judge], judge, self.standard_errors, blocks, region.cross_validated)

    def _doubtful(self, state: State, region: TrustRegion | Continuation) -> bool:
        if not isinstance(region, TrustRegion):
            return False
        if region.held_back is not None:
            return region.rejections >= self.turns
        return region.rejections >= self.doubts and state.noisy is not False

    def _pays(self, region: TrustRegion | Continuation, observation: Observation) -> bool:
        """Return whether a step has gained enough on what it left out for its chain to go on."""
        before = region.cross_validated if isinstance(region, TrustRegion) and self._fits(region.held_back) else None
        after = observation.cross_validated
        return before is None or after is None or before - after >= self.tolerance * abs(before)

    def _fits(self, below: tuple[float, ...] | None) -> TypeGuard[tuple[float, ...]]:
        """Return whether there is a loss for each fold; a user may report losses of other folds."""
        return below is not None and len(below) == self.folds

    def _spent(self, region: TrustRegion | Continuation) -> bool:
        if isinstance(region, Continuation):
            return region.spent
        return region.spent or region.expected_gain < self.tolerance * abs(region.value)

    def _enter(self, account: Account, entry: tuple[float, float] | None) -> Account:
        cost, gain = entry or (0.0, 0.0)
        return Account(
            self.memory * account.cost + cost,
            self.memory * account.trials + (entry is not None),
            self.memory * account.gain + gain,
        )

    def _worth_a_gradient(self, state: State) -> float:
        """Return the value below which an explored point gets its gradient."""
        if not dimension(state.space):
            return -math.inf if state.trials else math.inf  # before the first trial a host may not know the space
        if state.chains and state.descending.cost and not state.descending.gain:
            return -math.inf  # no gradient has paid yet, and one chain is left to try
        if not state.has_gradients:
            return math.inf
        if len(state.unfollowed) == self.restart:
            return min(state.unfollowed)
        return state.best_explored

    def _explored_too_little(self, state: State, running: Collection[Attempt]) -> bool:
        exploring, descending = state.exploring, state.descending
        if not descending.cost or not exploring.cost:
            return not exploring.cost
        per_cost = exploring.gain / exploring.cost, descending.gain / descending.cost
        share = per_cost[0] / sum(per_cost) if sum(per_cost) else 0.5
        share = min(max(share, self.smallest_share), 1 - self.smallest_share)
        under_way = sum(attempt.parent is None for attempt in running)
        explored = exploring.cost * (1 + under_way / exploring.trials)  # running trials will cost as much
        return explored < share * (explored + descending.cost)


def _free(state: State, running: Collection[Attempt]) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yield the steps that no worker takes: the head, the variant and the point, from the best head on.

    Where a step from the best head is under way, new heads get their first step before the best one gets another, since
    a point that is good need not be a good start.
    """
    heads = sorted(state.chains.items(), key=lambda item: (item[1].value, item[0]))
    parents = {attempt.parent for attempt in running}
    if heads and heads[0][0] in parents:
        heads.sort(key=lambda item: item[0] in parents or not isinstance(item[1], TrustRegion) or not item[1].untried)
    for trial, region in heads:
        busy = {attempt.variant for attempt in running if attempt.parent == trial}
        steps = region.variants() if isinstance(region, TrustRegion) else [(0, region.step())]
        yield from ((trial, variant, point) for variant, point in steps if variant not in busy)


def _better(observation: Observation, region: TrustRegion) -> bool:
    """Return whether a step is better than the head of its chain, by what neither was fitted to where that is known."""
    if observation.cross_validated is None or region.cross_validated is None or region.held_back is None:
        return observation.value < region.value
    return observation.cross_validated < region.cross_validated


def _last(passed: Mapping[str, Passed], space: Space) -> dict[str, Passed]:
    """Return the heads that are remembered, from the oldest on."""
    most = max(min(PASSED, PASSED_NUMBERS // max(dimension(space), 1)), 1)
    return dict(list(passed.items())[-most:])


def _trust(space: Space, observation: Observation) -> np.ndarray | float:
    """Return how far each derivative is believed, shape `(n,)` as in the unit box; one number where all are alike."""
    trust = {name: (observation.trust or {}).get(name, 1.0) for name in floats(space)}
    if len(set(trust.values())) < 2:
        return next(iter(trust.values()), 1.0)  # an array would be stored with each chain
    return np.concatenate([np.full(parameter.size, trust[name]) for name, parameter in floats(space).items()])


def _on_folds(observation: Observation) -> dict[str, Any]:
    """Return what a region keeps of the folds that were held back."""
    names = "held_back", "blocks", "cross_validated", "left_out"
    return {name: getattr(observation, name) for name in names}
