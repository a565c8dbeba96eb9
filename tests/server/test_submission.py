"""From a run file to a queued run: everything it names is tried and copied first."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from coppice.app import app_digest, build_model, make_app
from coppice.errors import AppError, CoppiceError, DataError, RunFileError
from coppice.masks import full_masks, masked, prunable_names
from coppice.model_file import ModelInfo, save_model
from coppice.tensors import buffers_of, parameters_of
from server.coordinator import Coordinator
from server.records import RunRecord
from server.resources import Resources
from server.run_file import MAX_RUN_FILE_BYTES
from server.submission import submit
from tests.server.host import PATIENCE_SECONDS, make_resources
from tests.server.run_samples import SPEC

TEXT = """
name = "tiny"
seed = 7
{first}

[model]
name = "{model}"
hidden = [4]

[data]
classes = ["left", "right"]
input_shape = [3]

[method]
name = "fedavg"
local_steps = 0

[cohort]
size = 2

[stop]
rounds = 2

{last}
"""

APP = """
import torch

def model():
    return torch.nn.Linear(3, 1)

def loss(outputs, targets):
    return ((outputs - targets) ** 2).mean()

def load_data(path):
    return torch.ones(5, 3), torch.ones(5)
"""

APP_TEXT = """
name = "own"
app = "own.py"
[method]
name = "fedavg"
local_steps = 0
[cohort]
size = 2
[stop]
rounds = 2
"""


class Counter:
    """Where run files are handed in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "files"
        self.folder.mkdir()
        self.resources: Resources = make_resources(folder)

    def submit(self, text: str, app: str | None = None) -> RunRecord:
        async def hand_in() -> int:
            try:
                coordinator = Coordinator(self.resources)
                return await submit(self.resources, coordinator, text, str(self.folder), app)
            finally:
                await self.resources.evaluator.close()

        run_id = asyncio.run(asyncio.wait_for(hand_in(), PATIENCE_SECONDS))
        return self.resources.store.run(run_id)

    def refused(self, kind: type[CoppiceError], text: str, **given: Any) -> str:
        """How a run file is refused, of which nothing is queued."""
        with pytest.raises(kind) as caught:
            self.submit(text, **given)
        assert self.resources.store.runs() == []
        assert list(self.resources.blobs.folder.glob("*")) == [
            self.resources.blobs.folder / "partial"
        ]
        return str(caught.value)


@pytest.fixture
def counter(tmp_path: Path) -> Iterator[Counter]:
    made = Counter(tmp_path)
    yield made
    made.resources.threads.close()
    made.resources.store.close()


def run_file(first: str = "", last: str = "", model: str = "mlp") -> str:
    return TEXT.format(first=first, last=last, model=model)


def test_run_is_queued_as_the_file_says(counter: Counter) -> None:
    run = counter.submit(run_file())
    assert run.state == "queued"
    assert run.spec == SPEC
    (event,) = counter.resources.store.events(None)
    assert (event.kind, event.text) == ("run_submitted", "run tiny submitted")


def test_mistakes_are_told_and_nothing_is_queued(counter: Counter) -> None:
    assert counter.refused(RunFileError, run_file('sead = "x"')).startswith("sead: is not a key")


def test_file_over_the_limit_is_refused(counter: Counter) -> None:
    text = run_file() + "#" * MAX_RUN_FILE_BYTES
    assert counter.refused(RunFileError, text) == (
        f"a run file may have {MAX_RUN_FILE_BYTES} bytes at most"
    )


def test_model_that_is_not_there_is_refused(counter: Counter) -> None:
    assert counter.refused(RunFileError, run_file(model="mpl")).startswith("model.name")


