"""Ours against others by pairs: the test, its adjustment, and how many seeds are enough."""

import math

import numpy as np
import pytest

from hypergrad_studies.pairing import POWER, SURE, fewest, p_lower, pairings, seeds_needed, shown

INF = math.inf


def test_pairs_tell_what_independent_samples_would_not() -> None:
    ours, theirs = np.array([1.0, 10, 20, 30, 40]), np.array([1.5, 11, 22, 33, 44])
    assert p_lower(ours, theirs) == 1 / 32
    assert p_lower(theirs, ours) == 1.0


def test_infinite_losses_are_the_largest_and_equal_to_each_other() -> None:
    fine, lost = np.array([1.0, 2, 3, 4, 5]), np.full(5, INF)
    assert p_lower(fine, lost) == 1 / 32
    assert p_lower(lost, lost) == 1.0


def test_adjusted_p_allows_for_all_that_ours_was_compared_with() -> None:
    ours = dict(enumerate([1.0, 2, 3, 4, 5]))
    others = {
        "far": {seed: loss + 10 + seed for seed, loss in ours.items()},
        "near": {seed: loss + (-0.5 if seed == 0 else seed) for seed, loss in ours.items()},
        "elsewhere": {7: 0.0},
    }
    near, far = pairings(ours, others)
    assert (near.other, far.other) == ("near", "far")
    assert (far.p, far.holm, far.wins, far.seeds) == (1 / 32, 2 / 32, 5, 5)
    assert (near.p, near.holm, near.wins, near.ahead) == (2 / 32, 2 / 32, 4, True)
    assert (near.behind, far.behind) == (31 / 32, 1.0)


@pytest.mark.parametrize("level", [0.05, 0.05 / 6, 0.001])
def test_with_the_fewest_seeds_a_test_can_be_below_the_level_and_with_one_less_it_cannot(level: float) -> None:
    ours = np.arange(1.0, fewest(level) + 1)
    assert p_lower(ours, 2 * ours) < level <= p_lower(ours[1:], 2 * ours[1:])


def test_so_many_seeds_as_are_needed_have_the_power() -> None:
    rng = np.random.default_rng(0)
    seen = rng.normal(-0.5, 1.0, 2000)
    needed = int(seeds_needed(seen, np.zeros(2000)))
    sure = [p_lower(rng.normal(-0.5, 1.0, needed), np.zeros(needed)) < SURE for _ in range(1000)]
    assert POWER - 0.03 < np.mean(sure) < POWER + 0.1
    assert needed < seeds_needed(seen, np.zeros(2000), SURE / 6)


def test_no_number_of_seeds_shows_what_is_not_there() -> None:
    ours = np.array([1.0, 2.0, 3.0])
    assert seeds_needed(ours, ours) == INF
    assert seeds_needed(ours, ours - 0.5) == INF


@pytest.mark.parametrize("ours", [[1.0, 2.0, INF], [3.0, INF, INF]])
def test_where_a_loss_is_infinite_only_seeds_are_counted(ours: list[float]) -> None:
    (found,) = pairings(dict(enumerate(ours)), {"tpe": {0: 2.0, 1: 1.5, 2: 3.0}})
    wins = sum(mine < theirs for mine, theirs in zip(ours, (2.0, 1.5, 3.0), strict=True))
    assert found.difference == f"lower on {wins} of 3 seeds"


def test_a_tie_on_every_seed_is_level_and_a_tie_of_medians_is_not() -> None:
    level, other = pairings({0: 1.0, 1: INF, 2: 3.0}, {"a": {0: 1.0, 1: INF, 2: 3.0}, "b": {0: 3.0, 1: INF, 2: 1.0}})
    assert (level.ties, level.level) == (3, True)
    assert (other.ties, other.level, other.losses) == (1, False, (3.0, 3.0))


def test_no_share_is_minus_nothing() -> None:
    (found,) = pairings({0: 1.001, 1: 1.0, 2: 0.9, 3: 0.9}, {"tpe": dict.fromkeys(range(4), 1.0)})
    assert found.lower is not None
    assert found.lower.low < 0
    assert found.difference == "5 % lower (10 % lower to under 1 % higher)"


@pytest.mark.parametrize(
    ("ours", "text"),
    [
        ([0.9, 0.8, 0.7], "20 % (10 % to 30 %) lower"),
        ([1.1, 1.0, 1.3], "10 % (0 % to 30 %) higher"),
        ([1.0, 1.0, 0.7], "0 % (0 % to 30 %) lower"),
        ([0.76, 1.001, 1.08], "under 1 % higher (24 % lower to 8 % higher)"),
        ([0.76, 1.0, 1.08], "equal (24 % lower to 8 % higher)"),
        ([1.0, 1.0, 1.0], "equal"),
        ([0.001, 0.001, 0.001], "over 99 % (over 99 % to over 99 %) lower"),
    ],
)
def test_a_difference_says_which_is_lower_and_both_where_the_interval_has_both(ours: list[float], text: str) -> None:
    (found,) = pairings(dict(enumerate(ours)), {"tpe": dict.fromkeys(range(3), 1.0)})
    assert found.difference == text


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.03125, "= 0.031"), (0.0499, "= 0.0499"), (0.049996, "= 0.049996"), (0.05, "= 0.05"), (0.0501, "= 0.0501")],
)
def test_p_is_shown_on_its_side_of_the_level(p: float, text: str) -> None:
    assert shown(p) == text
