"""A run file: TOML, checked against the classes of `coppice.domain` to the last key."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from coppice.app import CLASSIFICATION_METRICS, app_digest
from coppice.domain import RunSpec
from coppice.errors import AppError, RunFileError
from coppice.method import check_wire, method_names, settings_type

MAX_RUN_FILE_BYTES = 2**20

#: What Pydantic says about keys.
_MISSING, _UNKNOWN = "missing", "unexpected_keyword_argument"

#: Longest value that a message repeats.
_MAX_SHOWN_LENGTH = 100


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
        return _parse(tomllib.loads(text), folder, app_path)
    except ValueError as error:
        # Mostly TOMLDecodeError; an integer of thousands of digits is a plain ValueError.
        raise RunFileError(f"not valid TOML: {error}") from None
    except RecursionError:
        raise RunFileError("not a run file: its tables or lists are nested too deeply") from None


def _parse(plain: dict[str, Any], folder: Path, app_path: Path | None) -> RunFile:
    mistakes: list[str] = []
    has_app = "app" in plain
    if app_path is None:
        app = _take_path(plain, "app", folder, mistakes)
    else:
        app = app_path
        if plain.pop("app", None) is None:
            mistakes.append("--app was given, but the run file names no app")
    if has_app:
        plain["app"] = _app(app, plain, mistakes)
    warm_start = _take_path(plain, "warm_start", folder, mistakes)
    method = plain.get("method")
    if isinstance(method, dict):
        plain["method"] = _method(method, mistakes)
    _resolve_evaluation_data(plain, folder)
    spec = _validate(RunSpec, plain, "", mistakes)
    if spec is not None:
        _check_judgement(spec, mistakes)
    if spec is not None and not mistakes:
        check_wire(spec)
    if mistakes or spec is None:
        raise RunFileError("\n".join(mistakes))
    return RunFile(spec, app, warm_start)


def _take_path(plain: dict[str, Any], key: str, folder: Path, mistakes: list[str]) -> Path | None:
    value = plain.pop(key, None)
    if value is None:
        return None
    if not isinstance(value, str):
        mistakes.append(f"{key}: is {_shown(value)}; allowed is the path of a file")
        return None
    path = folder / os.path.expanduser(value)
    if not path.is_file():
        mistakes.append(f"{key}: there is no file {path}")
        return None
    return path


def _app(path: Path | None, plain: dict[str, Any], mistakes: list[str]) -> dict[str, Any]:
    # Of [data], a run with an app has the held-out share only.
    data = plain.pop("data", {})
    share = data.pop("held_out", None) if isinstance(data, dict) else None
    if data:
        plain["data"] = data
    app = {"name": "", "digest": ""}
    try:
        if path is not None:
            app = {"name": path.name, "digest": app_digest(path)}
    except AppError as error:
        mistakes.append(f"app: {error}")
    return app if share is None else app | {"held_out": share}


def _method(plain: Mapping[str, Any], mistakes: list[str]) -> dict[str, Any]:
    settings = dict(plain)
    name = settings.pop("name", None)
    if name not in method_names():
        found = "is missing" if name is None else f"is {_shown(name)}"
        mistakes.append(f"method.name: {found}; allowed are {', '.join(map(repr, method_names()))}")
        return {"name": "", "settings": {}}
    _validate(settings_type(name), settings, "method", mistakes)
    return {"name": name, "settings": settings}


def _resolve_evaluation_data(plain: dict[str, Any], folder: Path) -> None:
    evaluation = plain.get("evaluation")
    if isinstance(evaluation, dict) and isinstance(evaluation.get("data"), str):
        evaluation["data"] = str((folder / os.path.expanduser(evaluation["data"])).resolve())


def _check_judgement(spec: RunSpec, mistakes: list[str]) -> None:
    """What no evaluation gives would never be reached, and nobody would be told."""
    evaluation = spec.evaluation
    if spec.stop.target is not None and evaluation.data is None and not evaluation.on_clients:
        mistakes.append("stop.target: needs evaluation.data or evaluation.on_clients = true")
    if spec.app is None and evaluation.metric not in CLASSIFICATION_METRICS:
        mistakes.append(
            f"evaluation.metric: is {_shown(evaluation.metric)}; allowed are "
            f"{', '.join(map(repr, CLASSIFICATION_METRICS))}"
        )


def _validate(kind: Any, plain: Any, where: str, mistakes: list[str]) -> Any:
    """The value, or None with its mistakes noted."""
    try:
        # By way of JSON, where strictness still lets a list be a tuple and 1 be a float.
        text = json.dumps(plain, default=_no_value)
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            mistakes.append(_describe(kind, dict(problem), where))
        return None


def _no_value(value: object) -> dict[str, str]:
    """A date or time of TOML, for which no key has a use, as what no key allows."""
    return {"date or time": str(value)}


def _describe(kind: Any, problem: Mapping[str, Any], where: str) -> str:
    path = [str(part) for part in problem["loc"]]
    if path[:2] == ["app", "held_out"]:
        path[0] = "data"
    key = ".".join([where, *path] if where else path)
    if problem["type"] == _MISSING:
        return f"{key}: is missing"
    if problem["type"] == _UNKNOWN:
        owner = _owner(kind, path[:-1])
        allowed = ", ".join(item.name for item in fields(owner)) if owner else ""
        return f"{key}: is not a key" + (f"; allowed are {allowed}" if allowed else "")
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return message if message.startswith(key) else f"{key}: {message}"
    return f"{key}: is {_shown(problem['input'])}; {message[0].lower()}{message[1:]}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_LENGTH else f"{text[:_MAX_SHOWN_LENGTH]}…"


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
