"""Architectures are masks; generated weights rank them, and both searches have the same budget."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_studies import architecture, json_lines
from hypergrad_studies.architecture import CONNECTIONS, Ranking, Record
from hypergrad_studies.problems import digits

KEY = jax.random.key(0)
WHOLE = {"connections": jnp.ones(len(CONNECTIONS))}


def test_a_connection_that_is_cut_has_no_effect() -> None:
    images = jnp.asarray(digits.splits()[1].images[:5])
    params = architecture.init(KEY, WHOLE)
    for cut in range(len(CONNECTIONS)):
        connections = WHOLE["connections"].at[cut].set(0)
        other = {**params, "weights": [w if i != cut else w + 1 for i, w in enumerate(params["weights"])]}
        some, same, whole = (
            architecture.outputs(*each, images)
            for each in ((params, connections), (other, connections), (other, WHOLE["connections"]))
        )
        np.testing.assert_array_equal(some, same)
        assert (some != whole).any()


@pytest.mark.slow
def test_a_network_without_its_input_names_by_chance() -> None:
    """Connections from the input come first of each block."""
    without = jnp.array([float(start != 0) for start, _ in CONNECTIONS])
    found = architecture.train(architecture.problem(20), np.asarray(without), KEY)
    assert found.value == pytest.approx(np.log(10), abs=0.02)
    assert architecture.train(architecture.problem(20), np.ones(len(CONNECTIONS), np.float32), KEY).value < 1.0


@pytest.mark.slow
def test_generated_weights_tell_architectures_apart() -> None:
    training = architecture.problem(20)
    net = architecture.Generated.learned(training, KEY, 300)
    assert net.cost == 300
    without = np.array([float(start != 0) for start, _ in CONNECTIONS], np.float32)
    whole, cut = net.values(np.stack([np.ones_like(without), without]))
    assert whole < 1.0
    assert cut > 2.0


@pytest.mark.slow
def test_both_searches_spend_the_same() -> None:
    records, ranking = architecture._of_seed(architecture.problem(10), 0, runs=30)
    spent = {record.way: record.gradient_evaluations for record in records}
    assert spent["random search"] == spent["generated weights"] == 300
    assert spent["all connections"] == spent["one at random"] == 10
    assert ranking.n == 30
    assert -1 <= ranking.generated <= ranking.again <= 1
    assert [len(r.connections) for r in records if r.way == "all connections"] == [len(CONNECTIONS)]


def test_records_are_written_and_shown(tmp_path: Path) -> None:
    records = [
        Record(way, seed, [(0, 1), (1, 5)], 0.2, test + seed / 100, 900.0, 1.0)
        for way, test in (("generated weights", 0.2), ("random search", 0.21))
        for seed in range(3)
    ]
    rankings = [Ranking(seed, 30, 0.5, 0.9) for seed in range(3)]
    architecture.write(records, rankings, tmp_path / "out")
    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    assert [json_lines.parse(line, Record) for line in lines] == records
    found, ranks = architecture.tables(records, rankings)
    assert [list(column.cells) for column in found.columns][4] == ["", "3 of 3"]
    assert [list(column.cells) for column in ranks.columns][1][0] == "0.500 (0.500 to 0.500)"
