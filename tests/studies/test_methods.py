"""The ways to the gradient are held against float64, each for what it sees."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import Unrolled, evaluate
from hypergrad_studies import json_lines, methods
from hypergrad_studies.methods import Case, Record
from hypergrad_studies.problems import digits

CASE = Case("ridge", steps=100, penalties=4)


def test_the_truth_of_ridge_is_its_closed_form() -> None:
    """After many steps of full momentum the weights are where `(X'X / n + l2) w = X'y / n` says."""
    case = Case("ridge", steps=4000, rate=0.05, penalties=4)
    found = methods.truth(case)
    assert found is not None
    train, valid, _ = digits.splits()

    def value(l2: jax.Array) -> jax.Array:
        x, y = (_with_ones(s.images) for s in (train, valid))
        t, v = ((jnp.asarray(s.labels, jnp.float64) - 4.5) / 4.5 for s in (train, valid))
        penalty = jnp.append(l2[jnp.arange(64) * 4 // 64], 0.0)
        w = jnp.linalg.solve(x.T @ x / len(x) + jnp.diag(penalty), x.T @ t / len(x))
        return jnp.mean((y @ w - v) ** 2)

    with jax.enable_x64(True):
        closed = np.asarray(jax.grad(value)(jnp.full(4, np.float32(1e-3), jnp.float64)))
    # Minibatches keep the weights a little away from the minimum.
    ours = found["l2"] / (1e-3 * np.log(1e5))
    assert float(ours @ closed / np.linalg.norm(ours) / np.linalg.norm(closed)) > 0.98


def _with_ones(images: np.ndarray) -> jax.Array:
    return jnp.column_stack([jnp.asarray(images, jnp.float64), jnp.ones(len(images))])


@pytest.mark.slow
def test_exact_methods_have_small_errors_and_others_say_theirs() -> None:
    names = ["Unrolled", "Reversible", "Implicit, CG"]
    records = {r.method: r for r in methods._of_case(CASE, names, 1)}
    for name in ("Unrolled", "Reversible"):
        record = records[name]
        assert record.status == "ok"
        assert record.error is not None
        assert record.optimizer_error is not None
        assert max(record.error, record.optimizer_error) < 1e-3
        assert record.cosine == pytest.approx(1, abs=1e-5)
        assert record.cost == 4
    implicit = records["Implicit, CG"]
    assert implicit.optimizer_error is None, "it does not see them"
    assert implicit.error is not None
    assert implicit.error > 1e-3
    assert len(implicit.ratios) == 1
    assert all(record.memory is not None and record.memory >= 1 for record in records.values())


def test_errors_are_in_units_of_the_box() -> None:
    with jax.enable_x64(True):
        h = {name: jnp.asarray(x, jnp.float64) for name, x in methods._as_float32(CASE.hyperparameters).items()}
        found = evaluate(methods.problem(CASE), h, key=jax.random.key(0), method=Unrolled()).gradient
    exact = methods.truth(CASE)
    assert found is not None
    assert exact is not None
    np.testing.assert_allclose(exact["l2"], np.asarray(found["l2"]) * 1e-3 * np.log(1e5), rtol=1e-6)
    np.testing.assert_allclose(exact["momentum"], np.asarray(found["momentum"]) * 0.899, rtol=1e-6)


def test_a_method_for_few_numbers_is_not_run_for_many() -> None:
    (record,) = methods._of_case(Case("ridge", penalties=640), ["Forward"], 1)
    assert (record.status, record.error, record.ratios) == ("not run", None, [])


def test_cases_vary_one_thing_at_a_time() -> None:
    base = Case()
    for case in methods.cases(4000):
        different = [name for name, x in vars(case).items() if x != getattr(base, name)]
        assert len(different) <= (2 if case.model != base.model else 1)
    assert all(case.steps <= 400 for case in methods.cases(400))
    assert len({methods._title(case) for case in methods.cases(4000)}) == len(methods.cases(4000))


def test_records_are_written_and_shown(tmp_path: Path) -> None:
    records = [
        Record("a", "Reversible", "ok", 1e-6, 1.0, 2e-6, 4.0, [4.0, 6.0, 5.0], 1.26),
        Record("a", "Forward", "not run"),
    ]
    methods.write(records, tmp_path / "out")
    lines = (tmp_path / "out" / "methods.jsonl").read_text().splitlines()
    assert [json_lines.parse(line, Record) for line in lines] == records
    (table,) = methods.tables(records)
    assert table.title == "a"
    assert [list(column.cells) for column in table.columns][-2:] == [["5.0", ""], ["1.3", ""]]


def test_a_page_has_a_row_for_each_case_and_a_column_for_each_method() -> None:
    records = [
        Record("short", "Reversible", "ok", 1.2e-6, 1.0, 3.4e-5, 4.0, [3.0, 3.5, 5.0], 17.0),
        Record("short", "DrMAD", "exploded", 0.5, 0.9, None, 3.0, [2.0]),
        Record("long", "Reversible", "diverged", cost=1.0, ratios=[1.0]),
        Record("long", "DrMAD", "not run"),
    ]
    page = methods.markdown(records, "hypergrad methods")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert rows[0] == "| case | Reversible | DrMAD |"
    assert rows[2:4] == ["| short | 1.2e-06 | 5.0e-01 (exploded) |", "| long | (diverged) | not run |"]
    assert rows[6:8] == ["| short | 1.000 | 0.900 |", "| long |  |  |"]
    assert rows[10:12] == ["| short | 3.4e-05 |  |", "| long |  |  |"]
    assert rows[14:16] == ["| short | 3.5 | 2.0 |", "| long | 1.0 |  |"]
    assert rows[18:20] == ["| short | 17.0 |  |", "| long |  |  |"]


@pytest.mark.slow
def test_memory_is_that_of_the_largest_program() -> None:
    short, long = (
        record.memory for steps in (400, 1600) for record in methods._of_case(Case("ridge", steps), ["Unrolled"], 0)
    )
    assert short is not None
    assert long is not None
    assert 1.5 < long / short < 2.5, "it grows with the square root of the steps"
