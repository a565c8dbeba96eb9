"""`fedclient doctor`: what this device has for training, and what is missing."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from coppice.errors import StoreUnusable
from edge_client.console import Console, day_text, size_text
from edge_client.limits import memory_budget
from edge_client.membership import read_membership
from edge_client.processor import heat, processor_share
from edge_client.state_folder import StateFolder


@dataclass(frozen=True)
class Finding:
    """One thing that training needs or is better with."""

    what: str
    text: str
    is_well: bool = True
    #: The same for programs.
    values: Mapping[str, Any] = field(default_factory=dict)


def doctor(as_json: bool, folder: StateFolder) -> int:
    """Look, and say what was found. Returns 1 when something is not as it should be."""
    found = list(_findings(folder))
    if as_json:
        print(json.dumps([asdict(item) for item in found], indent=2))
    else:
        console = Console()
        for item in found:
            (console.say if item.is_well else console.warn)(item.what, item.text)
    return 0 if all(item.is_well for item in found) else 1


def _findings(folder: StateFolder) -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} on {platform.machine()}")
    yield from (_memory(), _processor(), _heat(), _identity(folder))
    try:
        # Some processors end with torch: all that is known without it has been said by then.
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch", f"cannot be loaded: {error}; install Coppice again", is_well=False)
        return
    yield Finding("torch", str(torch.__version__))
    yield _kernels()


def _memory() -> Finding:
    budget = memory_budget()
    used = f"{size_text(budget.resident_bytes)} in use"
    text = f"{size_text(budget.budget_bytes)} to use, by {budget.bound_by}; {used}"
    return Finding("memory", text, budget.room_bytes > 0, asdict(budget))


def _processor() -> Finding:
    share = processor_share()
    threads = f"{share.num_threads} thread{'s' if share.num_threads > 1 else ''}"
    text = f"{share.cores:.3g} to use, by {share.bound_by}; {threads} for training"
    return Finding("cores", text, values={**asdict(share), "num_threads": share.num_threads})


def _heat() -> Finding:
    told = heat()
    texts = []
    if told.temperature_celsius is not None:
        texts.append(f"{told.temperature_celsius:.0f} °C")
    if told.throttled:
        texts.append(f"the processor is held back: {', '.join(told.throttled)}")
    if before := [flag for flag in told.throttled_since_boot if flag not in told.throttled]:
        texts.append(f"since this machine was started there was: {', '.join(before)}")
    return Finding(
        "heat",
        "; ".join(texts) or "this machine does not tell its temperature",
        is_well=not told.throttled,
        values=asdict(told),
    )


def _identity(folder: StateFolder) -> Finding:
    try:
        membership = read_membership(folder)
    except StoreUnusable as error:
        return Finding("identity", str(error), is_well=False)
    if membership is None:
        return Finding("identity", "none yet: `fedclient join` with a token gets one")
    left = membership.seconds_left()
    until = day_text(membership.expires_at)
    text = f"{membership.name}, by a certificate that is valid until {until}; it renews itself"
    if left <= 0:
        text = (
            f"{membership.name}; its certificate expired {until}: `fedclient join` renews it, or "
            "asks for a token where that was too long ago"
        )
    values = {"name": membership.name, "certificate_until": membership.expires_at}
    return Finding("identity", text, left > 0, values)


def _kernels() -> Finding:
    from coppice.kernels.library import library, trouble

    found = library()
    if found is not None:
        return Finding("kernels", f"{found.variant}: pruned layers take less time and memory")
    return Finding(
        "kernels",
        f"{trouble()}. Pruned models train with the same results, but in the time and memory of "
        "dense ones. To change that: sudo apt-get install gcc libc6-dev, and install Coppice again "
        "with CC=gcc in the environment",
        is_well=False,
    )
