"""What to try next: a state folded from the history of observations, and a proposal made from the state.

Two arms share the budget. One *explores*: the host's global sampler chooses, and a point that comes out as the best
that it has found yet gets its gradient and founds a chain. The other *descends*: it extends the best chain by
trust-region steps. Each gets a share of the cost that follows what it has lately bought: how much it lowered the best
value for what it spent.

Exploring, an array is one number, the same everywhere; descending, it is an array. So thousands of hyperparameters are
found in two stages: a good level for each array, and from there each number's own way.

Where the value of one point varies (a new seed each trial), a lucky head of a chain would turn every step down. Before
it is given up, a head is therefore looked at again, and its value and gradient averaged; where the second look gives
the first value, it is the last.

Everything is a pure function of the history, so that many processes can share a study, and a killed one loses
nothing. `fold` is incremental: an observation costs the same however many came before.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from hypergrad_search.search import quasi_newton, sign_steps
from hypergrad_search.search.continuation import Continuation
from hypergrad_search.search.observation import Observation
from hypergrad_search.search.trust_region import TrustRegion
from hypergrad_search.space import Space, dimension, gradient_to_unit, to_unit

STARTUP_TRIALS = 3  # before the first descent
SMALLEST_SHARE = 0.1  # of the cost, for either arm
GRADIENT_COST = 4.0  # of a value with its gradient, in values, where an objective does not say
MEMORY = 0.9  # a trial's weight in an arm's account, for each trial that comes after it
FEW = 200  # dimensions, up to which a step is worth a matrix
DOUBTS = 3  # steps from a point that fail before it is looked at again


@dataclass(frozen=True)
class Account:
    """What an arm has lately spent, in how many trials, and by how much it lowered the best value for that."""

    cost: float = 0.0
    trials: float = 0.0
    gain: float = 0.0


@dataclass(frozen=True)
class State:
    """What the history comes to.

    `chains` maps the trial at each chain's head to the trust region around it, or to where it ended if it moved the
    hyperparameters itself. `noisy` tells whether one point may have
    several values; None while no point was evaluated twice.
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


@dataclass(frozen=True)
class Proposal:
    """What to evaluate next.

    `point` is in the unit box, None where the host's global sampler is to choose: a number for each `Float`, an array
    having the same everywhere. The gradient is wanted only if the value comes out below `gradient_below`; the step has
    failed unless the loss on what is held back of the validation set comes out below `held_back_below`. `parent` is to
    be given back in the `Observation`. `again` says that the point is the parent's own: to be evaluated at the parent's
    hyperparameters, to the bit.
    """

    point: np.ndarray | None
    parent: str | None
    gradient_below: float
    held_back_below: float = math.inf
    again: bool = False


def fold(state: State, observation: Observation) -> State:
    """The state after one more observation."""
    value = observation.value if math.isfinite(observation.value) else math.inf
    point, gradient = to_unit(state.space, observation.hyperparameters), None
    if observation.gradient is not None and value < math.inf:
        gradient = gradient_to_unit(state.space, observation.hyperparameters, observation.gradient)
        gradient = gradient if np.isfinite(gradient).all() else None
    held_back = math.inf if observation.held_back is None else observation.held_back
    chains, noisy = dict(state.chains), state.noisy
    region = chains.pop(observation.parent, None) if observation.parent is not None else None
    if observation.refined and dimension(state.space) and value < math.inf:
        end = to_unit(state.space, observation.refined)
        chain = region if isinstance(region, Continuation) else Continuation(end, math.inf)
        chains[observation.trial] = chain.follow(end, value, held_back)
    elif isinstance(region, Continuation):
        chains[str(observation.parent)] = region.fail()
    elif region is None and gradient is not None:
        start = quasi_newton.start if dimension(state.space) <= FEW else sign_steps.start
        chains[observation.trial] = replace(start(point, value, gradient), held_back=held_back)
    elif region is not None and observation.parent is not None:
        if region.rejections >= DOUBTS and np.array_equal(point, region.point) and value < math.inf:
            noisy = noisy or value != region.value
            looked = region.look(value, gradient, held_back) if noisy else replace(region, rejections=0)
            chains[observation.parent] = looked
        elif gradient is not None and value < region.value:
            chains[observation.trial] = replace(region.accept(point, value, gradient), held_back=held_back)
        else:
            chains[observation.parent] = region.reject(point if value < math.inf else region.step())

    started = state.trials >= STARTUP_TRIALS and math.isfinite(state.best_value)
    gain = max(state.best_value - value, 0.0) if started else 0.0  # the first points' are luck
    descended = observation.parent is not None
    return replace(
        state,
        trials=state.trials + 1,
        best_value=min(state.best_value, value),
        best_explored=state.best_explored if descended else min(state.best_explored, value),
        has_gradients=state.has_gradients or gradient is not None,
        noisy=noisy,
        exploring=_enter(state.exploring, None if descended else (observation.cost, gain)),
        descending=_enter(state.descending, (observation.cost, gain) if descended else None),
        chains={trial: region for trial, region in chains.items() if not region.spent},
    )


def propose(state: State, running: Collection[str | None]) -> Proposal:
    """What to try next, while trials with the parents `running` (None: they explore) are under way."""
    idle = [(region.value, trial) for trial, region in state.chains.items() if trial not in running]
    if state.trials + len(running) < STARTUP_TRIALS or not idle or _explored_too_little(state, running):
        return explore(state)
    value, trial = min(idle)
    region = state.chains[trial]
    if _doubtful(state, region):
        return Proposal(region.point, trial, math.inf, again=True)
    return Proposal(region.step(), trial, value, region.held_back)


def explore(state: State) -> Proposal:
    """A point that the host chooses, or has been told to try."""
    return Proposal(None, None, _worth_a_gradient(state))


def _doubtful(state: State, region: TrustRegion | Continuation) -> bool:
    return isinstance(region, TrustRegion) and region.rejections >= DOUBTS and state.noisy is not False


def _worth_a_gradient(state: State) -> float:
    if not dimension(state.space):
        return -math.inf if state.trials else math.inf  # before the first trial, a host may not know the space yet
    if state.chains and state.descending.cost and not state.descending.gain:
        return -math.inf  # gradients have not paid yet, and there is one left to try
    return state.best_explored if state.has_gradients else math.inf


def _enter(account: Account, entry: tuple[float, float] | None) -> Account:
    cost, gain = entry or (0.0, 0.0)
    return Account(
        MEMORY * account.cost + cost, MEMORY * account.trials + (entry is not None), MEMORY * account.gain + gain
    )


def _explored_too_little(state: State, running: Collection[str | None]) -> bool:
    exploring, descending = state.exploring, state.descending
    if not descending.cost or not exploring.cost:
        return not exploring.cost
    per_cost = exploring.gain / exploring.cost, descending.gain / descending.cost
    share = per_cost[0] / sum(per_cost) if sum(per_cost) else 0.5
    share = min(max(share, SMALLEST_SHARE), 1 - SMALLEST_SHARE)
    under_way = sum(parent is None for parent in running)
    explored = exploring.cost * (1 + under_way / exploring.trials)  # those will cost what the others did
    return explored < share * (explored + descending.cost)
