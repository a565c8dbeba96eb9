"""Loads a user's own module and turns each mistake in it into one line."""

from __future__ import annotations

import hashlib
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from coppice.errors import AppError, CoppiceError

_MAX_SOURCE_BYTES = 16 << 20
_MAX_TEXT = 300


def read_source(path: Path) -> bytes:
    """The bytes of an app module; AppError when there are none to be had."""
    try:
        with path.open("rb") as file:
            source = file.read(_MAX_SOURCE_BYTES + 1)
    except OSError as error:
        raise AppError(
            f"{path}: cannot read the app module: {error.strerror}; give the path of a Python file"
        ) from None
    if len(source) > _MAX_SOURCE_BYTES:
        raise AppError(
            f"{path} is over {_MAX_SOURCE_BYTES >> 20} MiB; give the path of a Python file"
        )
    return source


def digest_of(source: bytes) -> str:
    """SHA-256 of an app module, hexadecimal."""
    return hashlib.sha256(source).hexdigest()


class AppModule:
    """A user's module: exactly the bytes that were digested, run once in a process."""

    def __init__(self, path: Path, source: bytes) -> None:
        self._path = path
        # Two devices of a simulation share one module; an edited file is another module.
        name = f"coppice_app_{digest_of(source)}"
        module = sys.modules.get(name)
        self._module = module if module is not None else self._run(name, source)

    def require(self, signature: str) -> Callable[..., Any]:
        """The module's function of this signature ("loss(outputs, targets)"), its mistakes wrapped.

        Raises AppError when there is none, and, from the function, when a call fails.
        """
        name, _, rest = signature.partition("(")
        function = getattr(self._module, name, None)
        if not callable(function):
            raise AppError(f"{self._path} has no function {signature}; add it")
        arguments = [argument for argument in rest.rstrip(")").split(", ") if argument]
        try:
            inspect.signature(function).bind(*arguments)
        except TypeError:
            found = f"{name}{inspect.signature(function)}"
            raise AppError(f"{self._path} defines {found}; it is called as {signature}") from None

        def call(*values: Any) -> Any:
            try:
                return function(*values)
            except CoppiceError:
                raise
            # The user's code may raise anything; whatever it is, it is the app's mistake.
            except Exception as error:
                raise self._failure(f"{name}()", error) from error

        return call

    def has(self, name: str) -> bool:
        """Whether the module defines this name."""
        return hasattr(self._module, name)

    def wrong(self, name: str, wanted: str, got: object) -> AppError:
        """The error for a function that returned something of another kind than it should."""
        return AppError(f"{self._path}: {name}() must return {wanted}; it returned {got}")

    def _run(self, name: str, source: bytes) -> ModuleType:
        module = ModuleType(name)
        module.__file__ = str(self._path)
        # Dataclasses look their module up by name while it is being run.
        sys.modules[name] = module
        try:
            # Not a loader's get_code: that would leave a __pycache__, and read a stale one.
            exec(compile(source, str(self._path), "exec"), module.__dict__)
        # The user's code may raise anything; whatever it is, it is the app's mistake.
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise self._failure("importing it", error) from error
        except BaseException:
            del sys.modules[name]
            raise
        return module

    def _failure(self, what: str, error: BaseException) -> AppError:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(self._path)
        ]
        line = lines[-1] if lines else None
        if isinstance(error, SyntaxError) and error.filename == str(self._path):
            line = error.lineno
        text = next(iter(str(error).splitlines()), "")[:_MAX_TEXT]
        at = f"line {line}: " if line is not None else ""
        return AppError(f"{self._path}: {what} failed: {at}{type(error).__name__}: {text}")
