"""`fedclient doctor`: what this device has for training, and what is missing."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from edge_client.console import Console, size_text
from edge_client.meter import capability


@dataclass(frozen=True)
class Finding:
    """One thing that training needs or is better with."""

    what: str
    text: str
    is_well: bool = True


def doctor(as_json: bool) -> int:
    """Look, and say what was found. Returns 1 when something is not as it should be."""
    found = list(_findings())
    if as_json:
        print(json.dumps([asdict(item) for item in found], indent=2))
    else:
        console = Console()
        for item in found:
            (console.say if item.is_well else console.warn)(item.what, item.text)
    return 0 if all(item.is_well for item in found) else 1


def _findings() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} on {platform.machine()}")
    has = capability()
    yield Finding(
        "device", f"{size_text(has.memory_bytes)} of memory free, {has.num_threads} threads"
    )
    try:
        # Some processors end with torch: all that is known without it has been said by then.
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch", f"cannot be loaded: {error}; install Coppice again", is_well=False)
        return
    yield Finding("torch", str(torch.__version__))
    yield _kernels()


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
