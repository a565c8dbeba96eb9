"""Iterative magnitude pruning on the device: training on the masks that come."""

from __future__ import annotations

from coppice.model_client import ModelClient


class Client(ModelClient):
    """Trains and sends the difference; the server prunes."""
