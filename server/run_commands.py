"""`fedserver run …`: submit, list, show, stop and follow runs over the HTTP API."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coppice.errors import RunFileError
from coppice.table import table
from server.api_client import ApiClient, find_server
from server.config import DEFAULT_DATA, ENVIRONMENT_PREFIX
from server.printing import moment, size
from server.refusal_table import refusal_table
from server.report_table import report_table
from server.wait_text import wait_text

_SHOWN_ROUNDS = 10
_PAGE = 1000

EXAMPLE = """\
example run file:

  name = "digits"
  seed = 1

  [model]
  name = "mlp"

  [data]
  classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
  input_shape = [1, 8, 8]
  scale = 16.0

  [method]
  name = "fedavg"
  local_epochs = 1
  batch_size = 20
  learning_rate = 0.1

  [cohort]
  size = 3

  [evaluation]
  data = "test.npz"

  [stop]
  rounds = 20

docs/configuration.md explains every key.
"""


def add_parser(commands: Any) -> None:
    """Add `run` and its commands."""
    run = commands.add_parser("run", help="submit, list, show, stop and follow runs")
    actions = run.add_subparsers(dest="action", required=True, metavar="COMMAND")
    where = where_parser()
    submit = actions.add_parser(
        "submit",
        parents=[where],
        help="check a run file and queue its run",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    submit.add_argument("file", type=Path, metavar="RUN.toml")
    submit.add_argument(
        "--app", type=Path, metavar="FILE", help="the app module, if it is not where the file says"
    )
    submit.set_defaults(call=_submit)
    listing = actions.add_parser("list", parents=[where], help="all runs, a line each")
    listing.set_defaults(call=_list)
    for name, call, text in (
        ("show", _show, "one run: its state, its last rounds, its devices"),
        ("stop", _stop, "end a run; what it has reached is kept"),
        ("log", _log, "what happened in a run"),
    ):
        parser = actions.add_parser(name, parents=[where], help=text)
        parser.add_argument("run_id", type=int, metavar="RUN")
        parser.set_defaults(call=call)
        if name == "show":
            parser.add_argument(
                "--ledger", action="store_true", help="what became of each task, one line each"
            )
        if name == "log":
            parser.add_argument("--follow", action="store_true", help="go on until the run ends")


def where_parser() -> argparse.ArgumentParser:
    """The options by which a command finds the server."""
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument(
        "--server", metavar="URL", help="the server's dashboard; default: as --data tells"
    )
    where.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        default=Path(DEFAULT_DATA),
        help="data folder of the server on this machine (default: %(default)s)",
    )
    where.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="file with a token (default: COPPICE_TOKEN_FILE, else the data folder's own)",
    )
    where.add_argument(
        "--ca-file",
        type=Path,
        metavar="FILE",
        help="the server's authority/ca.pem, for HTTPS (default: COPPICE_CA_FILE, else likewise)",
    )
    where.add_argument("--json", action="store_true", help="print JSON, for scripts")
    return where


def api_of(arguments: argparse.Namespace) -> ApiClient:
    """The server that these options name."""
    token_file, ca_file = (
        given if given is not None else _from_environment(name)
        for name, given in (("TOKEN_FILE", arguments.token_file), ("CA_FILE", arguments.ca_file))
    )
    return ApiClient(find_server(arguments.server, arguments.data, token_file, ca_file))


def _from_environment(name: str) -> Path | None:
    found = os.environ.get(ENVIRONMENT_PREFIX + name)
    return Path(found) if found else None


def _submit(arguments: argparse.Namespace) -> None:
    try:
        text = arguments.file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RunFileError(f"cannot read {arguments.file}: {error}") from None
    body = {"toml": text, "folder": str(arguments.file.absolute().parent)}
    if arguments.app is not None:
        body["app"] = str(arguments.app.absolute())
    answer = api_of(arguments).post("/runs", body)
    if arguments.json:
        print(json.dumps(answer))
    else:
        run_id = answer["run_id"]
        print(f"run {run_id} is queued; follow it: fedserver run log --follow {run_id}")


def _list(arguments: argparse.Namespace) -> None:
    runs = api_of(arguments).get("/runs")
    if arguments.json:
        print(json.dumps(runs))
        return
    rows = [
        (
            run["run_id"],
            run["spec"]["name"],
            run["state"],
            _progress(run),
            run["best_value"],
            moment(run["submitted_at"]),
        )
        for run in runs
    ]
    print(table(("run", "name", "state", "rounds", "best", "submitted"), rows))


def _show(arguments: argparse.Namespace) -> None:
    api, run_id = api_of(arguments), arguments.run_id
    run = api.get(f"/runs/{run_id}")
    after = max(run["round_number"] - _SHOWN_ROUNDS, 0)
    shown = {
        "run": run,
        "rounds": api.get(f"/runs/{run_id}/rounds?after={after}"),
        "evaluations": api.get(f"/runs/{run_id}/evaluations"),
        "reports": api.get(f"/runs/{run_id}/reports?newest=true&limit={_PAGE}"),
        "refusals": api.get(f"/runs/{run_id}/refusals?newest=true&limit={_PAGE}"),
        "wait": _wait(api, run_id),
    }
    if arguments.ledger:
        shown["ledger"] = api.get(f"/runs/{run_id}/ledger")
    if arguments.json:
        print(json.dumps(shown))
        return
    print(f"run {run_id}: {run['spec']['name']}, {run['state']}" + _because(run["reason"]))
    print(f"rounds: {_progress(run)}; best: {_best(run)}")
    if shown["wait"] is not None and (told := wait_text(shown["wait"])):
        print(told)
    print()
    metric = run["spec"]["evaluation"]["metric"]
    print(_rounds(shown["rounds"], shown["evaluations"], metric))
    # Which models there are may change with each evaluation.
    last = next((item for item in reversed(shown["evaluations"]) if item["others"]), None)
    if last is not None:
        print("\n" + _models(last, metric))
    if shown["reports"]:
        print("\n" + report_table(shown["reports"]))
    if shown["refusals"]:
        print("\n" + refusal_table(shown["refusals"]))
    if arguments.ledger:
        print("\n" + _ledger(shown["ledger"]))


def _wait(api: ApiClient, run_id: int) -> Mapping[str, Any] | None:
    """What the run waits for; None when it is not the open one."""
    status = api.get("/status")
    wait: Mapping[str, Any] | None = status["wait"] if status["run_id"] == run_id else None
    return wait


def _stop(arguments: argparse.Namespace) -> None:
    api_of(arguments).post(f"/runs/{arguments.run_id}/stop", {})
    if arguments.json:
        print(json.dumps({"run_id": arguments.run_id, "stopping": True}))
    else:
        print(f"run {arguments.run_id} is being stopped")


def _log(arguments: argparse.Namespace) -> None:
    api, run_id = api_of(arguments), arguments.run_id
    # Asked before the reading: what an ended run has in its log is all there will be.
    ended = api.get(f"/runs/{run_id}")["ended_at"] is not None
    last = 0
    while page := api.get(f"/runs/{run_id}/log?after={last}&limit={_PAGE}"):
        for event in page:
            _print_event(event, as_json=arguments.json)
            # It may have ended since it was asked; what comes next would be waited for in vain.
            ended = ended or event["kind"] == "run_ended"
        last = page[-1]["event_id"]
    if ended or not arguments.follow:
        return
    # The first event says that listening has begun, so nothing falls between the two.
    for _ in api.events():
        for event in api.get(f"/runs/{run_id}/log?after={last}&limit={_PAGE}"):
            _print_event(event, as_json=arguments.json)
            last = event["event_id"]
            if event["kind"] == "run_ended":
                return


def _print_event(event: Mapping[str, Any], *, as_json: bool) -> None:
    print(json.dumps(event) if as_json else f"{moment(event['at'])}  {event['text']}", flush=True)


def _progress(run: Mapping[str, Any]) -> str:
    return f"{run['round_number']} of {run['spec']['stop']['rounds']}"


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""


def _best(run: Mapping[str, Any]) -> str:
    if run["best_round"] is None:
        return "not evaluated"
    metric = run["spec"]["evaluation"]["metric"]
    return f"{metric} {run['best_value']:.4f} in round {run['best_round']}"


def _rounds(
    rounds: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]], metric: str
) -> str:
    values = {
        item["round_number"]: item["metrics"].get(metric)
        for where in ("clients", "server")
        for item in evaluations
        if item["where"] == where
    }
    rows = [
        (
            item["round_number"],
            item["state"],
            item["num_updates"],
            values.get(item["round_number"]),
            size(item["bytes_down"]),
            size(item["bytes_up"]),
            _duration(item),
        )
        for item in rounds
    ]
    return table(("round", "state", "updates", metric, "down", "up", "seconds"), rows)


def _models(evaluation: Mapping[str, Any], metric: str) -> str:
    """The model that decides, beside the others."""
    measured = {"global": evaluation["metrics"], **evaluation["others"]}
    names = sorted(evaluation["metrics"], key=lambda name: name != metric)
    return table(
        (f"model of round {evaluation['round_number']}", *names),
        [(model, *map(metrics.get, names)) for model, metrics in measured.items()],
    )


def _duration(item: Mapping[str, Any]) -> str:
    return "" if item["closed_at"] is None else f"{item['closed_at'] - item['opened_at']:.2f}"


def _ledger(rows: Sequence[Mapping[str, Any]]) -> str:
    return table(
        ("round", "task", "client", "kind", "base", "outcome", "examples"),
        [
            (
                row["round_number"],
                row["task_id"],
                row["client_id"],
                row["kind"],
                row["base"][:12],
                row["outcome"],
                row["num_examples"],
            )
            for row in rows
        ],
    )
