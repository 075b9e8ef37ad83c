"""A running Optuna Dashboard shows what `save_to_dashboard` saves: over HTTP, and in a browser."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import optuna
import pytest
from optuna.trial import FrozenTrial
from optuna_dashboard import get_note, save_note  # type: ignore[import-untyped]  # it has no py.typed

from hypergrad_optuna import HypergradSampler, Objective, best_trial
from hypergrad_optuna.visualization import plot_array, plot_chains, plot_cost_shares, plot_trust, save_to_dashboard
from hypergrad_search import Float, TrainingProblem, adamw

PICTURES = {"chains", "cost-shares", "held-back", "schedules", "trust", "array-l2", "array-rate-of-all"}
WIDTHS = (1280, 390)


def made() -> Objective:
    targets = jnp.linspace(-1.0, 1.0, 16)
    problem = TrainingProblem(
        init=lambda key, h: jnp.ones(16),
        train_loss=lambda w, h, batch, key: jnp.sum((w - 2 * targets) ** 2) + jnp.sum(h["l2"] * w**2),
        valid_loss=lambda w, h: (w - targets) ** 2,
        test_loss=lambda w, h: (w - targets) ** 2,
        batches=lambda step: None,
        optimizer=adamw("rate of all", 0.9),
        steps=12,
    )
    space = {"l2": Float(1e-3, 10.0, log=True, lift=(16,)), "rate of all": Float(1e-2, 1.0, log=True)}
    return Objective(problem, space)


@dataclass(frozen=True)
class Shown:
    """A study in a database, what was saved of it, and the address of the dashboard that shows it."""

    study: optuna.Study
    objective: Objective
    saved: list[str]
    address: str

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.address}/{path}") as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    url = f"sqlite:///{tmp_path_factory.mktemp('dashboard') / 'study.db'}"
    objective = made()
    study = optuna.create_study(storage=url, sampler=HypergradSampler(seed=0))
    study.optimize(objective, n_trials=12)
    save_note(study, "My own words.")
    save_to_dashboard(study, objective)
    saved = save_to_dashboard(study, objective)  # it replaces what it has saved
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command: list[str | Path] = [Path(sys.executable).with_name("optuna-dashboard"), url, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        shown = Shown(study, objective, saved, f"http://127.0.0.1:{port}")
        for _ in range(300):
            try:
                shown.get("api/meta")
                break
            except OSError:
                assert process.poll() is None, "optuna-dashboard has ended"
                time.sleep(0.1)
        yield shown
    finally:
        process.terminate()
        process.wait()


def test_pictures_are_served(shown: Shown) -> None:
    served = shown.get("api/studies/1")["plotly_graph_objects"]
    assert {entry["id"] for entry in served} == {f"hypergrad-{name}" for name in PICTURES} == {*shown.saved}
    figures = {entry["id"]: json.loads(entry["graph_object"]) for entry in served}
    drawn = {
        "hypergrad-chains": plot_chains(shown.study),
        "hypergrad-trust": plot_trust(shown.study, shown.objective),
        "hypergrad-array-l2": plot_array(shown.study, "l2"),
        "hypergrad-array-rate-of-all": plot_array(shown.study, "rate of all"),
    }
    for name, figure in drawn.items():
        assert figures[name]["data"] == json.loads(figure.to_json())["data"], name
    for name, found in figures.items():
        assert "height" not in found["layout"], f"the dashboard cuts off {name}"
        assert "bdata" not in json.dumps(found["data"]), f"older versions of Plotly do not read {name}"


def test_notes_are_served(shown: Shown) -> None:
    best, study = best_trial(shown.study), shown.get("api/studies/1")
    note = study["note"]["body"]
    assert note.startswith("My own words.\n\n## Found by hypergrad-search\n\n"), note
    assert note.count("## Found") == 1
    reported = best.user_attrs
    assert f"**Best:** trial {best.number}, value {best.value:.6g}, held-back loss" in note
    assert f"test loss {reported['hypergrad:test_loss']:.6g}" in note
    assert "**Arrays:** `l2` (16), `rate of all` (1 x 12)" in note
    statuses = [trial.user_attrs["hypergrad:status"] for trial in shown.study.trials]
    for status in set(statuses):
        assert f"{status} {statuses.count(status)}" in note
    assert f"{sum(trial.user_attrs['hypergrad:cost'] for trial in shown.study.trials):,.0f} gradient" in note
    of_best = next(trial for trial in study["trials"] if trial["number"] == best.number)
    assert of_best["note"]["body"].startswith("## Found by hypergrad-search\n\nThis is the study's best trial")
    assert f"`l2`: {reported['l2 (array)']}" in of_best["note"]["body"]


def test_each_array_has_a_summary(shown: Shown) -> None:
    study = shown.get("api/studies/1")
    assert {"l2 (array)", "rate of all (array)"} <= {entry["key"] for entry in study["union_user_attrs"]}


def test_a_lowest_value_that_overfitted_is_explained(shown: Shown) -> None:
    copy = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    copy.add_trials(shown.study.trials)
    overfitted = optuna.create_trial(value=-1.0, user_attrs={"hypergrad:status": "overfitted"})
    copy.add_trial(overfitted)
    save_to_dashboard(copy, shown.objective)
    lowest = len(copy.trials) - 1
    assert f"Trial {lowest} has the best value, -1, but its status is overfitted" in get_note(copy)


def test_only_the_best_trial_is_noted_as_such(shown: Shown) -> None:
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    study.add_trials(shown.study.trials)
    first, other = best_trial(study).number, next(n for n in range(12) if n != best_trial(study).number)
    running = [optuna.Trial(study, trial._trial_id) for trial in study.trials]  # the sampler is not this package's
    save_note(running[first], "I like this one.")
    save_note(running[other], "## Mine\n\nNot this one.  ")
    save_to_dashboard(study, shown.objective)
    assert get_note(running[first]).startswith(
        "I like this one.\n\n## Found by hypergrad-search\n\nThis is the study's"
    )
    study.add_trial(_copy(study.trials[first], value=-1.0))
    save_to_dashboard(study, shown.objective)
    study.add_trial(_copy(study.trials[first], value=-2.0))
    save_to_dashboard(study, shown.objective)
    notes = [get_note(optuna.Trial(study, trial._trial_id)) for trial in study.trials]
    assert best_trial(study).number == 13
    assert notes[13].startswith("## Found by hypergrad-search\n\nThis is the study's best trial")
    assert {number: note for number, note in enumerate(notes[:13]) if note} == {
        first: "I like this one.",
        other: "## Mine\n\nNot this one.  ",
    }


def test_a_study_of_another_sampler_is_saved(shown: Shown, tmp_path: Path) -> None:
    """A finished trial of another sampler's study is none that HypergradSampler may still write to."""
    url, objective = f"sqlite:///{tmp_path / 'study.db'}", shown.objective
    begun = optuna.create_study(storage=url, study_name="s", sampler=optuna.samplers.TPESampler(seed=0))
    begun.optimize(objective, n_trials=3)
    study = optuna.load_study(storage=url, study_name="s", sampler=HypergradSampler())
    assert "hypergrad-chains" in save_to_dashboard(study, objective)
    assert get_note(optuna.Trial(begun, best_trial(begun)._trial_id)).startswith("## Found by hypergrad-search")


