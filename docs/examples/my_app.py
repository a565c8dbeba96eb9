"""An app of one's own: learn what a machine's sensors normally read, to notice when they do not.

Each device has a CSV file with a header and one row a second: vibration along three axes (g) and
temperature (degrees Celsius). An autoencoder learns to rebuild short windows of such rows; later, a
window that it rebuilds badly is unusual. Only this model leaves the device, never a row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

SENSORS = 4
WINDOW_ROWS = 16
#: Typical reading and spread of each sensor: the same on all devices, or no model would fit all.
CENTRE = np.array([0.0, 0.0, 1.0, 45.0], dtype=np.float32)
SPREAD = np.array([0.5, 0.5, 0.5, 15.0], dtype=np.float32)


def model() -> nn.Module:
    """The autoencoder: 64 readings, squeezed into 8 numbers, and back."""
    readings = WINDOW_ROWS * SENSORS
    return nn.Sequential(
        nn.Linear(readings, 32), nn.ReLU(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, readings)
    )


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """How badly the windows of a batch were rebuilt."""
    return nn.functional.mse_loss(outputs, targets)


def metrics(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Mean over the batch of what is to be reported; `evaluation.metric` names one of these."""
    error = (outputs - targets).square().mean(dim=1)
    return {"loss": float(error.mean()), "badly_rebuilt": float((error > 1.0).float().mean())}


def load_data(path: Path) -> tuple[Tensor, Tensor]:
    """Half-overlapping windows, (N, 64): what goes in is also what should come out."""
    rows = np.loadtxt(path, delimiter=",", skiprows=1, dtype=np.float32, ndmin=2)
    if rows.shape[1] != SENSORS:
        raise ValueError(f"{path} has {rows.shape[1]} columns; {SENSORS} are needed")
    scaled = (rows - CENTRE) / SPREAD
    starts = range(0, len(scaled) - WINDOW_ROWS + 1, WINDOW_ROWS // 2)
    windows = np.array([scaled[start : start + WINDOW_ROWS].ravel() for start in starts])
    inputs = torch.from_numpy(windows)
    return inputs, inputs
