"""What a device is told of its refused updates, as messages."""

from __future__ import annotations

from coppice.wire import coordination_pb2 as pb
from server.verdicts import Told


def refusals_to_messages(told: Told | None) -> list[pb.Refusal]:
    """A message for each; none when there is nothing to tell."""
    if told is None:
        return []
    return [
        pb.Refusal(
            refusal_id=refusal.refusal_id,
            task_id=refusal.task_id,
            round_number=refusal.round_number,
            reason=refusal.finding.reason,
            strikes=told.strikes,
            strikes_allowed=told.strikes_allowed,
            left_out=told.left_out,
        )
        for refusal in told.refusals
    ]
