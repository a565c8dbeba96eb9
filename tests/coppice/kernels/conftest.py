"""The variants of the library that this processor can run, each in turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from coppice.kernels import library


@pytest.fixture(params=["baseline", "avx2"])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The sparse layers run on this variant."""
    name: str = request.param
    if name == "avx2" and library.load("baseline").level() < 2:
        pytest.skip("this processor has no AVX2")
    found = library.load(name)
    monkeypatch.setattr(library, "_load", lambda: found)
    return name


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Torch's number of threads, which is that of the kernels: 1 or 2, by the seed of the test."""
    before = torch.get_num_threads()
    count = 1 + request.getfixturevalue("seed") % 2
    torch.set_num_threads(count)
    yield count
    torch.set_num_threads(before)
