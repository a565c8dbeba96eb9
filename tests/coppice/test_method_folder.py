"""A folder in `coppice/methods/` is a method: its halves, its settings, and what is said of it."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from coppice.domain import MethodSpec
from coppice.errors import InvalidPayload
from coppice.local_training import LocalTraining
from coppice.method import client_half, method_names, server_half, settings_type
from tests.coppice.fleet import CASES

METHODS_PAGE = Path(__file__).parents[2] / "docs" / "methods.md"

pytestmark = pytest.mark.parametrize("name", method_names())


def settings(name: str) -> Mapping[str, Any]:
    """Settings with which the method can be made."""
    return next(dict(spec.settings) for spec in CASES.values() if spec.name == name)


@pytest.mark.parametrize("half", ["client", "server"])
def test_a_process_imports_one_half_of_one_method(name: str, half: str) -> None:
    spec = f"MethodSpec(name={name!r}, settings={settings(name)})"
    code = (
        "import sys\n"
        "from coppice.domain import MethodSpec\n"
        f"from coppice.method import {half}_half\n"
        f"{half}_half({spec})\n"
        "print(*(m for m in sys.modules if m.startswith('coppice.methods.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=100
    )
    loaded = done.stdout.split()
    other = {"client": "server", "server": "client"}[half]
    assert f"coppice.methods.{name}.{half}" in loaded
    assert f"coppice.methods.{name}.{other}" not in loaded
    assert {module.split(".")[2] for module in loaded} == {name}


def test_settings_refuse_keys_that_they_do_not_have(name: str) -> None:
    spec = MethodSpec(name=name, settings={**settings(name), "no_such_key": 1})
    for half in (server_half, client_half):
        with pytest.raises(InvalidPayload, match="Settings has no no_such_key"):
            half(spec)
    assert dataclasses.is_dataclass(settings_type(name))


def test_the_documentation_explains_the_method_and_its_settings(name: str) -> None:
    sections = re.split(r"^## ", METHODS_PAGE.read_text(), flags=re.M)
    own = [text for text in sections if f'"{name}"' in text.partition("\n")[0]]
    assert len(own) == 1, f"docs/methods.md needs one heading with {name!r} in it"
    # What all methods have is explained once, for all.
    (training,) = [text for text in sections if text.startswith("Training on the devices\n")]
    shared = {field.name for field in dataclasses.fields(LocalTraining)}
    for field in dataclasses.fields(settings_type(name)):
        section = training if field.name in shared else own[0]
        assert f"`{field.name}`" in section, field.name
