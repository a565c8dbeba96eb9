"""So many calls of one device and of all, and no more; a place that is left is another's."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from coppice.errors import ServerBusy
from server.places import Places


def test_one_may_have_its_share_and_no_more() -> None:
    places = Places(total=10, each=2)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(places.taken("pi-1"))
        with pytest.raises(ServerBusy, match="2 calls going on") as caught, places.taken("pi-1"):
            pass
        assert caught.value.retry_seconds > 0
        with places.taken("pi-2"):
            assert places.count == 3
    with places.taken("pi-1"):
        assert places.count == 1


def test_all_may_have_theirs_and_no_more() -> None:
    places = Places(total=3, each=2)
    with ExitStack() as stack:
        for name in ("pi-1", "pi-2", "pi-3"):
            stack.enter_context(places.taken(name))
        with pytest.raises(ServerBusy, match="answers 3 calls") as caught, places.taken("pi-4"):
            pass
        assert caught.value.retry_seconds > 0
    assert places.count == 0


def test_call_that_fails_leaves_its_place() -> None:
    places = Places(total=1, each=1)
    for _ in range(3):
        with pytest.raises(ValueError, match="oops"), places.taken("pi-1"):
            raise ValueError("oops")
    assert places.count == 0
