"""The pages in a real browser: nothing is cut off, axe finds no fault, and figures and lists answer."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]  # it has no types
from playwright.sync_api import Browser, Page, sync_playwright

from hypergrad_studies.papers import STUDIES, page
from hypergrad_studies.papers.results import Result
from hypergrad_studies.records import Plan, Record, Run, add, begin, finish
from hypergrad_studies.report import write_report

METHODS = {"hypergrad": 0.3, "tpe": 0.4, "random": 0.5, "random-2x": 0.45, "of-my-own-with-a-very-long-name": 0.6}
NAMES = [f"a_hyperparameter_of_layer_{i}" for i in range(12)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Yield a headless Chromium of this machine."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium was found: `apt-get install chromium`")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a report and a page of reproductions."""
    out = tmp_path_factory.mktemp("study")
    begin(out, Plan("optuna", 2000))
    for problem in ("digits", "package.of.mine.with.a.long.name:make_problem"):
        for method, loss in METHODS.items():
            for seed in range(5):
                trials = [
                    _trial(problem, method, seed, 0, 3 * loss),
                    _trial(problem, method, seed, 1, loss + seed / 100),
                    _trial(problem, method, seed, 2, math.inf, "failed", "x" * 300),
                ]
                add(out, *trials)
                finish(out, Run(problem, method, seed, 3000 if "2x" in method else 2000, 3, 1.0, gradients=loss == 0.3))
    name = next(iter(STUDIES))
    results = [Result(name, f"a quantity {i}", 0.5, 0.25, 3, 12.0) for i in range(3)]
    reproduced = page.write_page(out, {name: results}, STUDIES, "hypergrad reproduce " + "x" * 200)
    return {"report": write_report(out), "reproduction": reproduced}


def _trial(
    problem: str, method: str, seed: int, trial: int, loss: float, status: str = "ok", error: str | None = None
) -> Record:
    spent, point = 600 * (trial + 1), dict.fromkeys(NAMES, 0.123456789)
    return Record(problem, method, seed, trial, loss, loss + 1, spent, 1.0, 0.1, 0.1, status, error, None, {**point})


def opened(browser: Browser, path: Path, width: int = 1280, scheme: str = "light") -> Page:
    assert scheme in ("light", "dark")
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if scheme == "dark" else "light", offline=True
    )
    shown = context.new_page()
    shown.on("pageerror", lambda error: pytest.fail(f"the page's script failed: {error}"))
    shown.goto(path.as_uri())
    return shown


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["report", "reproduction"])
def test_nothing_is_cut_off_and_axe_finds_no_fault(
    browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    shown = opened(browser, pages[name], width, scheme)
    shown.evaluate("document.querySelectorAll('details').forEach(found => { found.open = !found.dataset.seed; })")
    for list_of_trials in shown.locator("details.run").all()[:1]:
        list_of_trials.locator("summary").click()
        list_of_trials.locator("table").wait_for()
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(shown).response["violations"]
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in found] == []
    shown.context.close()


def test_tables_of_results_fit_a_wide_page(browser: Browser, pages: dict[str, Path]) -> None:
    shown = opened(browser, pages["report"])
    for table in shown.query_selector_all("table.main"):
        assert table.evaluate("table => table.scrollWidth <= table.parentElement.clientWidth")


def test_the_pointer_reads_the_curves_and_a_click_lists_trials(browser: Browser, pages: dict[str, Path]) -> None:
    shown = opened(browser, pages["report"])
    figure = shown.locator("figure.curves").first
    lines = figure.locator("ol li")
    assert "hypergrad 0.320" in lines.first.inner_text()  # the best at the end: the median over seeds 0 to 4
    plot = figure.locator("svg").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    shown.mouse.move(box["x"] + 0.45 * box["width"], box["y"] + 0.5 * box["height"])
    assert "hypergrad 0.900" in lines.first.inner_text()  # what the first trial found
    assert figure.locator(".cursor").count() == 1
    shown.mouse.click(box["x"] + 0.97 * box["width"], box["y"] + 0.95 * box["height"])
    assert shown.evaluate("document.activeElement.textContent") == "hypergrad: 5 runs"
    assert shown.locator("details[data-method=hypergrad][open]").count() == 1


def test_the_keyboard_reads_the_curves(browser: Browser, pages: dict[str, Path]) -> None:
    shown = opened(browser, pages["report"])
    slider = shown.locator("input[type=range]").first
    slider.focus()
    shown.keyboard.press("Home")
    text = slider.get_attribute("aria-valuetext") or ""
    assert "gradient evaluations: " in text
    assert "nothing yet" in text
    shown.keyboard.press("End")
    assert "hypergrad 0.320" in (slider.get_attribute("aria-valuetext") or "")


def test_a_dot_and_a_row_lead_to_trials(browser: Browser, pages: dict[str, Path]) -> None:
    shown = opened(browser, pages["report"])
    shown.locator('circle[data-method="tpe"][data-seed="3"]').first.dispatch_event("click")
    rows = shown.locator("details[data-method=tpe] details[data-seed='3'] tbody tr")
    rows.first.wait_for()
    assert rows.count() == 3
    best = shown.locator("details[data-method=tpe] details[data-seed='3'] tr.best")
    assert best.locator("th").inner_text() == "1, the best"
    assert best.locator("td").first.inner_text() == "0.43"
    shown.locator("table.main a", has_text="random-2x").first.click()
    shown.locator("details[data-method=random-2x][open]").first.wait_for()
