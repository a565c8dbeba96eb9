"""What happens in the server as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from fastapi.sse import ServerSentEvent

from server.announcer import Announcer
from server.records import NewEvent

#: First event of each stream: from here on nothing is missed, so now is the time to read the rest.
LISTENING = NewEvent("listening", "this stream tells everything from now on")

#: How soon a browser comes again after a stream has ended.
_RETRY_SECONDS = 2


async def event_stream(
    announcer: Announcer, may_listen: Callable[[], bool]
) -> AsyncIterator[ServerSentEvent]:
    """The log's new lines under their kinds, until the server stops or the reader is too slow.

    Or until the reader may not listen any more, which is seen within a second.
    """
    with announcer.listening(may_listen) as events:
        yield ServerSentEvent(event=LISTENING.kind, data=LISTENING, retry=_RETRY_SECONDS * 1000)
        async for event in events:
            yield ServerSentEvent(event=event.kind, data=event)
