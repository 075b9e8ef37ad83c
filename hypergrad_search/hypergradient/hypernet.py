"""`Hypernet` optimises weights and hyperparameters jointly, through a network that outputs weights.

A hypernetwork learns which weights are best for given hyperparameters; the validation loss of what it outputs then has
a gradient with respect to the hyperparameters, with no training run to differentiate (Lorraine and Duvenaud 2018).
"""

import functools
import math
import time
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import jax
import numpy as np
import optax

from hypergrad_search.checks import whole_number
from hypergrad_search.cost import TRAINING_STEP, Cost
from hypergrad_search.hypergradient import checkpoint as checkpoints
from hypergrad_search.hypergradient import stretch
from hypergrad_search.hypergradient.algorithms import VALIDATION_STEP, Algorithm, Joint
from hypergrad_search.hypergradient.base import MESSAGES, Evaluation, Method, Progress, Request, Status, judge
from hypergrad_search.hypergradient.box import box_of, check_start
from hypergrad_search.hypergradient.response import LowRank, Response
from hypergrad_search.hypergradient.stretch import Setup
from hypergrad_search.hypergradient.unseen import OF_TRAINING_RUNS, read_by_losses, refuse_unseen, tuned
from hypergrad_search.load_errors import with_errors_of_load
from hypergrad_search.losses import LeftOut, descends_minibatches, left_out
from hypergrad_search.parameters import as_returned, initial
from hypergrad_search.problem import Trained, TrainingProblem
from hypergrad_search.repeatable import check_repeatable
from hypergrad_search.space import Hyperparameters, Space, from_unit

DEFAULT_OPTIMIZER = optax.adam(3e-3)


