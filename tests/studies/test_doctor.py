"""The doctor draws what it says, tells exact reversals from all others, and fails where something is wrong."""

import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from hypergrad_search import Evaluation, InexactReversalError, Status
from hypergrad_search.cost import Cost
from hypergrad_studies.bench import Case
from hypergrad_studies.cli import cli
from hypergrad_studies.doctor import Findings, costs, findings, markdown, reversals, tables, verdict
from hypergrad_studies.doctor import settings as drawing
from hypergrad_studies.doctor.costs import MethodCost
from hypergrad_studies.doctor.gradients import TOLERANCE, Agreement
from hypergrad_studies.doctor.kinds import CLASSES, FEATURES, KINDS, LENGTH, Keep, Kind, Params
from hypergrad_studies.doctor.machine import Machine, Verdict
from hypergrad_studies.doctor.reversals import Outcome, Reversal, reverse
from hypergrad_studies.doctor.settings import Setting, settings

ON = "--xla_gpu_deterministic_ops=true"
CPU = Machine("cpu", "cpu", 1, {"jax": "1.2.3"}, False, "default", "", True, 1.0)
GPU = replace(CPU, platform="gpu", kind="NVIDIA H100", xla_flags=ON, coarseness=3000.0)
PAGE = "before\n<!-- doctor -->\nold\n<!-- /doctor -->\nafter\n"
FEW = settings(21, 0)

# The operation that each kind is there for, among those that its gradient is made of.
OPERATIONS = {
    "matmul": "dot_general",
    "convolution": "conv_general_dilated",
    "attention": "exp",
    "dropout": "random_bits",
    "scatter": "scatter-add",
    "layer norm": "sqrt",
    "recurrent": "scan",
}


def words(text: str) -> str:
    """Return a text without its line breaks and the rules of its tables."""
    return " ".join(text.split())


def shown(findings: Findings) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(*tables(findings))
    return captured.get()


