"""The page's login in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from server.access_records import Role
from tests.server.dashboard.stage import PATIENCE_SECONDS, Stage, Theatre

expect.set_options(timeout=PATIENCE_SECONDS * 1000)


@pytest.fixture
def theatre(tmp_path: Path) -> Iterator[Theatre]:
    with Theatre(tmp_path, has_login=True).open() as theatre:
        yield theatre


@pytest.fixture
def page(browser: Browser, theatre: Theatre) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    page.goto(theatre.url)
    yield page
    context.close()


async def viewer(stage: Stage) -> str:
    assert stage.access is not None
    return await stage.access.create("vera", Role.VIEWER)


async def operator(stage: Stage) -> str:
    assert stage.access is not None
    return await stage.access.create("otto", Role.OPERATOR)


async def revoke(stage: Stage) -> None:
    assert stage.access is not None
    await stage.access.revoke("otto")


def log_in(page: Page, token: str) -> None:
    page.locator("#login-token").fill(token)
    page.locator("#login button").click()


def test_nothing_is_shown_or_asked_before_the_login(page: Page, theatre: Theatre) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.reload()
    expect(page.locator("#login")).to_be_visible()
    expect(page.locator("#content")).to_be_hidden()
    expect(page.locator("#link")).to_have_text("not logged in")
    token = theatre.do(viewer)
    log_in(page, token)
    expect(page.locator("#who")).to_have_text("vera (viewer)")
    expect(page.locator("#link")).to_have_text("live")
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#login")).to_be_hidden()
    expect(page.locator("#audit")).to_be_hidden()
    assert said == []
    # The session outlives the page; the token is nowhere in it.
    page.reload()
    expect(page.locator("#who")).to_have_text("vera (viewer)")
    assert token not in page.content()
    assert page.evaluate("document.cookie") == ""


def test_wrong_token_says_why_and_may_be_tried_again(page: Page, theatre: Theatre) -> None:
    log_in(page, "wrong")
    expect(page.locator("#login-trouble")).to_contain_text("does not know the token")
    expect(page.locator("#content")).to_be_hidden()
    log_in(page, theatre.do(viewer))
    expect(page.locator("#content")).to_be_visible()


def test_operator_sees_who_did_what_until_the_token_is_revoked(
    page: Page, theatre: Theatre
) -> None:
    log_in(page, theatre.do(operator))
    expect(page.locator("#audit-table")).to_contain_text("create access")
    expect(page.locator("#audit-table tbody tr").first).to_contain_text("otto")
    expect(page.locator("#audit-table tbody tr").first).to_contain_text("log in")
    theatre.do(revoke)
    expect(page.locator("#login")).to_be_visible()
    expect(page.locator("#content")).to_be_hidden()


def test_logout_ends_the_session(page: Page, theatre: Theatre) -> None:
    log_in(page, theatre.do(viewer))
    page.locator("#logout").click()
    expect(page.locator("#login")).to_be_visible()
    page.reload()
    expect(page.locator("#login")).to_be_visible()