def test_a_missing_cost_counts_as_in_the_picture_of_costs(shown: Shown) -> None:
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    study.add_trials(shown.study.trials)
    study.add_trial(_copy(shown.study.trials[0], reported={"hypergrad:cost": None}))
    study.add_trial(_copy(shown.study.trials[0], reported={"hypergrad:cost": None, "hypergrad:gradient": {"l2": 0.0}}))
    save_to_dashboard(study, shown.objective)
    spent = sum(line.y[-1] for line in plot_cost_shares(study).data[:2])
    known = sum(trial.user_attrs["hypergrad:cost"] for trial in shown.study.trials)
    assert spent > known
    assert f"**Cost:** {spent:,.0f} gradient evaluations" in get_note(study)


def _copy(trial: FrozenTrial, *, value: float | None = None, reported: dict[str, Any] | None = None) -> FrozenTrial:
    """Return a finished trial with another value, or with other user attributes."""
    return optuna.create_trial(
        value=trial.value if value is None else value,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={**trial.user_attrs, **(reported or {})},
        system_attrs=trial.system_attrs,
    )


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_a_browser_draws_them(shown: Shown, width: int) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium was not found: `apt-get install chromium`, or put it on the PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"{shown.address}/dashboard/studies/1")
        for name in sorted(PICTURES):
            box = page.locator(f"[id='user-defined-plot:hypergrad-{name}']")
            box.locator(".gtitle").first.wait_for(timeout=60_000)
            frame = box.bounding_box()
            assert frame is not None
            for part in (".gtitle", ".xtitle", ".legend"):
                for found in box.locator(part).all():
                    inner = found.bounding_box()
                    assert inner is not None
                    assert inner["y"] >= frame["y"], (name, part)
                    assert inner["y"] + inner["height"] <= frame["y"] + frame["height"] + 1, (name, part)
        page.goto(f"{shown.address}/dashboard/studies/1/note")
        page.get_by_role("heading", name="Found by hypergrad-search").wait_for(timeout=60_000)
        browser.close()
    assert not faults
