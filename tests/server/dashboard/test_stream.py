"""The stream of events as a browser gets it: through a real web server, while it goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from coppice.domain import ClientId
from server.announcer import BACKLOG
from server.records import NewEvent
from tests.server.dashboard.stage import PATIENCE_SECONDS, Stage, Theatre

# A separator of lines for Python and JavaScript, and for no one else.
HOSTILE = NewEvent(
    "call_refused", "one\ntwo\r\u2028\x85data: three\n\nevent: four", 1, 2, ClientId("x")
)


@contextmanager
def listening(theatre: Theatre) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
    """Pairs of kind and data, after the first pair has told that the stream is there."""
    url = f"{theatre.url}/api/events"
    with httpx.stream("GET", url, timeout=PATIENCE_SECONDS) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = _events(answer.iter_bytes())
        kind, _ = next(events)
        assert kind == "listening"
        yield events


def _events(pieces: Iterator[bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    text = b""
    for piece in pieces:
        text += piece
        while b"\n\n" in text:
            block, text = text.split(b"\n\n", 1)
            fields = dict(line.split(b": ", 1) for line in block.split(b"\n"))
            yield fields[b"event"].decode(), json.loads(fields[b"data"])


async def tell(stage: Stage, *events: NewEvent) -> None:
    await stage.resources.write(stage.store.append, events=events)


def test_an_event_arrives_as_it_was_written(tmp_path: Path) -> None:
    with Theatre(tmp_path).open() as theatre, listening(theatre) as events:
        theatre.do(lambda stage: tell(stage, HOSTILE))
        assert next(events) == ("call_refused", vars(HOSTILE))
        theatre.do(lambda stage: tell(stage, NewEvent("run_ended", "run digits finished")))
        assert next(events)[0] == "run_ended"


def test_the_stream_ends_with_the_server(tmp_path: Path) -> None:
    theatre = Theatre(tmp_path)
    with theatre.open(), listening(theatre) as events:
        theatre.do(lambda stage: close(stage))
        assert list(events) == []


async def close(stage: Stage) -> None:
    stage.resources.announcer.close()


def test_a_listener_that_went_away_is_forgotten(tmp_path: Path) -> None:
    with Theatre(tmp_path).open() as theatre:
        with listening(theatre) as events:
            theatre.do(lambda stage: tell(stage, HOSTILE))
            next(events)
        with listening(theatre) as events:
            # More than a queue holds: one that nobody reads any more would be cut off.
            for _ in range(3):
                theatre.do(lambda stage: tell(stage, *[HOSTILE] * (BACKLOG // 2)))
                for _ in range(BACKLOG // 2):
                    next(events)
