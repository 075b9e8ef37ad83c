"""`Hypernet` optimises weights and hyperparameters jointly, through a network that outputs weights.

A hypernetwork learns which weights are best for given hyperparameters; the validation loss of what it outputs then has
a gradient with respect to the hyperparameters, with no training run to differentiate (Lorraine and Duvenaud 2018).
"""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import jax
import optax

from hypergrad_search.checks import whole_number
from hypergrad_search.cost import TRAINING_STEP
from hypergrad_search.fold import Fold
from hypergrad_search.hypergradient import stretch
from hypergrad_search.hypergradient.algorithms import VALIDATION_STEP, Algorithm, Joint
from hypergrad_search.hypergradient.box import box_of, check_start
from hypergrad_search.hypergradient.continuing import Continuing, Stretch, checked_optimizer, checked_steps
from hypergrad_search.hypergradient.response import LowRank, Response
from hypergrad_search.hypergradient.stretch import Setup
from hypergrad_search.hypergradient.unseen import OF_TRAINING_RUNS, read_by_losses, refuse_unseen, tuned
from hypergrad_search.losses import LeftOut, descends_minibatches, left_out
from hypergrad_search.parameters import as_returned, initial
from hypergrad_search.problem import Trained, TrainingProblem
from hypergrad_search.repeatable import check_repeatable
from hypergrad_search.space import Hyperparameters, Space

DEFAULT_OPTIMIZER = optax.adam(3e-3)


@dataclass(frozen=True)
class Hypernet(Continuing):
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
    next stretch. `params` is the model's parameters that the network of a `checkpoint` outputs for any hyperparameters;
    `jax.jit` and `jax.jacobian` take it as a function of the floating-point ones.

    The algorithm determines the cost of a step. Where the problem has statistics, such as the running means of batch
    normalisation, they count as those that settle for weights and hyperparameters, which takes one gradient more
    for each step of the hyperparameters. Where a `Fold` is held back, the hyperparameters follow `valid_loss` on
    all other examples, and never `valid_batch_loss`.

    Do not use it for hyperparameters of the optimizer or of `init`: they have no meaning without training runs, and an
    error names them. The best weights must depend smoothly on the hyperparameters for the network to follow them.
    Raises `ValueError` where a setting does not fit.

    Example:
        >>> from hypergrad_search import Hypernet, evaluate
        >>> result = evaluate(problem, point, key=key, method=Hypernet(), space={"l2": space["l2"]})
        >>> result.refined["l2"] != point["l2"]
        True
    """

    _: KW_ONLY
    network: Response = LowRank(10)  # noqa: RUF009 (frozen)
    algorithm: Algorithm = Joint()  # noqa: RUF009 (frozen)
    optimizer: optax.GradientTransformation | None = None
    hyper_optimizer: optax.GradientTransformation | None = None
    steps: int | None = None
    finetune: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.network, Response):
            raise ValueError(f"Hypernet: network must be a Response such as LowRank(10), got {self.network!r}")
        if not isinstance(self.algorithm, Algorithm):
            raise ValueError(
                f"Hypernet: algorithm must be Joint(...), Local(...) or Global(...), got {self.algorithm!r}"
            )
        for name in ("optimizer", "hyper_optimizer"):
            checked_optimizer(f"Hypernet: {name}", getattr(self, name))
        object.__setattr__(self, "steps", checked_steps("Hypernet: steps", self.steps))
        object.__setattr__(self, "finetune", whole_number("Hypernet: finetune", self.finetune, 0))

    def check(self, problem: TrainingProblem, hyperparameters: Hyperparameters, *, space: Space) -> None:
        """Raise `ValueError` where the arguments do not fit, or a hyperparameter of `space` needs training runs."""
        self.algorithm.check(self.steps or problem.steps)
        check_start("Hypernet", space, hyperparameters)
        seen = read_by_losses(problem, hyperparameters, space)
        refuse_unseen("Hypernet", tuned(hyperparameters, space), seen, f"{OF_TRAINING_RUNS}, or use Reversible()")

    def cost(self, problem: TrainingProblem, steps: int, space: Space | None = None) -> float:
        """See `Method`."""
        # The slope of statistics takes another gradient.
        of_move = VALIDATION_STEP + (TRAINING_STEP if problem.has_statistics else 0)
        return self.algorithm.cost(steps, self.steps or problem.steps, of_move)

    def cost_between(self, problem: TrainingProblem, first: int, last: int, space: Space | None) -> float:
        """See `Continuing`."""
        return self.cost(problem, last - first) + self.finetune

    def stretch(
        self,
        problem: TrainingProblem,
        hyperparameters: Hyperparameters,
        key: jax.Array,
        space: Space,
        fold: Fold | None = None,
    ) -> Stretch:
        """See `Continuing`. Its `trained` is the model that the network outputs for `hyperparameters`."""
        setup, point, fixed = self._set_up(problem, space, hyperparameters)
        without = None if fold is None else left_out(fold)

        def advance(state: stretch.State, last: int, stop: int) -> stretch.State:
            _check_minibatches(setup, point, fixed, without)
            return stretch.advance(setup, state, fixed, key, without, last, stop)

        def trained(state: stretch.State) -> Trained:
            at_point = state._replace(moving=state.moving._replace(point=point))
            return stretch.trained(setup, self.finetune, at_point, fixed, key)

        return Stretch(
            facts=setup.facts,
            start=lambda: stretch.start(setup, point, fixed, key),
            resume=lambda state: stretch.resume(setup, state, point),
            advance=advance,
            point=lambda state: state.moving.point,
            losses_on_the_way=lambda state: stretch.finish(setup, 0, state, fixed, key),
            losses=lambda state: stretch.finish(setup, self.finetune, state, fixed, key),
            trained=trained,
        )

    def _set_up(
        self, problem: TrainingProblem, space: Space, hyperparameters: Hyperparameters
    ) -> tuple[Setup, jax.Array, dict[str, Any]]:
        """Return the setup, the point in the unit box, and the floating-point hyperparameters that do not move."""
        box, point, fixed = box_of(space, hyperparameters)
        optimizers = self.optimizer or DEFAULT_OPTIMIZER, self.hyper_optimizer or DEFAULT_OPTIMIZER
        return Setup(problem, self.network, self.algorithm, *optimizers, box), point, fixed


def _check_minibatches(setup: Setup, point: jax.Array, fixed: dict[str, jax.Array], without: LeftOut | None) -> None:
    """Raise `ValueError` where hyperparameters would descend minibatches that tracing freezes."""
    if setup.problem.valid_batch_loss is None:
        return
    values = setup.box.hyperparameters(point, fixed)
    model = jax.eval_shape(lambda: as_returned(setup.problem, *initial(setup.problem, values, jax.random.key(0))))
    if descends_minibatches(setup.problem, model, values, without):
        plain = dict(setup.box.static)
        dynamic = {name: value for name, value in values.items() if name not in plain}
        check_repeatable(setup.problem, dynamic, setup.box.static, ("valid_batch_loss",))
