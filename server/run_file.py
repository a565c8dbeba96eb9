"""A run file: TOML, checked against the classes of `coppice.domain` to the last key."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from coppice.app import app_digest
from coppice.domain import RunSpec
from coppice.errors import AppError, RunFileError
from coppice.method import method_names, settings_type

MAX_RUN_FILE_BYTES = 2**20

#: What Pydantic says about keys, in the words of a run file.
_MISSING, _UNKNOWN = "missing_argument", "unexpected_keyword_argument"


@dataclass(frozen=True)
class RunFile:
    """A run file that makes sense, with the files that it names."""

    #: Complete but for `warm_start`, which is a path until it is stored.
    spec: RunSpec
    app_path: Path | None
    warm_start_path: Path | None


def parse_run_file(text: str, folder: Path, app_path: Path | None = None) -> RunFile:
    """Check a run file.

    Args:
        folder: Paths in the file are relative to it.
        app_path: Where the app module is, if not where the file says.

    Raises:
        RunFileError: One line for each mistake: the key, what is wrong, what is allowed.
    """
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RunFileError(f"not valid TOML: {error}") from None
    mistakes: list[str] = []
    app = _take_path(plain, "app", folder, mistakes)
    warm_start = _take_path(plain, "warm_start", folder, mistakes)
    if app_path is not None:
        if app is None:
            raise RunFileError("--app was given, but the run file names no app")
        app = app_path
    if app is not None:
        plain["app"] = _app(app, plain, mistakes)
    method = plain.get("method")
    if isinstance(method, dict):
        plain["method"] = _method(method, mistakes)
    _resolve_evaluation_data(plain, folder)
    spec = _validate(RunSpec, plain, "", mistakes)
    if mistakes or spec is None:
        raise RunFileError("\n".join(mistakes))
    return RunFile(spec, app, warm_start)


def _take_path(plain: dict[str, Any], key: str, folder: Path, mistakes: list[str]) -> Path | None:
    value = plain.pop(key, None)
    if value is None:
        return None
    if not isinstance(value, str):
        mistakes.append(f"{key}: is {value!r}; allowed is the path of a file")
        return None
    path = folder / Path(value).expanduser()
    if not path.is_file():
        mistakes.append(f"{key}: there is no file {path}")
        return None
    return path


def _app(path: Path, plain: dict[str, Any], mistakes: list[str]) -> dict[str, Any]:
    # Of [data], a run with an app has the held-out share only.
    data = plain.pop("data", {})
    share = data.pop("held_out", None) if isinstance(data, dict) else None
    if data:
        plain["data"] = data
    try:
        app = {"name": path.name, "digest": app_digest(path)}
    except AppError as error:
        mistakes.append(f"app: {error}")
        app = {"name": path.name, "digest": ""}
    return app if share is None else app | {"held_out": share}


def _method(plain: Mapping[str, Any], mistakes: list[str]) -> dict[str, Any]:
    settings = dict(plain)
    name = settings.pop("name", None)
    if name not in method_names():
        mistakes.append(
            f"method.name: is {name!r}; allowed are {', '.join(map(repr, method_names()))}"
        )
        return {"name": "", "settings": {}}
    _validate(settings_type(name), settings, "method", mistakes)
    return {"name": name, "settings": settings}


def _resolve_evaluation_data(plain: dict[str, Any], folder: Path) -> None:
    evaluation = plain.get("evaluation")
    if isinstance(evaluation, dict) and isinstance(evaluation.get("data"), str):
        evaluation["data"] = str((folder / Path(evaluation["data"]).expanduser()).resolve())


def _validate(kind: Any, plain: Any, where: str, mistakes: list[str]) -> Any:
    """The value, or None with its mistakes noted."""
    try:
        # By way of JSON, where strictness still lets a list be a tuple and 1 be a float.
        return TypeAdapter(kind).validate_json(json.dumps(plain, default=str), strict=True)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            mistakes.append(_describe(kind, dict(problem), where))
        return None


def _describe(kind: Any, problem: Mapping[str, Any], where: str) -> str:
    path = [str(part) for part in problem["loc"]]
    key = ".".join([where, *path] if where else path)
    if problem["type"] == _MISSING:
        return f"{key}: is missing"
    if problem["type"] == _UNKNOWN:
        owner = _owner(kind, path[:-1])
        allowed = ", ".join(item.name for item in fields(owner)) if owner else ""
        return f"{key}: is not a key" + (f"; allowed are {allowed}" if allowed else "")
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: is {problem['input']!r}; {message[0].lower()}{message[1:]}"


def _owner(kind: Any, path: list[str]) -> Any:
    """The dataclass that a key would belong to."""
    for part in path:
        hint = get_type_hints(kind).get(part)
        kind = next(
            (item for item in (hint, *get_args(hint)) if is_dataclass(item)),
            None,
        )
        if kind is None:
            return None
    return kind
