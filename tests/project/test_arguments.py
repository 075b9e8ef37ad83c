"""Every public function and class, called with wrong things: each call ends in one line that names the argument."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad_search
from hypergrad_search import (
    Categorical,
    Evaluation,
    Float,
    Fold,
    Forward,
    HostBatches,
    Hypernet,
    Implicit,
    Int,
    Method,
    OnePass,
    Optimizer,
    Persistent,
    RealTime,
    Reversible,
    Smoothed,
    Status,
    TrainingProblem,
    Unrolled,
    accumulate_gradients,
    adabelief,
    adam,
    adamw,
    check_gradient,
    ema,
    evaluate,
    evaluate_batch,
    fit_warmup_cosine,
    from_function,
    gradient_noise,
    lift_settings,
    measure_trust,
    muon,
    proximal_sgd,
    rmsprop,
    sgd,
    summarize_schedules,
    train,
    warmup_cosine,
)
from hypergrad_search.cost import Cost
from hypergrad_search.hypergradient import (
    ConjugateGradients,
    Diagonal,
    Global,
    Joint,
    Linear,
    Local,
    LowRank,
    Neumann,
    OneHidden,
)

Call = Callable[[], Any]
KEY = jax.random.key(0)
H = {"rate": 0.1, "l2": 0.0}
SPACE = {"rate": Float(1e-3, 1.0, log=True), "l2": Float(0.0, 1.0)}


def problem(**changes: Any) -> Any:
    parts: dict[str, Any] = {
        "init": lambda key, h: jnp.ones(2),
        "train_loss": lambda w, h, batch, key: jnp.sum(w**2) + h["l2"] * jnp.sum(w),
        "valid_loss": lambda w, h: jnp.sum(w**2),
        "batches": lambda step: None,
        "optimizer": sgd("rate", 0.5),
        "steps": 2,
    }
    return TrainingProblem(**{**parts, **changes})


PROBLEM = problem()


def run(hyperparameters: Any = H, **changes: Any) -> Evaluation:
    return evaluate(PROBLEM, hyperparameters, **{"key": KEY, **changes})


def trained_with(optimizer: Any) -> Evaluation:
    return evaluate(problem(optimizer=optimizer), H, key=KEY)


DATA, RANDOM = np.arange(3.0), np.random.default_rng(0)


def trained_on(load: Callable[[int], Any]) -> Evaluation:
    return evaluate(problem(batches=HostBatches(load)), H, key=KEY)


class Answers(Method):
    """A method of a user's own that gives a fixed answer."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def evaluate(self, *_: Any) -> Any:
        return self.answer


def evaluation(**changes: Any) -> Evaluation:
    return Evaluation(**{"value": 1.0, "gradient": None, "status": Status.OK, "cost": Cost(1.0, 1.0), **changes})


any_: Any = object()

