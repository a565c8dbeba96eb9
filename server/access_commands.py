"""`fedserver access …` and `fedserver audit`: who may use the page and API, and who did what."""

from __future__ import annotations

import argparse
import json
from typing import Any

from coppice.domain import valid_name
from coppice.errors import InvalidMessage
from coppice.table import table
from server.member_commands import group, seconds
from server.printing import moment
from server.run_commands import api_of, where_parser

_PAGE = 1000
_SHOWN = 50


def add_parsers(commands: Any) -> None:
    """Add `access` with its commands, and `audit`."""
    where = where_parser()
    actions = group(commands, "access", "who may use the page and the HTTP API")
    create = actions.add_parser("create", parents=[where], help="make a token, shown this once")
    create.add_argument("name", metavar="NAME", help="who or what it is for")
    create.add_argument(
        "--role",
        choices=("viewer", "operator"),
        required=True,
        help="viewers read; operators do everything",
    )
    create.add_argument(
        "--expires",
        type=seconds,
        metavar="TIME",
        help="how long it is valid: 30m, 12h, 7d (default: until it is revoked)",
    )
    create.set_defaults(call=_create)
    listing = actions.add_parser("list", parents=[where], help="all tokens, without their secrets")
    listing.set_defaults(call=_list)
    revoke = actions.add_parser(
        "revoke", parents=[where], help="a token and its sessions end, within seconds"
    )
    revoke.add_argument("name", metavar="NAME", help="the token's name")
    revoke.set_defaults(call=_revoke)
    audit = commands.add_parser("audit", parents=[where], help="who did what, oldest first")
    audit.add_argument(
        "--after", type=int, metavar="N", help="only what came after line N (default: the newest)"
    )
    audit.add_argument(
        "--limit",
        type=_limit,
        default=_SHOWN,
        metavar="N",
        help=f"most lines, up to {_PAGE} (default: {_SHOWN})",
    )
    audit.set_defaults(call=_audit)


def _create(arguments: argparse.Namespace) -> None:
    body = {"name": arguments.name, "role": arguments.role, "valid_seconds": arguments.expires}
    made = api_of(arguments).post("/access", body)
    if arguments.json:
        print(json.dumps(made))
        return
    print(f"{made['name']} is {arguments.role} with this token:\n\n  {made['token']}\n")
    print("Log in with it, or keep it in a file for --token-file. It is not shown again.")


def _list(arguments: argparse.Namespace) -> None:
    known = api_of(arguments).get("/access")
    if arguments.json:
        print(json.dumps(known))
        return
    rows = [
        (
            item["name"],
            item["role"],
            item["is_now"],
            moment(item["created_at"]),
            "" if item["expires_at"] is None else moment(item["expires_at"]),
        )
        for item in known
    ]
    print(table(("name", "role", "state", "created", "expires"), rows))


def _revoke(arguments: argparse.Namespace) -> None:
    name = arguments.name
    if not valid_name(name):
        raise InvalidMessage(f"{name!r} is no token's name: fedserver access list")
    api_of(arguments).post(f"/access/{name}/revoke", {})
    if arguments.json:
        print(json.dumps({"name": name, "revoked": True}))
    else:
        print(f"the token {name} is good for nothing any more")


def _audit(arguments: argparse.Namespace) -> None:
    after, newest = arguments.after, arguments.after is None
    query = f"after={0 if newest else after}&limit={arguments.limit}&newest={str(newest).lower()}"
    lines = api_of(arguments).get(f"/audit?{query}")
    if arguments.json:
        print(json.dumps(lines))
        return
    rows = [
        (
            line["audit_id"],
            moment(line["at"]),
            line["who"],
            line["role"],
            line["address"],
            line["action"],
            line["outcome"],
            line["detail"],
        )
        for line in lines
    ]
    columns = ("line", "at", "who", "role", "from", "action", "outcome", "detail")
    print(table(columns, rows))


def _limit(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _PAGE:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {_PAGE}")
    return int(text)
