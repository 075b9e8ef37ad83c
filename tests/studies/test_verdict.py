"""The verdict says whether ours pays, by how much, how seldom chance does as much, and what to use instead."""

import math
from dataclasses import replace

import pytest

from hypergrad_studies.records import Record
from hypergrad_studies.spending import Budget
from hypergrad_studies.statistics import History
from hypergrad_studies.verdict import verdict

BUDGET = Budget(100)


def run(
    method: str, seed: int, loss: float, *, test: float | None = None, budget: Budget = BUDGET, seconds: float = 1.0
) -> History:
    trial = Record("bowl", method, seed, 0, loss, test, 100, seconds, 0.0, 0.0, "ok", None)
    return History(("bowl", method, seed), (trial,), budget, gradients=method.startswith("hyper"))


def runs(**losses: list[float]) -> list[History]:
    return [run(method, seed, loss) for method, of in losses.items() for seed, loss in enumerate(of)]


def test_ours_pays_where_it_is_lower_on_each_of_five_seeds() -> None:
    found = verdict(runs(hypergrad=[1, 2, 3, 4, 5], tpe=[2, 4, 6, 8, 10.5], random=[20] * 5))
    assert found is not None
    assert (found.pays, found.ours, found.other, found.others) == (True, "hypergrad", "tpe", 2)
    assert (found.losses, found.wins, found.seeds, found.p) == ((3, 6), 5, 5, 1 / 32)
    assert found.lower is not None
    assert (found.lower.median, found.lower.low, round(found.lower.high, 3)) == (0.5, 0.5, 0.524)
    assert str(found) == (
        "hypergrad pays for bowl at 100 gradient evaluations: the median validation loss is 3 with hypergrad, and 6 "
        "with tpe, the best of 2 others; seed by seed hypergrad is 50 % (50 % to 52 %) lower, and it is lower on 5 of "
        "5 seeds. Chance alone would make hypergrad look so good with the probability p \N{LESS-THAN OR EQUAL TO} "
        "0.031 against each. The median number of trials of hypergrad is 1, that of tpe 1; hypergrad took 1 times as "
        "long."
    )
    assert [(pairing.other, pairing.p, pairing.holm) for pairing in found.against] == [
        ("tpe", 1 / 32, 2 / 32),
        ("random", 1 / 32, 2 / 32),
    ]


def test_four_seeds_are_too_few_to_be_sure() -> None:
    found = verdict(runs(hypergrad=[1, 2, 3, 4], tpe=[2, 3, 4, 5]))
    assert found is not None
    assert (found.pays, found.p) == (None, 1 / 16)
    assert str(found).startswith("hypergrad was not shown to pay for bowl")
    assert (
        "Chance alone would make hypergrad look so good with the probability p = 0.062. So tpe, or whichever is "
        "simpler, will do. By the ranks of the differences, about 9 seeds would show that hypergrad is lower than tpe."
    ) in str(found)


def test_each_of_the_others_must_be_beaten() -> None:
    """The best of the others is beaten on every seed, but one that is worse on the whole wins a seed."""
    found = verdict(runs(hypergrad=[1, 2, 3, 4, 5], tpe=[2, 4, 6, 8, 10.5], random=[0.5, 20, 20.5, 21, 21.5]))
    assert found is not None
    assert (found.other, found.wins, found.pays, found.p) == ("tpe", 5, None, 2 / 32)
    assert found.p == max(pairing.p for pairing in found.against)
    assert found.needed == max(pairing.needed for pairing in found.against)
    assert f"about {found.needed:.0f} seeds would show that hypergrad is lower than each of the others." in str(found)
    assert "It was not shown to be better than random, so that or whichever is simpler will do." in str(found)
    assert "So tpe" not in str(found), "it was beaten"


def test_where_ours_has_the_lowest_median_another_may_be_lower_by_ranks() -> None:
    found = verdict(runs(hypergrad=[3, 3, 1, 1, 1], tpe=[4, 4, 2, 2, 2], random=[2.5, 2.25, 2.1, 0.125, 0.25]))
    assert found is not None
    assert (found.other, found.hardest.other, found.pays, found.needed) == ("tpe", "random", None, math.inf)
    assert f"about {found.needed_behind:.0f} seeds would show that random is lower than hypergrad." in str(found)


def test_where_the_other_is_lower_by_ranks_more_seeds_would_show_that_and_not_that_ours_is() -> None:
    found = verdict(runs(hypergrad=[3, 3, 1, 1, 1], tpe=[2.5, 2.25, 2, 0.125, 0.25]))
    assert found is not None
    assert (found.pays, found.losses, found.needed) == (None, (1, 2), math.inf)
    assert f"about {found.needed_behind:.0f} seeds would show that tpe is lower than hypergrad." in str(found)


