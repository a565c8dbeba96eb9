"""Tensors put aside in a file and read back by blocks; and the file itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from coppice.errors import StoreUnusable
from coppice.shelf import Shelf
from coppice.sparse import Mask, SparseTensor
from coppice.spool import Key, Spool

W: Key = ("delta", "w")


def whole(spool: Spool, key: Key) -> torch.Tensor:
    return torch.cat(list(spool.blocks(key)), dim=1)


@pytest.mark.parametrize("block_bytes", [1, 3 * 8 * 8, 2**20])
def test_blocks_are_the_tensors_whatever_their_size(tmp_path: Path, block_bytes: int) -> None:
    generator = torch.Generator().manual_seed(1)
    dense = [torch.randn(5, 7, generator=generator) for _ in range(3)]
    masks = [Mask.of(torch.rand(5, 7, generator=generator) < share) for share in (0.5, 0.0, 1.0)]
    with Spool(tmp_path, block_bytes) as spool:
        for tensor, mask in zip(dense, masks, strict=True):
            spool.add({W: SparseTensor.take(tensor, mask), ("delta", "b"): tensor.double()})
        assert len(spool) == 3
        assert spool.kinds == {
            W: ((5, 7), torch.float32),
            ("delta", "b"): ((5, 7), torch.float64),
        }
        rows = whole(spool, W)
        for row, tensor, mask in zip(rows, dense, masks, strict=True):
            expected = torch.where(mask.bits, tensor.double(), torch.nan).reshape(-1)
            assert torch.equal(row.nan_to_num(99), expected.nan_to_num(99))
        assert torch.equal(whole(spool, ("delta", "b")), torch.stack(dense).reshape(3, -1).double())
        if block_bytes == 1:
            assert max(block.shape[1] for block in spool.blocks(W)) == 8
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_narrow_types_come_back_exactly(kind: torch.dtype) -> None:
    values = torch.tensor([0.1, -3.0, 1e-4]).to(kind)
    with Spool() as spool:
        spool.add({W: values})
        assert torch.equal(whole(spool, W)[0], values.double())


def test_who_has_not_got_a_tensor_holds_none_of_it() -> None:
    with Spool() as spool:
        spool.add({W: torch.ones(3)})
        spool.add({})
        assert whole(spool, W).isnan().tolist() == [[False] * 3, [True] * 3]


def test_a_shelf_gives_back_what_was_put(tmp_path: Path) -> None:
    with Shelf(tmp_path) as shelf:
        places = [shelf.put(data) for data in (b"one", b"", b"three")]
        assert places == [0, 3, 3]
        assert shelf.read(3, 5) == b"three"
        assert shelf.read(0, 3) == b"one"
        with pytest.raises(ValueError, match="more than were put"):
            shelf.read(4, 5)


def test_a_shelf_without_a_place_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreUnusable, match="cannot be written"):
        Shelf(tmp_path / "nowhere")
