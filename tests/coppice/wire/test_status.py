"""Errors ↔ gRPC status: a whole table, read in both directions, over a real connection too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from coppice import errors
from coppice.errors import CoppiceError, Fatal, Retryable
from coppice.wire.status import (
    ERROR_KEY,
    LONGEST_RETRY_SECONDS,
    RETRY_KEY,
    STATUS,
    error_from,
    status_of,
)


def tree(kind: type[CoppiceError] = CoppiceError) -> list[type[CoppiceError]]:
    """All classes of coppice/errors.py."""
    below = [found for child in kind.__subclasses__() for found in tree(child)]
    return [found for found in (kind, *below) if found.__module__ == errors.__name__]


CONCRETE = [kind for kind in tree() if kind not in (CoppiceError, Retryable, Fatal)]


class FakeError(grpc.RpcError, grpc.Call):
    """What a client's stub raises."""

    def __init__(self, code: grpc.StatusCode, details: Any, metadata: Any = ()) -> None:
        self._answer = (code, details, metadata)

    def code(self) -> grpc.StatusCode:
        return self._answer[0]

    def details(self) -> Any:
        return self._answer[1]

    def trailing_metadata(self) -> Any:
        return self._answer[2]

    def initial_metadata(self) -> Any:
        return ()

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> float:
        return 0.0

    def cancel(self) -> bool:
        return False

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return False


# ---- the table ---------------------------------------------------------------------------------


def test_the_table_has_every_error_and_nothing_else() -> None:
    assert set(STATUS) == set(CONCRETE)


@pytest.mark.parametrize("kind", CONCRETE)
def test_no_error_is_a_success(kind: type[CoppiceError]) -> None:
    assert STATUS[kind] is not grpc.StatusCode.OK


@pytest.mark.parametrize("kind", CONCRETE)
def test_an_error_comes_back_as_what_it_was(kind: type[CoppiceError]) -> None:
    code, details, metadata = status_of(kind("what is wrong; what to do"))
    found = error_from(FakeError(code, details, metadata))
    assert type(found) is kind
    assert str(found) == "what is wrong; what to do"


# ---- failures of gRPC itself -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.ServerUnreachable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.ServerUnreachable),
        (grpc.StatusCode.CANCELLED, errors.ServerUnreachable),
        (grpc.StatusCode.UNKNOWN, errors.ServerBusy),
        (grpc.StatusCode.INTERNAL, errors.ServerBusy),
        (grpc.StatusCode.DATA_LOSS, errors.TransferBroken),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.InvalidMessage),
        (grpc.StatusCode.UNIMPLEMENTED, errors.ProtocolMismatch),
        (grpc.StatusCode.PERMISSION_DENIED, errors.ServerBusy),
    ],
)
def test_a_failure_without_a_name_is_told_by_its_code(
    code: grpc.StatusCode, kind: type[CoppiceError]
) -> None:
    assert type(error_from(FakeError(code, "socket closed"))) is kind


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_code_without_a_name_becomes_an_error_with_a_message(code: grpc.StatusCode) -> None:
    for details in ("", None):
        assert str(error_from(FakeError(code, details, None)))


@pytest.mark.parametrize("name", ["", "CoppiceError", "Exception", "builtins", "Retryable"])
def test_a_name_that_is_no_leaf_of_the_tree_makes_nothing(name: str) -> None:
    error = FakeError(grpc.StatusCode.UNAVAILABLE, "x", ((ERROR_KEY, name),))
    assert type(error_from(error)) is errors.ServerUnreachable


def test_metadata_of_others_are_passed_over() -> None:
    others = (("content-type", "grpc"), ("trace-bin", b"\0"), ("reason", "DiskFull"))
    metadata = (*others, (ERROR_KEY, "NameTaken"))
    error = FakeError(grpc.StatusCode.UNKNOWN, "", metadata)
    found = error_from(error)
    assert type(found) is errors.NameTaken
    assert str(found) == "Another device has this name."


