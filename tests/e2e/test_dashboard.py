"""The page in a real browser, over a real coordinator whose devices work when they are told to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect

from coppice.domain import BlobRef, ClientId, EvaluationSpec, Metrics
from coppice.protection import Finding
from server.records import NewEvent
from server.verdicts import update_refused
from tests.server.dashboard.stage import CAPABILITY, PATIENCE_SECONDS, SPEC, Stage, Theatre

DESK = ViewportSize(width=1280, height=900)
PHONE = ViewportSize(width=390, height=844)
HOSTILE = "<img src=x onerror=\"document.title='hacked'\">"
ROUNDS = SPEC.stop.rounds

expect.set_options(timeout=PATIENCE_SECONDS * 1000)


@pytest.fixture
def theatre(tmp_path: Path) -> Iterator[Theatre]:
    with Theatre(tmp_path).open() as theatre:
        yield theatre


@contextmanager
def opened(
    browser: Browser, theatre: Theatre, viewport: ViewportSize = DESK, dark: bool = False
) -> Iterator[Page]:
    """The page in a window of its own, whose console stays silent."""
    context = browser.new_context(viewport=viewport, color_scheme="dark" if dark else "light")
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(theatre.url)
    yield page
    assert said == []
    context.close()


async def submit(stage: Stage) -> int:
    return await stage.coordinator.submit(SPEC)


async def finish(stage: Stage) -> None:
    """Let the run go to its end."""
    stage.let(3 * 2 * ROUNDS)


def rows(page: Page, table: str) -> list[str]:
    return page.locator(f"#{table} tbody tr").all_inner_texts()


def test_a_run_is_seen_from_nothing_to_its_end_without_a_reload(
    browser: Browser, theatre: Theatre
) -> None:
    with opened(browser, theatre) as page:
        page.evaluate("window.loadedOnce = true")
        expect(page.locator("#empty")).to_contain_text("fedserver run submit")
        expect(page.locator("#clients-table")).to_contain_text("No device has joined yet")
        expect(page.locator("#link")).to_have_text("live")

        run_id = theatre.do(submit)
        expect(page.locator("#run-name")).to_have_text("digits")
        expect(page.locator("#run-state")).to_have_text("running")
        expect(page.locator("#run-wait")).to_contain_text("3 more clients (0 of 3 are here)")
        expect(page.locator("#empty")).to_be_hidden()
        expect(page.locator("#metric-chart")).to_contain_text("Nothing measured yet")

        theatre.do(lambda stage: stage.enter("pi-1", "pi-2", "pi-3"))
        expect(page.locator("#clients-table tbody tr")).to_have_count(3)
        expect(page.locator("#clients-about")).to_contain_text("3 working")
        expect(page.locator("#run-wait")).to_contain_text("Waiting for 3 of 3: pi-1, fetching")
        expect(page.locator("#run-wait")).to_contain_text(re.compile(r"until \d+:\d\d:\d\d"))
        expect(page.locator("#run-round")).to_have_text(f"Round 1 of {ROUNDS}")

        theatre.do(finish)
        expect(page.locator("#run-state")).to_have_text("finished")
        expect(page.locator("#run-progress")).to_have_js_property("value", ROUNDS)
        expect(page.locator("#rounds-table tbody tr")).to_have_count(ROUNDS)
        assert re.split(r"\s+", rows(page, "rounds-table")[0])[:4] == [
            "4",
            "committed",
            "3",
            "84.0",
        ]
        expect(page.locator("#run-facts")).to_contain_text("84.0 %")
        path = page.locator("#metric-chart path.clients").get_attribute("d") or ""
        assert len(re.findall("[ML]", path)) == ROUNDS
        expect(page.locator("#loss-chart path.training")).to_be_visible()
        expect(page.locator("#runs-table a")).to_have_attribute("href", f"#run={run_id}")
        expect(page.locator("#run-model")).to_have_attribute("href", f"api/runs/{run_id}/model")
        expect(page.locator("#log")).to_contain_text("run digits finished")
        assert page.evaluate("window.loadedOnce")


def test_what_a_device_says_is_shown_as_text(browser: Browser, theatre: Theatre) -> None:
    async def mischief(stage: Stage) -> None:
        await stage.enter(HOSTILE, labels={HOSTILE: HOSTILE})
        await stage.coordinator.leave(ClientId(HOSTILE), f"bye {HOSTILE}")
        await stage.resources.write(
            stage.store.append, events=[NewEvent("call_refused", f"refused {HOSTILE}")]
        )

    with opened(browser, theatre) as page:
        theatre.do(mischief)
        expect(page.locator("#log li.bad")).to_contain_text(HOSTILE)
        expect(page.locator("#clients-table tbody th")).to_have_text(HOSTILE)
        expect(page.locator("#clients-table .state")).to_have_text(f"left: bye {HOSTILE}")
        assert page.locator("img").count() == 0
        assert page.title() == "Coppice"


def test_a_device_shows_what_its_last_round_took(browser: Browser, theatre: Theatre) -> None:
    warm = replace(
        CAPABILITY,
        memory_bytes=400_000_000,
        memory_bound_by=HOSTILE,
        temperature_celsius=81.6,
        throttled=("under-voltage", "throttled"),
    )
    theatre.do(submit)
    theatre.do(lambda stage: stage.enter("pi-1", "pi-2"))
    theatre.do(lambda stage: stage.enter("pi-3", capability=warm))
    theatre.do(finish)
    with opened(browser, theatre) as page:
        expect(page.locator("#run-state")).to_have_text("finished")
        table = page.locator("#clients-table")
        expect(table.locator("tbody tr")).to_have_count(3)
        row = table.locator("tbody tr").filter(has_text="pi-3").locator("td")
        expect(row.nth(2)).to_have_text("14")
        expect(row.nth(3)).to_have_text("75.0 %memory-bound")
        expect(row.nth(4)).to_have_text("0.50 · 16 · 0.75 s")
        expect(row.nth(4)).to_have_attribute(
            "title",
            "round 4: 17 s (down 0.50 s, compute 16 s, up 0.75 s); "
            "predicted: 13 s (down 0.25 s, compute 12 s, up 1.3 s)",
        )
        widths = [
            float(part.get_attribute("width") or "0") for part in row.nth(4).locator("rect").all()
        ]
        assert widths == pytest.approx([0.5 / 17.25, 16 / 17.25, 0.75 / 17.25])
        expect(row.nth(5)).to_have_text("312 MB305 MB predicted")
        expect(row.nth(6)).to_have_text("400 MB")
        expect(row.nth(6)).to_have_attribute("title", f"by {HOSTILE}")
        expect(row.nth(7)).to_have_text("82 °Cheld back")
        expect(row.nth(7)).to_have_attribute("title", "under-voltage, throttled")
        cool = table.locator("tbody tr").filter(has_text="pi-1").locator("td")
        expect(cool.nth(7)).to_have_text("")


def test_refused_updates_are_listed_with_who_and_why(browser: Browser, theatre: Theatre) -> None:
    finding = Finding("size", f"it is too large {HOSTILE}", {"times": 50.0})

    async def refuse(stage: Stage) -> None:
        task = next(task for task in stage.store.tasks(1, 1) if task.client_id == "pi-2")
        event = update_refused(1, 1, task.client_id, finding)
        blob = BlobRef("a" * 64, 9)
        await stage.resources.write(stage.store.refuse_update, task, blob, finding, events=[event])

    theatre.do(submit)
    theatre.do(lambda stage: stage.enter("pi-1", "pi-2", "pi-3"))
    with opened(browser, theatre) as page:
        expect(page.locator("#clients-about")).to_contain_text("3 working")
        expect(page.locator("#refusals")).to_be_hidden()
        theatre.do(refuse)
        expect(page.locator("#refusals-about")).to_have_text("1 of 1 device")
        (row,) = rows(page, "refusals-table")
        assert re.split(r"\t", row)[:3] == ["pi-2", "1", finding.reason]
        expect(page.locator("#log li.bad")).to_contain_text("update of pi-2 refused")


def test_all_models_are_listed_with_what_they_are_worth(
    browser: Browser, theatre: Theatre, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = {"cut-0.127": {"accuracy": 0.625, "loss": 1.5}, "cut-0.5": {"accuracy": 0.75}}

    async def judged(stage: Stage) -> int:
        async def evaluate(*_: object) -> dict[str, Metrics]:
            return {"global": {"accuracy": 0.875, "loss": 0.5}, **cuts}

        monkeypatch.setattr(stage.resources.evaluator, "evaluate", evaluate)
        evaluation = EvaluationSpec(data="/data", on_clients=True)
        return await stage.coordinator.submit(replace(SPEC, evaluation=evaluation))

    run_id = theatre.do(judged)
    theatre.do(lambda stage: stage.enter("pi-1", "pi-2", "pi-3"))
    with opened(browser, theatre) as page:
        expect(page.locator("#clients-about")).to_contain_text("3 working")
        expect(page.locator("#models")).to_be_hidden()

        async def first_round(stage: Stage) -> None:
            stage.let(3)

        theatre.do(first_round)
        expect(page.locator("#models-about")).to_have_text("after round 1")
        table = page.locator("#models-table")
        expect(table.locator("thead")).to_have_text("ModelAccuracyLoss")
        assert [re.split(r"\t", row) for row in rows(page, "models-table")] == [
            ["global", "87.5 %", "0.5"],
            ["cut-0.127", "62.5 %", "1.5"],
            ["cut-0.5", "75.0 %", "\N{EN DASH}"],
        ]
        for name in cuts:
            theatre.stage.resources.model_path(run_id, "digits", name).touch()
        theatre.do(finish)
        # The first round was as good as the others, and is the one that is saved.
        expect(page.locator("#run-state")).to_have_text("finished")
        expect(table.locator("thead")).to_have_text("ModelAccuracyLossFile")
        expect(page.locator("#models-about")).to_have_text("after round 1")
        links = [link.get_attribute("href") for link in table.locator("a").all()]
        assert links == [
            f"api/runs/{run_id}/model?name={name}" for name in ("global", "cut-0.127", "cut-0.5")
        ]
        # The curves stay those of the model that decides.
        expect(page.locator("#metric-chart path.line")).to_have_count(2)


def test_the_curve_tells_its_numbers(browser: Browser, theatre: Theatre) -> None:
    theatre.do(submit)
    theatre.do(lambda stage: stage.enter("pi-1", "pi-2", "pi-3"))
    theatre.do(finish)
    with opened(browser, theatre) as page:
        expect(page.locator("#run-state")).to_have_text("finished")
        chart = page.locator("#metric-chart svg")
        expect(chart).to_have_attribute("aria-label", re.compile("84.0 % after round 4"))
        expect(chart.get_by_text("60 %")).to_be_visible()
        box = chart.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 60, box["y"] + 80)
        expect(page.locator("#metric-chart .tip")).to_contain_text("Round 1")
        expect(page.locator("#metric-chart .tip")).to_contain_text("60.0 %")
        page.mouse.move(0, 0)
        expect(page.locator("#metric-chart .tip")).to_be_hidden()
        chart.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#metric-chart .tip")).to_contain_text("Round 2")


def test_the_running_run_is_shown_until_another_is_picked(
    browser: Browser, theatre: Theatre
) -> None:
    async def three_runs(stage: Stage) -> None:
        ended = await stage.coordinator.submit(SPEC)
        await stage.coordinator.stop_run(ended)
        for _ in ("running", "queued"):
            await stage.coordinator.submit(SPEC)

    theatre.do(three_runs)
    with opened(browser, theatre) as page:
        expect(page.locator("#runs-table tbody tr")).to_have_count(3)
        expect(page.locator("#run-about")).to_contain_text("run 2")
        page.locator("#runs-table a").last.click()
        expect(page.locator("#run-about")).to_contain_text("run 1")
        expect(page.locator("#run-state")).to_have_text("stopped")
        expect(page.locator("#runs-table tr[aria-current]")).to_contain_text("1 digits")


def test_a_lost_connection_is_told_and_found_again(browser: Browser, tmp_path: Path) -> None:
    theatre = Theatre(tmp_path)
    context = browser.new_context(viewport=DESK)
    page = context.new_page()
    with theatre.open():
        page.goto(theatre.url)
        expect(page.locator("#link")).to_have_text("live")
        expect(page.locator("#lost")).to_be_hidden()
    expect(page.locator("#lost")).to_contain_text("connection to the server is lost")
    with theatre.open():
        expect(page.locator("#lost")).to_be_hidden()
        theatre.do(submit)
        expect(page.locator("#run-name")).to_have_text("digits")
        context.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_the_page_fits_the_screen(
    browser: Browser, theatre: Theatre, tmp_path: Path, viewport: ViewportSize, dark: bool
) -> None:
    theatre.do(submit)
    theatre.do(lambda stage: stage.enter("pi-kitchen", "pi-barn", "a" * 63))
    theatre.do(finish)
    with opened(browser, theatre, viewport, dark) as page:
        expect(page.locator("#rounds-table tbody tr")).to_have_count(ROUNDS)
        expect(page.locator("#metric-chart path.clients")).to_be_visible()
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
