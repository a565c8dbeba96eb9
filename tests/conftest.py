"""What all tests share: repeatable property tests."""

from __future__ import annotations

import os

from hypothesis import settings

# A loaded machine is slow, not wrong: no deadline. In CI the same examples every time.
settings.register_profile("coppice", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("coppice")
