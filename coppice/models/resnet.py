"""ResNet-18 (He et al. 2016) for small and large images.

11,046,080 weights, biases, norms and 1x1 shortcuts aside, for inputs of 3x224x224 and 100 classes
(PruneFL, Jiang et al. 2022).
"""

from __future__ import annotations

from torch import Tensor, nn

from coppice.domain import ModelSpec
from coppice.models.norms import norm_2d
from coppice.models.shapes import image_shape
from coppice.models.start import start_for_relu

#: Up to this many pixels on the shorter side the stem keeps the resolution.
SMALL_PIXELS = 64

_STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
_BLOCKS_PER_STAGE = 2


class ResNet18(nn.Module):
    """A stem, eight residual blocks of two 3x3 convolutions, the mean over pixels, a linear one."""

    def __init__(self, spec: ModelSpec, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape(spec, input_shape, least=8)
        width_now = _STAGES[0][0]
        if min(height, width) <= SMALL_PIXELS:
            self.stem = nn.Sequential(
                _Convolution(spec, channels, width_now, 3, 1), nn.ReLU(inplace=True)
            )
        else:
            self.stem = nn.Sequential(
                _Convolution(spec, channels, width_now, 7, 2),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(3, stride=2, padding=1),
            )
        blocks: list[ResidualBlock] = []
        for wide, stride in _STAGES:
            for number in range(_BLOCKS_PER_STAGE):
                blocks.append(ResidualBlock(spec, width_now, wide, stride if number == 0 else 1))
                width_now = wide
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width_now, num_classes)
        start_for_relu(self)
        if spec.norm == "none":
            # Without a norm each block doubles the variance of the sum; so all together do.
            for block in blocks:
                block.conv2.convolution.weight.data.mul_(len(blocks) ** -0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) → (N, num_classes) logits."""
        values = self.pool(self.blocks(self.stem(inputs)))
        logits: Tensor = self.fc(values.flatten(1))
        return logits


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is 1x1 where the shape changes."""

    def __init__(self, spec: ModelSpec, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _Convolution(spec, narrow, wide, 3, stride)
        self.conv2 = _Convolution(spec, wide, wide, 3, 1)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or narrow != wide:
            self.shortcut = _Convolution(spec, narrow, wide, 1, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, narrow, H, W) → (N, wide, H / stride, W / stride)."""
        values = self.conv2(self.conv1(inputs).relu())
        result: Tensor = (values + self.shortcut(inputs)).relu()
        return result


class _Convolution(nn.Module):
    def __init__(self, spec: ModelSpec, narrow: int, wide: int, kernel: int, stride: int) -> None:
        super().__init__()
        # A norm has a bias of its own.
        bias = spec.norm == "none"
        self.convolution = nn.Conv2d(narrow, wide, kernel, stride, padding=kernel // 2, bias=bias)
        self.norm = norm_2d(spec, wide)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.norm(self.convolution(inputs))
        return result
