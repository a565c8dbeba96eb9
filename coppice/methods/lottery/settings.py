"""Settings of the lottery-ticket checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from coppice.local_training import LocalTraining


@dataclass(frozen=True, kw_only=True)
class Settings(LocalTraining):
    """What a run file may say under [method] with name = "lottery"."""

    #: What training begins with: the first weights of the run's seed ("original"), those of another
    #: seed, which comes from it ("new"), or the ones in the file ("kept").
    weights: Literal["original", "new", "kept"] = "original"
    #: The file's masks ("given"), or as many ones in each of them at random places ("random").
    mask: Literal["given", "random"] = "given"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights == "kept" and self.mask == "random":
            raise ValueError(
                'mask = "random" keeps weights that the file has no values of: set weights to '
                '"original" or "new"'
            )
