"""Lines for people: tags, colours only where they belong, sizes."""

from __future__ import annotations

import io

import pytest

from edge_client.console import Console, size_text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_have_a_tag_and_no_colour_in_a_file() -> None:
    out = io.StringIO()
    Console(out).say("joined", "pi-lab")
    Console(out).warn("round 3", "closed")
    assert out.getvalue() == "joined   pi-lab\nround 3  closed\n"


def test_terminal_gets_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    Console(out).say("joined", "pi-lab")
    assert out.getvalue() == "\x1b[1mjoined  \x1b[0m pi-lab\n"


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    Console(out).warn("lost", "x")
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_960, "1.0 MB"), (4_700_000_000, "4.7 GB")],
)
def test_sizes_read_well(size: int, text: str) -> None:
    assert size_text(size) == text
