"""Joint stochastic optimisation of weights and hyperparameters, through a network that outputs weights.

A hypernetwork learns which weights are best for given hyperparameters; the validation loss of what it outputs then has
a gradient with respect to the hyperparameters, with no training run to differentiate (Lorraine and Duvenaud 2018).
"""

import functools
import io
import math
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.interpreters import partial_eval

from hypergrad_search.hypergradient.base import Cost, Evaluation, Method, Request, Status, describe, judge
from hypergrad_search.hypergradient.response import LowRank, Response
from hypergrad_search.problem import Params, TrainingProblem, check_scalar, initial_params, losses, split, step_loss
from hypergrad_search.space import Float, Hyperparameters, Space, floats, from_unit, to_unit

Algorithm = Literal["joint", "local", "global"]
LARGEST_SCALE = 0.5  # that is learned: beyond, what is drawn lies at the ends of the box
DEFAULT_OPTIMIZER = optax.adam(3e-3)
ROUNDING = 1e-4  # by which a point may leave the box, in its units: float32's, of a logarithm
REACH = 3.0  # scales from its start that hyperparameters may move while the network stands still: what it was shown


@dataclass(frozen=True)
class Hypernet(Method):
    """Learn the best weights as a function of the hyperparameters, and move these along (Lorraine and Duvenaud 2018).

    An evaluation is a stretch of joint optimisation from the given hyperparameters, of `steps` steps. Its value is the
    validation loss of the weights that the network outputs at the hyperparameters where it ends, `refined`; and with
    its `checkpoint` the next stretch goes on from there. `evaluate` needs the `space`, in whose unit box the
    hyperparameters move.

    - `network`: from hyperparameters to a change of the weights: `Linear()`, `LowRank(rank)`, `OneHidden(width)`.
    - `algorithm`: "joint" alternates steps of the network, trained on hyperparameters drawn around the present ones,
      with steps of the hyperparameters (the paper's algorithm 3). "local" draws around those it started from, and
      moves only in the last `hyper_steps` steps, while the network stands still; "global" does the same with
      hyperparameters drawn from the whole box (algorithm 2).
    - `scale`: standard deviation of what is drawn, in units of the box; 0 for "joint" without sampling, which learns a
      slope only as far as the hyperparameters happen to move, and none from the middle of the box.
    - `entropy`: learn the scale of each hyperparameter: the weight of an entropy bonus, set against the validation
      loss averaged over what is drawn (Self-Tuning Networks, MacKay et al. 2019). None keeps the scale.
    - `centred`: the network outputs a change from weights that are trained at the present hyperparameters themselves,
      and learns it from the training gradient linearised there, in weights and hyperparameters, so that the slope is
      learned however small the scale is (after Delta-STN, Bae and Grosse 2020, which linearise the model's outputs).
      With `Linear()` and enough steps it is then the response of the implicit function theorem.
    - `optimizer`, `hyper_optimizer`: of optax, for the network and the weights that it adds to, and for the
      hyperparameters in the unit box; Adam with a learning rate of 3e-3 unless given. The problem's own optimizer, its
      weight decay included, is for training runs, and has no part in this.
    - `steps`: of a stretch; the problem's `steps` unless given.
    - `finetune`: steps of `optimizer` on the weights alone at the end of a stretch, at the refined hyperparameters,
      before the value is taken; the network does not see them.

    A step costs 2 gradient evaluations, one of them of the validation loss, or 4 where it is `centred`, with a
    Hessian-vector product. In "local" and "global" the last steps have the validation gradient alone, the others none.

    Not for hyperparameters of the optimizer or of `init`: without training runs these have no meaning, and are refused
    by name. The best weights must depend smoothly on the hyperparameters for the network to follow them.
    """

    _: KW_ONLY
    network: Response = LowRank(10)  # noqa: RUF009 (frozen)
    algorithm: Algorithm = "joint"
    scale: float = 0.05
    entropy: float | None = None
    centred: bool = True
    optimizer: optax.GradientTransformation | None = None
    hyper_optimizer: optax.GradientTransformation | None = None
    steps: int | None = None
    hyper_steps: int = 100
    finetune: int = 0
    continues = True

    def __post_init__(self) -> None:
        if not isinstance(self.network, Response):
            raise ValueError(f"Hypernet: network must be a Response such as LowRank(10), got {self.network!r}")
        if self.algorithm not in get_args(Algorithm):
            raise ValueError(f"Hypernet: algorithm must be one of {get_args(Algorithm)}, got {self.algorithm!r}")
        for name in ("optimizer", "hyper_optimizer"):
            if not isinstance(getattr(self, name), optax.GradientTransformation | None):
                raise ValueError(
                    f"Hypernet: {name} must be a transformation of optax such as optax.adam(1e-3), or None; "
                    f"got {getattr(self, name)!r}"
                )
        for name in ("scale", "entropy"):
            value = getattr(self, name)
            if not isinstance(value, int | float) and (name == "scale" or value is not None):
                raise ValueError(f"Hypernet: {name} must be a number, got {value!r}")
        if not 0 <= self.scale <= LARGEST_SCALE:
            raise ValueError(
                f"Hypernet: scale must be a number from 0 to {LARGEST_SCALE}, in units of the box, got {self.scale!r}"
            )
        if self.scale == 0 and (self.centred or self.algorithm != "joint" or self.entropy is not None):
            raise ValueError("Hypernet: scale 0 is for algorithm='joint', centred=False, entropy=None")
        if self.entropy is not None and (self.algorithm != "joint" or not self.entropy >= 0):
            raise ValueError(
                f"Hypernet: entropy must be a number from 0, with algorithm='joint', or None; got {self.entropy!r}"
            )
        if self.algorithm == "global" and self.centred:
            raise ValueError("Hypernet: centred is for a neighbourhood, not for algorithm='global'; use centred=False")
        for name in ("steps", "hyper_steps", "finetune"):
            value, least = getattr(self, name), 0 if name == "finetune" else 1
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"Hypernet: {name} must be a whole number from {least}, got {value!r}")

    def evaluate(
        self, problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array, request: Request
    ) -> Evaluation:
        """See `hypergrad_search.evaluate`."""
        started = time.perf_counter()
        if request.space is None:
            raise ValueError("evaluate: Hypernet needs space=, the box in which it moves the hyperparameters")
        self.check(problem, hyperparameters, space=request.space)
        run, point, fixed = self._run(problem, request.space, hyperparameters)
        state = _start(run, point, fixed, key)
        if request.checkpoint is not None:
            state = _resume(run, _load(run, request.checkpoint, state), point)
        first, steps = int(state.step), self.steps or problem.steps
        every = request.report_every if request.report is not None else steps
        for stop in [*range(every, steps, every), steps]:
            state = _advance(run, state, fixed, key, first + steps, first + stop)
            if request.report is not None and stop < steps:
                request.report(stop, float(_finish(run, state, fixed, key, 0)["valid_loss"]))
        found = _finish(run, state, fixed, key, self.finetune)
        status, value = judge(found, request.held_back_below)
        end = np.asarray(state.point, np.float64)
        if status is Status.OK and not np.isfinite(end).all():
            status, value = Status.NAN, math.inf
        usable = status is Status.OK
        return Evaluation(
            value=value,
            gradient=None,
            cost=Cost(self.cost(problem, steps) + self.finetune, time.perf_counter() - started),
            diagnostics=describe(status, steps=steps, exact=None, losses=found),
            refined={**hyperparameters, **from_unit(request.space, end)} if usable else None,
            checkpoint=_save(run, state) if usable else None,
        )

    def check(self, problem: TrainingProblem, hyperparameters: Hyperparameters, *, space: Space) -> None:
        """Raise `ValueError` where the arguments do not fit, or `space` has what needs training runs to be tuned."""
        if not floats(space):
            raise ValueError("Hypernet: the space has no Float, and nothing else has a gradient")
        steps = self.steps or problem.steps
        if self.algorithm != "joint" and steps <= self.hyper_steps:
            raise ValueError(
                f"Hypernet: of the {steps} steps of a stretch the last hyper_steps={self.hyper_steps} move the "
                f"hyperparameters alone, with algorithm={self.algorithm!r}; raise steps, or lower hyper_steps"
            )
        unit = to_unit(space, hyperparameters)
        if not ((unit >= -ROUNDING) & (unit <= 1 + ROUNDING)).all():
            raise ValueError("Hypernet: a hyperparameter lies outside of its bounds in space; start within them")
        _refuse_what_it_cannot_tune(*self._run(problem, space, hyperparameters))

    def cost(self, problem: TrainingProblem, steps: int) -> float:
        """See `Method`."""
        train = 3 if self.centred else 1
        if self.algorithm == "joint":
            return steps * (train + 1)
        standing = max((self.steps or problem.steps) - self.hyper_steps, 0)
        return min(steps, standing) * train + max(steps - standing, 0)

    def params(
        self,
        problem: TrainingProblem,
        hyperparameters: Hyperparameters,
        *,
        space: Space,
        key: jax.Array,
        checkpoint: bytes,
    ) -> Params:
        """The model's parameters that the network of a `checkpoint` outputs for `hyperparameters`.

        With those of the evaluation's `refined` it is the model whose loss was its value. A function that `jax.jit` and
        `jax.jacobian` take, of the floating-point hyperparameters.
        """
        run, point, fixed = self._run(problem, space, hyperparameters)
        like = jax.eval_shape(functools.partial(_start, run), point, fixed, key)
        state = _load(run, checkpoint, like)._replace(point=point)
        return _trained(run, state, fixed, key, self.finetune)

    def _run(
        self, problem: TrainingProblem, space: Space, hyperparameters: Hyperparameters
    ) -> tuple["Run", jax.Array, dict[str, jax.Array]]:
        """What stays as it is, the point in the unit box, and the floating-point hyperparameters beside the space."""
        moving = floats(space)
        dynamic, static = split({name: value for name, value in hyperparameters.items() if name not in moving})
        run = Run(problem, self, tuple(moving.items()), static)
        return run, _unit(run, hyperparameters), dynamic