WRONG: dict[str, list[tuple[Call, str]]] = {
    "Float": [
        (lambda: Float(True, 3), "Float: low must be a number, got True"),
        (lambda: Float("0", 3), "Float: low must be a number, got '0'"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Float(0, None), "Float: high must be a number, got None"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Float(0, np.ones(2)), "Float: high must be a number"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Float(0, 1j), "Float: high must be a number"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Float(0, math.inf), "Float: high must be finite"),
        (lambda: Float(math.nan, 1), "Float: low must be a number, got nan"),
        (lambda: Float(0, 1, log="no"), "Float: log must be True or False, got 'no'"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Float(0, 1, shape="3"), "Float: every length in shape must be a whole number"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Float(0, 1, shape=(2.5,)), "Float: every length in shape must be a whole number"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Float(0, 1, shape=None), "Float: every length in shape must be a whole number"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Float(0, 1, lift=(-1,)), "Float: every length in lift must be a whole number from 1"),
    ],
    "Int": [
        (lambda: Int(1.5, 3), "Int: low must be a whole number, got 1.5; is it a Float"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Int(False, 3), "Int: low must be a whole number, got False"),
        (lambda: Int(1, "9"), "Int: high must be a whole number, got '9'"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Int(3, 1), "Int: low must not be above high"),
        (lambda: Int(1, 3, log=1), "Int: log must be True or False, got 1"),  # type: ignore[arg-type]  # wrong on purpose
    ],
    "Categorical": [
        (lambda: Categorical([]), "Categorical: choices must be a list of at least one value"),
        (lambda: Categorical("abc"), "Categorical: choices must be a list"),
        (lambda: Categorical(3), "Categorical: choices must be a list"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Categorical({1, 2}), "Categorical: choices must be a list"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Categorical([[1], [2]]), "Categorical: each choice must be None, a bool, a number or a str"),  # type: ignore[list-item]  # wrong on purpose
        (lambda: Categorical([jnp.ones(2)]), "Categorical: each choice must be"),  # type: ignore[list-item]  # wrong on purpose
        (lambda: Categorical([math.nan]), "Categorical: each choice must be .*, got nan"),
        (lambda: Categorical(["a", "a"]), "Categorical: choices must differ, got 'a'"),
        (lambda: Categorical([1, True]), "Categorical: choices must differ, got True"),
    ],
    "Fold": [
        (lambda: Fold(4, of=4), "Fold: index must be a whole number from 0 to 3"),
        (lambda: Fold(0, of=1), "Fold: of must be a whole number from 2"),
        (lambda: Fold(0, of=2, below=math.nan), "Fold: below must be a number, got nan"),
        (lambda: Fold(0, of=2, below="1"), "Fold: below must be a number"),  # type: ignore[arg-type]  # wrong on purpose
    ],
    "HostBatches": [
        (lambda: HostBatches(DATA), "HostBatches: load must be a function of the step, got array"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: HostBatches(lambda: DATA), r"HostBatches: load must take \(step\), got a function that takes \(\)"),  # type: ignore[arg-type, misc]  # wrong on purpose
        (lambda: HostBatches(np.ones, ahead=-1), "HostBatches: ahead must be a whole number from 0, got -1"),
        (lambda: HostBatches(np.ones, ahead=1.5), "HostBatches: ahead must be a whole number from 0, got 1.5"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: HostBatches(np.ones)(0.5), "HostBatches: step must be one whole number"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: HostBatches(lambda step: DATA[step:])(1), r"HostBatches: load\(1\) must have shape \(3,\)"),
        (lambda: trained_on(lambda step: [1.0, 2.0]), r"HostBatches: load\(0\)\[0\] must be a numpy array of numbers"),
        (lambda: trained_on(lambda step: DATA + RANDOM.normal()), r"HostBatches: load\(0\) returned another batch"),
    ],
    "TrainingProblem": [
        (lambda: problem(init=3), "TrainingProblem: init must be a function, got 3"),
        (lambda: problem(init=lambda: 3), r"TrainingProblem: init must take \(key, hyperparameters\)"),
        (lambda: problem(valid_loss=lambda w: w), r"TrainingProblem: valid_loss must take \(params, hyperparameters\)"),
        (lambda: problem(test_loss="no"), "TrainingProblem: test_loss must be a function or None"),
        (lambda: problem(valid_batch_loss=lambda w, h: w), "TrainingProblem: valid_batch_loss must take"),
        (lambda: problem(optimizer=sgd), "TrainingProblem: optimizer must be an Optimizer"),
        (lambda: problem(optimizer="adam"), "TrainingProblem: optimizer must be an Optimizer"),
        (lambda: problem(steps=0), "TrainingProblem: steps must be a whole number from 1"),
        (lambda: problem(steps=10.0), "TrainingProblem: steps must be a whole number from 1"),
    ],
    "sgd": [
        (lambda: sgd(None, 0.9), "sgd: learning_rate must be numbers, names"),
        (lambda: sgd(True, 0.9), "sgd: learning_rate must be numbers, names"),
        (lambda: sgd(0.1, 0.9, nesterov="no"), "sgd: nesterov must be True or False"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: sgd(0.1, 0.9, dampening=None), "sgd: dampening must be True or False"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: trained_with(sgd("typo", 0.9)), "optimizer: learning_rate names the hyperparameter 'typo'"),
        (
            lambda: trained_with(sgd(jnp.ones(3), 0.9)),
            "optimizer: learning_rate must be a number or a schedule of length",
        ),
        (lambda: trained_with(sgd({"w": 0.1}, 0.9)), "optimizer: learning_rate must be one value or a pytree prefix"),
        (
            lambda: trained_with(sgd(lambda: 0.1, 0.9)),  # type: ignore[misc]  # wrong on purpose
            r"learning_rate must take \(hyperparameters, step\)",
        ),
        (
            lambda: trained_with(sgd(lambda h: h["rate"], 0.9)),  # type: ignore[misc]  # wrong on purpose
            r"learning_rate: a function of one argument gets the step, .*; write lambda h, step",
        ),
        (lambda: trained_with(sgd(lambda h, t: None, 0.9)), "optimizer: learning_rate must be numbers, got None"),
        (lambda: trained_with(sgd(lambda h, t: "fast", 0.9)), "learning_rate must be numbers, got 'fast'"),
    ],
    "adam": [
        (lambda: adam(0.1, b1=None), "adam: b1 must be numbers, names"),
        (lambda: adam(0.1, eps=[]), "adam: eps must be numbers, names"),
    ],
    "adamw": [(lambda: adamw(0.1, weight_decay=None), "adamw: weight_decay must be a setting, got None")],
    "accumulate_gradients": [
        (lambda: accumulate_gradients(3, 2), "accumulate_gradients: train_loss must be a function, got 3"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: accumulate_gradients(run, 0), "accumulate_gradients: micro_batches must be a whole number from 1"),
    ],
    "Unrolled": [(lambda: Unrolled(checkpoints=0), "Unrolled: checkpoints must be a whole number from 1, got 0")],
    "adabelief": [
        (lambda: adabelief(None), "adabelief: learning_rate must be numbers, names"),
        (lambda: adabelief(0.1, eps_root="x", b2=None), "adabelief: b2 must be numbers, names"),
        (lambda: trained_with(adabelief(0.1, eps="typo")), "optimizer: eps names the hyperparameter 'typo'"),
        (lambda: trained_with(adabelief(0.1, b1=0.0)), "b1 must be from .* to train reversibly, got 0.0"),
        (lambda: adabelief(0.1, transform=3), "adabelief: transform must be a function"),  # type: ignore[arg-type]  # wrong on purpose
    ],
    "proximal_sgd": [
        (lambda: proximal_sgd(None), "proximal_sgd: learning_rate must be numbers, names"),
        (lambda: proximal_sgd(0.1, l1=None), "proximal_sgd: l1 must be numbers, names"),
        (lambda: proximal_sgd(0.1, group=[]), "proximal_sgd: group must be numbers, names"),
        (lambda: proximal_sgd(0.1, l1={"w": -1.0, "b": 0.0}), "proximal_sgd: l1 .* must be from 0, got -1.0"),
        (lambda: proximal_sgd(0.1, momentum=True), "proximal_sgd: momentum must be numbers, names"),
        (
            lambda: evaluate(problem(optimizer=proximal_sgd(0.1, l2="typo")), H, key=KEY, method=Unrolled()),
            "optimizer: l2 names the hyperparameter 'typo'",
        ),
        (lambda: trained_with(proximal_sgd(0.1, 0.1)), r"proximal_sgd loses bits .*; use method=Unrolled\(\)"),
    ],
    "rmsprop": [
        (lambda: rmsprop(0.1, momentum=None), "rmsprop: momentum must be numbers, names"),
        (lambda: rmsprop(0.1, b"x", momentum=0.9), "rmsprop: decay must be numbers, names"),
        (lambda: trained_with(rmsprop(0.1, momentum=0.0)), "momentum must be from .* to train reversibly, got 0.0"),
    ],
    "muon": [
        (lambda: muon(None), "muon: learning_rate or adam_learning_rate must be numbers, names"),
        (lambda: muon(0.1, 0), "muon: ns_steps must be a whole number from 1, got 0"),
        (lambda: muon(0.1, 2.5), "muon: ns_steps must be a whole number from 1, got 2.5"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: muon(0.1, adam_b1=None), "muon: beta or adam_b1 must be numbers, names"),
        (lambda: muon(0.1, adam_weight_decay=[]), "muon: weight_decay or adam_weight_decay must be numbers, names"),
        (
            lambda: trained_with(muon(0.1, adam_learning_rate="typo")),
            "optimizer: learning_rate or adam_learning_rate names the hyperparameter 'typo'",
        ),
        (lambda: trained_with(muon(0.1, adam_b1=1.5)), "beta or adam_b1 must be from .* to train reversibly, got 1.5"),
    ],
    "ema": [
        (lambda: ema("adam", 0.9), "ema: optimizer must be an Optimizer, as adamw.* got 'adam'"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: ema(lambda h: optax.adam(0.1), 0.9), "ema: optimizer must be an Optimizer"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: ema(ema(sgd(0.1, 0.9), 0.9), 0.9), r"ema: optimizer must not have an average already, got ema\(sgd\)"),
        (
            lambda: ema(proximal_sgd(0.1), 0.9),
            "ema: optimizer must not be proximal, .*, got proximal_sgd; leave",
        ),
        (lambda: ema(sgd(0.1, 0.9), None), r"ema\(sgd\): ema_decay must be numbers, names"),
        (lambda: trained_with(ema(sgd(0.1, 0.9), "typo")), "optimizer: ema_decay names the hyperparameter 'typo'"),
        (lambda: trained_with(ema(sgd(0.1, 0.9), 0.0)), "ema_decay must be from .* to train reversibly, got 0.0"),
    ],
    "fit_warmup_cosine": [
        (
            lambda: fit_warmup_cosine(0.1),
            r"fit_warmup_cosine: schedule must have shape \(steps,\) or \(leaves, steps\)",
        ),
        (lambda: fit_warmup_cosine([0.1, math.nan]), "and finite numbers, got"),
    ],
    "lift_settings": [
        (lambda: lift_settings(3, SPACE), "problem must be a TrainingProblem, or from_function"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: lift_settings(problem(), {}), "space must be a dict of at least one name"),
    ],
    "summarize_schedules": [
        (lambda: summarize_schedules(3, H, key=KEY), "summarize_schedules: problem must be a TrainingProblem, got 3"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: summarize_schedules(problem(), {}, key=KEY), "learning_rate names the hyperparameter 'rate'"),
        (
            lambda: summarize_schedules(problem(), H, key=KEY),
            "summarize_schedules: no setting of the optimizer uses a hyperparameter that is a schedule",
        ),
    ],
    "gradient_noise": [
        (lambda: gradient_noise("0.1"), "gradient_noise: scale must be a number from 0, got '0.1'"),
        (lambda: gradient_noise(-1), "gradient_noise: scale must be a number from 0, got -1"),
    ],
    "warmup_cosine": [
        (lambda: warmup_cosine("rate", 2, steps=10), "warmup_cosine: peak must be a number, got 'rate'"),
        (lambda: warmup_cosine(0.1, 11, steps=10), "warmup_cosine: warmup must be a number from 0 to 10, got 11"),
        (lambda: warmup_cosine(0.1, 2, None, steps=10), "warmup_cosine: final must be a number, got None"),
        (lambda: warmup_cosine(0.1, 2, steps=0), "warmup_cosine: steps must be a whole number from 1, got 0"),
    ],
    "from_function": [
        (lambda: from_function(3), "from_function: function must be a function of the hyperparameters, got 3"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: from_function(PROBLEM), "function must be a function of the hyperparameters, got TrainingProblem"),
        (lambda: from_function(lambda rate, l2: rate), r"function must take \(hyperparameters\), got a function that"),  # type: ignore[arg-type,misc]  # wrong on purpose
        (lambda: evaluate(from_function(lambda h: 0.5), H), "from_function: <lambda> must return a JAX array"),  # type: ignore[arg-type,return-value]  # wrong on purpose
        (lambda: evaluate(from_function(lambda h: h["rate"]), H, key=KEY), "evaluate: key is for a TrainingProblem"),
        (lambda: evaluate(from_function(lambda h: h["rate"]), {"rate": 0.1}, space=SPACE), "hyperparameters lack 'l2'"),
        (lambda: train(from_function(lambda h: h["rate"]), H, key=KEY), "train: problem must be a TrainingProblem"),  # type: ignore[arg-type]  # wrong on purpose
        (
            lambda: check_gradient(from_function(lambda h: h["rate"]), H, SPACE, method=Unrolled()),
            "method is for a TrainingProblem, and not for from_function",
        ),
    ],
    "evaluate": [
        (lambda: evaluate(lambda h: h["rate"], H), r"must be a TrainingProblem, or from_function\(function\), got <f"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: evaluate(PROBLEM, H), "evaluate: key must be a key such as jax.random.key"),
        (lambda: evaluate(SPACE, H, key=KEY), "evaluate: problem must be a TrainingProblem"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: run([0.1]), "hyperparameters must be a dict"),
        (lambda: run({1: 0.1}), "hyperparameters: names must be strings, got 1"),
        (lambda: run({"l2": 0.1}), "optimizer: learning_rate names the hyperparameter 'rate', which is not among"),
        (lambda: run({"rate": "fast", "l2": 0.0}), "learning_rate must be numbers, got 'fast'"),
        (lambda: run({**H, "rate": [0.1, "a"]}), "hyperparameter 'rate' must be numbers or a plain value"),
        (lambda: run({"rate": 0.1}, space=SPACE), "hyperparameters lack 'l2' of the space"),
        (lambda: run({**H, "l2": np.ones(3)}, space=SPACE), r"hyperparameter 'l2' must have shape \(\), got \(3,\)"),
        (lambda: run({**H, "l2": True}, space=SPACE), r"hyperparameter 'l2' must fit Float\(.*got True"),
        (lambda: run({**H, "k": 1.5}, space={"k": Int(1, 2)}), r"hyperparameter 'k' must fit Int\(.*got 1.5"),
        (lambda: run({**H, "c": "x"}, space={"c": Categorical(["a"])}), r"'c' must fit Categorical\(.*got 'x'"),
        (lambda: run({**H, "c": np.ones(2)}, space={"c": Categorical([1])}), r"'c' must fit Categorical\(.*got array"),
        (lambda: run(space={"rate": (0, 1)}), r"space\['rate'\] must be a Float, Int or Categorical"),
        (lambda: run(space=3), "space must be a dict"),
        (
            lambda: jax.jit(lambda rate: run({"rate": rate, "l2": 0.0}).value)(0.1),
            "JAX cannot trace it.*use train there",
        ),
        (lambda: run(key=None), "evaluate: key must be a key such as jax.random.key"),
        (lambda: run(key=0), "evaluate: key must be a key such as jax.random.key"),
        (lambda: run(key=jax.random.split(KEY)), "evaluate: key must be a key such as jax.random.key"),
        (lambda: run(method="reversible"), "evaluate: method must be a Method such as"),
        (lambda: run(method=Reversible), "evaluate: method must be a Method such as"),
        (lambda: run(gradient_below=math.nan), "evaluate: gradient_below must be a number, got nan"),
        (lambda: run(gradient_below="all"), "evaluate: gradient_below must be a number"),
        (lambda: run(fold=2), "evaluate: fold must be a Fold"),
        (lambda: run(report="x"), "evaluate: report must be a function"),
        (lambda: run(report=print, report_every=0), "evaluate: report_every must be a whole number from 1"),
        (lambda: run(checkpoint=b"x"), "evaluate: Reversible has no checkpoints"),
    ],
    "evaluate_batch": [
        (lambda: evaluate_batch(SPACE, [H], key=KEY), "evaluate_batch: problem must be a TrainingProblem"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: evaluate_batch(PROBLEM, H, key=KEY), "evaluate_batch: hyperparameters must be a list of dicts"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: evaluate_batch(PROBLEM, [H, {"l2": 0.0}], key=KEY), "hyperparameter 'rate', which is not among"),
        (lambda: evaluate_batch(PROBLEM, [H], key=None), "evaluate_batch: key must be a key such as"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: evaluate_batch(PROBLEM, [H], key=jax.random.split(KEY, 2)), "must be one key, or an array of 1, got"),
        (lambda: evaluate_batch(PROBLEM, [H], key=KEY, method=Unrolled()), "method must be a Reversible without last"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: evaluate_batch(PROBLEM, [H], key=KEY, method=Reversible(last=2)), "Reversible without last, got"),
        (lambda: evaluate_batch(PROBLEM, [H], key=KEY, gradient_below=[1.0, 2.0]), "must be one number or 1, got 2"),
        (lambda: evaluate_batch(PROBLEM, [H], key=KEY, gradient_below=None), "gradient_below must be a number"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: evaluate_batch(PROBLEM, [H], key=KEY, fold=[None, None]), "fold must have one entry for each of 1"),
        (lambda: evaluate_batch(PROBLEM, [H], key=KEY, fold=[3]), r"fold must have Folds such as Fold\(0, of=4\)"),  # type: ignore[list-item]  # wrong on purpose
    ],
    "train": [
        (lambda: train(PROBLEM, H, key=0), "train: key must be a key"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: train(3, H, key=KEY), "train: problem must be a TrainingProblem"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: train(PROBLEM, H, KEY, fraction_bits={"typo": 30}), "fraction_bits: 'typo' is not among"),
        (lambda: train(PROBLEM, H, KEY, fraction_bits=3), "fraction_bits must be a dict"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: train(PROBLEM, H, KEY, smallest_decays={"velocity": "x"}), "smallest_decays: velocity must be"),  # type: ignore[dict-item]  # wrong on purpose
        (lambda: train(PROBLEM, H, KEY, smallest_decays={"typo": 0.5}), "smallest_decays: 'typo' is not among"),
    ],
    "measure_trust": [
        (lambda: measure_trust(PROBLEM, H, SPACE, key=KEY, step=0), "measure_trust: step must be above 0"),
        (lambda: measure_trust(PROBLEM, H, SPACE, key=KEY, step=2), "measure_trust: step must be"),
        (lambda: measure_trust(PROBLEM, {**H, "k": 1}, {"k": Int(1, 2)}, key=KEY), "the space has no Float"),
    ],
    "check_gradient": [
        (lambda: check_gradient(PROBLEM, H, {"k": Int(1, 2)}, key=KEY), "lack 'k' of the space"),
        (lambda: check_gradient(PROBLEM, {**H, "k": 1}, {"k": Int(1, 2)}, key=KEY), "the space has no Float"),
        (lambda: check_gradient(PROBLEM, H, SPACE, key=KEY, steps=[0.1]), "check_gradient: steps must be at least two"),
        (lambda: check_gradient(PROBLEM, H, SPACE, key=KEY, steps=[0.1, -1]), "check_gradient: steps must be"),
        (lambda: check_gradient(PROBLEM, H, SPACE, key=KEY, steps=3), "check_gradient: steps must be"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: check_gradient(PROBLEM, H, SPACE, key=KEY, directions=-1), "check_gradient: directions must be"),
        (
            lambda: check_gradient(PROBLEM, H, SPACE, key=KEY, method=Hypernet()),
            "Hypernet gives no gradient|cannot tune",
        ),
    ],
    "Reversible": [
        (lambda: Reversible(fallback="unrolled"), "Reversible: fallback must be a Method"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Reversible(last=0), "Reversible: last must be a whole number from 1"),
        (lambda: Reversible(fraction_bits=3), "fraction_bits must be a dict"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Reversible(fraction_bits={"weights": 85}), "fraction_bits: weights must be a whole number"),
        (lambda: run(method=Reversible(fraction_bits={"typo": 30})), "fraction_bits: 'typo' is not among"),
    ],
    "Forward": [(lambda: Forward(at_once=0), "Forward: at_once must be a whole number from 1, got 0")],
    "Implicit": [
        (lambda: Implicit(solver="cg"), "Implicit: solver must be a Solver such as"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Implicit(batches=0), "Implicit: batches must be a whole number from 1, got 0"),
        (lambda: ConjugateGradients(tolerance=-1), "ConjugateGradients: tolerance must be a number from 0 to 1"),
        (lambda: ConjugateGradients(iterations=0.5), "ConjugateGradients: iterations must be a whole number"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: ConjugateGradients(damping=math.inf), "ConjugateGradients: damping must be finite, got inf"),
        (lambda: Neumann(terms=-1), "Neumann: terms must be a whole number from 0"),
        (lambda: Neumann(rate=0), "Neumann: rate must be above 0"),
        (lambda: run(method=Implicit()), "Implicit cannot tune rate: neither the training loss nor"),
    ],
    "OnePass": [
        (lambda: OnePass(lookback=-1), "OnePass: lookback must be a whole number from 0"),
        (lambda: OnePass(every=0), "OnePass: every must be a whole number from 1"),
        (lambda: OnePass(steps=0), "OnePass: steps must be a whole number from 1"),
        (lambda: OnePass(optimizer=0.1), "OnePass: optimizer must be a transformation of optax"),
        (lambda: run(method=OnePass()), "OnePass needs space="),
        (
            lambda: run({**H, "x": 0.5}, method=OnePass(), space={"x": Float(0.0, 1.0)}),
            "OnePass cannot tune x: neither",
        ),
    ],
    "Persistent": [
        (lambda: Persistent(sigma=0), "Persistent: sigma must be a number from 1e-06 to 1"),
        (lambda: Persistent(pairs=0), "Persistent: pairs must be a whole number from 1"),
        (lambda: Persistent(every=0), "Persistent: every must be a whole number from 1"),
        (lambda: Persistent(optimizer=0.1), "Persistent: optimizer must be a transformation of optax"),
        (lambda: Persistent(seed=-1), "Persistent: seed must be a whole number from 0"),
        (lambda: Persistent(steps=0), "Persistent: steps must be a whole number from 1"),
        (lambda: run(method=Persistent()), "Persistent needs space="),
        (
            lambda: run(method=Persistent(), space={"rate": Float(0.9, 1.0)}),
            "Persistent: a hyperparameter lies outside",
        ),
    ],
    "RealTime": [
        (lambda: RealTime(every=0), "RealTime: every must be a whole number from 1"),
        (lambda: RealTime(steps=0), "RealTime: steps must be a whole number from 1"),
        (lambda: RealTime(optimizer=0.1), "RealTime: optimizer must be a transformation of optax"),
        (lambda: RealTime().cost(PROBLEM, 10), "RealTime.cost: give the space"),
        (lambda: run(method=RealTime()), "RealTime needs space="),
        (
            lambda: run({**H, "x": 0.5}, method=RealTime(), space={"x": Float(0.0, 1.0)}),
            "RealTime cannot tune x: neither",
        ),
    ],
    "Smoothed": [
        (lambda: Smoothed(sigma=0), "Smoothed: sigma must be a number from 1e-06 to 1"),
        (lambda: Smoothed(pairs=0), "Smoothed: pairs must be a whole number from 1"),
        (lambda: Smoothed(seed=-1), "Smoothed: seed must be a whole number from 0"),
        (lambda: Smoothed(at_once=0), "Smoothed: at_once must be a whole number from 1"),
        (lambda: run(method=Smoothed()), "Smoothed needs space="),
    ],
    "Hypernet": [
        (lambda: Hypernet(network=Linear), "Hypernet: network must be a Response"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Hypernet(algorithm="joint"), "Hypernet: algorithm must be Joint"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Hypernet(optimizer=0.1), "Hypernet: optimizer must be a transformation of optax"),
        (lambda: Hypernet(hyper_optimizer="adam"), "Hypernet: hyper_optimizer must be"),
        (lambda: Hypernet(steps=0), "Hypernet: steps must be a whole number from 1"),
        (lambda: Hypernet(finetune=-1), "Hypernet: finetune must be a whole number from 0"),
        (lambda: run(method=Hypernet()), "Hypernet needs space="),
        (lambda: Joint(centred="no"), "Joint: centred must be True or False"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Joint(entropy=math.inf), "Joint: entropy must be a number"),
        (lambda: Joint(scale=1e-12), "Joint: scale must be 0 or at least 1e-06"),
        (lambda: Local(scale="x"), "Local: scale must be a number"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Global(hyper_steps=None), "Global: hyper_steps must be a whole number"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: LowRank("10"), "LowRank: rank must be a whole number"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: OneHidden(10, activation="relu"), "OneHidden: activation must be a function"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Diagonal().init(KEY, 2, 3), "Diagonal: needs one hyperparameter for each weight"),
    ],
    "Evaluation": [
        (lambda: evaluation(value=math.nan), "Evaluation: value must be a number, got nan"),
        (lambda: evaluation(value=None), "Evaluation: value must be a number, got None"),
        (lambda: evaluation(status="fine"), "Evaluation: status must be one of"),
        (lambda: evaluation(cost=None), "Evaluation: cost must be a Cost"),
        (lambda: evaluation(gradient={"x": np.array([math.nan])}), "Evaluation: gradient has NaN or infinities"),
    ],
    "Method": [
        (lambda: run(method=Answers(None)), "Answers.evaluate must return an Evaluation, got None"),
        (lambda: run(method=Answers((0.1, None))), "Answers.evaluate must return an Evaluation"),
    ],
    "Cost": [
        (lambda: Cost("1", 1.0), "Cost: gradient_evaluations must be a number from 0"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Cost(-1.0, 1.0), "Cost: gradient_evaluations must be a number from 0"),
        (lambda: Cost(1.0, math.nan), "Cost: seconds must be a number from 0"),
    ],
}