def test_an_error_without_a_call_is_an_unreachable_server() -> None:
    assert type(error_from(grpc.RpcError("no channel"))) is errors.ServerUnreachable


# ---- a busy server -----------------------------------------------------------------------------


def busy_for(text: str) -> float:
    metadata = ((ERROR_KEY, "ServerBusy"), (RETRY_KEY, text))
    found = error_from(FakeError(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", metadata))
    assert isinstance(found, errors.ServerBusy)
    return found.retry_seconds


def test_callers_of_a_busy_server_are_told_different_times() -> None:
    times = set()
    for _ in range(50):
        _, _, metadata = status_of(errors.ServerBusy("busy", 10.0))
        times.add(busy_for(dict(metadata)[RETRY_KEY]))
    assert len(times) > 40
    assert 10 <= min(times) < 13
    assert 17 < max(times) <= 20


def test_busy_server_need_not_say_when() -> None:
    assert [key for key, _ in status_of(errors.ServerBusy("busy"))[2]] == [ERROR_KEY]


@pytest.mark.parametrize("text", ["", "-1", "soon", "1.5", "9" * 10, "٣", "1e3", "0x10"])
def test_time_that_is_none_is_passed_over(text: str) -> None:
    assert busy_for(text) == 0.0


def test_nobody_waits_for_days_because_a_server_says_so() -> None:
    assert busy_for("999999999") == LONGEST_RETRY_SECONDS


def test_calls_that_grpc_itself_finds_too_many_are_a_busy_server() -> None:
    error = FakeError(grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!")
    assert type(error_from(error)) is errors.ServerBusy


# ---- over loopback -----------------------------------------------------------------------------


@contextlib.contextmanager
def serving(answer: Callable[[bytes], CoppiceError]) -> Iterator[Callable[[bytes], CoppiceError]]:
    """A real server whose one call raises; gives a function that makes the call."""

    def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
        code, details, metadata = status_of(answer(request))
        context.set_trailing_metadata(metadata)
        context.abort(code, details)
        raise AssertionError

    handler = grpc.unary_unary_rpc_method_handler(handle)
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", {"c": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    def call(request: bytes) -> CoppiceError:
        with pytest.raises(grpc.RpcError) as caught:
            stub(request, timeout=30)
        return error_from(caught.value)

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = channel.unary_unary("/t/c", None, None)
        yield call
    server.stop(None).wait()


def test_every_error_crosses_a_real_connection() -> None:
    kinds = {kind.__name__: kind for kind in CONCRETE}
    with serving(lambda name: kinds[name.decode()](f"{name.decode()} in brief")) as call:
        for name, kind in kinds.items():
            found = call(name.encode())
            assert type(found) is kind
            assert str(found) == f"{name} in brief"


@pytest.mark.parametrize(
    "message", ["two\nlines\tand a tab", "größer als 100 %: 日本 🌳", "%41", "x" * 2000]
)
def test_a_message_arrives_as_it_was(message: str) -> None:
    with serving(lambda _: errors.InvalidPayload(message)) as call:
        assert str(call(b"")) == message


@pytest.mark.parametrize("message", ["x" * 100_000, "🌳" * 5_000, "é" * 10_000])
def test_a_message_that_is_too_long_for_metadata_arrives_cut_and_not_as_another_error(
    message: str,
) -> None:
    with serving(lambda _: errors.ServerBusy(message)) as call:
        found = call(b"")
    assert type(found) is errors.ServerBusy
    assert message.startswith(str(found))
    assert len(str(found)) >= 400


def test_a_message_that_is_no_unicode_arrives_without_what_is_not() -> None:
    with serving(lambda _: errors.DataError("class 'a\udcff' is unknown")) as call:
        found = call(b"")
    assert (type(found), str(found)) == (errors.DataError, "class 'a?' is unknown")


def test_a_server_that_is_not_there_is_unreachable() -> None:
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/t/c", None, None)(b"", timeout=30)
        assert type(error_from(caught.value)) is errors.ServerUnreachable
