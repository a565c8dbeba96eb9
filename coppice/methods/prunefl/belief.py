"""What the server believes of a device's costs: no more than its own clock bears out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from coppice.device_cost import DeviceCost

#: How many times as long or as short a round may be as the costs say, and they are still believed:
#: the server also sees what it does itself, and what a network does once.
TOLERANCE = 4.0


def believed(
    cost: DeviceCost,
    kept: Mapping[str, int],
    steps: int,
    measured_seconds: float | None,
    reported: bool,
) -> DeviceCost | None:
    """The costs, their times scaled to what the server measured where they are far from it.

    So no device can claim rounds that are much longer than those that it really has: but for a
    layer's margin (`LayerCost.seconds`), none is shorter than that of one step and the fewest
    weights.

    Args:
        cost: As the device says.
        kept: Weights that it trained, by parameter.
        steps: Local steps that it did.
        measured_seconds: What the round took it, as the server saw it; None where nobody measures.
        reported: Whether it sent importance as well: that takes longer, and is not in its costs.

    Returns:
        None where no scale makes sense of them.

    Raises:
        ValueError: The costs are of other parameters.
    """
    # A clock that was set back has measured nothing.
    if not measured_seconds:
        return cost
    predicted = cost.time.seconds(kept, steps)
    if measured_seconds * TOLERANCE < predicted or (
        not reported and measured_seconds > TOLERANCE * predicted
    ):
        return _scaled(cost, measured_seconds, predicted)
    return cost


def _scaled(cost: DeviceCost, measured_seconds: float, predicted: float) -> DeviceCost | None:
    try:
        return replace(cost, time=cost.time.times(measured_seconds / predicted))
    except (ZeroDivisionError, ValueError):
        # Rounds that cost nothing, or others that would last for ever.
        return None
