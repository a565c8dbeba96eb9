"""The commands that look at a device or stop it; they need no server, and no torch."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coppice.errors import CoppiceError, NotRunning, UnreadableData
from coppice.files import write_file
from edge_client.console import Console, day_text, size_text
from edge_client.report_text import memory_text, pruning_text, ratio_text, time_text
from edge_client.state_folder import StateFolder
from edge_client.status import Status, read_status

LEAVE_SECONDS = 30.0
_LOOK_EVERY_SECONDS = 0.1


def status(folder: StateFolder, as_json: bool) -> int:
    """Say what the client of this folder is doing; exit code 7 when it is not running."""
    last = read_status(folder.status)
    running = folder.running_pid() is not None
    if last is None:
        raise NotRunning(f"no client has run with the state folder {folder.path}")
    if as_json:
        print(json.dumps({"running": running, **asdict(last)}, indent=2))
    else:
        _print_status(last, running)
    return 0 if running else NotRunning.exit_code


def leave(folder: StateFolder) -> int:
    """Ask the running client to say goodbye and end; wait until it has."""
    pid = folder.running_pid()
    if pid is None:
        raise NotRunning(f"no client is running with the state folder {folder.path}")
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return 0
    except PermissionError:
        raise CoppiceError(
            f"process {pid} belongs to another user; run this command as that user"
        ) from None
    deadline = time.monotonic() + LEAVE_SECONDS
    while folder.running_pid() == pid:
        if time.monotonic() >= deadline:
            raise CoppiceError(
                f"process {pid} was asked to leave and is still busy after {LEAVE_SECONDS:.0f} s; "
                "wait, or run this command again to end it at once"
            )
        time.sleep(_LOOK_EVERY_SECONDS)
    Console().say("left", f"process {pid} has ended")
    return 0


def model(folder: StateFolder, output: Path | None, as_json: bool) -> int:
    """Describe the newest model on this device, or copy it."""
    if not folder.model.exists():
        raise UnreadableData(
            f"there is no model in {folder.path} yet; a device saves its first when a run ends, "
            "when it leaves, or after ten minutes of training"
        )
    about = _describe(folder.model)
    if output is not None:
        write_file(output, folder.model.read_bytes(), remedy="give --output another path")
        about["path"] = str(output.absolute())
    if as_json:
        print(json.dumps(about, indent=2))
    else:
        _print_model(about)
    return 0


def _print_status(last: Status, running: bool) -> None:
    console = Console()
    seconds = max(0.0, time.time() - last.since)
    if running:
        console.say(last.name, f"{last.phase} for {seconds:.0f} s, process {last.pid}")
    else:
        console.warn(last.name, f"not running; its last phase was {last.phase!r}")
    secured = "no TLS"
    if last.certificate_until is not None:
        secured = f"certificate valid until {day_text(last.certificate_until)}"
    console.say("server", f"{last.server}, {secured}")
    if last.run:
        console.say("run", f"{last.run}, round {last.round_number}, step {last.step}")
    console.say("traffic", f"down {size_text(last.bytes_down)}, up {size_text(last.bytes_up)}")
    if last.bytes_written is not None:
        console.say("disk", f"{size_text(last.bytes_written)} written since it was started")
    if (report := last.last_round) is not None:
        steps = f"{report.steps} steps, {pruning_text(report)}"
        console.say("last", f"round {report.round_number}: {steps}")
        console.say("time", time_text(report))
        console.say("memory", f"{memory_text(report)}, by {report.bound_by}")
    if last.last_error:
        console.warn("error", last.last_error)


def _describe(path: Path) -> dict[str, Any]:
    """What `coppice.model_file` wrote into the file, read without torch."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            info = json.loads((file.metadata() or {})["coppice"])
        workload = info["workload"]
        return {
            "path": str(path),
            "run": workload["name"],
            "method": workload["method"]["name"],
            "round_number": info["round_number"],
            "classes": (workload["data"] or {}).get("classes"),
            "app": (workload["app"] or {}).get("name"),
            "metrics": info["metrics"],
            "density": info.get("density"),
            "size_bytes": path.stat().st_size,
            "written_by": info["written_by"],
        }
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UnreadableData(f"{path} is not a model of Coppice ({error}); delete it") from None


def _print_model(about: dict[str, Any]) -> None:
    console = Console()
    console.say("model", f"{about['path']}, {size_text(about['size_bytes'])}")
    console.say("run", f"{about['run']}, round {about['round_number']}, by {about['method']}")
    if about["density"] is not None:
        console.say("pruned", ratio_text(about["density"]))
    if about["classes"]:
        console.say("classes", ", ".join(about["classes"]))
    if about["metrics"]:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in about["metrics"].items())
        console.say("metrics", f"{shown}, on what this device holds out")
    app = f", app_path=Path({about['app']!r})" if about["app"] else ""
    print("\nTo use it in Python:\n")
    print("  from pathlib import Path")
    print("  from coppice.model_file import load_model")
    print(f"  model, info = load_model(Path({about['path']!r}){app})")
