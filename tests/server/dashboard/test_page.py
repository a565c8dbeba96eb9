"""Rules for the page's files, which no browser is needed to check."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import server
import server.dashboard

STATIC = Path(server.dashboard.__file__).with_name("static")
PAGE = (STATIC / "index.html").read_text()
STYLE = (STATIC / "page.css").read_text()
SCRIPTS = {path.name: path.read_text() for path in STATIC.glob("*.js")}
SCRIPT = "".join(SCRIPTS.values())


def test_no_script_has_more_than_400_lines() -> None:
    assert {name for name, text in SCRIPTS.items() if len(text.splitlines()) > 400} == set()


def test_every_file_is_used() -> None:
    used = set(re.findall(r'(?:src|href|from) ?=?"(?:\./)?([\w.]+)"', PAGE + SCRIPT))
    assert {path.name for path in STATIC.iterdir()} == used | {"index.html"}


@pytest.mark.parametrize("text", [PAGE, SCRIPT, STYLE], ids=["html", "js", "css"])
def test_nothing_is_loaded_from_elsewhere(text: str) -> None:
    # The name of a format, which is compared and never loaded.
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
    changes = re.search(r"const CHANGES = \{(.*?)\};", SCRIPTS["live.js"], re.S)
    assert changes is not None
    assert set(re.findall(r"^  (\w+):", changes[1], re.M)) == kinds
