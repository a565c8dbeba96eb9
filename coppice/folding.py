"""What becomes of a round's updates: judged, combined as the run says, folded by its method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coppice.domain import ClientId, Metrics
from coppice.firewall import is_judged, judge, measure
from coppice.method import ServerHalf
from coppice.protection import Finding, ProtectionSpec
from coppice.robust import Read, combined


@dataclass(frozen=True)
class Folded:
    """The round's end."""

    state: Any
    metrics: Metrics
    #: Whose updates are in the state, in plan order.
    clients: Sequence[ClientId]
    #: Whose were refused, and why.
    refused: Mapping[ClientId, Finding]


def fold(
    half: ServerHalf[Any],
    protection: ProtectionSpec,
    state: Any,
    clients: Sequence[ClientId],
    read: Read,
    round_number: int,
    devices: int,
    scratch: Path | None = None,
) -> Folded:
    """Fold the updates of these clients, given in plan order.

    The same updates give the same answer, bit by bit: a server that was killed in between does it
    again. With `aggregate = "mean"`, what is folded are the updates themselves.

    Args:
        read: Reads updates of these clients, one at a time, as often as need be.
        devices: That were given a task in the round.
        scratch: Folder for what robust rules put aside.
    """
    refused: Mapping[ClientId, Finding] = {}
    if protection.firewall and is_judged(devices, len(clients)):
        refused = judge([measure(update) for update in read(clients)])
    accepted = [client_id for client_id in clients if client_id not in refused]
    folded, updates = combined(
        protection,
        accepted,
        read,
        lambda update: half.unit(state, update, round_number),
        scratch,
    )
    state, metrics = half.aggregate(state, updates, round_number)
    return Folded(state, metrics, folded, refused)
