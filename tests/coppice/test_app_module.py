"""A user's module: run once, and each of its mistakes told in one line."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from coppice.app_module import AppModule, read_source
from coppice.errors import AppError, DataError


def module(folder: Path, source: str) -> AppModule:
    path = folder / "mine.py"
    # A comment of its own makes every test's module another one.
    path.write_text(f"{source}\n# {uuid.uuid4()}\n")
    return AppModule(path, read_source(path))


def failure(folder: Path, source: str) -> str:
    """The message with which importing the source fails."""
    loaded = set(sys.modules)
    with pytest.raises(AppError) as caught:
        module(folder, source)
    assert set(sys.modules) == loaded
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\ny = 1 / 0", "importing it failed: line 2: ZeroDivisionError: division by zero"),
        ("x = 1\n\ndef broken(:", "importing it failed: line 3: SyntaxError: "),
        ("import no_such_module", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit('stop')", "importing it failed: line 1: SystemExit: stop"),
        ("raise ValueError('one\\ntwo')", "line 1: ValueError: one"),
        ("raise ValueError", "importing it failed: line 1: ValueError: "),
        ("def f():\n    return {}['k']\nf()", "importing it failed: line 2: KeyError: 'k'"),
    ],
)
def test_a_failing_import_is_one_line_with_type_and_place(
    tmp_path: Path, source: str, message: str
) -> None:
    assert failure(tmp_path, source).startswith(f"{tmp_path / 'mine.py'}: ")
    assert message in failure(tmp_path, source)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    for source in (b"\xff\xfe", b"x = '\0'"):
        path = tmp_path / "mine.py"
        path.write_bytes(source)
        with pytest.raises(AppError, match=r"mine\.py: importing it failed"):
            AppModule(path, source)


def test_a_missing_function_is_named_with_its_signature(tmp_path: Path) -> None:
    app = module(tmp_path, "loss = 3")
    for signature in ("model()", "loss(outputs, targets)"):
        with pytest.raises(AppError) as caught:
            app.require(signature)
        assert f"mine.py has no function {signature}; add it" in str(caught.value)


@pytest.mark.parametrize("parameters", ["", "outputs", "a, b, c", "*, outputs, targets"])
def test_a_function_with_other_parameters_is_refused(tmp_path: Path, parameters: str) -> None:
    app = module(tmp_path, f"def loss({parameters}): pass")
    with pytest.raises(AppError) as caught:
        app.require("loss(outputs, targets)")
    wanted = f"defines loss({parameters}); it is called as loss(outputs, targets)"
    assert wanted in str(caught.value)


@pytest.mark.parametrize("parameters", ["a, b", "a, b, c=1", "*values"])
def test_names_and_defaults_of_parameters_are_free(tmp_path: Path, parameters: str) -> None:
    app = module(tmp_path, f"def loss({parameters}): return 7")
    assert app.require("loss(outputs, targets)")(1, 2) == 7


def test_a_failing_call_names_the_function_and_the_line(tmp_path: Path) -> None:
    app = module(tmp_path, "import json\ndef load_data(path):\n    return json.loads('{')")
    with pytest.raises(AppError) as caught:
        app.require("load_data(path)")("x")
    # The line is the user's own, not one in the library where it went wrong.
    assert "mine.py: load_data() failed: line 3: JSONDecodeError: Expecting" in str(caught.value)
    assert caught.value.__cause__ is not None


def test_an_error_that_the_app_raises_on_purpose_passes(tmp_path: Path) -> None:
    app = module(
        tmp_path,
        "from coppice.errors import DataError\n"
        "def load_data(path): raise DataError('no sensor is connected; plug one in')",
    )
    with pytest.raises(DataError, match=r"^no sensor is connected; plug one in$"):
        app.require("load_data(path)")("x")


def test_the_same_bytes_are_run_once_in_a_process(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import itertools\ncount = itertools.count()\ndef model(): return next(count)\n"
        f"# {uuid.uuid4()}"
    )
    first, second = (AppModule(path, read_source(path)) for _ in range(2))
    assert [first.require("model()")(), second.require("model()")()] == [0, 1]
    path.write_text(path.read_text() + "\n")
    assert AppModule(path, read_source(path)).require("model()")() == 0


def test_what_is_run_is_what_was_read_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def model(): return 'old'")
    source = read_source(path)
    path.write_text("def model(): return 'new'")
    assert AppModule(path, source).require("model()")() == "old"
    assert [child.name for child in tmp_path.iterdir()] == ["mine.py"]


def test_the_modules_folder_is_not_searched_for_imports(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").touch()
    before = list(sys.path)
    assert "ModuleNotFoundError" in failure(tmp_path, "import neighbour")
    assert sys.path == before


def test_dataclasses_and_types_of_the_module_work(tmp_path: Path) -> None:
    app = module(
        tmp_path,
        "from __future__ import annotations\n"
        "import typing\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Point:\n    x: typing.ClassVar[int] = 3\n    y: int = 4\n"
        "def model(): return Point(y=5), typing.get_type_hints(Point)['y']",
    )
    point, kind = app.require("model()")()
    assert (point.x, point.y, kind) == (3, 5, int)


def test_an_app_brings_none_of_the_heavy_libraries() -> None:
    code = (
        "import sys, coppice.app, coppice.model_file, coppice.partition\n"
        "heavy = {'fastapi', 'sqlalchemy', 'pydantic', 'pandas', 'sklearn', 'PIL', 'pyarrow',\n"
        "         'torch._dynamo', 'sympy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "[]"
