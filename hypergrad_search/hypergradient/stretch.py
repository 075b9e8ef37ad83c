"""A stretch of joint optimisation: the program of `Hypernet`, step by step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from hypergrad_search.hypergradient.algorithms import LARGEST_SCALE, Algorithm, Moving, drawn_around
from hypergrad_search.hypergradient.box import Box
from hypergrad_search.hypergradient.response import Response, Weights
from hypergrad_search.hypergradient.settled import settled
from hypergrad_search.losses import LeftOut, OuterLosses, descended_loss, outer_losses, step_loss
from hypergrad_search.parameters import as_returned, initial
from hypergrad_search.problem import Params, Statistics, Trained, TrainingProblem
from hypergrad_search.programs import compiled


@dataclass(frozen=True)
class Setup:
    """All that is known when a stretch is compiled.

    `box` is where the hyperparameters move. `optimizer` trains the network and the weights that it adds to;
    `hyper_optimizer` moves the hyperparameters.
    """

    problem: TrainingProblem
    network: Response
    algorithm: Algorithm
    optimizer: optax.GradientTransformation
    hyper_optimizer: optax.GradientTransformation
    box: Box

    @property
    def facts(self) -> tuple[Any, ...]:
        """All that must be the same where a checkpoint is written and where it is read."""
        return self.box.facts, type(self.network).__name__, self.algorithm.centred


class State(NamedTuple):
    """The state of a stretch: pytrees of arrays alone.

    `base` are the model's weights, shape `(outputs,)`, to which the output of `network` is added. `moving` are the
    hyperparameters. `centre`, shape `(inputs,)`, is the point from which the network's input is measured. `statistics`
    are the problem's.
    """

    base: jax.Array
    network: Weights
    moving: Moving
    centre: jax.Array
    network_slots: Any
    moving_slots: Any
    statistics: Statistics
    step: jax.Array


@compiled(static=1)
def start(setup: Setup, point: jax.Array, fixed: dict[str, jax.Array], key: jax.Array) -> State:
    """Return the state before the first step."""
    init_key, network_key, _ = jax.random.split(key, 3)
    base, statistics, _ = _flat(setup, point, fixed, init_key)
    drawn = setup.network.init(network_key, point.size, base.size)
    network = jax.tree.map(lambda x: x.astype(base.dtype), drawn)  # float32 where JAX's own default is float64 too
    moving = Moving(point, point, jnp.full_like(point, setup.algorithm.first_log_scale))
    return State(
        base,
        network,
        moving,
        point if setup.algorithm.centred else jnp.full_like(point, 0.5),
        setup.optimizer.init((base, network)),
        setup.hyper_optimizer.init(_moved(setup, moving)),
        statistics,
        jnp.zeros((), jnp.int32),
    )


@compiled(static=1)
def resume(setup: Setup, state: State, point: jax.Array) -> State:
    """Return a stretch that begins at `point` with the network of another, and with its weights for this point."""
    if setup.algorithm.centred:
        base = state.base + _change(setup, state.network, point - state.centre)
        state = state._replace(base=base, centre=point)
    return state._replace(moving=state.moving._replace(point=point, origin=point))


@compiled(static=1)
def advance(
    setup: Setup,
    state: State,
    fixed: dict[str, jax.Array],
    key: jax.Array,
    without: LeftOut | None,
    last: int,
    stop: int,
) -> State:
    """Return the state at the step `stop` of a stretch that ends at `last`; `without` is what the loss leaves out."""
    init_key, _, step_key = jax.random.split(key, 3)
    algorithm = setup.algorithm
    _, _, unravel = _flat(setup, state.moving.point, fixed, init_key)

    def train_loss(weights: jax.Array, point: jax.Array, state: State) -> tuple[jax.Array, Statistics]:
        hyperparameters = setup.box.hyperparameters(point, fixed)
        return step_loss(setup.problem, unravel(weights), state.statistics, hyperparameters, step_key, state.step)

    def noise_key(state: State, purpose: int) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(step_key, state.step), purpose)

    def plain_gradient(state: State, point: jax.Array) -> tuple[tuple[jax.Array, Weights], Statistics]:
        def loss(trained: tuple[jax.Array, Weights]) -> tuple[jax.Array, Statistics]:
            base, network = trained
            return train_loss(base + _change(setup, network, point - state.centre), point, state)

        result: tuple[tuple[jax.Array, Weights], Statistics]
        result = jax.grad(loss, has_aux=True)((state.base, state.network))
        return result

    def linear_gradient(state: State, point: jax.Array) -> tuple[tuple[jax.Array, Weights], Statistics]:
        """Return the gradient at the centre, for `base`, and its change towards `point`, pulled back to the network.

        The new statistics are those at the centre.
        """
        difference = point - state.centre
        change, pull_back = jax.vjp(lambda network: _change(setup, network, difference), state.network)
        at_centre, towards, statistics = jax.jvp(
            lambda weights, point: jax.grad(train_loss, has_aux=True)(weights, point, state),
            (state.base, state.centre),
            (change, difference),
            has_aux=True,
        )
        return (at_centre, pull_back(towards)[0]), statistics

    def train(state: State) -> State:
        trained = state.base, state.network
        point = algorithm.draw(state.moving, noise_key(state, 1))
        gradient, statistics = (linear_gradient if algorithm.centred else plain_gradient)(state, point)
        (base, network), slots = _optax_step(setup.optimizer, gradient, state.network_slots, trained)
        return state._replace(base=base, network=network, network_slots=slots, statistics=statistics)

    def move(state: State) -> State:
        def loss(moved: dict[str, jax.Array]) -> jax.Array:
            point, bonus = moved["point"], jnp.zeros((), jnp.float32)
            if algorithm.entropy is not None:
                point = drawn_around(point, moved["log_scales"], noise_key(state, 2))
                bonus = algorithm.entropy * jnp.sum(moved["log_scales"])
            weights = state.base + _change(setup, state.network, point - state.centre)
            statistics = state.statistics
            if setup.problem.has_statistics:
                statistics = settled(
                    lambda before: train_loss(weights, point, state._replace(statistics=before))[1], statistics
                )
            model = as_returned(setup.problem, unravel(weights), statistics)
            descended = descended_loss(
                setup.problem, model, setup.box.hyperparameters(point, fixed), state.step, without
            )
            return descended.astype(jnp.float32) - bonus

        moved = _moved(setup, state.moving)
        moved, slots = _optax_step(setup.hyper_optimizer, jax.grad(loss)(moved), state.moving_slots, moved)
        moving = state.moving._replace(log_scales=moved.get("log_scales", state.moving.log_scales))
        point = jnp.clip(algorithm.bound(moved["point"], moving), 0.0, 1.0)
        log_scales = jnp.minimum(moving.log_scales, math.log(LARGEST_SCALE))
        centre = algorithm.next_centre(state.centre, point)
        moving = Moving(point, moving.origin, log_scales)
        return state._replace(moving=moving, centre=centre, moving_slots=slots)

    def step(state: State) -> State:
        state = algorithm.turn(state, last - state.step, train, move)
        return state._replace(step=state.step + 1)

    return jax.lax.while_loop(lambda state: state.step < stop, step, state)


@compiled(static=2)
def trained(setup: Setup, finetune: int, state: State, fixed: dict[str, jax.Array], key: jax.Array) -> Trained:
    """Return the model for the present point, after `finetune` steps on this point alone."""
    init_key, _, step_key = jax.random.split(key, 3)
    point = state.moving.point
    hyperparameters = setup.box.hyperparameters(point, fixed)
    _, _, unravel = _flat(setup, point, fixed, init_key)
    weights = state.base + _change(setup, state.network, point - state.centre)

    def train_loss(weights: jax.Array, statistics: Statistics, step: jax.Array) -> tuple[jax.Array, Statistics]:
        return step_loss(setup.problem, unravel(weights), statistics, hyperparameters, step_key, step)

    def step(i: jax.Array, carry: tuple[jax.Array, Statistics, Any]) -> tuple[jax.Array, Statistics, Any]:
        weights, statistics, slots = carry
        gradient, statistics = jax.grad(train_loss, has_aux=True)(weights, statistics, state.step + i)
        weights, slots = _optax_step(setup.optimizer, gradient, slots, weights)
        return weights, statistics, slots

    carry = weights, state.statistics, setup.optimizer.init(weights)
    weights, statistics, _ = jax.lax.fori_loop(0, finetune, step, carry)
    return as_returned(setup.problem, unravel(weights), statistics)


@compiled(static=2)
def finish(setup: Setup, finetune: int, state: State, fixed: dict[str, jax.Array], key: jax.Array) -> OuterLosses:
    """Return the losses of the model that `trained` returns."""
    model = trained(setup, finetune, state, fixed, key)
    return outer_losses(setup.problem, model, setup.box.hyperparameters(state.moving.point, fixed))


def _flat(
    setup: Setup, point: jax.Array, fixed: dict[str, jax.Array], key: jax.Array
) -> tuple[jax.Array, Statistics, Callable[[jax.Array], Params]]:
    """Return the model's initial parameters as a float32 vector, its statistics, and the way back to the parameters.

    This way is a function from a vector to parameters of the right structure and types.
    """
    params, statistics = initial(setup.problem, setup.box.hyperparameters(point, fixed), key)
    flat, unravel = ravel_pytree(params)
    return flat.astype(jnp.float32), statistics, lambda weights: unravel(weights.astype(flat.dtype))


def _optax_step(optimizer: optax.GradientTransformation, gradient: Any, slots: Any, trained: Any) -> tuple[Any, Any]:
    """Return the trained values and the optimizer's slots after one step.

    Optax mixes integers and floats, so strict promotion, which a user may have chosen, is off here.
    """
    with jax.numpy_dtype_promotion("standard"):
        updates, slots = optimizer.update(gradient, slots, trained)
        return optax.apply_updates(trained, updates), slots


def _moved(setup: Setup, moving: Moving) -> dict[str, jax.Array]:
    """Return all that the steps of the hyperparameters change."""
    if setup.algorithm.entropy is None:
        return {"point": moving.point}
    return {"point": moving.point, "log_scales": moving.log_scales}


def _change(setup: Setup, network: Weights, difference: jax.Array) -> jax.Array:
    """Return the change of the model's weights for a point that is `difference` away from the centre."""
    change = setup.network(network, difference).astype(difference.dtype)
    if not setup.algorithm.centred:
        return change
    return change - setup.network(network, jnp.zeros_like(difference)).astype(difference.dtype)
