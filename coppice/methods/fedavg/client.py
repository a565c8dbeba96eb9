"""FedAvg on the device: train what came, send the difference."""

from __future__ import annotations

from coppice.model_client import ModelClient


class Client(ModelClient):
    """McMahan et al. 2017, algorithm 1, ClientUpdate."""
