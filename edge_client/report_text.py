"""What a round took on this device, for people, beside what was predicted."""

from __future__ import annotations

from coppice.domain import WHY_TEXT, RoundReport
from edge_client.console import size_text


def pruning_text(report: RoundReport) -> str:
    """How much of the model the device left out, and why: prune ratio 75.0 % (memory-bound)."""
    why = WHY_TEXT[report.why]
    return ratio_text(report.density) + (f" ({why})" if why else "")


def ratio_text(density: float) -> str:
    """How much is left out where this share of the weights is kept: prune ratio 75.0 %."""
    return f"prune ratio {1 - density:.1%}".replace("%", " %")


def time_text(report: RoundReport) -> str:
    """Where the time went: down 0.4 s, compute 12.1 s (11.8 s predicted), up 0.9 s."""
    expected = report.forecast
    parts = (
        ("down", report.download_seconds, expected and expected.download_seconds),
        ("compute", report.compute_seconds, expected and expected.compute_seconds),
        ("up", report.upload_seconds, expected and expected.upload_seconds),
    )
    return ", ".join(
        f"{name} {seconds:.1f} s" + ("" if predicted is None else f" ({predicted:.1f} s predicted)")
        for name, seconds, predicted in parts
    )


def memory_text(report: RoundReport) -> str:
    """The peak and its limit: 312.0 MB of memory (300.1 MB predicted, 400.0 MB allowed)."""
    beside = [f"{size_text(report.budget_bytes)} allowed"]
    if report.forecast is not None:
        beside.insert(0, f"{size_text(report.forecast.peak_bytes)} predicted")
    return f"{size_text(report.peak_bytes)} of memory ({', '.join(beside)})"
