"""The exception tree: drawn as it is, and each error good for a message and an exit code."""

from __future__ import annotations

import re

import pytest

from coppice import errors
from coppice.errors import CoppiceError, Fatal, Retryable

CLASSES = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, CoppiceError)
]


def test_the_drawing_is_the_tree() -> None:
    parents: list[str] = []
    drawn = {}
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"([│├└─ ]*)([A-Z]\w+)(?: {3,}|$)", line):
            depth = len(found[1]) // 4
            parents[depth:] = [found[2]]
            drawn[found[2]] = parents[depth - 1] if depth else "Exception"
    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in CLASSES}


@pytest.mark.parametrize("kind", CLASSES)
def test_the_docstring_is_the_default_message(kind: type[CoppiceError]) -> None:
    message = str(kind())
    # One sentence in one line, its own and not its parent's.
    assert re.fullmatch(r"[A-Z][^\n]*", message)
    assert message == (kind.__dict__["__doc__"].splitlines()[0])
    assert str(kind("the port is in use")) == "the port is in use"


@pytest.mark.parametrize("kind", CLASSES)
def test_a_failing_process_never_exits_like_one_that_did_its_job(kind: type[CoppiceError]) -> None:
    # 2 is for a command line that makes no sense, 126 and above are the shell's.
    assert kind.exit_code in {1, *range(3, 126)}


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_is_retryable_or_fatal_and_not_both(kind: type[CoppiceError]) -> None:
    if kind is not CoppiceError:
        assert issubclass(kind, Retryable) != issubclass(kind, Fatal)