@dataclass(frozen=True)
class Hypernet(Method):
    """Learn the best weights as a function of the hyperparameters, and improve these too (Lorraine and Duvenaud 2018).

    An evaluation is a stretch of joint optimisation: `steps` steps that begin at the given hyperparameters and end at
    others, `refined`. Its value is the validation loss of the weights that the network outputs there. With its
    `checkpoint` the next stretch goes on from there. `evaluate` needs the `space`, in whose unit box the
    hyperparameters move.

    - `network`: the network from hyperparameters to a change of the weights: `Linear()`, `LowRank(rank)`,
      `OneHidden(width)`, or `Diagonal()` where each weight has a hyperparameter of its own.
    - `algorithm`: `Joint()` moves the network and the hyperparameters in turn. `Local()` and `Global()` train the
      network first, on the neighbourhood of the start or on the whole box, and then move the hyperparameters.
    - `optimizer`: the optax optimizer of the network and of the weights that it adds to. `hyper_optimizer`: the optax
      optimizer of the hyperparameters in the unit box. By default each is Adam with a learning rate of 3e-3. The
      problem's own optimizer and its weight decay are for training runs, and are not used.
    - `steps`: the length of a stretch; by default the problem's `steps`.
    - `finetune`: so many steps of `optimizer` train the weights alone at the end of a stretch, at the refined
      hyperparameters, before the value is taken. The network does not learn from them.

    What it reports on its way has no snapshots: a stretch that was lost begins again, and its `checkpoint` is for the
    next stretch.

    The algorithm determines the cost of a step. Where the problem has statistics, such as the running means of batch
    normalisation, they count as those that settle for weights and hyperparameters, which takes one gradient more
    for each step of the hyperparameters. Where a `Fold` is held back, the hyperparameters follow `valid_loss` on
    all other examples, and never `valid_batch_loss`.

    Do not use it for hyperparameters of the optimizer or of `init`: they have no meaning without training runs, and an
    error names them. The best weights must depend smoothly on the hyperparameters for the network to follow them.
    Raises `ValueError` where a setting does not fit.
    """

    _: KW_ONLY
    network: Response = LowRank(10)  # noqa: RUF009 (frozen)
    algorithm: Algorithm = Joint()  # noqa: RUF009 (frozen)
    optimizer: optax.GradientTransformation | None = None
    hyper_optimizer: optax.GradientTransformation | None = None
    steps: int | None = None
    finetune: int = 0
    continues = True

    def __post_init__(self) -> None:
        if not isinstance(self.network, Response):
            raise ValueError(f"Hypernet: network must be a Response such as LowRank(10), got {self.network!r}")
        if not isinstance(self.algorithm, Algorithm):
            raise ValueError(
                f"Hypernet: algorithm must be Joint(...), Local(...) or Global(...), got {self.algorithm!r}"
            )
        for name in ("optimizer", "hyper_optimizer"):
            if not isinstance(getattr(self, name), optax.GradientTransformation | None):
                raise ValueError(
                    f"Hypernet: {name} must be a transformation of optax such as optax.adam(1e-3), or None; "
                    f"got {getattr(self, name)!r}"
                )
        if self.steps is not None:
            object.__setattr__(self, "steps", whole_number("Hypernet: steps", self.steps, 1))
        object.__setattr__(self, "finetune", whole_number("Hypernet: finetune", self.finetune, 0))

    def evaluate(
        self, problem: TrainingProblem, hyperparameters: Hyperparameters, key: jax.Array, request: Request
    ) -> Evaluation:
        """See `hypergrad_search.evaluate`."""
        started = time.perf_counter()
        if request.space is None:
            raise ValueError("evaluate: Hypernet needs space=, the box in which it moves the hyperparameters")
        self.check(problem, hyperparameters, space=request.space)
        setup, point, fixed = self._set_up(problem, request.space, hyperparameters)
        state = stretch.start(setup, point, fixed, key)
        if request.checkpoint is not None:
            state = stretch.resume(setup, checkpoints.load("Hypernet", setup.facts, request.checkpoint, state), point)
        first, steps = int(state.step), self.steps or problem.steps
        every = request.report_every if request.report is not None else steps
        without = None if request.fold is None else left_out(request.fold)
        _check_minibatches(setup, point, fixed, without)
        for stop in [*range(every, steps, every), steps]:
            state = stretch.advance(setup, state, fixed, key, without, first + steps, first + stop)
            if request.report is not None and stop < steps:
                request.report(Progress(stop, float(stretch.finish(setup, 0, state, fixed, key).value)))
        judged = judge(stretch.finish(setup, self.finetune, state, fixed, key), request.fold)
        end = np.asarray(state.moving.point, np.float64)
        if judged.status is Status.OK and not np.isfinite(end).all():
            judged = replace(judged, value=math.inf, status=Status.NAN, message=MESSAGES[Status.NAN])
        usable = judged.status is Status.OK
        return replace(
            judged,
            cost=Cost(self.cost(problem, steps) + self.finetune, time.perf_counter() - started),
            refined={**hyperparameters, **from_unit(request.space, end)} if usable else None,
            checkpoint=checkpoints.save(setup.facts, state) if usable else None,
            diagnostics={"steps": steps, "exact": None},
        )

    def check(self, problem: TrainingProblem, hyperparameters: Hyperparameters, *, space: Space) -> None:
        """Raise `ValueError` where the arguments do not fit, or a hyperparameter of `space` needs training runs."""
        self.algorithm.check(self.steps or problem.steps)
        check_start("Hypernet", space, hyperparameters)
        seen = read_by_losses(problem, hyperparameters, space)
        refuse_unseen("Hypernet", tuned(hyperparameters, space), seen, f"{OF_TRAINING_RUNS}, or use Reversible()")

    def cost(self, problem: TrainingProblem, steps: int) -> float:
        """See `Method`."""
        # The slope of statistics takes another gradient.
        of_move = VALIDATION_STEP + (TRAINING_STEP if problem.has_statistics else 0)
        return self.algorithm.cost(steps, self.steps or problem.steps, of_move)

    @with_errors_of_load
    def params(
        self,
        problem: TrainingProblem,
        hyperparameters: Hyperparameters,
        *,
        key: jax.Array,
        space: Space | None = None,
        checkpoint: bytes | None = None,
    ) -> Trained:
        """Return the model's parameters that the network of a `checkpoint` outputs for `hyperparameters`.

        At the evaluation's `refined` they are the parameters whose validation loss was its value. `jax.jit` and
        `jax.jacobian` take this as a function of the floating-point hyperparameters. Raises `ValueError` where `space`
        or `checkpoint` is missing.
        """
        if space is None or checkpoint is None:
            raise ValueError("Hypernet.params: give the space and the checkpoint of an evaluation, got None")
        setup, point, fixed = self._set_up(problem, space, hyperparameters)
        state = _loaded(setup, checkpoint, point, fixed, key)
        state = state._replace(moving=state.moving._replace(point=point))
        return stretch.trained(setup, self.finetune, state, fixed, key)

    @with_errors_of_load
    def value(
        self, problem: TrainingProblem, hyperparameters: Hyperparameters, *, key: jax.Array, space: Space, left: bytes
    ) -> float:
        """See `Method`. It has the same bits, since the checkpoint holds the point in the unit box itself."""
        setup, point, fixed = self._set_up(problem, space, hyperparameters)
        return float(stretch.finish(setup, self.finetune, _loaded(setup, left, point, fixed, key), fixed, key).value)

    def _set_up(
        self, problem: TrainingProblem, space: Space, hyperparameters: Hyperparameters
    ) -> tuple[Setup, jax.Array, dict[str, Any]]:
        """Return the setup, the point in the unit box, and the floating-point hyperparameters that do not move."""
        box, point, fixed = box_of(space, hyperparameters)
        optimizers = self.optimizer or DEFAULT_OPTIMIZER, self.hyper_optimizer or DEFAULT_OPTIMIZER
        return Setup(problem, self.network, self.algorithm, *optimizers, box), point, fixed


def _loaded(setup: Setup, checkpoint: bytes, point: jax.Array, fixed: dict[str, Any], key: jax.Array) -> stretch.State:
    like = jax.eval_shape(functools.partial(stretch.start, setup), point, fixed, key)
    state: stretch.State = checkpoints.load("Hypernet", setup.facts, checkpoint, like)
    return state


def _check_minibatches(setup: Setup, point: jax.Array, fixed: dict[str, jax.Array], without: LeftOut | None) -> None:
    """Raise `ValueError` where hyperparameters would descend minibatches that tracing freezes."""
    values = setup.box.hyperparameters(point, fixed)
    model = jax.eval_shape(lambda: as_returned(setup.problem, *initial(setup.problem, values, jax.random.key(0))))
    if descends_minibatches(setup.problem, model, values, without):
        plain = dict(setup.box.static)
        dynamic = {name: value for name, value in values.items() if name not in plain}
        check_repeatable(setup.problem, dynamic, setup.box.static, ("valid_batch_loss",))
