"""Each number against a case small enough to work out by hand, and what infinities and gaps do to it."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from hypergrad_studies.records import Record, Run
from hypergrad_studies.spending import Budget
from hypergrad_studies.statistics import (
    Curve,
    History,
    Quartiles,
    band,
    by_gradient_evaluations,
    by_seconds,
    chosen,
    failures,
    final,
    final_test,
    final_tests,
    finals,
    histories,
    holm,
    losses,
    quartiles,
    resample,
    statuses,
    summaries,
    unfinished,
    without_result,
)

INF = math.inf


def trials(
    values: Sequence[float],
    method: str = "tpe",
    seed: int = 0,
    tests: Sequence[float | None] | None = None,
    status: str = "ok",
) -> list[Record]:
    """Return trials that cost 10 gradient evaluations and 1 + 0.5 + 0.25 seconds each."""
    return [
        Record(
            "digits",
            method,
            seed,
            i,
            value,
            tests[i] if tests else value + 1,
            10 * (i + 1),
            1.0,
            0.5,
            0.25,
            status,
            None,
        )
        for i, value in enumerate(values)
    ]


def history(values: Sequence[float], budget: int | None = None, tests: Sequence[float | None] | None = None) -> History:
    return History(("digits", "tpe", 0), tuple(trials(values, tests=tests)), None if budget is None else Budget(budget))


def test_best_so_far_steps_down_at_each_cost() -> None:
    run = history([3.0, INF, 4.0, 1.0])
    spent, seconds = by_gradient_evaluations(run), by_seconds(run)
    np.testing.assert_array_equal(spent.x, [10, 20, 30, 40])
    np.testing.assert_array_equal(seconds.x, [1.75, 3.5, 5.25, 7.0])
    np.testing.assert_array_equal(spent.y, [3, 3, 3, 1])
    np.testing.assert_array_equal(seconds.y, spent.y)


@pytest.mark.parametrize(("budget", "best"), [(None, 1.0), (40, 1.0), (39, 2.0), (9, INF)])
def test_trial_counts_only_within_the_budget(budget: int | None, best: float) -> None:
    run = history([3.0, 2.0, 2.5, 1.0], budget)
    assert final(run) == best
    assert by_gradient_evaluations(run).y[-1] == best


@pytest.mark.parametrize("status", ["pruned", "nan", "failed"])
def test_only_ok_and_finite_trials_count(status: str) -> None:
    run = History(("digits", "tpe", 0), (*trials([5.0]), *trials([1.0], status=status)))
    np.testing.assert_array_equal(losses(run), [5, INF])
    np.testing.assert_array_equal(losses(history([math.nan, -INF, 2.0])), [INF, INF, 2])


def test_validation_chooses_and_test_never_does() -> None:
    run = history([3.0, 1.0, 1.0], tests=[0.0, 8.0, 9.0])
    best = chosen(run)
    assert best is not None
    assert (best.trial, final_test(run)) == (1, 8.0)


@pytest.mark.parametrize(("tests", "expected"), [([None], None), ([math.nan], INF), ([0.5], 0.5)])
def test_test_loss_may_be_missing_or_not_finite(tests: list[float | None], expected: float | None) -> None:
    assert final_test(history([1.0], tests=tests)) == expected


def test_run_without_a_finite_trial_is_last_not_lost() -> None:
    records = [*trials([INF, INF], seed=1, tests=[None, None]), *trials([2.0], seed=2)]
    runs = histories(records)
    assert without_result(runs) == [("digits", "tpe", 1)]
    assert finals(runs) == {"tpe": {1: INF, 2: 2.0}}
    assert final_tests(runs) == {"tpe": {1: INF, 2: 3.0}}
    (row,) = summaries(runs)
    assert row.validation == Quartiles(INF, INF, INF, 2)


def test_problem_without_test_loss_has_none() -> None:
    runs = histories(trials([1.0], tests=[None]))
    assert final_tests(runs) == {}
    assert summaries(runs)[0].test is None


def test_histories_sort_keep_empty_runs_and_leave_out_unfinished() -> None:
    late, early = trials([1.0, 2.0])[::-1]
    done = [Run("digits", "tpe", 0, 15, 2, 1.0), Run("digits", "gp", 0, 15, 0, 1.0)]
    records = [late, early, *trials([0.1], seed=9)]
    assert histories(records, done) == [
        History(("digits", "gp", 0), (), Budget(15)),
        History(("digits", "tpe", 0), (early, late), Budget(15)),
    ]
    assert unfinished(records, done) == [("digits", "tpe", 9)]
    assert unfinished(records) == []
    assert [run.key[2] for run in histories(records)] == [0, 9]


def test_resample_holds_steps() -> None:
    curve = Curve(np.array([1.0, 2.0, 2.0]), np.array([5.0, 4.0, 3.0]))
    np.testing.assert_array_equal(resample(curve, np.array([0.5, 1, 1.5, 2, 9])), [INF, 5, 5, 3, 3])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], (7, 7, 7)),
        ([1.0, 2.0, 3.0, 4.0, 5.0], (2, 3, 4)),
        ([4.0, 1.0, 2.0, 3.0], (1.75, 2.5, 3.25)),
        ([1.0, 2.0, 3.0, 4.0, INF], (2, 3, 4)),
        ([1.0, 2.0, INF, INF], (1.75, INF, INF)),
        ([INF, INF], (INF, INF, INF)),
    ],
)
def test_quartiles(values: list[float], expected: tuple[float, float, float]) -> None:
    assert quartiles(values) == Quartiles(*expected, n=len(values))


def test_quartiles_match_numpy_where_all_is_finite() -> None:
    values = np.random.default_rng(0).normal(size=11)
    ours = quartiles(list(values))
    np.testing.assert_allclose([ours.lower, ours.median, ours.upper], np.quantile(values, [0.25, 0.5, 0.75]))


def test_nothing_has_no_quartiles() -> None:
    with pytest.raises(ValueError, match="values must hold at least one number"):
        quartiles([])
    with pytest.raises(ValueError, match="curves must hold at least one curve"):
        band([])


def test_band_is_exact_on_the_union_of_steps() -> None:
    curves = [by_gradient_evaluations(history(v)) for v in ([4.0, 4.0, 1.0], [2.0, 2.0, 2.0], [INF, 3.0, 3.0])]
    ours = band(curves)
    np.testing.assert_array_equal(ours.x, [10, 20, 30])
    np.testing.assert_array_equal(ours.median, [4, 3, 2])
    np.testing.assert_array_equal(ours.lower, [3, 2.5, 1.5])
    np.testing.assert_array_equal(ours.upper, [INF, 3.5, 2.5])
    assert ours.n == 3


def test_band_drops_only_points_without_a_step() -> None:
    ours = band([by_gradient_evaluations(history([2.0, 2.0, 1.0, 1.0, 1.0]))])
    np.testing.assert_array_equal(ours.x, [10, 30, 50])
    np.testing.assert_array_equal(ours.median, [2, 1, 1])


def test_band_of_runs_without_trials_is_empty() -> None:
    ours = band([by_gradient_evaluations(history([]))])
    assert (ours.x.size, ours.n) == (0, 1)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_failures_are_counted_by_status() -> None:
    records = [*trials([1.0, 2.0]), *trials([3.0], status="pruned"), *trials([INF] * 3, status="nan")]
    assert statuses(records) == {"ok": 2, "pruned": 1, "nan": 3}
    assert failures(records) == 3


def test_summaries_hold_medians_of_whole_runs() -> None:
    records = [
        *trials([4.0, 3.0], seed=0),
        *trials([2.0, 1.0, INF, INF], seed=1),
        *trials([0.5], method="gp"),
        *trials([INF], method="cmaes", status="failed"),
    ]
    best, row, worst = summaries(histories(records))
    assert (best.method, worst.method) == ("gp", "cmaes")
    assert row.validation == Quartiles(1.5, 2.0, 2.5, 2)
    assert row.test == Quartiles(2.5, 3.0, 3.5, 2)
    assert (row.gradient_evaluations, row.seconds, row.ask_tell_seconds) == (30, 3.0, 2.25)
    assert (row.failures, worst.failures) == (0, 1)