@dataclass(frozen=True)
class Run:
    """What does not change in a stretch and is known when its programs are compiled."""

    problem: TrainingProblem
    method: Hypernet
    parameters: tuple[tuple[str, Float], ...]
    static: tuple[tuple[str, Any], ...]

    @property
    def space(self) -> dict[str, Float]:
        """The hyperparameters that move."""
        return dict(self.parameters)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Of the network and the weights that it adds to."""
        return self.method.optimizer or DEFAULT_OPTIMIZER

    @property
    def hyper_optimizer(self) -> optax.GradientTransformation:
        """Of the point, and of the scales where they are learned."""
        return self.method.hyper_optimizer or DEFAULT_OPTIMIZER

    def hyperparameters(self, point: jax.Array, fixed: Mapping[str, jax.Array]) -> dict[str, Any]:
        """Those at a point of the unit box, in natural units, with the others."""
        values, start = {}, 0
        for name, p in self.parameters:
            unit = jnp.clip(point[start : start + p.size], 0.0, 1.0).reshape(p.shape)
            scaled = p.low * jnp.exp(unit * math.log(p.high / p.low)) if p.log else p.low + unit * (p.high - p.low)
            values[name] = scaled
            start += p.size
        return {**values, **fixed, **dict(self.static)}


def _unit(run: Run, hyperparameters: Mapping[str, Any]) -> jax.Array:
    """`to_unit`, for arrays that may be traced, and have been checked."""
    parts = []
    for name, p in run.parameters:
        value = jnp.ravel(jnp.asarray(hyperparameters[name], jnp.float32))
        if p.low == p.high:
            parts.append(jnp.zeros_like(value))
        elif p.log:
            parts.append((jnp.log(value) - math.log(p.low)) / math.log(p.high / p.low))
        else:
            parts.append((value - p.low) / (p.high - p.low))
    return jnp.concatenate(parts)


class State(NamedTuple):
    """A stretch as it stands: pytrees of arrays alone.

    `base` are the model's weights, shape `(outputs,)`, to which `network` adds. `point`, `centre`, `origin` and
    `log_scales` have shape `(inputs,)`: the present hyperparameters, those from which the network's input is measured,
    those that the stretch set out from, and the logarithms of the scales on which they are drawn.
    """

    base: jax.Array
    network: dict[str, jax.Array]
    point: jax.Array
    centre: jax.Array
    origin: jax.Array
    log_scales: jax.Array
    network_slots: Any
    point_slots: Any
    step: jax.Array


@functools.partial(jax.jit, static_argnums=0)
def _start(run: Run, point: jax.Array, fixed: dict[str, jax.Array], key: jax.Array) -> State:
    method = run.method
    init_key, network_key, _ = jax.random.split(key, 3)
    base, _ = _flat(run, point, fixed, init_key)
    network = method.network.init(network_key, point.size, base.size)
    log_scales = jnp.full_like(point, math.log(method.scale) if method.scale else -math.inf)
    return State(
        base,
        network,
        point,
        point if method.centred else jnp.full_like(point, 0.5),
        point,
        log_scales,
        run.optimizer.init((base, network)),
        run.hyper_optimizer.init(_moved(run, point, log_scales)),
        jnp.zeros((), jnp.int32),
    )


def _flat(
    run: Run, point: jax.Array, fixed: dict[str, jax.Array], key: jax.Array
) -> tuple[jax.Array, Callable[[jax.Array], Params]]:
    """The model's initial parameters as a float32 vector, and the way back to their structure and types."""
    flat, unravel = ravel_pytree(initial_params(run.problem, run.hyperparameters(point, fixed), key))
    return flat.astype(jnp.float32), lambda weights: unravel(weights.astype(flat.dtype))


