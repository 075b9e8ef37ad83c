import jax
import numpy as np
import pytest

from hypergrad_search import Status, evaluate
from hypergrad_search.problem import check_problem
from hypergrad_search.space import dimension, from_unit
from hypergrad_studies.problems import PROBLEMS, digits

DIMENSIONS = {"digits-mlp": 10, "digits-l2": 650}


def test_the_table_of_dimensions_is_whole() -> None:
    assert DIMENSIONS.keys() == PROBLEMS.keys()


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_trains_and_has_a_gradient(name: str) -> None:
    problem, space = PROBLEMS[name]()
    check_problem(problem, space)
    assert dimension(space) == DIMENSIONS[name]
    result = evaluate(problem, from_unit(space, np.full(dimension(space), 0.5)), key=jax.random.key(0))
    assert result.status == Status.OK
    assert result.diagnostics["exact"] is True
    assert result.value < 2.3  # better than guessing
    assert result.diagnostics["test_loss"] is not None
    assert all((np.asarray(g) != 0).any() for g in result.gradient.values())


def test_no_image_is_in_two_sets() -> None:
    train, valid, test = digits.splits()
    assert [len(part.labels) for part in (train, valid, test)] == [1000, 400, 397]
    rows = [{row.tobytes() for row in part.images} for part in (train, valid, test)]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]


def test_batches_go_through_the_training_set_in_turn() -> None:
    train = digits.splits()[0]
    seen = np.concatenate([digits.batches(np.int32(step)).labels for step in range(5)])
    np.testing.assert_array_equal(seen, train.labels)
    np.testing.assert_array_equal(digits.batches(np.int32(5)).images, digits.batches(np.int32(0)).images)
