"""The normalisation layers that a model of the registry may have."""

from __future__ import annotations

from torch import nn

from coppice.domain import ModelSpec

_CHANNELS_PER_GROUP = 16


def norm_2d(spec: ModelSpec, channels: int) -> nn.Module:
    """The layer after a convolution with so many output channels."""
    if spec.norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.Identity() if spec.norm == "none" else _group_norm(channels)


def norm_1d(spec: ModelSpec, features: int) -> nn.Module:
    """The layer after a linear layer with so many output features."""
    if spec.norm == "batch":
        return nn.BatchNorm1d(features)
    return nn.Identity() if spec.norm == "none" else _group_norm(features)


def _group_norm(channels: int) -> nn.GroupNorm:
    # A fixed group size (Wu & He 2018, table 3) never normalises one value by itself, as a fixed
    # number of groups would in narrow layers.
    whole = channels % _CHANNELS_PER_GROUP == 0
    return nn.GroupNorm(channels // _CHANNELS_PER_GROUP if whole else 1, channels)
