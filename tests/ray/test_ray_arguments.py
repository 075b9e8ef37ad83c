"""Every public function of the Ray adapter, called with wrong things: each call ends in one line that names them."""

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ray import tune
from ray.tune.search import BasicVariantGenerator, Searcher
from ray.tune.search.bohb import TuneBOHB
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Categorical as Sample
from ray.tune.search.sample import Domain
from ray.tune.search.sample import Float as Real

import hypergrad_ray
from hypergrad_ray import HypergradSearch, best_hyperparameters, param_space, trainable, wants_gradient
from hypergrad_search import Categorical, Float, Int, Reversible, TrainingProblem, from_function, sgd
from hypergrad_search.search.ask_tell import Wanted

Call = Callable[[], Any]

SPACE: dict[str, Any] = {
    "w": Float(0.0, 1.0, shape=(2,)),
    "rate": Float(1e-3, 1.0, log=True),
    "layers": Int(1, 4),
    "kind": Categorical(["a", None]),
}
CONFIG: dict[str, Any] = {"w": np.array([0.5, 0.5]), "rate": 0.1, "layers": 2, "kind": None}


def problem() -> TrainingProblem:
    return TrainingProblem(
        init=lambda key, h: jnp.ones(2),
        train_loss=lambda w, h, batch, key: jnp.sum((w - h["w"]) ** 2),
        valid_loss=lambda w, h: jnp.sum(w**2),
        batches=lambda step: None,
        optimizer=sgd("rate", 0.5),
        steps=2,
    )


def search(space: Any = SPACE, **arguments: Any) -> HypergradSearch:
    return HypergradSearch(space, **{"metric": "loss", "mode": "min", **arguments})


