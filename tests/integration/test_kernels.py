"""Devices that train pruned layers by kernels: nearly what one process computes with zeros."""

from __future__ import annotations

from pathlib import Path

from benchmarks.fleet import Fleet
from coppice.tensors import dense_tensors, masks_of
from tests.integration.runs import as_bytes, simulated_model
from tests.integration.test_prunefl import MLP, finished, last_model, prunefl_file


def test_a_run_with_kernels_ends_near_one_without(digits: dict[str, Path], tmp_path: Path) -> None:
    # Sparse enough that no device has to measure what is faster.
    text = prunefl_file(*MLP, max_density=0.05, prune_share=0.8)
    with Fleet(tmp_path) as fleet:
        for name, path in digits.items():
            fleet.join(name, path)
        run, rounds = finished(fleet, text)
        found = last_model(fleet.server, run["run_id"])
    expected = simulated_model(text, digits)
    assert rounds[-1]["metrics"]["density"] < 0.1
    for name, mask in masks_of(expected).items():
        kept = masks_of(found)[name].bits & mask.bits
        assert int(kept.sum()) > 0.99 * mask.count
    exact = dense_tensors(expected)
    for name, tensor in dense_tensors(found).items():
        # What reads a unit without inputs, a constant, rests on devices with kernels.
        far = (tensor - exact[name]).abs() > 0.02
        assert int(far.sum()) <= 0.01 * tensor.numel(), name
    # Another order of summation, so the kernels did it.
    assert as_bytes(found) != as_bytes(expected)