def test_a_lead_of_the_best_of_the_others_that_may_be_chance_is_no_difference() -> None:
    found = verdict(runs(hypergrad=[3, 3, 3], tpe=[4, 2, 2], random=[9, 1, 9]))
    assert found is not None
    assert (found.pays, found.other, found.wins, found.needed) == (None, "tpe", 1, math.inf)
    assert str(found) == (
        "hypergrad was not shown to pay for bowl at 100 gradient evaluations: the median validation loss is 3 with "
        "hypergrad, and 2 with tpe, the best of 2 others; seed by seed hypergrad is 50 % higher (25 % lower to 50 % "
        "higher), and it is lower on 1 of 3 seeds. Chance alone would make tpe look so good with the probability p = "
        "1, allowing for the choice among 2. So tpe, or whichever is simpler, will do. By the ranks of the "
        f"differences, about {found.needed_behind:.0f} seeds would show that tpe is lower than hypergrad. "
        "The median number of trials of hypergrad is 1, that of tpe 1; hypergrad took 1 times as long."
    )


def test_a_higher_median_may_go_with_lower_ranks_as_in_the_table() -> None:
    """The other has the lower median and wins more seeds, but by so little that ours is lower by the ranks."""
    found = verdict(runs(hypergrad=[1.04, 1.041, 1.042, 0.8, 0.7], tpe=[1.03, 1.0301, 1.03, 1.02, 1.0]))
    assert found is not None
    assert (found.pays, found.best.ahead, found.wins, found.needed_behind) == (None, False, 2, math.inf)
    assert found.needed == found.best.needed < math.inf
    assert f"about {found.needed:.0f} seeds would show that hypergrad is lower than tpe." in str(found)


def test_differences_that_cancel_would_show_nothing() -> None:
    found = verdict(runs(hypergrad=[1, 3], tpe=[2, 2]))
    assert found is not None
    assert (found.pays, found.needed, found.needed_behind) == (None, math.inf, math.inf)
    assert "With differences such as these, more seeds would show none." in str(found)


def test_p_of_what_does_not_pay_is_that_of_the_other_being_lower() -> None:
    alone = verdict(runs(hypergrad=[2, 3, 4, 5, 6], tpe=[1.5, 2, 2.5, 3, 3.5]))
    assert alone is not None
    assert (alone.pays, alone.p) == (False, 1 / 32)
    assert str(alone).startswith("hypergrad does not pay for bowl")
    assert "Chance alone would make tpe look so good with the probability p = 0.031. Use tpe. The median" in str(alone)
    chosen = verdict(runs(hypergrad=[2, 3, 4, 5, 6], tpe=[1.5, 2, 2.5, 3, 3.5], random=[9.0] * 5))
    assert chosen is not None
    assert (chosen.pays, chosen.p) == (None, 2 / 32)


def test_equal_losses_show_no_difference() -> None:
    found = verdict(runs(hypergrad=[3, 3], tpe=[3, 3]))
    assert found is not None
    assert (found.pays, found.p, found.wins) == (None, 1.0, 0)
    assert str(found) == (
        "hypergrad was not shown to pay for bowl at 100 gradient evaluations: the validation loss of hypergrad is "
        "that of tpe, on each of 2 seeds, of which the median is 3. So tpe, or whichever is simpler, will do. "
        "The median number of trials of hypergrad is 1, that of tpe 1; hypergrad took 1 times as long."
    )


def test_without_a_finite_median_no_method_has_a_result_and_none_is_to_be_used() -> None:
    found = verdict(runs(hypergrad=[math.inf] * 3, tpe=[math.inf] * 3, random=[math.inf] * 3))
    assert found is not None
    assert (found.pays, found.says) == (None, "no result")
    assert str(found) == (
        "no method has a result for bowl at 100 gradient evaluations: the median validation loss of each is infinite."
    )


def test_with_infinite_losses_the_seeds_are_counted_and_the_medians_not_called_differences() -> None:
    inf = math.inf
    ahead = verdict(runs(hypergrad=[3, 3, inf], tpe=[2, 4, 4]))
    assert ahead is not None
    assert "is 3 with hypergrad, and 4 with tpe; hypergrad is lower on 1 of 3 seeds" in str(ahead)
    behind = verdict(runs(hypergrad=[1, inf, 3], tpe=[2, 2, 2]))
    assert behind is not None
    assert "is 3 with hypergrad, and 2 with tpe; hypergrad is lower on 1 of 3 seeds" in str(behind)
    assert "seed by seed" not in f"{ahead} {behind}"


