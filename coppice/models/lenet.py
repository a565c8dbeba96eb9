"""LeNet-5 (LeCun et al. 1998) with ReLU and max pooling."""

from __future__ import annotations

from torch import Tensor, nn

from coppice.domain import ModelSpec
from coppice.models.norms import norm_1d, norm_2d
from coppice.models.shapes import image_shape


class LeNet(nn.Module):
    """Two 5x5 convolutions of 6 and 16 channels, each pooled by 2, and three linear layers."""

    def __init__(self, spec: ModelSpec, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape(spec, input_shape, least=12)
        self.conv1 = nn.Conv2d(channels, 6, 5, padding="same")
        self.norm1 = norm_2d(spec, 6)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.norm2 = norm_2d(spec, 16)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(16 * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2), 120)
        self.norm3 = norm_1d(spec, 120)
        self.fc2 = nn.Linear(120, 84)
        self.norm4 = norm_1d(spec, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) → (N, num_classes) logits."""
        values = self.pool(self.norm1(self.conv1(inputs)).relu())
        values = self.pool(self.norm2(self.conv2(values)).relu())
        values = self.norm3(self.fc1(values.flatten(1))).relu()
        values = self.norm4(self.fc2(values)).relu()
        logits: Tensor = self.fc3(values)
        return logits
