"""VGG-11 (Simonyan & Zisserman 2015) with PruneFL's small classifier for CIFAR-10.

9,747,136 weights, biases aside, for inputs of 3x32x32 and 10 classes (PruneFL, Jiang et al. 2022).
"""

from __future__ import annotations

from torch import Tensor, nn

from coppice.domain import ModelSpec
from coppice.models.norms import norm_1d, norm_2d
from coppice.models.shapes import image_shape
from coppice.models.start import start_for_relu

#: Channels of the convolutions; each inner tuple ends in a pooling by 2.
_BLOCKS = ((64,), (128,), (256, 256), (512, 512), (512, 512))
_FEATURES = 512


class Vgg11(nn.Module):
    """Eight 3x3 convolutions, pooled by 32 in all, and linear layers 512, 512 and classes."""

    def __init__(self, spec: ModelSpec, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape(spec, input_shape, least=32)
        convolutions: list[nn.Module] = []
        for block in _BLOCKS:
            for wide in block:
                convolutions += [
                    nn.Conv2d(channels, wide, 3, padding=1),
                    norm_2d(spec, wide),
                    nn.ReLU(inplace=True),
                ]
                channels = wide
            convolutions.append(nn.MaxPool2d(2))
        self.convolutions = nn.Sequential(*convolutions)
        self.classifier = nn.Sequential(
            nn.Linear(channels * (height // 32) * (width // 32), _FEATURES),
            norm_1d(spec, _FEATURES),
            nn.ReLU(inplace=True),
            nn.Linear(_FEATURES, _FEATURES),
            norm_1d(spec, _FEATURES),
            nn.ReLU(inplace=True),
            nn.Linear(_FEATURES, num_classes),
        )
        start_for_relu(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) → (N, num_classes) logits."""
        logits: Tensor = self.classifier(self.convolutions(inputs).flatten(1))
        return logits