#: Names of the package that are not called with anything: abstract classes, types, errors, what takes no arguments.
NOT_CALLED = {
    "AdditiveOptimizer",
    "DrMAD",
    "InexactReversalError",
    "NestedSpace",
    "Optimizer",
    "ProximalOptimizer",
    "ScheduleSummary",
    "Space",
    "Status",
}


def test_the_table_has_every_public_name() -> None:
    assert WRONG.keys() | NOT_CALLED == set(hypergrad_search.__all__)


ROWS = [pytest.param(*row, id=f"{name} {i}") for name, rows in WRONG.items() for i, row in enumerate(rows)]


@pytest.mark.parametrize(("call", "message"), ROWS)
def test_a_wrong_argument_is_named(call: Call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


RIGHT: dict[str, Call] = {
    "numpy's numbers in a Float": lambda: Float(np.float32(0.25), np.int64(1)) == Float(0.25, 1.0),  # type: ignore[arg-type]  # users may, types or not
    "numpy's lengths": lambda: Float(0, 1, shape=np.int64(3)).shape == (3,),  # type: ignore[arg-type]  # users may, types or not
    "a list of lengths": lambda: Float(0, 1, shape=[2, 3]).shape == (2, 3),  # type: ignore[arg-type]  # users may, types or not
    "a range of choices": lambda: Categorical(range(1, 3)).choices == (1, 2),
    "numpy's choices": lambda: Categorical(np.array([1, 2])).choices == (1, 2),  # type: ignore[arg-type]  # users may, types or not
    "a numpy boolean": lambda: Float(0.1, 1, log=np.True_).log is True,  # type: ignore[arg-type]  # users may, types or not
    "a status by name": lambda: evaluation(status="ok").status is Status.OK,
    "whole numbers for floats": lambda: run({"rate": 1, "l2": 0}).value == run({"rate": 1.0, "l2": 0.0}).value,
    "a choice by an equal number": lambda: (
        run({**H, "c": np.int64(1)}, space={"c": Categorical([1.0])}).value == run({**H, "c": 1.0}).value
    ),
    "an old key": lambda: run(key=jax.random.PRNGKey(0)).status is Status.OK,
    "a threshold of numpy": lambda: run(gradient_below=np.float32(-np.inf)).gradient is None,
    "an optimizer is one": lambda: isinstance(sgd(0.1, 0.9), Optimizer) and isinstance(Unrolled(), Method),
}


@pytest.mark.parametrize("call", RIGHT.values(), ids=RIGHT)
def test_what_is_meant_well_works(call: Call) -> None:
    assert call()
