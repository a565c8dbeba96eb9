"""What is written to the disk is what the kernel says it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_client.wear import bytes_written


def test_counters_of_the_kernel_are_read(tmp_path: Path) -> None:
    counters = tmp_path / "io"
    counters.write_text("rchar: 5\nwrite_bytes: 12288\ncancelled_write_bytes: 4096\n")
    assert bytes_written(counters) == 8192


@pytest.mark.parametrize("text", ["", "write_bytes: 5\n", "nonsense\n", "write_bytes: x\n"])
def test_kernel_that_does_not_count_is_said_so(tmp_path: Path, text: str) -> None:
    counters = tmp_path / "io"
    counters.write_text(text)
    assert bytes_written(counters) is None
    assert bytes_written(tmp_path / "none") is None
