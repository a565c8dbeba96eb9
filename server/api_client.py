"""Calls the server's HTTP API on behalf of the command line; standard library only."""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from coppice import errors
from coppice.errors import CoppiceError, InvalidMessage, ServerUnreachable
from server.config import (
    AUTHORITY_FILE,
    DEFAULT_DASHBOARD_PORT,
    TOKEN_FILE,
    WHERE_FILE,
    Address,
)

_TIMEOUT_SECONDS = 60.0


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A Coppice server sends nobody elsewhere; whoever does is not to get the token."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class Where:
    """A server, and what makes us known to it and it to us."""

    #: Of its dashboard; may come without its http://.
    url: str
    #: What lets us use it; None where nothing was found.
    token: str | None = None
    #: Certificate of the authority by which its HTTPS is known; None for those of the system.
    authority: Path | None = None


class ApiClient:
    """One server, by the address of its dashboard."""

    def __init__(self, where: Where | str) -> None:
        """InvalidMessage when the token would travel in clear."""
        known = Where(where) if isinstance(where, str) else where
        url = known.url.rstrip("/")
        self._url = url if "://" in url else f"http://{url}"
        self._headers = {"Content-Type": "application/json"}
        if known.token is not None:
            parts = urlsplit(self._url)
            if parts.scheme != "https" and not Address(parts.hostname or "", 0).is_loopback:
                raise InvalidMessage(
                    f"{self._url} would get the token in clear: write https://, or leave the "
                    "token out"
                )
            self._headers["Authorization"] = f"Bearer {known.token}"
        # The server is on this machine or near it: no proxy of the environment is for it.
        handlers = [urllib.request.ProxyHandler({}), _NoRedirects()]
        if known.authority is not None:
            handlers.append(urllib.request.HTTPSHandler(context=_trust(known.authority)))
        self._opener = urllib.request.build_opener(*handlers)

    def get(self, path: str) -> Any:
        """What `GET /api<path>` answers."""
        with self._open(path) as reply:
            return json.loads(reply.read() or b"null")

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """What `POST /api<path>` answers."""
        with self._open(path, json.dumps(body).encode()) as reply:
            return json.loads(reply.read() or b"null")

    def events(self) -> Iterator[dict[str, Any]]:
        """Events from now on, as the server sends them; ends when the server does."""
        with self._open("/events") as lines:
            for line in lines:
                if line.startswith(b"data:"):
                    yield json.loads(line[len(b"data:") :])

    @contextmanager
    def _open(self, path: str, body: bytes | None = None) -> Iterator[Any]:
        try:
            request = urllib.request.Request(f"{self._url}/api{path}", body, self._headers)
            with self._opener.open(request, timeout=_TIMEOUT_SECONDS) as reply:
                yield reply
        except urllib.error.HTTPError as error:
            raise _error_of(error) from None
        except OSError as error:
            raise self._unreachable(error) from None
        except (http.client.HTTPException, ValueError):
            raise ServerUnreachable(
                f"{self._url} does not answer as a Coppice dashboard does; is --server right?"
            ) from None

    def _unreachable(self, error: OSError) -> ServerUnreachable:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            return ServerUnreachable(
                f"{self._url} does not show a certificate that is trusted here "
                f"({reason.verify_message}): name its authority/ca.pem with --ca-file"
            )
        return ServerUnreachable(
            f"no server at {self._url} ({reason}): start one with 'fedserver start', "
            "or name it with --server URL"
        )


def _error_of(error: urllib.error.HTTPError) -> CoppiceError:
    try:
        with error:
            body = json.loads(error.read())
        kind = getattr(errors, body["error"])
        if issubclass(kind, CoppiceError):
            rebuilt: CoppiceError = kind(body["message"])
            return rebuilt
    except (http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError):
        pass
    return ServerUnreachable(f"the server answered {error.code} {error.reason}")


def find_server(
    given: str | None, data: Path, token_file: Path | None = None, ca_file: Path | None = None
) -> Where:
    """The server as given, else the data folder's, else at the usual address of this machine.

    The token in the data folder is for the server of that folder, and shown to no other.
    """
    here = _told_by(data)
    url = given or here
    if url == here:
        own_token, own_authority = data / TOKEN_FILE, data / AUTHORITY_FILE
        if token_file is None and own_token.exists():
            token_file = own_token
        if ca_file is None and own_authority.exists():
            ca_file = own_authority
    return Where(url, None if token_file is None else _read_token(token_file), ca_file)


def _told_by(data: Path) -> str:
    try:
        return str(json.loads((data / WHERE_FILE).read_text())["dashboard"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"http://127.0.0.1:{DEFAULT_DASHBOARD_PORT}"


def _read_token(file: Path) -> str:
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidMessage(
            f"cannot read the token in {file}: {error}; name one with --token-file FILE"
        ) from None
    if not token.isascii() or not token.isprintable() or not token or " " in token:
        raise InvalidMessage(f"{file} holds no token: one line that begins with coppice-api-")
    return token


def _trust(authority: Path) -> ssl.SSLContext:
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(authority)
        return context
    except (OSError, ssl.SSLError) as error:
        raise InvalidMessage(f"cannot read the certificate {authority}: {error}") from None
