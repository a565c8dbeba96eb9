"""`fedclient`: the command line of a device."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

from coppice import __version__
from coppice.domain import valid_name
from coppice.errors import CoppiceError, TokenRefused
from coppice.join_token import JoinToken, parse_token
from edge_client import commands
from edge_client.state_folder import StateFolder, default_folder

_MAX_LABEL_LENGTH = 63
_MAX_THREADS = 1024
_MAX_COUNT, _MAX_SIDES = 65536, 4

#: Shape of an example and number of classes that each model of the registry was made for.
_INPUTS: Mapping[str, tuple[tuple[int, ...], int]] = {
    "conv2": ((1, 28, 28), 62),
    "lenet": ((1, 28, 28), 10),
    "mlp": ((784,), 10),
    "resnet18": ((3, 32, 32), 10),
    "vgg11": ((3, 32, 32), 10),
}

_DESCRIPTION = """\
Trains on this device's own data, for a Coppice server. The data never leave the device; what is
learned from them does."""

_EPILOG = """\
example:
  fedclient join 192.168.1.10:7433 --token coppice1-... --data ~/photos

exit codes:
  0 well, 1 failed, 2 wrong command line, 3 the data, 4 no server, 5 the server refused,
  6 the app module, 7 this device (disk, permissions, running already, not running), 130 Ctrl-C"""

_JOIN = """\
Joins the server, waits for work, trains, and goes on until it is stopped (Ctrl-C, SIGTERM or
`fedclient leave`). Connections that break are taken up again. The first time it needs a token: the
server prints the whole line when it is first started, and for `fedserver token create`. The data
may be a .npz file, IDX files, a folder of images by class, a CSV or Parquet table, or whatever the
app module of the run reads."""

_JOIN_EXAMPLES = """\
  fedclient join 192.168.1.10:7433 --token coppice1-... --data digits.npz
  fedclient join 192.168.1.10:7433 --data digits.npz           (from then on)
  fedclient join pi-lab:7433 --data ~/photos --name kitchen --label room=kitchen
  fedclient join pi-lab:7433 --data readings/ --app my_app.py --once"""

_STATUS = """\
Says what the client on this device is doing, from the file that it keeps in its state folder. The
exit code is 7 when no client is running."""

_STATUS_EXAMPLES = """\
  fedclient status
  fedclient status --name kitchen --json"""

_LEAVE = """\
Asks the client on this device to end. It gives up its task, tells the server, saves the newest
model and exits; this command waits for that, up to 30 seconds."""

_LEAVE_EXAMPLES = """\
  fedclient leave
  fedclient leave --name kitchen"""

_MODEL = """\
Describes the newest model on this device and how to load it. It is saved when a run ends, when the
client leaves, and every ten minutes of training; using it needs no server."""

_MODEL_EXAMPLES = """\
  fedclient model
  fedclient model --output digits.safetensors"""


_PROBE = """\
Measures what training a model of the registry costs this device: the time of a step in each layer,
sparse and dense, and time and peak memory of rounds at several densities, as far as the memory that
this process may use goes. It takes from seconds to a few minutes."""

_PROBE_EXAMPLES = """\
  fedclient probe
  fedclient probe --model resnet18 --batch-size 16 --threads 2
  fedclient probe --model conv2 --input-shape 3x32x32 --classes 10 --json"""


_DOCTOR = """\
Looks at what this device has for training: memory, threads, the certificate by which its server
knows it, torch, and the kernels that make pruned layers fast. The exit code is 1 when something is
not as it should be; it says what to do."""

_DOCTOR_EXAMPLES = """\
  fedclient doctor
  fedclient doctor --json"""


_RECEIPTS = """\
Lists the server's receipts of this device's newest updates, and checks that they are signed by the
key that the server told. A receipt says that the server has the update on its disk. The exit code
is 1 when one is not genuine."""

_RECEIPTS_EXAMPLES = """\
  fedclient receipts
  fedclient receipts --name kitchen --json"""


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    arguments = build_parser().parse_args(argv)
    folder = StateFolder(arguments.state or default_folder(arguments.name))
    try:
        return _run(arguments, folder)
    except CoppiceError as error:
        print(f"fedclient: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    # The outermost place: a mistake of ours is one line too, and its traceback is kept in a file.
    except Exception as error:
        print(
            f"fedclient: {type(error).__name__}: {error}; {_keep_traceback(folder)}",
            file=sys.stderr,
        )
        return 1


def _run(arguments: argparse.Namespace, folder: StateFolder) -> int:
    match arguments.command:
        case "join":
            # gRPC tells about broken connections in lines of its own; ours say what to do.
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")
            # Here, because the other commands need not wait for gRPC.
            from edge_client.join import join

            return join(arguments, folder)
        case "status":
            return commands.status(folder, arguments.json)
        case "receipts":
            # Imports cryptography.
            from edge_client.receipts_command import receipts

            return receipts(folder, arguments.json)
        case "leave":
            return commands.leave(folder)
        case "probe":
            # Imports torch.
            from edge_client.probe_command import probe

            return probe(_with_input(arguments))
        case "doctor":
            # Imports torch.
            from edge_client.doctor import doctor

            return doctor(arguments.json, folder)
        case _:
            return commands.model(folder, arguments.output, arguments.json)


def _keep_traceback(folder: StateFolder) -> str:
    try:
        folder.traceback.write_text(traceback.format_exc())
    except OSError:
        return f"its traceback:\n{traceback.format_exc()}"
    return f"the traceback is in {folder.traceback}"


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    lines_kept = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="fedclient", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=lines_kept
    )
    parser.add_argument("--version", action="version", version=f"fedclient {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(
        name: str, summary: str, description: str, examples: str
    ) -> argparse.ArgumentParser:
        added = subparsers.add_parser(
            name,
            help=summary,
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=lines_kept,
        )
        add = added.add_argument
        add("--name", type=_name, help="the client's name (default: host name and 4 random digits)")
        add(
            "--state",
            type=Path,
            metavar="DIR",
            help="folder for what is kept (default: ~/.local/state/coppice/NAME, or .../default)",
        )
        return added

    _add_join(command("join", "train for a server", _JOIN, _JOIN_EXAMPLES))
    shown = command("status", "what the client is doing", _STATUS, _STATUS_EXAMPLES)
    shown.add_argument("--json", action="store_true", help="print it as JSON")
    proven = command("receipts", "what the server has stored", _RECEIPTS, _RECEIPTS_EXAMPLES)
    proven.add_argument("--json", action="store_true", help="print it as JSON")
    command("leave", "stop the client", _LEAVE, _LEAVE_EXAMPLES)
    _add_probe(command("probe", "what training costs this device", _PROBE, _PROBE_EXAMPLES))
    looked = command("doctor", "what this device has for training", _DOCTOR, _DOCTOR_EXAMPLES)
    looked.add_argument("--json", action="store_true", help="print it as JSON")
    kept = command("model", "the newest model on this device", _MODEL, _MODEL_EXAMPLES)
    kept.add_argument("--output", type=Path, metavar="FILE", help="copy the model to this file")
    kept.add_argument("--json", action="store_true", help="print the description as JSON")
    return parser


def _add_join(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("server", type=_address, metavar="HOST:PORT", help="the server's address for devices")
    add("--data", type=Path, required=True, metavar="PATH", help="this device's data (required)")
    add(
        "--token",
        type=_token,
        metavar="TOKEN",
        help="lets this device in; needed once, then what it got by it is kept and renewed",
    )
    add(
        "--insecure",
        action="store_true",
        help="for a server on this machine that was started so: no TLS, no token",
    )
    add(
        "--label",
        type=_label,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what runs may choose devices by; may be given several times",
    )
    add("--app", type=Path, metavar="FILE", help="the run's app module, where it has one")
    add(
        "--threads",
        type=_threads,
        metavar="N",
        help="threads for training (default: one for each core)",
    )
    add(
        "--no-kernels",
        action="store_true",
        help="train pruned layers as dense ones with zeros: slower, but the same bits everywhere",
    )
    add(
        "--wait",
        type=_seconds,
        metavar="SECONDS",
        help="how long to try for the first contact (default: 30 with --token or --insecure, else "
        "for ever); later there is no limit",
    )
    add(
        "--outbox",
        choices=("always", "on-trouble"),
        default="always",
        help="when a finished update goes to this device's disk: before it is sent (always, the "
        "default), or only when sending it fails or the client is stopped (on-trouble: spares the "
        "card; a power cut while it is sent then costs the round's work)",
    )
    add("--once", action="store_true", help="end with the first run; exit code 1 if it failed")


def _add_probe(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", choices=_INPUTS, default="conv2", help="(default: conv2)")
    add(
        "--input-shape",
        type=_shape,
        metavar="CxHxW",
        help="of an example (default: what the model was made for)",
    )
    add("--classes", type=_count, metavar="N", help="outputs (default: likewise)")
    add("--batch-size", type=_count, default=20, metavar="N", help="examples of a step (20)")
    add("--threads", type=_threads, metavar="N", help="threads (default: as many as can run)")
    add("--no-kernels", action="store_true", help="as with `fedclient join --no-kernels`")
    add("--json", action="store_true", help="print it as JSON")


def _with_input(arguments: argparse.Namespace) -> argparse.Namespace:
    shape, classes = _INPUTS[arguments.model]
    arguments.input_shape = arguments.input_shape or shape
    arguments.classes = arguments.classes or classes
    return arguments


def _shape(text: str) -> tuple[int, ...]:
    sides = text.split("x")
    if not 1 <= len(sides) <= _MAX_SIDES or not all(map(_is_count, sides)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape; an example is 1x28x28")
    return tuple(map(int, sides))


def _count(text: str) -> int:
    if not _is_count(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {_MAX_COUNT}")
    return int(text)


def _is_count(text: str) -> bool:
    return text.isdecimal() and 1 <= int(text) <= _MAX_COUNT


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if "/" in text:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not HOST:PORT; leave out 'http://' and any path"
        )
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not HOST:PORT; an example is 192.168.1.10:7433"
        )
    if ":" in host and not re.fullmatch(r"\[[^][]+\]", host):
        raise argparse.ArgumentTypeError(
            f"{text!r}: write an IPv6 address in brackets, as [::1]:7433"
        )
    return text


def _token(text: str) -> JoinToken:
    try:
        return parse_token(text)
    except TokenRefused as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _name(text: str) -> str:
    if not valid_name(text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: a name has 1 to 63 letters, digits, '.', '_' and '-', "
            "the first a letter or digit"
        )
    return text


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals or max(len(key), len(value)) > _MAX_LABEL_LENGTH:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not KEY=VALUE with at most {_MAX_LABEL_LENGTH} characters each"
        )
    return key, value


def _threads(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {_MAX_THREADS}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds
