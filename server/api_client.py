"""Calls the server's HTTP API on behalf of the command line; standard library only."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coppice import errors
from coppice.errors import CoppiceError, ServerUnreachable
from server.config import DEFAULT_DASHBOARD_PORT, WHERE_FILE

_TIMEOUT_SECONDS = 60.0

#: The server is on this machine or near it: a proxy that the environment names is not for it.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ApiClient:
    """One server, by the address of its dashboard."""

    def __init__(self, url: str) -> None:
        """`url` may come without its http://."""
        self._url = url.rstrip("/") if "://" in url else f"http://{url.rstrip('/')}"

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
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{self._url}/api{path}", body, headers)
            with _DIRECT.open(request, timeout=_TIMEOUT_SECONDS) as reply:
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


def server_url(given: str | None, data: Path) -> str:
    """The dashboard as given, else as the data folder's server says, else the usual one."""
    if given:
        return given
    try:
        url = json.loads((data / WHERE_FILE).read_text())["dashboard"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"http://127.0.0.1:{DEFAULT_DASHBOARD_PORT}"
    return str(url)