class Chooses(Searcher):
    """An explorer that always chooses the same."""

    def __init__(self, choice: Any) -> None:
        super().__init__()
        self.choice = choice

    def set_search_properties(self, metric: Any, mode: Any, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        return self.choice

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass


def explored(choice: Any) -> Any:
    return search(explorer=Chooses(choice)).suggest("a")


def ran(**changes: Any) -> None:
    trainable(problem(), SPACE)({**CONFIG, **changes})


def of_function(**settings: Any) -> Any:
    return trainable(from_function(lambda h: h["rate"]), SPACE, **settings)


def built(**changes: Any) -> Any:
    return trainable(**{"problem": problem(), "space": SPACE, **changes})


def state(**changes: Any) -> dict[str, Any]:
    whole = search()
    whole.suggest("a")
    return {**whole.get_state(), **changes}


GRID = Sample([1, 2]).grid()  # type: ignore[no-untyped-call]  # Ray's is not typed
CHOICE = {"w": 0.5, "rate": 0.1, "layers": 2, "kind": None}
WANTED = Wanted().to_json()

WRONG: dict[str, list[tuple[Call, str]]] = {
    "HypergradSearch": [
        (lambda: search([("w", Float(0.0, 1.0))]), "space must be a dict"),
        (lambda: search({}), "space must be a dict of at least one name"),
        (lambda: search({"w": 0.5}), "space must be a dict of at least one name"),
        (lambda: search({1: Float(0.0, 1.0)}), "space: names must be strings, got 1"),
        (lambda: search({"w": tune.uniform}), "space must be a dict of at least one name"),
        (lambda: search({"w": type(tune.uniform(0, 1))}), r"space\['w'\] must be a Float.*, or a domain of Ray, got a"),
        (lambda: search({"w": Float}), r"space\['w'\] must be a Float, Int or Categorical"),
        (lambda: search({"hypergrad": Int(1, 2)}), "'hypergrad' is reserved"),
        (lambda: search({"a/b": Int(1, 2)}), "'a/b' must not contain '/'"),
        (lambda: search({"a": {2: tune.uniform(0, 1)}}), "space: names must be strings, got 2"),
        (lambda: search({"a": {"b": Int(1, 2)}, "a.b": Int(1, 2)}), "'a.b' stands for two things"),
        (
            lambda: search({"a": tune.grid_search([1, 2])}),
            r"space\['a'\]: grid_search cannot be searched; use tune.ch",
        ),
        (
            lambda: search({"a": [GRID]}),
            r"space\['a/0'\]: grid_search cannot be searched; use tune",
        ),
        (
            lambda: search({"a": {"b": tune.sample_from(len)}}),
            r"\['a/b'\]: sample_from cannot be searched; compute it in the",
        ),
        (lambda: search({"a": {"eval": "1 + 1"}}), r"space\['a'\]: eval cannot be searched; compute it in the tra"),
        (lambda: search({"a": tune.choice([])}), r"space\['a'\]: tune.choice needs at least one value"),
        (lambda: search({"a": tune.choice([tune.uniform(0, 1)])}), r"space\['a'\]: a choice cannot hold domains"),
        (lambda: search({"a": tune.choice([{"b": Float(0, 1)}])}), r"space\['a'\]: a choice cannot hold domains"),
        (lambda: search({"a": tune.uniform(1, 0)}), r"space\['a'\]: Float: low must not be above high"),
        (lambda: search({"a": tune.randint(1, 1)}), r"space\['a'\]: Int: low must not be above high"),
        (lambda: search({"a": Real(None, 1)}), r"space\['a'\]: Float: low must be finite, got -inf"),
        (lambda: search({"a": tune.qrandint(1, 3, 5)}), r"space\['a'\]: there is no multiple of q=5 from 1 to 3"),
        (lambda: search({"a": Domain()}), r"space\['a'\]: Domain cannot be searched; use one of Ray's own domains"),
        (lambda: search(points_to_evaluate=3), "points_to_evaluate must be a list of configs, got 3"),
        (lambda: search(points_to_evaluate=[3]), r"points_to_evaluate must be a list of configs, got \[3\]"),
        (
            lambda: search(points_to_evaluate=[{"w": 0.5}]),
            r"points_to_evaluate\[0\] does not fit .*'rate', 'layers' and 'kind' are missing",
        ),
        (
            lambda: search(points_to_evaluate=[{**CONFIG, "kind": "b"}]),
            r"points_to_evaluate\[0\] does not fit .*'kind'",
        ),
        (
            lambda: search(points_to_evaluate=[{**CONFIG, "rate": 2.0}]),
            r"points_to_evaluate\[0\].*'rate' = 2.0 is out of",
        ),
        (lambda: search(points_to_evaluate=[{**CONFIG, "w": [0, 2]}]), r"points_to_evaluate\[0\].*'w' = .* is out of"),
        (
            lambda: search(points_to_evaluate=[{**CONFIG, "layers": 5}]),
            r"points_to_evaluate\[0\].*'layers' = 5 is out of",
        ),
        (lambda: search(evaluated_rewards=[1.0]), "points_to_evaluate must be a list of configs, got None"),
        (
            lambda: search(points_to_evaluate=[CONFIG], evaluated_rewards=[]),
            "evaluated_rewards must be a list of 1 num",
        ),
        (lambda: search(points_to_evaluate=[CONFIG], evaluated_rewards=0.5), "evaluated_rewards must be a list of 1 n"),
        (
            lambda: search(points_to_evaluate=[CONFIG], evaluated_rewards=["a"]),
            r"evaluated_rewards\[0\] must be a numb",
        ),
        (lambda: search(explorer=TuneBOHB.__new__(TuneBOHB)), "explorer cannot be TuneBOHB.*use the default one"),
        (lambda: search({**SPACE, "w[1]": Float(0.0, 1.0)}), r"'w\[1\]' is reserved, or stands for two things"),
        (lambda: search(metric=["loss", "time"]), r"metric must be one name, got \['loss', 'time'\]"),
        (lambda: search(metric=3), "metric must be one name, got 3"),
        (lambda: search(mode="lowest"), "mode must be 'min' or 'max', got 'lowest'"),
        (lambda: search(mode=np.array(["min", "max"])), "mode must be 'min' or 'max', got array"),
        (lambda: search(mode=3), "mode must be 'min' or 'max', got 3"),
        (lambda: search(explorer="optuna"), "explorer must be a ray.tune.search.Searcher, got 'optuna'"),
        (lambda: search(explorer=OptunaSearch), "explorer must be a ray.tune.search.Searcher"),
        (lambda: search(explorer=BasicVariantGenerator()), "explorer must be a ray.tune.search.Searcher"),
        (lambda: search(explorer=search()), "it has a space of its own"),
        (lambda: search(explorer=OptunaSearch(), seed=1), "give the seed to explorer"),
        (lambda: search(seed="one"), "seed must be a whole number from 0 to 4294967295, got 'one'"),
        (lambda: search(seed=-1), "seed must be a whole number from 0"),
        (lambda: search(seed=1.5), "seed must be a whole number from 0"),
        (lambda: search(strategy="explore"), "strategy must be a Strategy such as ExploreDescend"),
        # its methods
        (lambda: search().set_search_properties("loss", "lowest", {}), "mode must be 'min' or 'max', got 'lowest'"),
        (lambda: search().set_search_properties(["a"], "min", {}), "metric must be one name"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: explored(3), "explorer's choice does not fit the space: the trial's config must be a dict, got 3"),
        (lambda: explored({**CHOICE, "rate": None}), "explorer's choice.*'rate' = None, which does not fit Float"),
        (lambda: explored({"w": 0.5}), "explorer's choice does not fit the space: the trial's config lacks 'rate'"),
        (lambda: explored({**CHOICE, "w": np.ones(2)}), r"explorer's choice.*'w' of shape \(2,\)"),
        (lambda: search().on_trial_result("a", 3), "result must be a dict, got 3"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: search().on_trial_complete("a", [1]), r"result must be a dict, got \[1\]"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: search().set_state({}), "state must be what get_state returned, got {}"),
        (lambda: search().set_state(None), "state must be what get_state returned, got None"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: search().set_state(state(running=[{"trial": "a"}])), "state must be what get_state returned"),
        (lambda: search().set_state(state(explorer=b"?")), "OptunaSearch cannot read the explorer's part of the state"),
        (lambda: search({"other": Float(0.0, 1.0)}).set_state(state()), "state is of a search in .* not in .*'other'"),
        (lambda: search(mode="max").set_state(state()), "state is of a search with mode='min', and not 'max'"),
        (lambda: search(metric="gain").set_state(state()), "state is of a search with metric='loss', and not 'gain'"),
        (lambda: search().set_search_properties(None, None, {"x": tune.uniform(0, 1)}), "it has a space of its own, "),
        (lambda: search().set_search_properties(None, None, {"x": Float(0, 1)}), "it has a space of its own, "),
        (lambda: search().on_pause("a"), "HyperBandForBOHB works with TuneBOHB alone; use ASHAScheduler or Hy"),
        (
            lambda: search().add_evaluated_point({"w": 0.5}, 1.0),
            "add_evaluated_point: parameters does not fit .*'rate'",
        ),
        (lambda: search().restore(__file__), "checkpoint_path must name a file that save wrote, got '.*arguments.py'"),
    ],
    "trainable": [
        (lambda: built(problem=lambda config: 1.0), "problem must be a TrainingProblem"),
        (lambda: of_function(method=Reversible()), "trainable: method is for a TrainingProblem, and not for from_func"),
        (lambda: of_function(key=jax.random.key(0)), "trainable: key is for a TrainingProblem, and not for from_func"),
        (lambda: of_function(report_every=5), "trainable: report_every is for a TrainingProblem, and not for from_f"),
        (lambda: built(space={"layers": Int(1, 2)}), "rate"),
        (lambda: built(space=[1]), "space must be a dict"),
        (lambda: built(space={**SPACE, "hypergrad": Int(1, 2)}), "'hypergrad' is reserved"),
        (lambda: built(method="reversible"), "trainable: method must be a Method such as Reversible"),
        (lambda: built(key=3), "trainable: key must be a key such as"),
        (lambda: built(key=jax.random.split(jax.random.key(0))), "trainable: key must be a key such as"),
        (lambda: built(report_every=0), "trainable: report_every must be a whole number from 1, got 0"),
        (lambda: built(report_every="often"), "trainable: report_every must be a whole number from 1, got 'often'"),
        # inside a trial
        (lambda: trainable(problem(), SPACE)([0.1]), "config must be a dict"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: trainable(problem(), SPACE)({"rate": 0.1}), "the trial's config lacks 'w'; search with HypergradS"),
        (lambda: trainable(problem(), SPACE)({"w[0]": 0.1}), r"the trial's config lacks 'w\[1\]'; search with"),
        (lambda: ran(hypergrad=3), "config has 'hypergrad' = 3; leave this key to HypergradSearch"),
        (lambda: ran(hypergrad={"typo": 1}), "config has 'hypergrad' = {'typo': 1}; leave this key"),
        (lambda: ran(hypergrad={**WANTED, "fold": 3}), "config has 'hypergrad' = .*; leave this key"),
        (
            lambda: ran(hypergrad={**WANTED, "maximise": True}),
            "trainable: it reports a loss, so search with mode='min'",
        ),
        (
            lambda: ran(hypergrad=WANTED, __trial_index__=0),
            "cannot be used inside ray.tune.search.Repeater.*; leave Re",
        ),
        (lambda: ran(rate="fast"), r"config has 'rate' = 'fast', which does not fit Float\("),
        (lambda: ran(rate="0.5"), "config has 'rate' = '0.5', which does not fit Float"),
        (lambda: ran(rate=None), "config has 'rate' = None, which does not fit Float"),
        (lambda: ran(rate=True), "config has 'rate' = True, which does not fit Float"),
        (lambda: ran(rate=1j), "config has 'rate' = 1j, which does not fit Float"),
        (lambda: ran(rate=math.nan), "config has 'rate' = nan, which does not fit Float"),
        (lambda: ran(rate=math.inf), "config has 'rate' = inf, which does not fit Float"),
        (lambda: ran(rate=tune.uniform(0, 1)), "config has 'rate' = .*, which does not fit Float"),
        (lambda: ran(rate=np.ones(2)), r"config has 'rate' of shape \(2,\), the space has Float"),
        (lambda: ran(w=0.5), r"config has 'w' of shape \(\), the space has Float"),
        (lambda: ran(w=[[0.1], [0.1, 0.2]]), r"config has 'w' = \[\[0.1\], \[0.1, 0.2\]\], which does not fit Float"),
        (lambda: ran(w=[0.5, math.nan]), r"config has 'w' = \[0.5, nan\], which does not fit Float"),
        (lambda: ran(layers=1.5), r"config has 'layers' = 1.5, which does not fit Int\("),
        (lambda: ran(layers=True), "config has 'layers' = True, which does not fit Int"),
        (lambda: ran(layers="2"), "config has 'layers' = '2', which does not fit Int"),
        (lambda: ran(layers=math.nan), "config has 'layers' = nan, which does not fit Int"),
        (lambda: ran(layers=np.ones(2)), "config has 'layers' = array.*, which does not fit Int"),
        (lambda: ran(kind="b"), r"config has 'kind' = 'b', which does not fit Categorical\("),
        (lambda: ran(kind=["a"]), r"config has 'kind' = \['a'\], which does not fit Categorical"),
        (lambda: ran(kind=np.ones(2)), "config has 'kind' = array.*, which does not fit Categorical"),
    ],
    "param_space": [
        (lambda: param_space(None), "space must be a dict"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: param_space({"w": 0.5}), r"space\['w'\] must be a Float, Int or Categorical"),
        (lambda: param_space({**SPACE, "w[0]": Int(1, 2)}), r"'w\[0\]' is reserved, or stands for two things"),
        (lambda: param_space({"w[0]": Int(1, 2), **SPACE}), r"'w\[0\]' is reserved, or stands for two things"),
    ],
    "wants_gradient": [
        (lambda: wants_gradient(None, 1.0), "wants_gradient: config must be the trial's config, a dict, got None"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: wants_gradient(1.0, CONFIG), "wants_gradient: config must be the trial's config, a dict, got 1.0"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: wants_gradient(CONFIG, None), "wants_gradient: value must be a number, got None"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: wants_gradient(CONFIG, "low"), "wants_gradient: value must be a number, got 'low'"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: wants_gradient(CONFIG, np.ones(2)), "wants_gradient: value must be a number, got array"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: wants_gradient({"hypergrad": WANTED, "__trial_index__": 1}, 1.0), "cannot be used inside ray.tune.se"),
        (lambda: wants_gradient({"hypergrad": {}}, 1.0), "config has 'hypergrad' = {}; leave this key"),
    ],
    "in_short": [],  # it takes any value
    "best_hyperparameters": [
        (lambda: best_hyperparameters(None, SPACE), "results must be what Tuner.fit or tune.run returned, got None"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: best_hyperparameters({"loss": 1.0}, SPACE), "results must be what Tuner.fit or tune.run returned"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: best_hyperparameters(SPACE, None), "space must be a dict"),  # type: ignore[arg-type]  # wrong on purpose
    ],
}


def test_the_table_has_every_public_name() -> None:
    assert set(WRONG) == set(hypergrad_ray.__all__)


ROWS = [pytest.param(*row, id=f"{name} {i}") for name, rows in WRONG.items() for i, row in enumerate(rows)]


@pytest.mark.parametrize(("call", "message"), ROWS)
def test_a_wrong_argument_is_named(call: Call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


RIGHT: dict[str, Call] = {
    "a seed of numpy": lambda: search(seed=np.int64(3)).suggest("a"),
    "a metric of numpy": lambda: search(metric=np.str_("loss"), mode=np.str_("min")).suggest("a"),
    "an explorer's numpy numbers": lambda: explored({**CHOICE, "rate": np.float32(0.5), "layers": np.int64(2)}),
    "an explorer's whole floats": lambda: explored({**CHOICE, "rate": 1, "layers": 2.0}),
    "a value of jax": lambda: not wants_gradient(CONFIG, jnp.float32(1.0)),
    "an array of no dimension": lambda: wants_gradient({"hypergrad": WANTED}, np.array(1.0)),  # type: ignore[arg-type]  # users may, types or not
    "no gradient of NaN": lambda: not wants_gradient({"hypergrad": WANTED}, math.nan),
    "an old key": lambda: built(key=jax.random.PRNGKey(0)),
    "steps of numpy": lambda: built(report_every=np.int64(2)),
}


@pytest.mark.parametrize("call", RIGHT.values(), ids=RIGHT)
def test_what_is_meant_well_works(call: Call) -> None:
    assert call()


def test_a_state_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    whole = search(seed=0)
    whole.suggest("a")
    before = whole.get_state()
    (tmp_path / "file").write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match="state must be what get_state returned"):
        whole.set_state({"observations": []})
    with pytest.raises(ValueError, match="state must be what get_state returned"):
        whole.restore(str(tmp_path / "file"))
    after = whole.get_state()
    assert {k: v for k, v in after.items() if k != "explorer"} == {k: v for k, v in before.items() if k != "explorer"}