def row(findings: Findings, name: str) -> list[str]:
    """Return the cells of a row of the Markdown table."""
    (line,) = (x for x in markdown(findings, "hypergrad doctor").splitlines() if x.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def operations(jaxpr: Any) -> set[str]:
    inner = [
        x
        for e in jaxpr.eqns
        for x in jax.tree.leaves(list(e.params.values()))
        if hasattr(x, "eqns") or hasattr(x, "jaxpr")
    ]
    return {e.primitive.name for e in jaxpr.eqns}.union(*(operations(getattr(x, "jaxpr", x)) for x in inner))


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_has_the_operation_that_it_is_there_for(name: str) -> None:
    kind = KINDS[name]
    params = kind.init(jax.random.key(0), 16, jnp.float32(1.0))
    inputs = jax.random.normal(jax.random.key(1), (5, LENGTH, FEATURES))

    def loss(params: Params, key: jax.Array) -> jax.Array:
        scores = kind.scores(params, inputs, lambda shape: jax.random.uniform(key, shape) * 2)
        assert scores.shape == (5, CLASSES)
        assert scores.dtype == jnp.float32
        return jnp.sum(scores**2)

    gradient = jax.grad(loss)(params, jax.random.key(2))
    assert all(np.isfinite(x).all() and np.any(x) for x in gradient.values())
    assert OPERATIONS[name] in operations(jax.make_jaxpr(jax.grad(loss))(params, jax.random.key(2)).jaxpr)


def test_settings_are_drawn_evenly_from_few_programs() -> None:
    drawn = settings(1000, 0)
    assert len(drawn) == 1000
    kinds = Counter(x.program.kind for x in drawn)
    assert kinds.keys() == KINDS.keys()
    assert max(kinds.values()) - min(kinds.values()) <= 3
    programs = [x.program for x in drawn]
    runs = 1 + sum(x is not y for x, y in itertools.pairwise(programs))
    assert runs == len({id(x) for x in programs}) == 14
    for name, choices in (
        ("optimizer", drawing.OPTIMIZERS),
        ("transform", drawing.TRANSFORMS),
        ("steps", drawing.STEPS),
    ):
        assert {getattr(x, name) for x in programs} == set(choices)
    assert len({x.seed for x in drawn}) == len({float(x.hyperparameters["noise"]) for x in drawn}) == 1000
    assert {x.dtype for setting in drawn for x in setting.hyperparameters.values()} == {np.dtype(np.float32)}


def test_the_seed_decides_what_is_drawn() -> None:
    again, other = settings(21, 0), settings(21, 1)
    assert [(x.program, x.hyperparameters, x.seed) for x in again] == [
        (x.program, x.hyperparameters, x.seed) for x in FEW
    ]
    assert [x.seed for x in other] != [x.seed for x in FEW]
    assert len(settings(3, 0)) == 3


def evaluation(status: Status, exact: bool | None, cost: float) -> Evaluation:
    value = 1.0 if exact else math.inf
    gradient = {"rate": np.ones(())} if exact else None
    return Evaluation(value, gradient, status, Cost(cost, 0.0), "why", diagnostics={"exact": exact})


@pytest.mark.parametrize(
    ("result", "outcome", "has_gradient"),
    [
        ((Status.OK, True, 4), Outcome.EXACT, True),
        ((Status.OK, True, 5), Outcome.ISOLATED, True),
        ((Status.OK, True, 9), Outcome.ISOLATED, True),
        ((Status.EXPLODED, True, 4), Outcome.EXACT, False),
        ((Status.OVERFLOW, None, 1), Outcome.NOT_TRAINED, False),
        ((Status.OK, False, 8), Outcome.INEXACT, False),
        (InexactReversalError("other\nbits"), Outcome.INEXACT, False),
        (RuntimeError("no deterministic implementation"), Outcome.INEXACT, False),
    ],
)
def test_only_what_is_exact_counts_as_reversed(
    result: Any, outcome: Outcome, has_gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = FEW[0]

    def evaluate(*args: Any, **kwargs: Any) -> Evaluation:
        if isinstance(result, Exception):
            raise result
        status, exact, cost = result
        return evaluation(status, exact, cost * setting.program.steps)

    monkeypatch.setattr(reversals, "evaluate", evaluate)
    (found,) = reverse([setting])
    assert found.outcome is outcome
    assert (found.gradient is not None) == has_gradient
    if isinstance(result, Exception):
        assert found.why == words(f"{type(result).__name__}: {result}")


def test_errors_are_measured_by_those_of_float32_on_the_cpu() -> None:
    noise = (1e-7, 2e-7, 3e-7, 1e-3)
    fine = Agreement("matmul", (2e-7, 2e-7, 1e-7, 4e-3), noise)
    assert fine.is_close(1.0)
    np.testing.assert_allclose(fine.ratios, [0.8, 0.8, 1 / 3, 4.0])
    wrong = Agreement("matmul", (2e-7, 2e-7, 1e-4, 4e-3), noise)
    assert not wrong.is_close(1.0)
    assert wrong.is_close(1e3)
    assert not Agreement("matmul", (math.nan,) * 4, noise).is_close(1e3)
    one_in_ten = Agreement("matmul", (1e-7,) * 9 + (1e-2,), (1e-7,) * 10)
    assert one_in_ten.is_close(1.0)
    assert TOLERANCE == 10


@pytest.mark.parametrize(
    ("machine", "verdicts"),
    [
        (CPU, "not needed here, not needed here, not needed here, not needed here"),
        (GPU, "found, found, missing, but only advised, found"),
        (replace(GPU, xla_flags=""), "missing, missing, but only advised, missing, but only advised, found"),
        (
            replace(GPU, xla_flags="--xla_gpu_deterministic_ops=false"),
            "missing, missing, but only advised, missing, but only advised, found",
        ),
        (
            replace(GPU, xla_flags="--xla_gpu_exclude_nondeterministic_ops=true"),
            "found, missing, but only advised, missing, but only advised, found",
        ),
        (
            replace(GPU, xla_flags="--xla_gpu_exclude_nondeterministic_ops --xla_gpu_autotune_level=0"),
            "found, found, missing, but only advised, found",
        ),
        (replace(GPU, coarseness=1.5, has_cpu=False), "found, found, found, missing"),
        (
            replace(GPU, platform="tpu", xla_flags=""),
            "not needed here, not needed here, missing, but only advised, found",
        ),
    ],
)
def test_what_a_machine_needs(machine: Machine, verdicts: str) -> None:
    assert ", ".join(x.verdict for x in machine.checks) == verdicts
    for check in machine.checks:
        assert (check.verdict in (Verdict.MISSING, Verdict.ADVISED)) == bool(check.advice)


def test_this_machine_is_described() -> None:
    here = Machine.here()
    assert here.platform == "cpu"
    assert here.versions["jax"] == jax.__version__
    assert here.coarseness == 1
    assert here.has_cpu
    assert not here.x64


def reversed_as(*outcomes: Outcome) -> list[Reversal]:
    """Return reversals of as many settings of the first kind, and an exact one of each other kind."""
    first = Setting(FEW[0].program, FEW[0].hyperparameters, 0)
    found = [Reversal(first, outcome, "why it is") for outcome in outcomes]
    others = {x.program.kind: x for x in FEW if x.program.kind != first.program.kind}
    return found + [Reversal(x, Outcome.EXACT) for x in others.values()]


COSTS = [MethodCost("Reversible", 1.25, 6.02, 34_700_000, False), MethodCost("Unrolled", 1.0, 5.5, 500_000_000, False)]
SOUND = Findings(
    CPU,
    reversed_as(Outcome.EXACT, Outcome.EXACT, Outcome.ISOLATED, Outcome.NOT_TRAINED),
    [Agreement(kind, (1e-6, 3e-6, 2e-6), (4e-6, 1e-6, 1e-6)) for kind in KINDS],
    COSTS,
)


def test_a_sound_machine_is_said_to_be_sound() -> None:
    assert SOUND.failures == []
    assert verdict(SOUND) == (
        "exact hypergradients can be trusted on cpu (CPU): of 10 random settings 9 could be trained, and all of "
        "these were reversed to the bit."
    )
    assert row(SOUND, "matmul") == ["matmul", "4", "2", "1", "1", "0", "2e-06, 3e-06", "1e-06, 4e-06", "ok"]
    assert row(SOUND, "scatter")[1:6] == ["1", "1", "0", "0", "0"]
    assert row(SOUND, "Reversible") == ["Reversible", "1.2", "6.0", "34.7 MB"]
    assert row(SOUND, "Unrolled") == ["Unrolled", "1.0", "5.5", "500 MB"]
    assert row(SOUND, "jax") == ["jax", "1.2.3"]
    assert "matmul" in shown(SOUND)


def test_one_inexact_reversal_is_a_failure() -> None:
    unsound = replace(SOUND, reversals=reversed_as(Outcome.EXACT, Outcome.INEXACT))
    assert unsound.failures == ["matmul: 1 not reversed to the bit (why it is)"]
    assert row(unsound, "matmul")[2:6] == ["1", "0", "0", "1"]
    assert row(unsound, "matmul")[-1] == "failed"
    assert row(unsound, "scatter")[-1] == "ok"
    assert verdict(unsound).startswith("exact hypergradients cannot be trusted on cpu (CPU). matmul: 1 not")


def test_gradients_that_are_too_far_off_are_a_failure() -> None:
    far = replace(
        SOUND, agreements=[Agreement(kind, (1e-3, 1e-3), (1e-6, 1e-6 if kind == "matmul" else 1e-3)) for kind in KINDS]
    )
    assert far.failures == ["matmul: gradients are too far off"]
    assert replace(far, machine=GPU).failures == []  # its products are as coarse as that


def test_what_could_not_be_compared_is_not_trusted() -> None:
    unknown = replace(SOUND, agreements=SOUND.agreements[1:])
    assert unknown.failures == ["matmul: no gradient could be compared; take more --settings"]
    assert row(unknown, "matmul")[-1] == "failed"


def test_a_peak_of_the_device_is_called_one() -> None:
    assert "as XLA plans it" in markdown(SOUND, "")
    assert "the device's peak" in markdown(replace(SOUND, costs=[replace(x, is_peak=True) for x in COSTS]), "")


def doctor(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["doctor", *map(str, arguments)])


def test_a_gpu_without_its_flag_is_not_examined_any_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "here", lambda: replace(GPU, xla_flags=""))
    monkeypatch.setattr(findings, "settings", None)  # nothing is drawn
    result = doctor()
    assert result.exit_code == 1
    assert f"deterministic operations: missing; set XLA_FLAGS={ON}" in words(result.output)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [(["--settings", "0"], "--settings"), (["--seed", "-1"], "--seed"), (["--page", __file__], "--page")],
)
def test_a_wrong_option_is_named(arguments: list[str], option: str) -> None:
    result = doctor(*arguments)
    assert result.exit_code == 2
    assert option in result.output