@pytest.mark.parametrize("seconds", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_of_unmeasured_times_nothing_is_said(seconds: tuple[float, float]) -> None:
    found = verdict([run("hypergrad", 0, 1.0, seconds=seconds[0]), run("tpe", 0, 2.0, seconds=seconds[1])])
    assert found is not None
    assert "took" not in str(found)


def test_the_test_loss_decides_where_there_is_one() -> None:
    ours = [run("hypergrad", seed, 1.0, test=5.0) for seed in range(5)]
    found = verdict([*ours, *(run("tpe", seed, 2.0, test=4.0) for seed in range(5))])
    assert found is not None
    assert (found.pays, found.measure, found.losses) == (False, "test loss", (5.0, 4.0))


def test_what_was_held_back_decides_where_there_is_no_test_loss() -> None:
    ours = [run("hypergrad", seed, 1.0) for seed in range(5)]
    ours = [replace(h, trials=tuple(replace(t, cross_validated=3.0) for t in h.trials)) for h in ours]
    found = verdict([*ours, *runs(tpe=[2.0] * 5)])
    assert found is not None
    assert (found.pays, found.measure, found.losses) == (False, "cross-validated loss", (3.0, 2.0))


def test_more_budget_is_not_the_same_budget() -> None:
    twice = [run("random-2x", seed, 0.5, budget=BUDGET.times(2)) for seed in range(5)]
    found = verdict([*runs(hypergrad=[1] * 5, random=[2, 3, 4, 5, 6]), *twice])
    assert found is not None
    assert (found.pays, found.other, found.others) == (True, "random", 1)
    assert [pairing.other for pairing in found.against] == ["random-2x", "random"]
    assert str(found).endswith(" hypergrad took 1 times as long. random-2x, at twice the budget, has 0.5.")


@pytest.mark.parametrize(
    ("budget", "loss", "says"),
    [
        (BUDGET.times(3), 0.5, " far, at 300 gradient evaluations, has 0.5."),
        (None, 0.5, " far, without a limit, has 0.5."),
        (BUDGET.times(2), 1.0, " took 1 times as long."),  # it is not ahead
    ],
)
def test_methods_of_another_budget_are_named_where_they_are_ahead(
    budget: Budget | None, loss: float, says: str
) -> None:
    others = [replace(run("far", seed, loss), budget=budget) for seed in range(5)]
    found = verdict([*runs(hypergrad=[1] * 5, random=[2, 3, 4, 5, 6]), *others])
    assert found is not None
    assert str(found).endswith(says)


def test_the_default_is_judged_and_not_the_best_of_ours() -> None:
    found = verdict(
        [
            *runs(hypergrad=[3] * 5, tpe=[2] * 5),
            *(run("hypergrad-unlifted", seed, 1.0) for seed in range(5)),
        ]
    )
    assert found is not None
    assert (found.ours, found.pays, found.others) == ("hypergrad", False, 1)


def test_failed_runs_count_and_lose() -> None:
    inf = math.inf
    found = verdict(runs(hypergrad=[1, 2, 3, 4, 5, inf], tpe=[inf, inf, inf, inf, inf, inf]))
    assert found is not None
    assert (found.pays, found.wins, found.seeds, found.lower) == (True, 5, 6, None)
    assert found.p == 1 / 32  # the sixth pair is equal
    worse = verdict(runs(hypergrad=[inf] * 5, tpe=[1, 2, 3, 4, 5]))
    assert worse is not None
    assert (worse.pays, worse.p, worse.needed, worse.needed_behind) == (False, 1 / 32, math.inf, 9)


def test_a_budget_below_one_trial_tells_nothing() -> None:
    ours = [run("hypergrad", seed, 1.0, budget=Budget(50)) for seed in range(5)]  # a trial of `run` costs 100
    others = [replace(run("tpe", seed, 2.0, budget=Budget(50)), trials=()) for seed in range(5)]
    found = verdict([*ours, *others])
    assert found is not None
    assert found.pays is None
    assert "hypergrad was not tried for bowl at 50" in str(found)
    assert "none of its trials fits in the budget" in str(found)


def test_seeds_are_paired_where_both_have_finished() -> None:
    found = verdict(runs(hypergrad=[1, 2, 3], tpe=[2, 3, 4, 5]))
    assert found is not None
    assert found.seeds == 3


def test_trials_are_medians_of_those_within_the_budget() -> None:
    records = [Record("bowl", "tpe", 0, i, 2.0, None, 25 * (i + 1), 1.0, 0.0, 0.0, "ok", None) for i in range(6)]
    many = [History(("bowl", "tpe", seed), tuple(records), BUDGET, gradients=False) for seed in range(2)]
    found = verdict([*runs(hypergrad=[1, 1]), *many])
    assert found is not None
    assert found.trials == (1, 4)
    assert "The median number of trials of hypergrad is 1, that of tpe 4; hypergrad took" in str(found)


def test_time_is_a_ratio() -> None:
    found = verdict([run("hypergrad", 0, 1.0, seconds=3.0), run("tpe", 0, 2.0, seconds=2.0)])
    assert found is not None
    assert found.time == 1.5


@pytest.mark.parametrize("methods", [("tpe", "random"), ("hypergrad", "hypernet"), ()])
def test_without_ours_or_others_there_is_no_verdict(methods: tuple[str, ...]) -> None:
    assert verdict(runs(**{name: [1.0, 2.0] for name in methods})) is None


def test_medians_are_those_of_the_seeds_in_common() -> None:
    found = verdict(runs(hypergrad=[1, 1, 1, 9, 9, 9, 9], tpe=[2, 2, 2]))
    assert found is not None
    assert (found.losses, found.wins, found.seeds, found.pays) == ((1, 2), 3, 3, None)


def test_a_test_loss_that_some_runs_lack_does_not_decide() -> None:
    ours = [run("hypergrad", seed, 1.0) for seed in range(3)]
    found = verdict([*ours, *(run("tpe", seed, 2.0, test=0.5) for seed in range(3))])
    assert found is not None
    assert (found.measure, found.losses) == ("validation loss", (1.0, 2.0))
