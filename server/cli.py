"""fedserver: start the server; submit and watch runs; let devices and people in and out."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import fields

from coppice import __version__
from coppice.errors import CoppiceError
from server import access_commands, member_commands, run_commands, status_command
from server.config import (
    DEFAULT_DASHBOARD_PORT,
    DEFAULT_DATA,
    DEFAULT_ENROLMENT_PORT,
    DEFAULT_GRPC_PORT,
    ENVIRONMENT_PREFIX,
    resolve,
)
from server.limits import METAVARS, Limits

_DESCRIPTION = """\
Coppice's server: schedules the rounds of federated training and aggregates what devices send.

  fedserver start                      start it (Ctrl-C stops; start again to go on)
  fedserver token create               let another device join
  fedserver run submit run.toml        queue a run
  fedserver run log --follow 1         watch it
  fedserver status                     what it is doing, and what it waits for
"""

_EXIT_CODES = """\
exit codes: 0 done, 2 wrong usage, 3 data, 4 no connection, 5 refused, 6 run file or app,
7 disk, store or port, 130 interrupted; 1 anything else
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="fedserver",
        description=_DESCRIPTION,
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"coppice {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_start(commands)
    status_command.add_parser(commands)
    run_commands.add_parser(commands)
    member_commands.add_parsers(commands)
    access_commands.add_parsers(commands)
    return parser


def _add_start(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    start = commands.add_parser(
        "start",
        help="start the server",
        description="Start the server, or go on where it was stopped. Each flag can also be given "
        f"as a variable {ENVIRONMENT_PREFIX}NAME, or as a key of the --config file.",
    )
    start.add_argument("--config", metavar="FILE", help="TOML file with the keys below")
    start.add_argument(
        "--data", metavar="DIR", help=f"folder of all that it keeps (default: {DEFAULT_DATA})"
    )
    start.add_argument(
        "--listen",
        metavar="HOST:PORT",
        help=f"where devices connect (default: 0.0.0.0:{DEFAULT_GRPC_PORT}, from anywhere)",
    )
    start.add_argument(
        "--enrolment",
        metavar="HOST:PORT",
        help="where they are let in with a token "
        f"(default: the port above --listen's, {DEFAULT_ENROLMENT_PORT})",
    )
    start.add_argument(
        "--dashboard",
        metavar="HOST:PORT",
        help=f"page and HTTP API (default: 127.0.0.1:{DEFAULT_DASHBOARD_PORT})",
    )
    start.add_argument(
        "--dashboard-tls",
        choices=("true", "false"),
        help="whether these are HTTPS (default: unless on loopback)",
    )
    start.add_argument(
        "--database",
        metavar="URL",
        help="SQLAlchemy URL (default: a SQLite file in the data folder)",
    )
    start.add_argument(
        "--durable",
        choices=("true", "false"),
        help="whether what is acknowledged is on the disk, not in its cache (default: true)",
    )
    start.add_argument(
        "--certificate-days",
        metavar="DAYS",
        help="how long a device's certificate is valid; it renews it by itself (default: 14)",
    )
    start.add_argument(
        "--grace-days",
        metavar="DAYS",
        help="how long after that a device that was away needs no new token (default: 90)",
    )
    start.add_argument(
        "--insecure",
        action="store_const",
        const="true",
        help="no TLS and no tokens, for trials on this machine: listens on loopback only",
    )
    start.add_argument("--name", help="the server's name (default: the host's)")
    for item in fields(Limits):
        start.add_argument(
            f"--{item.name.replace('_', '-')}",
            metavar=METAVARS.get(item.name, "NUMBER"),
            help=f"{item.metadata['help']} (default: {item.default:g})",
        )
    start.set_defaults(call=_start)


def _start(arguments: argparse.Namespace) -> None:
    config = resolve(vars(arguments), os.environ)
    # gRPC would put lines of its own beside ours, as for a port that is in use.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Imported here: `fedserver run` does without torch, gRPC and the web server.
    from server.app import Server

    async def run() -> None:
        await Server(config).run()

    asyncio.run(run())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.call(arguments)
    except CoppiceError as error:
        for line in str(error).splitlines():
            print(f"fedserver: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; so may we.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
