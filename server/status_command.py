"""`fedserver status`: what the server does, what it waits for, and what each device does."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from coppice.table import table
from server.run_commands import api_of, where_parser
from server.wait_text import wait_text

#: What a run does, by its phase; `static/page.js` says the same.
PHASES = {
    "opening": "opening the round",
    "gathering": "gathering devices",
    "planning": "planning tasks",
    "reporting": "devices are training",
    "aggregating": "folding the updates",
    "evaluating": "devices are evaluating",
    "folding": "averaging the evaluations",
    "resting": "resting",
    "judging": "catching up with evaluations",
    "closing": "finishing",
}


def add_parser(commands: Any) -> None:
    """Add `status`."""
    parser = commands.add_parser(
        "status",
        parents=[where_parser()],
        help="what the server is doing, and what it waits for",
    )
    parser.set_defaults(call=_status)


def _status(arguments: argparse.Namespace) -> None:
    api = api_of(arguments)
    status = api.get("/status")
    if arguments.json:
        print(json.dumps(status))
        return
    run_id = status["run_id"]
    if run_id is None:
        print("no run is open; submit one: fedserver run submit run.toml")
    else:
        run = api.get(f"/runs/{run_id}")
        rounds = f"round {status['round_number']} of {run['spec']['stop']['rounds']}"
        phase = PHASES.get(status["phase"], status["phase"])
        print(f"run {run_id}: {run['spec']['name']}, {rounds}, {phase}")
        if told := wait_text(status["wait"]):
            print(told)
    if status["clients"]:
        print("\n" + _clients(status))


def _clients(status: Mapping[str, Any]) -> str:
    doing = {item["client_id"]: item["doing"] for item in status["wait"]["clients"]}
    rows = [
        (name, live["presence"], f"{live['seconds_silent']:.0f} s", doing.get(name, ""))
        for name, live in sorted(status["clients"].items())
    ]
    return table(("client", "presence", "silent for", "awaited"), rows)