def _moved(run: Run, point: jax.Array, log_scales: jax.Array) -> dict[str, jax.Array]:
    """What the steps of the hyperparameters change."""
    return {"point": point} if run.method.entropy is None else {"point": point, "log_scales": log_scales}


def _change(run: Run, network: dict[str, jax.Array], difference: jax.Array) -> jax.Array:
    """By how much the model's weights change for a point that is `difference` away from the centre."""
    change = run.method.network(network, difference)
    return change - run.method.network(network, jnp.zeros_like(difference)) if run.method.centred else change


@functools.partial(jax.jit, static_argnums=0)
def _advance(run: Run, state: State, fixed: dict[str, jax.Array], key: jax.Array, last: int, stop: int) -> State:
    """Step until `stop`, in the stretch that ends at `last`."""
    init_key, _, step_key = jax.random.split(key, 3)
    method = run.method
    _, unravel = _flat(run, state.point, fixed, init_key)

    def train_loss(weights: jax.Array, point: jax.Array, step: jax.Array) -> jax.Array:
        return step_loss(run.problem, unravel(weights), run.hyperparameters(point, fixed), step_key, step)

    def valid_loss(weights: jax.Array, step: jax.Array) -> jax.Array:
        if run.problem.valid_batch_loss is not None:
            return check_scalar("valid_batch_loss", run.problem.valid_batch_loss(unravel(weights), step))
        return losses(run.problem, unravel(weights))["valid_loss"]

    def drawn(state: State) -> jax.Array:
        noise_key = jax.random.fold_in(jax.random.fold_in(step_key, state.step), 1)
        if method.algorithm == "global":
            return jax.random.uniform(noise_key, state.point.shape)
        noise = jax.random.normal(noise_key, state.point.shape) * jnp.exp(state.log_scales)
        return jnp.clip(state.point + noise, 0.0, 1.0)

    def plain_gradient(state: State) -> tuple[jax.Array, dict[str, jax.Array]]:
        point = drawn(state)

        def loss(trained: tuple[jax.Array, dict[str, jax.Array]]) -> jax.Array:
            base, network = trained
            return train_loss(base + _change(run, network, point - state.centre), point, state.step)

        return jax.grad(loss)((state.base, state.network))

    def linear_gradient(state: State) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The gradient at the centre, for `base`; and for the network, how it changes towards the point drawn."""
        difference = drawn(state) - state.centre
        change, pull_back = jax.vjp(lambda network: _change(run, network, difference), state.network)
        at_centre, towards = jax.jvp(
            lambda weights, point: jax.grad(train_loss)(weights, point, state.step),
            (state.base, state.centre),
            (change, difference),
        )
        return at_centre, pull_back(towards)[0]

    def train(state: State) -> State:
        trained = state.base, state.network
        gradient = linear_gradient(state) if method.centred else plain_gradient(state)
        updates, slots = run.optimizer.update(gradient, state.network_slots, trained)
        base, network = optax.apply_updates(trained, updates)
        return state._replace(base=base, network=network, network_slots=slots)

    def move(state: State) -> State:
        def loss(moved: dict[str, jax.Array]) -> jax.Array:
            at, bonus = moved["point"], jnp.zeros(())
            if method.entropy is not None:
                noise_key = jax.random.fold_in(jax.random.fold_in(step_key, state.step), 2)
                noise = jax.random.normal(noise_key, at.shape) * jnp.exp(moved["log_scales"])
                at, bonus = jnp.clip(at + noise, 0.0, 1.0), method.entropy * jnp.sum(moved["log_scales"])
            return valid_loss(state.base + _change(run, state.network, at - state.centre), state.step) - bonus

        moved = _moved(run, state.point, state.log_scales)
        updates, slots = run.hyper_optimizer.update(jax.grad(loss)(moved), state.point_slots, moved)
        moved = optax.apply_updates(moved, updates)
        point, log_scales = moved["point"], moved.get("log_scales", state.log_scales)
        if method.algorithm == "local":
            reach = REACH * jnp.exp(log_scales)
            point = jnp.clip(point, state.origin - reach, state.origin + reach)
        point = jnp.clip(point, 0.0, 1.0)
        centre = point if method.centred and method.algorithm == "joint" else state.centre
        log_scales = jnp.minimum(log_scales, math.log(LARGEST_SCALE))
        return state._replace(point=point, centre=centre, log_scales=log_scales, point_slots=slots)

    def step(state: State) -> State:
        if method.algorithm == "joint":
            state = move(train(state))
        else:
            state = jax.lax.cond(state.step < last - method.hyper_steps, train, move, state)
        return state._replace(step=state.step + 1)

    return jax.lax.while_loop(lambda state: state.step < stop, step, state)


@functools.partial(jax.jit, static_argnums=0)
def _resume(run: Run, state: State, point: jax.Array) -> State:
    """A stretch from `point` that goes on from where another ended, with the weights that its network has for it."""
    if run.method.centred:
        base = state.base + _change(run, state.network, point - state.centre)
        state = state._replace(base=base, centre=point)
    return state._replace(point=point, origin=point)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _trained(run: Run, state: State, fixed: dict[str, jax.Array], key: jax.Array, finetune: int) -> Params:
    """The model's parameters for the present point, after `finetune` steps on these alone."""
    init_key, _, step_key = jax.random.split(key, 3)
    hyperparameters = run.hyperparameters(state.point, fixed)
    _, unravel = _flat(run, state.point, fixed, init_key)
    weights = state.base + _change(run, state.network, state.point - state.centre)

    def train_loss(weights: jax.Array, step: jax.Array) -> jax.Array:
        return step_loss(run.problem, unravel(weights), hyperparameters, step_key, step)

    def step(i: jax.Array, trained: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        weights, slots = trained
        updates, slots = run.optimizer.update(jax.grad(train_loss)(weights, state.step + i), slots, weights)
        return optax.apply_updates(weights, updates), slots

    weights, _ = jax.lax.fori_loop(0, finetune, step, (weights, run.optimizer.init(weights)))
    return unravel(weights)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _finish(run: Run, state: State, fixed: dict[str, jax.Array], key: jax.Array, finetune: int) -> dict[str, jax.Array]:
    """The losses of the parameters that `_trained` gives."""
    return losses(run.problem, _trained(run, state, fixed, key, finetune))


def _refuse_what_it_cannot_tune(run: Run, point: jax.Array, fixed: dict[str, jax.Array]) -> None:
    """Raise `ValueError` for hyperparameters from which no path leads to the training loss."""
    key, step = jax.random.key(0), jnp.zeros((), jnp.int32)
    values = run.hyperparameters(point, fixed)
    params = jax.eval_shape(lambda: initial_params(run.problem, values, key))
    moving = {name: values[name] for name in run.space}

    def loss(moving: dict[str, jax.Array], params: Params) -> jax.Array:
        return step_loss(run.problem, params, {**values, **moving}, key, step)

    jaxpr = jax.make_jaxpr(loss)(moving, params).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True])
    matters = dict(zip(sorted(moving), used, strict=False))  # as JAX sorts a dict, before the parameters
    idle = [name for name in run.space if not matters[name]]
    if idle:
        raise ValueError(
            f"Hypernet cannot tune {', '.join(idle)}: the training loss does not depend on it, and hyperparameters of "
            "the optimizer or of init have no meaning without training runs; give constants there, or use Reversible()"
        )


def _fingerprint(run: Run, state: State) -> str:
    """What must be the same where a checkpoint is written and read."""
    box = [(name, p.low, p.high, p.log, p.shape) for name, p in run.parameters]
    arrays = [(x.shape, str(x.dtype)) for x in jax.tree.leaves(state)]
    return repr((box, type(run.method.network).__name__, run.method.centred, arrays))


def _save(run: Run, state: State) -> bytes:
    file = io.BytesIO()
    np.savez(file, *map(np.asarray, jax.tree.leaves(state)), fingerprint=np.array(_fingerprint(run, state)))
    return file.getvalue()


def _load(run: Run, checkpoint: bytes, like: State) -> State:
    """What `_save` wrote; `like` has the structure and shapes."""
    try:
        with np.load(io.BytesIO(checkpoint)) as file:
            same = str(file["fingerprint"]) == _fingerprint(run, like)
            saved = [jnp.asarray(file[name]) for name in file.files if name != "fingerprint"]
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError("evaluate: checkpoint is none that Hypernet has written; start without one") from error
    if not same:
        raise ValueError("evaluate: checkpoint is of another problem, space or Hypernet; start without one")
    return jax.tree.unflatten(jax.tree.structure(like), saved)
