"""Conv-2: the two-convolution network of LEAF and PruneFL for FEMNIST.

6,601,504 weights, biases aside, for inputs of 1x28x28 and 62 classes (PruneFL, Jiang et al. 2022).
"""

from __future__ import annotations

from torch import Tensor, nn

from coppice.domain import ModelSpec
from coppice.models.norms import norm_1d, norm_2d
from coppice.models.shapes import image_shape

_FEATURES = 2048


class Conv2(nn.Module):
    """Two 5x5 convolutions of 32 and 64 channels, each pooled by 2, and two linear layers."""

    def __init__(self, spec: ModelSpec, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape(spec, input_shape, least=4)
        self.conv1 = nn.Conv2d(channels, 32, 5, padding="same")
        self.norm1 = norm_2d(spec, 32)
        self.conv2 = nn.Conv2d(32, 64, 5, padding="same")
        self.norm2 = norm_2d(spec, 64)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(64 * (height // 4) * (width // 4), _FEATURES)
        self.norm3 = norm_1d(spec, _FEATURES)
        self.fc2 = nn.Linear(_FEATURES, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) → (N, num_classes) logits."""
        # Pooled first: the same values, of which ReLU then sees a quarter.
        values = self.pool(self.norm1(self.conv1(inputs))).relu()
        values = self.pool(self.norm2(self.conv2(values))).relu()
        values = self.norm3(self.fc1(values.flatten(1))).relu()
        logits: Tensor = self.fc2(values)
        return logits
