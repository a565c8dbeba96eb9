"""What rounds cost devices that do not exist."""

from __future__ import annotations

from torch import nn

from coppice.device_cost import DeviceCost, LayerCost, MemoryCost, RoundCost, StepMemory
from coppice.masks import prunable_names
from coppice.memory_fit import layer_memory

BASE_BYTES = 1_000_000


def device_cost(model: nn.Module, slowness: float = 1.0, limit_bytes: float = 1e12) -> DeviceCost:
    """A millisecond a weight and step on a device of slowness 1, and as much for all the rest."""
    weights = {name: model.get_parameter(name) for name in prunable_names(model)}
    layers = {
        name: LayerCost.line(0.0, 1e-3 * slowness, dense=1e3 * slowness, size=weight.numel())
        for name, weight in weights.items()
    }
    memory = {name: layer_memory(tuple(weight.shape)) for name, weight in weights.items()}
    return DeviceCost(
        time=RoundCost(
            round_seconds=1e-3,
            step_seconds=1e-3 * slowness,
            seconds_per_value=1e-6,
            layers=layers,
        ),
        memory=MemoryCost(training=StepMemory(base_bytes=BASE_BYTES, layers=memory)),
        limit_bytes=limit_bytes,
    )
