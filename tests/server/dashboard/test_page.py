"""Rules for the page's files, which no browser is needed to check."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import server
import server.dashboard

STATIC = Path(server.dashboard.__file__).with_name("static")
PAGE, SCRIPT, STYLE = (
    (STATIC / name).read_text() for name in ("index.html", "page.js", "page.css")
)


def test_the_page_is_three_files() -> None:
    assert {path.name for path in STATIC.iterdir()} == {"index.html", "page.js", "page.css"}


@pytest.mark.parametrize("text", [PAGE, SCRIPT, STYLE], ids=["html", "js", "css"])
def test_nothing_is_loaded_from_elsewhere(text: str) -> None:
    # The two names of formats are compared, never loaded.
    known = {"http://www.w3.org/2000/svg"}
    assert set(re.findall(r"https?://[^'\"\s)]+", text)) <= known
    assert "@import" not in text


def test_what_devices_say_can_only_become_text() -> None:
    for way_to_markup in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "write(",
        "eval(",
        "srcdoc",
    ):
        assert way_to_markup not in SCRIPT


def test_the_page_keeps_to_its_own_policy() -> None:
    assert re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", PAGE) is None


def test_the_page_reacts_to_every_kind_of_event() -> None:
    source = "".join(path.read_text() for path in Path(server.__file__).parent.rglob("*.py"))
    kinds = set(re.findall(r"(?:NewEvent|_event)\(\s*\"(\w+)\"", source))
    assert len(kinds) > 10
    changes = re.search(r"const CHANGES = \{(.*?)\};", SCRIPT, re.S)
    assert changes is not None
    assert set(re.findall(r"^  (\w+):", changes[1], re.M)) == kinds
