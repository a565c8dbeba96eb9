"""Settings of PruneFL; the defaults are those of the released code."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from coppice.budget import RoundTime
from coppice.domain import ClientId, WireSpec
from coppice.local_training import LocalTraining


@dataclass(frozen=True, kw_only=True)
class Settings(LocalTraining):
    """What a run file may say under [method] with name = "prunefl"."""

    #: Weights (`layer.weight`) that are never pruned.
    keep_dense: tuple[str, ...] = ()

    #: Most passes of initial pruning; 0 leaves it out.
    initial_passes: Annotated[int, Ge(0), Le(100_000)] = 1000
    #: Passes in one task of it, after which the mask is chosen anew.
    initial_interval: Annotated[int, Ge(1), Le(10_000)] = 50
    #: Batches of one pass: a fixed set of the client's examples.
    initial_batches: Annotated[int, Ge(1), Le(10_000)] = 10
    #: The client that does it; by default the strongest of the cohort.
    initial_client: ClientId | None = None
    #: Accuracy on these batches below which nothing is pruned yet; 0 prunes from the first task on.
    initial_accuracy: Annotated[float, Ge(0), Le(1)] = 0.0
    #: Initial pruning ends when so many densities in a row changed by no more than this share.
    settled_within: Annotated[float, Ge(0)] = 0.1
    settled_times: Annotated[int, Ge(1), Le(1000)] = 5

    #: Rounds from one reconfiguration of the mask to the next.
    reconfigure_every: Annotated[int, Ge(1)] = 50
    #: Share of each layer's kept weights that a reconfiguration may take away, halved after every
    #: `prune_half_life` rounds.
    prune_share: Annotated[float, Ge(0), Lt(1)] = 0.3
    prune_half_life: Annotated[float, Gt(0)] = 10_000.0
    #: Most density that growth may lead to; by default there is no limit.
    max_density: Annotated[float, Gt(0), Le(1)] | None = None
    #: The model stays dense until a mask is at most as dense as this.
    sparse_below: Annotated[float, Gt(0), Le(1)] = 0.9
    #: What a weight that grows back begins with: 0, or what it had when it was pruned (as the
    #: released code does).
    regrow: Literal["zero", "stale"] = "zero"
    #: Which gradients tell what a weight is worth: those of the last local step of the rounds that
    #: reconfigure, or the sum over all steps of all rounds (as the released code does), which keeps
    #: a dense buffer on the device and needs plain SGD.
    importance: Literal["last_step", "every_round"] = "last_step"
    #: What a round takes on the slowest client; by default this is measured.
    round_time: RoundTime | None = None

    #: To each device a mask of its own, which it chooses by what it measured of itself: all of them
    #: cuts of one order, and rounds of one pace. Or one mask for all devices, as in the paper.
    mask_scope: Literal["device", "global"] = "device"
    #: With a mask for each device: whether rounds last long enough for all of them to take part, or
    #: who cannot keep the pace sits out.
    include: Literal["all", "quorum"] = "all"
    #: With include = "quorum", who has sat out so many rounds in a row does the least in the next.
    most_rounds_out: Annotated[int, Ge(1)] = 10
    #: What becomes of a weight that not all devices of a round hold: its mean over those that do,
    #: or over all, as if the others had not changed it.
    absent: Literal["skip", "zero"] = "skip"
    #: With absent = "skip", who holds a weight counts for this share of the round at least.
    least_share: Annotated[float, Ge(0), Le(1)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.importance == "every_round" and not self.is_plain:
            raise ValueError(
                'importance = "every_round" reads gradients off the updates, which only plain SGD '
                "allows: set momentum, weight_decay and proximal to 0, or "
                'importance = "last_step"'
            )
        if self.importance == "every_round" and self.schedule == "cosine":
            raise ValueError(
                'importance = "every_round" divides by the learning rate, which schedule = '
                '"cosine" takes to 0: choose another schedule, or importance = "last_step"'
            )
        if self.mask_scope == "device":
            self._check_device_scope()
        elif 0 < self.prune_share < 1 - self.sparse_below:
            raise ValueError(
                f"prune_share is {self.prune_share}: no mask would get as sparse as sparse_below "
                f"({self.sparse_below}), so nothing would ever be pruned"
            )

    def _check_device_scope(self) -> None:
        if self.local_steps is None or self.local_steps < 1:
            raise ValueError(
                'mask_scope = "device" needs local_steps of 1 or more; give that, or '
                'mask_scope = "global"'
            )
        if self.importance != "last_step":
            raise ValueError(
                'importance = "every_round" is for one mask for all devices: add '
                'mask_scope = "global"'
            )
        if self.round_time is not None or self.max_density is not None:
            raise ValueError(
                "round_time and max_density are for one mask for all devices: leave them out, or "
                'add mask_scope = "global"'
            )
        if self.regrow != "zero":
            raise ValueError(
                'regrow = "stale" is for one mask for all devices: add mask_scope = "global"'
            )
        if (
            self.learning_rate * (self.weight_decay + self.proximal)
            > (1 - math.sqrt(self.momentum)) ** 2
        ):
            # Steps would swing to and fro: there are numbers of them that lead nowhere.
            raise ValueError(
                'mask_scope = "device" averages unequal numbers of steps: learning_rate · '
                "(weight_decay + proximal) may be (1 - √momentum)² at most"
            )

    def check_wire(self, wire: WireSpec) -> None:
        """ValueError when gradients would be read off rounded updates."""
        if self.importance == "every_round" and wire.up != "float32":
            raise ValueError(
                'importance = "every_round" reads gradients off the updates: set wire.up to '
                '"float32", or importance = "last_step"'
            )
