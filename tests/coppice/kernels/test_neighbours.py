"""Pooling and norms on batch-innermost tensors against torch's own."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import Tensor, nn

from coppice.kernels.layout import is_batch_innermost
from coppice.kernels.neighbours import adapt

CASES = 60


def random_neighbour(choice: random.Random, channels: int) -> nn.Module:
    return choice.choice(
        (
            lambda: nn.MaxPool2d(2),
            lambda: nn.MaxPool2d(3),
            lambda: nn.MaxPool2d(3, 2),
            lambda: nn.MaxPool2d(2, 3),
            lambda: nn.MaxPool2d((2, 3)),
            lambda: nn.MaxPool2d(3, 2, 1),
            lambda: nn.MaxPool2d(2, ceil_mode=True),
            lambda: nn.BatchNorm2d(channels),
        )
    )()


@pytest.mark.parametrize("seed", range(CASES))
def test_the_same_numbers_in_the_same_places(seed: int, variant: str, threads: int) -> None:
    torch.manual_seed(seed)
    choice = random.Random(seed)
    batch, channels = choice.randint(2, 21), choice.randint(1, 6)
    images = torch.randn(channels, choice.randint(3, 9), choice.randint(3, 9), batch)
    if seed % 3 == 0:
        images = (2 * images).round()  # many equal maxima
    images = images.permute(3, 0, 1, 2)
    module = random_neighbour(choice, channels)
    adapted = copy.deepcopy(module)
    adapt(adapted)
    found, expected = run(adapted, images), run(module, images)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(adapted.state_dict(), module.state_dict())


def run(module: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs, and the gradient of the inputs; running statistics are on the way."""
    inputs = images.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    outputs = module(inputs)
    generator = torch.Generator().manual_seed(1)
    outer = torch.randn(outputs.shape, generator=generator)
    (gradient,) = torch.autograd.grad(outputs, [inputs], outer)
    return outputs.detach(), gradient


def test_the_layout_is_kept(variant: str) -> None:
    images = torch.randn(3, 8, 8, 4).permute(3, 0, 1, 2)
    for module in (nn.MaxPool2d(2), nn.BatchNorm2d(3)):
        adapt(module)
        assert is_batch_innermost(module(images))
    features = torch.randn(5, 4).t()
    norm = nn.BatchNorm1d(5)
    plain = copy.deepcopy(norm)
    adapt(norm)
    assert norm(features).t().is_contiguous()
    torch.testing.assert_close(norm(features), plain(features))


def test_other_layouts_and_shapes_take_torchs_own_way() -> None:
    for module, inputs in (
        (nn.MaxPool2d(2), torch.randn(4, 3, 8, 8)),
        (nn.MaxPool2d(2), torch.randn(3, 8, 8)),
        (nn.MaxPool2d(2), torch.randn(1, 3, 8, 8, dtype=torch.float64)),
        (nn.MaxPool2d(2), torch.randn(0, 3, 8, 8)),
        (nn.BatchNorm2d(3), torch.randn(4, 3, 8, 8)),
        (nn.BatchNorm1d(3), torch.randn(4, 3, 8)),
        (nn.BatchNorm1d(3), torch.randn(4, 3)),
    ):
        plain = copy.deepcopy(module)
        adapt(module)
        assert torch.equal(module(inputs), plain(inputs))


def test_images_smaller_than_a_window_are_refused() -> None:
    pool = nn.MaxPool2d(2)
    adapt(pool)
    with pytest.raises(RuntimeError):
        pool(torch.randn(1, 3, 1, 1))


def test_a_nan_is_a_maximum(variant: str) -> None:
    images = torch.zeros(1, 2, 2, 8)
    images[0, 1, 0, 3] = float("nan")
    images[0, 0, 0, 5] = float("nan")
    pool = nn.MaxPool2d(2)
    adapt(pool)
    outputs = pool(images.permute(3, 0, 1, 2)).flatten()
    assert outputs.isnan().tolist() == [at in (3, 5) for at in range(8)]


def test_a_users_own_class_stays_what_it_is() -> None:
    class Own(nn.MaxPool2d):
        pass

    model = nn.Sequential(Own(2), nn.MaxPool2d(2))
    adapt(model)
    assert type(model[0]) is Own
    assert type(model[1]) is not nn.MaxPool2d
