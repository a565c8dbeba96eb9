"""What the server was told: flags over environment over TOML file over defaults, resolved once."""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from coppice.errors import RunFileError
from server.limits import Limits, limits_from

ENVIRONMENT_PREFIX = "COPPICE_"
DEFAULT_GRPC_PORT = 7433
DEFAULT_ENROLMENT_PORT = 7434
DEFAULT_DASHBOARD_PORT = 7480
DEFAULT_DATA = "coppice-data"
_ANYWHERE = "0.0.0.0"
_LOOPBACK = "127.0.0.1"
_LAST_PORT = 65535
_MOST_DAYS = 3650.0

#: What a key's value is in a TOML file, where it is not a string.
_KINDS: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "durable": (bool, "true or false"),
    "insecure": (bool, "true or false"),
    "dashboard_tls": (bool, "true or false"),
    "certificate_days": ((int, float), "a number"),
    "grace_days": ((int, float), "a number"),
    **{item.name: ((int, float), "a number") for item in fields(Limits)},
}

#: HOST:PORT, or the port alone; an IPv6 address stands in brackets.
_ADDRESS = re.compile(r"(?:(\[[^\s\[\]]+\]|[^\s:\[\]]*):)?([0-9]{1,5})")

#: Name of the file in the data folder that tells where the running server is.
WHERE_FILE = "server.json"

#: In the data folder too: the token by which the command line of this user is an operator.
TOKEN_FILE = "operator.token"

#: And the certificate by which a server's TLS is known.
AUTHORITY_FOLDER = "authority"
AUTHORITY_FILE = f"{AUTHORITY_FOLDER}/ca.pem"


@dataclass(frozen=True)
class Address:
    """A host and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


@dataclass(frozen=True, kw_only=True)
class ServerConfig(Limits):
    """One field for each flag of `fedserver start`; the README of the flags is `--help`."""

    #: Folder of everything that the server keeps.
    data: Path
    #: Where devices connect.
    listen: Address
    #: Where devices are let in for the first time, or after a long absence.
    enrolment: Address
    #: Where the page and the HTTP API are.
    dashboard: Address
    #: Whether they are HTTPS; always, but on loopback.
    dashboard_tls: bool
    #: No TLS, no certificates: on loopback only.
    insecure: bool
    #: How long a device's certificate is valid, and for how long after that its key renews it.
    certificate_days: float
    grace_days: float
    #: SQLAlchemy URL of the store; by default a SQLite file in `data`.
    database: str
    #: Whether what is acknowledged is on the disk (fsync). False trades that for speed.
    durable: bool
    #: What devices and the page show as the server's name.
    name: str


def resolve(flags: Mapping[str, str | None], environment: Mapping[str, str]) -> ServerConfig:
    """The configuration. `flags` holds the keys of ServerConfig, and `config`, as given or None.

    Raises:
        RunFileError: A value or key that is not allowed.
    """
    told = _from_file(flags.get("config") or environment.get(ENVIRONMENT_PREFIX + "CONFIG"))
    for field in fields(ServerConfig):
        variable = ENVIRONMENT_PREFIX + field.name.upper()
        if variable in environment:
            told[field.name] = environment[variable]
        if flags.get(field.name) is not None:
            told[field.name] = flags[field.name]
    data = Path(os.path.expanduser(told.get("data", DEFAULT_DATA))).absolute()
    insecure = _truth("insecure", told.get("insecure", False))
    host = _LOOPBACK if insecure else _ANYWHERE
    listen = _address("listen", told.get("listen", ""), Address(host, DEFAULT_GRPC_PORT))
    if insecure and not listen.is_loopback:
        raise RunFileError(
            f"listen: is {listen}; with --insecure only this machine may be let in, as by "
            f"{_LOOPBACK}:{DEFAULT_GRPC_PORT}: leave --insecure out"
        )
    local = Address(_LOOPBACK, DEFAULT_DASHBOARD_PORT)
    dashboard = _address("dashboard", told.get("dashboard", ""), local)
    if insecure and not dashboard.is_loopback:
        raise RunFileError(
            f"dashboard: is {dashboard}; with --insecure there is no login, and only this machine "
            f"may use it, as by {local}: leave --insecure out"
        )
    beside = listen.port + 1 if 0 < listen.port < _LAST_PORT else 0
    return ServerConfig(
        data=data,
        listen=listen,
        enrolment=_address("enrolment", told.get("enrolment", ""), Address(listen.host, beside)),
        dashboard=dashboard,
        dashboard_tls=_dashboard_tls(told.get("dashboard_tls"), dashboard, insecure),
        insecure=insecure,
        certificate_days=_days("certificate_days", told.get("certificate_days", 14)),
        grace_days=_days("grace_days", told.get("grace_days", 90)),
        database=str(told.get("database", f"sqlite:///{data / 'coppice.sqlite'}")),
        durable=_truth("durable", told.get("durable", True)),
        name=str(told.get("name", os.uname().nodename)),
        **limits_from(told),
    )


def _from_file(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        told = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise RunFileError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunFileError(f"{path} is not valid TOML: {error}") from None
    allowed = [field.name for field in fields(ServerConfig)]
    if unknown := sorted(told.keys() - set(allowed)):
        raise RunFileError(f"{path}: {unknown[0]} is not a key; allowed are {', '.join(allowed)}")
    for key, value in told.items():
        kind, name = _KINDS.get(key, (str, "a string"))
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise RunFileError(f"{path}: {key} is {value!r}; allowed is {name}")
    return told


def _address(key: str, value: object, default: Address) -> Address:
    text = str(value)
    if not text:
        return default
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found[2]) > _LAST_PORT:
        raise RunFileError(f"{key}: is {value!r}; allowed is HOST:PORT, as in {default}")
    return Address((found[1] or default.host).strip("[]"), int(found[2]))


def _dashboard_tls(value: object, dashboard: Address, insecure: bool) -> bool:
    if value is None:
        return not dashboard.is_loopback
    wanted = _truth("dashboard_tls", value)
    if wanted and insecure:
        raise RunFileError("dashboard_tls: with --insecure there are no certificates")
    if not wanted and not dashboard.is_loopback:
        raise RunFileError(
            f"dashboard_tls: is false, but other machines reach {dashboard}, which would send "
            "tokens in clear; leave it out, or use loopback and put something with TLS before it"
        )
    return wanted


def _days(key: str, value: object) -> float:
    try:
        days = float(str(value))
    except ValueError:
        days = math.nan
    if not 0 < days <= _MOST_DAYS:
        raise RunFileError(
            f"{key}: is {value!r}; allowed is a number of days above 0, at most {_MOST_DAYS:.0f}"
        )
    return days


def _truth(key: str, value: object) -> bool:
    text = str(value).lower()
    if text not in ("true", "false"):
        raise RunFileError(f"{key}: is {value!r}; allowed are true and false")
    return text == "true"
