"""A stand-in for a server's HTTP API, and what it may answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from coppice.errors import CoppiceError
from server.api_client import Where

RUN = {
    "run_id": 3,
    "spec": {"name": "digits", "stop": {"rounds": 20}, "evaluation": {"metric": "accuracy"}},
    "state": "running",
    "reason": "",
    "round_number": 12,
    "best_round": 11,
    "best_value": 0.912345,
    "submitted_at": 1e9,
    "ended_at": None,
}
ROUND = {
    "round_number": 12,
    "state": "committed",
    "num_updates": 3,
    "bytes_down": 26_400_000,
    "bytes_up": 1000,
    "opened_at": 100.0,
    "closed_at": 101.5,
}
WAIT = {
    "text": "1 of 8: pi-03, 71 % uploaded",
    "until": 1e9,
    "then": "then the round closes with what has come: 4 are enough",
    "clients": [{"client_id": "pi-03", "doing": "71 % uploaded", "live": None}],
}
STATUS = {
    "run_id": 3,
    "round_number": 13,
    "phase": "reporting",
    "wait": WAIT,
    "clients": {
        "pi-04": {"presence": "idle", "seconds_silent": 0.0},
        "pi-03": {"presence": "working", "seconds_silent": 1.4},
    },
    "refusals": 0,
}
IDLE = STATUS | {
    "run_id": None,
    "round_number": 0,
    "phase": "idle",
    "wait": {"text": "", "until": None, "then": "", "clients": []},
    "clients": {},
}
LEDGER = {
    "round_number": 12,
    "task_id": 36,
    "client_id": "pi",
    "kind": "train",
    "base": "0123456789abcdef",
    "outcome": "counted",
    "num_examples": 60,
}
REPORT = {
    "report_id": 5,
    "run_id": 3,
    "client_id": "pi",
    "received_at": 1e9,
    "report": {
        "round_number": 12,
        "steps": 40,
        "density": 0.25,
        "download_seconds": 0.5,
        "compute_seconds": 12.0,
        "upload_seconds": 0.75,
        "peak_bytes": 312_000_000,
        "budget_bytes": 400_000_000,
        "bound_by": "memory.max of /coppice",
        "forecast": {
            "download_seconds": 0.25,
            "compute_seconds": 11.5,
            "upload_seconds": 1.25,
            "peak_bytes": 305_000_000,
            "why": "memory",
        },
    },
}


class Api:
    """Stands for a server: answers by path, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.posted: list[tuple[str, dict[str, Any]]] = []
        self.news: list[dict[str, Any]] = []
        self.url = ""
        self.token: str | None = None

    def __call__(self, where: Where) -> Api:
        self.url, self.token = where.url, where.token
        return self

    def get(self, path: str) -> Any:
        answer = self.answers[path]
        if isinstance(answer, CoppiceError):
            raise answer
        return answer.pop(0) if path.partition("?")[0].endswith("/log") else answer

    def post(self, path: str, body: dict[str, Any]) -> Any:
        self.posted.append((path, body))
        return self.answers.get(path)

    def events(self) -> Iterator[dict[str, Any]]:
        yield from self.news
