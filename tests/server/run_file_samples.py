"""Run files for the tests, and what is said about wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from coppice.errors import RunFileError
from server.run_file import parse_run_file

TEXT = """
name = "digits"
seed = 1

[model]
name = "mlp"

[data]
classes = ["a", "b"]
input_shape = [1, 8, 8]

[method]
name = "fedavg"
local_epochs = 1

[cohort]
size = 3

[stop]
rounds = 20
"""

APP_TEXT = """
name = "own"
app = "my_app.py"

[method]
name = "fedavg"
local_steps = 5

[cohort]
size = 3

[stop]
rounds = 20
"""

WITHOUT_APP = APP_TEXT.replace('app = "my_app.py"', "")


def changed(*pairs: str, text: str = TEXT) -> str:
    """The text with every first of a pair replaced by the second."""
    for before, after in zip(pairs[::2], pairs[1::2], strict=True):
        assert before in text
        text = text.replace(before, after)
    return text


def mistakes(text: str, folder: Path = Path("/nowhere"), app: Path | None = None) -> list[str]:
    with pytest.raises(RunFileError) as caught:
        parse_run_file(text, folder, app)
    return str(caught.value).splitlines()
