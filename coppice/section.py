"""What every part of a run file is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class Section:
    """A part of a run file. Pydantic, on the server, refuses unknown keys, NaN and infinity."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}