class TestWarmStart:
    def save(self, counter: Counter, **tensors: torch.Tensor) -> bytes:
        path = counter.folder / "start.safetensors"
        save_file(tensors, path)
        return path.read_bytes()

    def test_is_stored_with_the_run(self, counter: Counter) -> None:
        model = build_model(make_app(SPEC.workload), 3)
        data = self.save(counter, **(parameters_of(model) | buffers_of(model)))
        run = counter.submit(run_file('warm_start = "start.safetensors"'))
        assert run.spec.warm_start is not None
        assert counter.resources.blobs.read(run.spec.warm_start.digest) == data

    def test_of_another_model_is_refused(self, counter: Counter) -> None:
        self.save(counter, w=torch.zeros(3))
        text = counter.refused(RunFileError, run_file('warm_start = "start.safetensors"'))
        assert text.startswith("warm_start: these tensors are not this model's")

    def test_that_is_no_model_is_refused(self, counter: Counter) -> None:
        (counter.folder / "start.safetensors").write_bytes(b"nonsense")
        text = counter.refused(RunFileError, run_file('warm_start = "start.safetensors"'))
        assert text.startswith(f"warm_start: {counter.folder}/start.safetensors")

    def test_with_a_damaged_mask_is_refused(self, counter: Counter) -> None:
        masks = {"w#mask": torch.zeros(9, dtype=torch.uint8)}
        self.save(counter, w=torch.zeros(3), **masks)
        text = counter.refused(RunFileError, run_file('warm_start = "start.safetensors"'))
        assert text.startswith(f"warm_start: {counter.folder}/start.safetensors")
        assert "w: a mask of shape [3] has 1 bytes" in text

    def test_is_stored_after_everything_else_was_tried(self, counter: Counter) -> None:
        model = build_model(make_app(SPEC.workload), 3)
        self.save(counter, **(parameters_of(model) | buffers_of(model)))
        text = run_file('warm_start = "start.safetensors"', '[evaluation]\ndata = "none.npz"')
        # `refused` sees that no blob was left behind.
        counter.refused(DataError, text)


class TestMethod:
    def test_that_does_not_suit_the_model_is_refused(self, counter: Counter) -> None:
        settings = 'name = "prunefl"\nmask_scope = "global"\nkeep_dense = ["input.weight"]\n'
        text = run_file().replace('name = "fedavg"\n', settings)
        says = counter.refused(RunFileError, text)
        assert says.startswith("method.keep_dense names 'input.weight'; the weights that can be")

    def test_is_given_the_warm_start(self, counter: Counter) -> None:
        text = run_file().replace('name = "fedavg"\n', 'name = "lottery"\n')
        assert "give its file as warm_start" in counter.refused(RunFileError, text)
        model = build_model(make_app(SPEC.workload), 3)
        weights = masked(parameters_of(model), full_masks(model, prunable_names(model)))
        info = ModelInfo(workload=SPEC.workload, round_number=1, metrics={}, written_by="a test")
        save_model(counter.folder / "start.safetensors", weights, info)
        text = text.replace("seed = 7\n", 'seed = 7\nwarm_start = "start.safetensors"\n')
        assert counter.submit(text).spec.warm_start is not None


class TestEvaluationData:
    def test_is_read_once(self, counter: Counter) -> None:
        path = counter.folder / "test.npz"
        np.savez(path, x=np.ones((4, 3), np.float32), y=np.zeros(4, int))
        run = counter.submit(run_file(last='[evaluation]\ndata = "test.npz"'))
        assert run.spec.evaluation.data == str(path)

    def test_that_does_not_fit_the_run_is_refused(self, counter: Counter) -> None:
        path = counter.folder / "test.npz"
        np.savez(path, x=np.ones((4, 5), np.float32), y=np.zeros(4, int))
        text = counter.refused(DataError, run_file(last='[evaluation]\ndata = "test.npz"'))
        assert text.startswith(f"evaluation.data: {path}: ")


class TestApp:
    def test_is_copied_so_that_later_edits_do_not_matter(self, counter: Counter) -> None:
        path = counter.folder / "own.py"
        path.write_text(APP)
        digest = app_digest(path)
        run = counter.submit(APP_TEXT)
        path.write_text("broken")
        assert run.spec.app is not None
        assert run.spec.app.digest == digest
        copy = counter.resources.app_path(digest)
        assert copy.read_text() == APP
        assert list(copy.parent.iterdir()) == [copy]

    def test_may_be_elsewhere(self, counter: Counter, tmp_path: Path) -> None:
        path = tmp_path / "elsewhere.py"
        path.write_text(APP)
        run = counter.submit(APP_TEXT, str(path))
        assert run.spec.app is not None
        assert run.spec.app.name == "elsewhere.py"

    @pytest.mark.parametrize(
        ("source", "says"),
        [
            ("1 / 0", "line 1: ZeroDivisionError"),
            (APP.replace("model()", "modell()"), "has no function model()"),
            (APP.replace("torch.nn.Linear(3, 1)", "7"), "model() must return a torch.nn.Module"),
        ],
    )
    def test_with_a_mistake_is_refused(self, counter: Counter, source: str, says: str) -> None:
        (counter.folder / "own.py").write_text(source)
        assert says in counter.refused(AppError, APP_TEXT)