@pytest.fixture
def quick_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "CASE", Case(5, 0.9, 8, ()))
    monkeypatch.setattr(costs, "ROUNDS", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_costs")
def test_this_machine_is_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KINDS.keys() - {"scatter", "layer norm"}:  # all would take minutes to compile
        monkeypatch.delitem(KINDS, name)
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    result = doctor("--settings", 20, "--page", page)
    assert result.exit_code == 0, result.output
    assert "exact hypergradients can be trusted on cpu (CPU): of 20 random settings" in words(result.output)
    text = page.read_text()
    assert text.startswith("before\n<!-- doctor -->\n`hypergrad doctor --settings 20 --seed 0`: exact")
    assert text.endswith("adam.\n<!-- /doctor -->\nafter\n")
    assert "old" not in text
    rows = {
        cells[0]: cells for cells in ([x.strip() for x in line.strip("|").split("|")] for line in text.splitlines())
    }
    assert sum(int(rows[kind][1]) for kind in KINDS) == 20
    for kind in KINDS:
        count, exact, isolated, not_trained, inexact = map(int, rows[kind][1:6])
        assert count == exact + isolated + not_trained
        assert inexact == 0
        assert rows[kind][-1] == "ok"
    for method in costs.METHODS:
        assert float(rows[method][2]) > 0
        assert rows[method][3].endswith("B")


def unsteady(params: Params, x: jax.Array, keep: Keep) -> jax.Array:
    """Scores that are a little different at each call, as the host computes them."""
    drawn = np.random.default_rng(0)
    noise: jax.Array = jax.pure_callback(
        lambda x: drawn.normal(size=len(x)).astype(x.dtype), x[:, 0, 0], jax.lax.stop_gradient(x)
    )
    scores: jax.Array = x.reshape(len(x), -1) @ params["out"] * (1 + noise[:, None])
    return scores


@pytest.mark.slow
def test_a_loss_that_is_not_deterministic_makes_it_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(KINDS):
        monkeypatch.delitem(KINDS, name)
    monkeypatch.setitem(KINDS, "unsteady", Kind(lambda width: {"out": (LENGTH * FEATURES, CLASSES)}, unsteady))
    monkeypatch.setattr(costs, "measure", list)
    result = doctor("--settings", 3)
    assert result.exit_code == 1
    assert "unsteady: 3 not reversed to the bit (InexactReversalError: training run backwards" in words(result.output)
