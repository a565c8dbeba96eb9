"""Every error of Coppice has a status that says whose fault it is."""

from __future__ import annotations

import inspect

import pytest

from coppice import errors
from server.dashboard.problems import problem, status_of

LEAVES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.CoppiceError) and not kind.__subclasses__()
]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.RunFileError(), 422),
        (errors.UnreadableData(), 422),
        (errors.AppError(), 422),
        (errors.UnknownRun(), 404),
        (errors.UnknownBlob(), 404),
        (errors.RoundClosed(), 409),
        (errors.StoreLeased(), 503),
        (errors.DiskFull(), 503),
        (errors.ServerBusy(), 503),
        (errors.TaskAbandoned(), 500),
    ],
)
def test_an_error_takes_the_status_of_its_nearest_kind(
    error: errors.CoppiceError, status: int
) -> None:
    assert status_of(error) == status


@pytest.mark.parametrize("kind", LEAVES)
def test_every_error_is_answered_with_its_name_and_message(kind: type[errors.CoppiceError]) -> None:
    answer = problem(kind("what is wrong"))
    assert answer.status_code >= 400
    assert bytes(answer.body) == (
        b'{"error":"%s","message":"what is wrong"}' % kind.__name__.encode()
    )
