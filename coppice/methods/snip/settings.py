"""Settings of SNIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Le

from coppice.domain import WireSpec
from coppice.local_training import LocalTraining


@dataclass(frozen=True, kw_only=True)
class Settings(LocalTraining):
    """What a run file may say under [method] with name = "snip"."""

    #: Share that is kept of all weights that can be pruned.
    density: Annotated[float, Gt(0), Le(1)]
    #: Weights (`layer.weight`) that are never pruned; they are no part of that share.
    keep_dense: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.is_plain:
            raise ValueError(
                "SNIP reads gradients off the updates, which only plain SGD allows: set momentum, "
                "weight_decay and proximal to 0"
            )
        if self.local_steps == 0:
            raise ValueError(
                "SNIP reads gradients off the updates, and without steps there are none: set "
                "local_steps to 1 or more"
            )

    def check_wire(self, wire: WireSpec) -> None:
        """ValueError when gradients would be read off rounded updates."""
        if wire.up != "float32":
            raise ValueError('SNIP reads gradients off the updates: set wire.up to "float32"')
