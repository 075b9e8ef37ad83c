"""Workers in virtual time: what a table says of them is what they found."""

import itertools
import math
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import optuna
import pytest
from click.testing import CliRunner
from optuna.trial import TrialState, create_trial

from hypergrad_optuna import attributes
from hypergrad_studies import parallel
from hypergrad_studies.cli import cli
from hypergrad_studies.parallel import LANDSCAPES, Landscape, progress, time_to
from hypergrad_studies.sweep import speedup


@pytest.mark.parametrize("name", LANDSCAPES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    landscape = LANDSCAPES[name]
    x = np.random.default_rng(0).uniform(landscape.low, landscape.high, landscape.n)
    _, gradient = landscape.slope(x)
    direction = np.random.default_rng(1).normal(size=landscape.n) * 1e-5
    change = landscape.slope(x + direction)[0] - landscape.slope(x - direction)[0]
    assert change == pytest.approx(2 * float(direction @ gradient), rel=1e-5)
    assert landscape.named(landscape.point(landscape.named(x))).keys() == landscape.space.keys()


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("vary", [False, True])
def test_so_many_trials_run_at_once(workers: int, vary: bool) -> None:
    ends = list(itertools.islice(progress(LANDSCAPES["bowl, 5 numbers"], workers, 0, vary=vary), 30))
    times, best = zip(*ends, strict=True)
    assert list(times) == sorted(times)
    assert list(best) == sorted(best, reverse=True)
    if vary:
        assert 0.5 * 30 / workers < times[-1] < 1.5 * 30 / workers
    else:
        assert times == tuple(float(number // workers + 1) for number in range(30))


def test_the_time_to_a_target_is_when_it_was_reached() -> None:
    landscape = LANDSCAPES["bowl, 2 numbers"]
    ends = list(itertools.islice(progress(landscape, 2, 3, vary=True), 40))
    target = ends[-1][1]
    assert time_to(landscape, target, 2, 3, vary=True) == next(time for time, best in ends if best <= target)
    assert time_to(landscape, -1.0, 2, 3, vary=True) == math.inf


def test_noise_is_seen_and_does_not_count() -> None:
    quiet = Landscape(parallel.valley(3, 2, 0), -5, 5, 3)
    noisy = replace(quiet, noise=0.1)
    some, others = (list(itertools.islice(progress(each, 1, 0, vary=False), 20)) for each in (quiet, noisy))
    assert some[0] == others[0]  # the true value at the centre
    assert some != others


def test_the_command_shows_each_function(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: LANDSCAPES[name] for name in list(LANDSCAPES)[:2]}
    monkeypatch.setattr(parallel, "LANDSCAPES", few)
    done = CliRunner().invoke(cli, ["parallel", "--trials", "20", "--repeats", "2", "--workers", "4"])
    assert done.exit_code == 0, done.output
    assert all(name in done.output for name in few)
    assert "Time of 4 workers / time of 1" in done.output


def test_what_a_sweep_had_found_and_when() -> None:
    began = datetime(2026, 1, 1)
    study = optuna.create_study()
    for after, value, status in ((3, 2.0, "ok"), (1, 5.0, "ok"), (2, 0.1, "overfitted"), (4, 3.0, "ok")):
        trial = create_trial(value=value, user_attrs={attributes.STATUS: status})
        trial.datetime_start, trial.datetime_complete = began, began + timedelta(seconds=after)
        study.add_trial(trial)
    study.add_trial(create_trial(state=TrialState.FAIL))
    found = list(speedup.reached(study))
    assert found == [(1.0, 5.0), (2.0, 5.0), (3.0, 2.0), (4.0, 2.0)]
    assert [speedup.time_to(target, found) for target in (5.0, 2.0, 1.0)] == [1.0, 3.0, math.inf]


@pytest.mark.slow
def test_real_processes_are_measured(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def make():\n    return lambda trial: trial.suggest_float('x', -1, 1) ** 2\n")
    words = ["parallel", "--problem", f"{tmp_path / 'mine.py'}:make", "--workers", "2", "--trials", "10"]
    done = CliRunner().invoke(cli, [*words, "--repeats", "1"])
    assert done.exit_code == 0, done.output
    assert "2 processes (s)" in done.output
    refused = CliRunner().invoke(cli, ["parallel", "--problem", "nothing"])
    assert (refused.exit_code, "'nothing' is not one of" in refused.output) == (2, True)
