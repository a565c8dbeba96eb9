"""A small part of the fuzzing of all that reads strangers' bytes; and that it finds things."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import torch

from benchmarks import fuzzing_readers
from benchmarks.fuzzing_bytes import changed_bytes, lied_payload, payload_fields
from benchmarks.fuzzing_calls import Calls
from benchmarks.fuzzing_payloads import NEAR, try_payload
from benchmarks.fuzzing_readers import Surface, fuzz
from benchmarks.fuzzing_tally import Held, Tally, Watch, told
from coppice.errors import InvalidPayload
from coppice.sparse import SparseTensor
from coppice.tensors import Payload
from coppice.wire.payload import encode
from coppice.wire.status import ERROR_KEY

ROOT = Path(__file__).parents[2]
CASES = 5000
SURFACES = 12
_MB = 2**20


def test_nothing_breaks_or_hangs_a_reader_or_a_server(tmp_path: Path) -> None:
    file = tmp_path / "cases.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "run", "fuzzing", "--cases", str(CASES),
         "--seed", "11", "--json", str(file)],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    cases = json.loads(file.read_text())
    assert len(cases) == SURFACES
    assert sum(case["accepted"] + case["refused"] for case in cases) >= CASES
    for case in cases:
        assert (case["crashes"], case["hangs"], case["findings"]) == (0, 0, []), case["surface"]
        # Bytes that nobody lets in at all would try little.
        assert case["accepted"] > 0 or case["surface"] == "sockets", case["surface"]
    assert "an honest device finished a round on it" in done.stdout


# ---- it finds what there is ---------------------------------------------------------------------


def surfaces_that(attempt: fuzzing_readers.Try) -> list[Surface]:
    return [Surface("broken", 1.0, lambda chance: chance.randbytes(3), attempt, (InvalidPayload,))]


def found(monkeypatch: pytest.MonkeyPatch, attempt: fuzzing_readers.Try) -> Tally:
    monkeypatch.setattr(fuzzing_readers, "surfaces", lambda folder: surfaces_that(attempt))
    (tally,) = fuzz(3, 1, Watch(psutil.Process()))
    return tally


def test_error_of_another_kind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(data: bytes) -> None:
        raise IndexError("out of range")

    tally = found(monkeypatch, attempt)
    assert (tally.crashes, tally.cases) == (3, 3)
    assert "IndexError: out of range" in tally.findings[0]


def test_refusal_and_success_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(data: bytes) -> None:
        if data[0] % 2:
            raise InvalidPayload("no")

    tally = found(monkeypatch, attempt)
    assert (tally.crashes, tally.hangs, tally.accepted + tally.refused) == (0, 0, 3)


def test_reader_that_does_not_come_back_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing_readers, "HANG_SECONDS", 0.01)
    tally = found(monkeypatch, lambda data: time.sleep(60))
    assert tally.hangs == 3


class Failed(grpc.RpcError):
    """How a call may end."""

    def __init__(self, code: grpc.StatusCode, name: str = "") -> None:
        self._answer = (code, ((ERROR_KEY, name),) if name else ())

    def code(self) -> grpc.StatusCode:
        return self._answer[0]

    def details(self) -> str:
        return "oops"

    def trailing_metadata(self) -> Any:
        return self._answer[1]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Failed(grpc.StatusCode.INVALID_ARGUMENT, "InvalidMessage"), "refused"),
        (Failed(grpc.StatusCode.RESOURCE_EXHAUSTED), "refused"),
        (Failed(grpc.StatusCode.INTERNAL, "StoreUnusable"), "crashes"),
        (Failed(grpc.StatusCode.UNKNOWN), "crashes"),
        (Failed(grpc.StatusCode.UNAVAILABLE), "crashes"),
        (Failed(grpc.StatusCode.DEADLINE_EXCEEDED), "hangs"),
    ],
)
def test_call_is_judged_by_how_it_ends(error: Failed, outcome: str) -> None:
    tally = Tally("calls")
    calls = Calls("127.0.0.1:1", grpc.ssl_channel_credentials(), "Coordination", tally)
    calls._judge("case", error, is_short=False)
    calls.close()
    assert (getattr(tally, outcome), tally.cases) == (1, 1)


def test_memory_is_told_from_when_the_process_is_warm() -> None:
    samples = [Held(second, (100 + second) * _MB, 5, 9) for second in range(101)]
    result = told(samples, cases=10_000)
    assert (result["warm_mb"], result["end_mb"]) == (125, 200)
    assert result["mb_per_1000_cases"] == pytest.approx(10)
    assert told([], 0) == {}


# ---- what it makes -------------------------------------------------------------------------------


def test_every_number_of_a_payload_s_header_is_found() -> None:
    payload: Payload = {"g": {"w": torch.zeros(2, 3), "s": SparseTensor(NEAR, torch.arange(15.0))}}
    for known in ((), (NEAR.fingerprint,)):
        data = bytes(encode(payload, known=known))
        try_payload(data)
        fields = payload_fields(data)
        end = 16 + int.from_bytes(data[8:12], "little")
        assert end - 8 < fields[-1][0] + fields[-1][1] <= end
        chance = random.Random(1)
        assert all(lied_payload(chance, data, fields)[end:] == data[end:] for _ in range(100))


def test_equal_seeds_make_equal_cases() -> None:
    data, other = bytes(range(200)), bytes(100)
    first, second = (
        [changed_bytes(chance, data, other) for _ in range(200)]
        for chance in (random.Random(5), random.Random(5))
    )
    assert first == second
    assert len(set(first)) > 150
