"""Updates that were refused, for people in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coppice.table import table

_SHOWN = 20


def refusal_table(records: Sequence[Mapping[str, Any]]) -> str:
    """The newest ones, a line each; `records` are as the API tells them, oldest first."""
    rows = [
        (item["round_number"], item["client_id"], item["finding"]["reason"])
        for item in records[-_SHOWN:]
    ]
    left_out = len(records) - len(rows)
    more = f"\nand {left_out} before these" if left_out else ""
    return table(("round", "refused update of", "because"), rows) + more
