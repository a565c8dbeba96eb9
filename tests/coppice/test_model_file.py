"""Model files: what is saved is read again; what is not a model is refused."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from coppice.app import app_digest, build_model, make_app
from coppice.domain import AppSpec, DataSpec, MethodSpec, ModelSpec, Workload
from coppice.errors import AppMismatch, DiskFull, StoreUnusable, UnreadableData
from coppice.model_file import ModelInfo, load_model, load_weights, read_info, save_model
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import buffers_of, dense_tensors, masks_of, parameters_of

WORKLOAD = Workload(
    name="digits",
    seed=3,
    model=ModelSpec(name="conv2", norm="batch"),
    data=DataSpec(classes=("zero", "one"), input_shape=(1, 4, 4), mean=(0.5,)),
    method=MethodSpec(name="fedavg", settings={"local_steps": 5, "learning_rate": 0.1}),
)
INFO = ModelInfo(
    workload=WORKLOAD, round_number=12, metrics={"accuracy": 0.9}, written_by="fedserver 0.1.0"
)


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return parameters_of(model) | buffers_of(model)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_model(path, tensors_of(build_model(make_app(WORKLOAD), seed=1)), INFO)
    return path


def test_a_saved_model_predicts_as_before(saved: Path) -> None:
    model = build_model(make_app(WORKLOAD), seed=1).eval()
    loaded, info = load_model(saved)
    assert info == INFO
    assert not loaded.training
    assert isinstance(loaded.get_buffer("norm1.num_batches_tracked"), torch.Tensor)
    inputs = torch.arange(32.0).reshape(2, 1, 4, 4)
    assert torch.equal(loaded(inputs), model(inputs))


def test_tensors_and_origin_can_be_read_alone(saved: Path) -> None:
    assert read_info(saved) == INFO
    tensors = dense_tensors(load_weights(saved))
    wanted = tensors_of(build_model(make_app(WORKLOAD), seed=1))
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    path = tmp_path / "m.safetensors"
    save_model(path, {"all": shared, "end": shared[3:], "turned": shared.reshape(2, 3).T}, INFO)
    loaded = dense_tensors(load_weights(path))
    assert loaded["end"].tolist() == [3, 4, 5]
    assert loaded["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_weights_on_one_mask_are_saved(tmp_path: Path) -> None:
    mask = Mask.full((2, 3))
    weights = {name: SparseTensor(mask, torch.arange(6.0)) for name in ("a.weight", "b.weight")}
    save_model(tmp_path / "model.safetensors", weights, INFO)
    assert masks_of(load_weights(tmp_path / "model.safetensors")) == masks_of(weights)


def test_the_file_is_replaced_whole_and_nothing_is_left_beside_it(saved: Path) -> None:
    save_model(saved, {"w": torch.zeros(1)}, INFO)
    assert list(load_weights(saved)) == ["w"]
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.ENOSPC, DiskFull, "no space is left"),
        (errno.EDQUOT, DiskFull, "no space is left"),
        (errno.EIO, StoreUnusable, "cannot be written: Input/output error"),
    ],
)
def test_a_failed_write_leaves_the_old_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], message: str
) -> None:
    before = saved.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(kind, match=message):
        save_model(saved, {"w": torch.zeros(1)}, INFO)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnusable, match=r"none/m\.safetensors cannot be written: No such file"):
        save_model(tmp_path / "none" / "m.safetensors", {}, INFO)


def test_both_file_and_folder_are_synced_around_the_rename(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def watch_fsync(descriptor: int) -> None:
        done.append("folder" if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir() else "file")
        fsync(descriptor)

    def watch_replace(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watch_fsync)
    monkeypatch.setattr(Path, "replace", watch_replace)
    save_model(saved, {"w": torch.zeros(1)}, INFO)
    assert done == ["file", "rename", "folder"]


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_damaged_file_is_refused(saved: Path, cut: int) -> None:
    saved.write_bytes(saved.read_bytes()[:cut])
    for read in (read_info, load_weights, load_model):
        with pytest.raises(UnreadableData, match=r"model\.safetensors is not a model of Coppice"):
            read(saved)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for read in (read_info, load_weights, load_model):
        with pytest.raises(UnreadableData, match="does not exist"):
            read(tmp_path / "none.safetensors")
        with pytest.raises(UnreadableData, match="cannot be read"):
            read(tmp_path)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"coppice": "no json"},
        {"coppice": "[" * 100_000},
        {"coppice": "{}"},
        {"coppice": json.dumps({"workload": 3, "round_number": 1})},
    ],
)
def test_a_file_of_another_program_is_only_tensors(
    tmp_path: Path, metadata: dict[str, str]
) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"w": torch.ones(2)}, path, metadata=metadata)
    with pytest.raises(UnreadableData, match="not a model of Coppice"):
        load_model(path)
    assert dense_tensors(load_weights(path))["w"].tolist() == [1, 1]


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_tensors_of_another_model_are_refused(saved: Path, change: str) -> None:
    tensors: dict[str, Any] = load_weights(saved)
    if change == "extra":
        tensors["more"] = torch.zeros(1)
    else:
        tensors["fc2.bias"] = torch.zeros(3)
    if change == "missing":
        del tensors["fc2.bias"]
    save_model(saved, tensors, INFO)
    with pytest.raises(UnreadableData, match="more" if change == "extra" else r"fc2\.bias"):
        load_model(saved)


def test_a_model_of_an_app_needs_the_apps_module(tmp_path: Path) -> None:
    app = tmp_path / "mine.py"
    app.write_text(
        "import torch\ndef model(): return torch.nn.Linear(2, 1)\n"
        "def loss(outputs, targets): return outputs.mean()\n"
        "def load_data(path): return None\n"
    )
    spec = AppSpec(name="mine.py", digest=app_digest(app))
    workload = Workload(name="mine", app=spec, method=MethodSpec(name="fedavg"))
    path = tmp_path / "m.safetensors"
    info = ModelInfo(workload=workload, round_number=1, metrics={}, written_by="a test")
    save_model(path, {"weight": torch.tensor([[2.0, 3.0]]), "bias": torch.tensor([1.0])}, info)
    model, _ = load_model(path, app)
    assert model(torch.tensor([10.0, 100.0])).item() == 321
    with pytest.raises(AppMismatch, match=r"the app mine\.py"):
        load_model(path)


# ---- masks -------------------------------------------------------------------------------------


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    """A model with a third of `fc1.weight` kept, one of the kept values being 0."""
    tensors = tensors_of(build_model(make_app(WORKLOAD), seed=1))
    weight = tensors["fc1.weight"].clone()
    weight.view(-1)[3] = 0.0
    mask = Mask.of((torch.arange(weight.numel()) % 3 == 0).reshape(weight.shape))
    path = tmp_path / "pruned.safetensors"
    save_model(path, tensors | {"fc1.weight": SparseTensor.take(weight, mask)}, INFO)
    return path


def test_masks_are_saved_with_the_model(pruned: Path) -> None:
    weights = load_weights(pruned)
    assert weights.keys() == tensors_of(build_model(make_app(WORKLOAD), seed=1)).keys()
    assert masks_of(weights).keys() == {"fc1.weight"}
    sparse = weights["fc1.weight"]
    assert isinstance(sparse, SparseTensor)
    assert sparse.mask.positions[:3].tolist() == [0, 3, 6]
    # Kept, although it is 0.
    assert sparse.values[1] == 0.0
    original = build_model(make_app(WORKLOAD), seed=1).get_parameter("fc1.weight")
    assert torch.equal(sparse.values[2:], original.detach()[sparse.mask.bits][2:])


def test_a_pruned_model_predicts_as_its_dense_tensors_do(pruned: Path) -> None:
    model, info = load_model(pruned)
    assert info.density == pytest.approx(1 / 3, abs=0.01)
    assert replace(info, density=None) == INFO
    sparse = load_weights(pruned)["fc1.weight"]
    assert isinstance(sparse, SparseTensor)
    assert torch.equal(model.get_parameter("fc1.weight"), sparse.dense())


def test_other_programs_find_the_tensors_dense_in_a_pruned_model(pruned: Path) -> None:
    tensors = load_file(pruned)
    assert torch.equal(tensors["fc1.weight"], dense_tensors(load_weights(pruned))["fc1.weight"])
    assert tensors["fc1.weight#mask"].dtype == torch.uint8


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-1],
        lambda packed: packed.to(torch.int16),
        lambda packed: packed.reshape(1, -1),
    ],
)
def test_a_damaged_mask_is_refused(pruned: Path, damage: Callable[[Tensor], Tensor]) -> None:
    tensors = load_file(pruned)
    tensors["fc1.weight#mask"] = damage(tensors["fc1.weight#mask"]).contiguous()
    with safe_open(pruned, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, pruned, metadata)
    for read in (load_weights, load_model):
        with pytest.raises(UnreadableData, match=r"fc1\.weight: a mask of shape .* has \d+ bytes"):
            read(pruned)


def test_a_mask_with_bits_beyond_its_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.ones(2), "w#mask": torch.tensor([4], dtype=torch.uint8)}, path)
    with pytest.raises(UnreadableData, match="w: a mask has bits beyond its last entry"):
        load_weights(path)


def test_a_tensor_that_is_only_named_like_a_mask_is_a_tensor(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"alone#mask": torch.ones(2)}, path)
    assert dense_tensors(load_weights(path))["alone#mask"].tolist() == [1, 1]
