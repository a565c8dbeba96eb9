"""`fedserver token …` and `fedserver client …`: who is let in, and who no more."""

from __future__ import annotations

import argparse
import json
import re
import time
from typing import Any

from coppice.domain import valid_name
from coppice.errors import InvalidMessage
from coppice.table import table
from server.printing import moment
from server.run_commands import api_of, where_parser

_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86400.0}
_MOST_USES = 10_000
_LONGEST_DAYS = 365


def add_parsers(commands: Any) -> None:
    """Add `token` and `client` and their commands."""
    where = where_parser()
    tokens = group(commands, "token", "tokens, by which devices are let in")
    create = tokens.add_parser("create", parents=[where], help="make one and print its join line")
    create.add_argument(
        "--uses", type=_uses, default=1, metavar="N", help="devices that it lets in (default: 1)"
    )
    create.add_argument(
        "--expires",
        type=seconds,
        default=_SECONDS["d"],
        metavar="TIME",
        help="how long it is valid: 30m, 12h, 7d (default: 1d)",
    )
    create.set_defaults(call=_create)
    listing = tokens.add_parser("list", parents=[where], help="all tokens, without their secrets")
    listing.set_defaults(call=_list_tokens)
    revoke = tokens.add_parser(
        "revoke", parents=[where], help="let nobody in by a token any more; who came by it stays"
    )
    revoke.add_argument("token_id", type=int, metavar="TOKEN", help="its number in the list")
    revoke.set_defaults(call=_revoke_token)
    clients = group(commands, "client", "devices that were let in")
    listing = clients.add_parser("list", parents=[where], help="all of them, a line each")
    listing.set_defaults(call=_list_clients)
    revoke = clients.add_parser(
        "revoke", parents=[where], help="cut a device off; the token that it came by goes too"
    )
    revoke.add_argument("name", metavar="NAME", help="the device's name")
    revoke.set_defaults(call=_revoke_client)


def group(commands: Any, name: str, text: str) -> Any:
    """Add a command that has commands of its own."""
    parser = commands.add_parser(name, help=text)
    return parser.add_subparsers(dest="action", required=True, metavar="COMMAND")


def _create(arguments: argparse.Namespace) -> None:
    body = {"uses": arguments.uses, "valid_seconds": arguments.expires}
    made = api_of(arguments).post("/tokens", body)
    if arguments.json:
        print(json.dumps(made))
        return
    devices = "one device" if arguments.uses == 1 else f"{arguments.uses} devices"
    until = moment(time.time() + arguments.expires)
    print(f"token {made['token_id']} lets {devices} in, until {until}; on a device:")
    print(f"\n  {made['join']} --data PATH\n")
    print("It is not shown again.")


def _list_tokens(arguments: argparse.Namespace) -> None:
    tokens = api_of(arguments).get("/tokens")
    if arguments.json:
        print(json.dumps(tokens))
        return
    rows = [
        (
            token["token_id"],
            token["is_now"],
            f"{token['used']} of {token['uses']}",
            moment(token["created_at"]),
            moment(token["expires_at"]),
        )
        for token in tokens
    ]
    print(table(("token", "state", "used", "created", "expires"), rows))


def _revoke_token(arguments: argparse.Namespace) -> None:
    api_of(arguments).post(f"/tokens/{arguments.token_id}/revoke", {})
    if arguments.json:
        print(json.dumps({"token_id": arguments.token_id, "revoked": True}))
    else:
        print(f"token {arguments.token_id} lets nobody in any more")


def _list_clients(arguments: argparse.Namespace) -> None:
    members = api_of(arguments).get("/members")
    if arguments.json:
        print(json.dumps(members))
        return
    rows = [
        (
            member["name"],
            _state(member),
            moment(member["enrolled_at"]),
            moment(member["expires_at"]),
            member["token_id"],
            member["fingerprint"][:16],
        )
        for member in members
    ]
    print(table(("client", "state", "enrolled", "certificate until", "token", "key"), rows))


def _state(member: dict[str, Any]) -> str:
    if member["revoked_at"] is not None:
        return f"revoked {moment(member['revoked_at'])}"
    return "expired" if time.time() >= member["expires_at"] else "enrolled"


def _revoke_client(arguments: argparse.Namespace) -> None:
    name = arguments.name
    if not valid_name(name):
        raise InvalidMessage(f"{name!r} is no device's name: fedserver client list")
    member = api_of(arguments).post(f"/members/{name}/revoke", {})
    if arguments.json:
        print(json.dumps(member))
    else:
        print(f"{name} is cut off; token {member['token_id']}, by which it came, is revoked too")


def _uses(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_USES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {_MOST_USES}")
    return int(text)


def seconds(text: str) -> float:
    """A time as people write it."""
    found = re.fullmatch(r"([0-9]{1,6})([mhd])", text)
    told = int(found[1]) * _SECONDS[found[2]] if found else 0.0
    if not 0 < told <= _LONGEST_DAYS * _SECONDS["d"]:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time such as 30m, 12h or 7d, at most {_LONGEST_DAYS}d"
        )
    return told
