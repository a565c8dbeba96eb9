"""Rules that hold for the repository as a whole: sizes, names, imports, stubs, packaging."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = [
    ".ci",
    "benchmarks",
    "coppice",
    "deploy",
    "docs",
    "edge_client",
    "proto",
    "server",
    "tests",
]
FILES = [path for path in ROOT.iterdir() if path.is_file()] + [
    path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()
]
GENERATED = "_pb2"
MODULES = [path for path in FILES if path.suffix == ".py" and GENERATED not in path.name]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Written so that this file does not match itself.
OF_ONE_MACHINE = re.compile(r"(?<![\w.])/(wor[k]|roo[t]|far[m])/|far[m]-\w")
REGISTRY_HOST = re.compile(r"(pypi|pythonhosted|pytorch|piwheels|npmjs|docker)\.(or[g]|co[m]|i[o])")


def name(path: Path) -> str:
    """The path within the repository, for messages."""
    return str(path.relative_to(ROOT))


def run(*command: str | Path) -> None:
    """Run a command of this environment; when it fails, the test fails with what it printed."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- sizes and names ---------------------------------------------------------------------------


def test_no_module_has_more_than_400_lines() -> None:
    sizes = {name(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {path: lines for path, lines in sizes.items() if lines > 400} == {}


def test_half_of_all_modules_have_less_than_200_lines() -> None:
    sizes = [len(path.read_text().splitlines()) for path in MODULES if path.stat().st_size]
    assert statistics.median(sizes) < 200


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_first_line_of_a_module_says_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert text.startswith('"""')
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring
    # One sentence, which may go on with what it lists or points to.
    assert re.search(r"[.:]$", docstring.split("\n\n")[0]), "the first sentence has no end"


def test_no_module_has_a_name_that_says_nothing() -> None:
    says_nothing = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
    words = {name(path): set(re.split(r"[/_.]", name(path))) for path in MODULES}
    assert [path for path in words if words[path] & says_nothing] == []


def test_no_file_names_a_machine_or_a_package_registry() -> None:
    found = []
    for path in FILES:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            if OF_ONE_MACHINE.search(line) or REGISTRY_HOST.search(line):
                found.append(f"{name(path)}:{number}: {line.strip()}")
    assert found == []


# ---- imports and generated code ----------------------------------------------------------------


def test_imports_keep_to_the_architecture() -> None:
    run(Path(sys.executable).with_name("lint-imports"))


def test_stubs_are_those_of_the_proto_file(tmp_path: Path) -> None:
    proto = "coppice/wire/coordination.proto"
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    run(sys.executable, "-m", "grpc_tools.protoc", "-Iproto", *outputs, f"proto/{proto}")
    fresh = {path.name: path.read_text() for path in tmp_path.rglob("*.py*")}
    assert len(fresh) == 3
    present = {path.name: path.read_text() for path in (ROOT / proto).parent.glob("*_pb2*")}
    assert present == fresh, "run `make proto`"


# ---- packaging ---------------------------------------------------------------------------------


def test_changelog_has_an_unreleased_section() -> None:
    assert re.search(r"^## Unreleased$", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_a_device_installs_nothing_of_the_server() -> None:
    names = {re.split(r"[^\w-]", requirement)[0] for requirement in PROJECT["dependencies"]}
    extras = {
        re.split(r"[^\w-]", requirement)[0]
        for requirements in PROJECT["optional-dependencies"].values()
        for requirement in requirements
    }
    assert not names & extras
    assert names == {
        "torch", "numpy", "grpcio", "protobuf", "psutil", "safetensors", "annotated-types",
        "zstandard", "cryptography",
    }  # fmt: skip


def test_dependencies_are_new_enough_for_the_stubs() -> None:
    wire = ROOT / "coppice" / "wire"
    for package, file, pattern in (
        ("grpcio", "coordination_pb2_grpc.py", r"^GRPC_GENERATED_VERSION = '(.*)'$"),
        ("protobuf", "coordination_pb2.py", r"^# Protobuf Python Version: (.*)$"),
    ):
        (version,) = re.findall(pattern, (wire / file).read_text(), re.M)
        assert any(item.startswith(f"{package}>={version},") for item in PROJECT["dependencies"])


def test_licence_is_apache_2() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
