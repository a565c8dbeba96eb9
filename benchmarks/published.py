"""The device constants that PruneFL published, and the round times that follow from them.

Jiang et al. 2022: measured by the authors on Raspberry Pis and shipped with their code. By their
size, those of conv2 and vgg11 are sums over ten steps: compare times within one model, not across.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coppice.budget import RoundTime

#: Local SGD steps in a round (E).
LOCAL_STEPS = 5
#: Seconds that a kept weight travels: 4 bytes down and 4 up at `MEGABYTES_PER_SECOND`.
COMMUNICATION_SECONDS = 5.561621025626998e-6
#: The link that `COMMUNICATION_SECONDS` stands for, each way.
MEGABYTES_PER_SECOND = 1.438


@dataclass(frozen=True, kw_only=True)
class Published:
    """One model's constants; seconds are those of one local step, layers in the model's order."""

    #: Shapes of the prunable weights: `[out, in]`, or `[out, in, k, k]` of a convolution.
    shapes: tuple[tuple[int, ...], ...]
    #: With dense kernels and nothing pruned.
    dense_seconds: float
    #: With sparse kernels and nothing pruned, as measured.
    sparse_seconds: float
    #: With sparse kernels and no kept weight: Σ t0_l.
    intercept_seconds: float
    #: What each kept weight adds (c_l).
    seconds_per_weight: tuple[float, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Weights of each layer."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def largest_speed_up(self) -> float:
        """What computing can gain at most, at density 0: the fixed part stays."""
        return self.dense_seconds / self.intercept_seconds


def _stage(width: int, first: int) -> tuple[tuple[int, ...], ...]:
    """The four prunable convolutions of one stage of ResNet-18; its shortcut is not pruned."""
    return ((width, first, 3, 3), *((width, width, 3, 3),) * 3)


#: By our name of the model: of FEMNIST, CIFAR-10, ImageNet-100 and CelebA.
MODELS: Mapping[str, Published] = {
    "conv2": Published(
        shapes=((32, 1, 5, 5), (64, 32, 5, 5), (2048, 3136), (62, 2048)),
        dense_seconds=2.2486449218005875,
        sparse_seconds=2.898095353249955,
        intercept_seconds=1.2492789765,
        seconds_per_weight=(0.0, 7.098850e-6, 1.927325e-7, 1.782308e-7),
    ),
    "vgg11": Published(
        shapes=(
            (64, 3, 3, 3), (128, 64, 3, 3), (256, 128, 3, 3), (256, 256, 3, 3), (512, 256, 3, 3),
            (512, 512, 3, 3), (512, 512, 3, 3), (512, 512, 3, 3), (512, 512), (512, 512), (10, 512),
        ),
        dense_seconds=31.514276721399803,
        sparse_seconds=31.08082229309948,
        intercept_seconds=17.36990105989628,
        seconds_per_weight=(
            0.0, 8.95507e-6, 2.495288e-6, 2.780686e-6, 1.024265e-6, 1.277773e-6, 1.843831e-6,
            8.066104e-7, 5.145334e-7, 2.430023e-7, 0.0,
        ),
    ),
    "resnet18": Published(
        shapes=(
            (64, 3, 7, 7), *_stage(64, 64), *_stage(128, 64), *_stage(256, 128), *_stage(512, 256),
            (100, 512),
        ),
        dense_seconds=25.3356386726,
        sparse_seconds=27.966371,
        intercept_seconds=14.560041482824728,
        seconds_per_weight=(
            0.0, 2.340521716080689e-06, 1.0023681746470196e-05, 1.056062089141079e-05,
            4.237937059382076e-06, 5.6712687899939165e-06, 2.1231460738533592e-06,
            2.3287953360690104e-06, 6.735456426708777e-07, 6.624979740735464e-06,
            5.137498356286562e-07, 1.9743886037025985e-07, 3.703237561077147e-08,
            9.910993133200227e-07, 1.4966532573161931e-06, 7.477319510700925e-07,
            8.722523120339614e-07, 6.128180224224039e-06,
        ),
    ),
    "conv4": Published(
        shapes=((32, 3, 3, 3), *((32, 32, 3, 3),) * 3, (2, 1152)),
        dense_seconds=3.724286518478766,
        sparse_seconds=2.66478774077259,
        intercept_seconds=1.5979929063378444,
        seconds_per_weight=(
            0.0003404870760969184, 6.0777404652307096e-05, 1.7590354819798735e-05,
            3.7744218545217262e-06, 0.0,
        ),
    ),
}  # fmt: skip


def round_time(
    model: str, names: Sequence[str], *, megabytes_per_second: float | None = None
) -> RoundTime:
    """The published device's round over the prunable parameters of these names, in layer order.

    Another speed of the link changes the communication alone. ValueError when the model has
    another number of layers; KeyError when no constants were published for it.
    """
    constants = MODELS[model]
    if len(names) != len(constants.shapes):
        raise ValueError(f"{model} has {len(constants.shapes)} layers, not {len(names)}")
    travel = _communication_seconds(megabytes_per_second)
    return RoundTime(
        constant_seconds=LOCAL_STEPS * constants.intercept_seconds,
        seconds_per_weight={
            name: LOCAL_STEPS * seconds + travel
            for name, seconds in zip(names, constants.seconds_per_weight, strict=True)
        },
    )


def dense_round_seconds(model: str, *, megabytes_per_second: float | None = None) -> float:
    """Seconds of an unpruned round with dense kernels.

    The published curves charge conventional FL the sparse kernels' time at density 1 instead, of
    which 6 % on conv2 are the kernels' and not the method's.
    """
    constants = MODELS[model]
    travel = _communication_seconds(megabytes_per_second)
    return LOCAL_STEPS * constants.dense_seconds + travel * sum(constants.sizes)


def _communication_seconds(megabytes_per_second: float | None) -> float:
    if megabytes_per_second is None:
        return COMMUNICATION_SECONDS
    return COMMUNICATION_SECONDS * MEGABYTES_PER_SECOND / megabytes_per_second
