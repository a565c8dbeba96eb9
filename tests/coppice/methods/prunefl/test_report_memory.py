"""What a round with a report holds more than one without, in a process of its own."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from torch import nn

from benchmarks.peak import peak_bytes
from coppice.app import bare_model
from coppice.data import Examples
from coppice.domain import TaskKind, WireSpec
from coppice.kernels.library import library
from coppice.masks import prunable_names
from coppice.method import Task
from coppice.methods.prunefl.client import Client
from coppice.methods.prunefl.profile import LayerProfile, Profile
from coppice.methods.prunefl.report import report_bytes
from coppice.methods.prunefl.sample import MOST_EVERY
from coppice.methods.prunefl.settings import Settings
from coppice.rehearsal import random_weights
from coppice.wire.exchange import encode_update
from tests.coppice.toys import ToyApp, local

WIDTH, LAYERS = 2048, 4
DENSITY = 0.05


def stack() -> nn.Module:
    """Layers of 17 MB each, as dense ones."""
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))


def peak_of_round(report_every: int) -> int:
    """Bytes that a round adds to a process that has had one; 0 is a round without a report."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(16, WIDTH, generator=generator)
    app = ToyApp(stack)
    device = local(app, Examples(inputs, torch.zeros(16, dtype=torch.int64)), kernels=True)
    client = Client(Settings(local_steps=2, batch_size=16))
    model = bare_model(app, 0)
    weights = random_weights(model, prunable_names(model), DENSITY, generator)
    payload = {"parameters": weights, "buffers": {}}

    def round_of(every: int) -> None:
        settings = {
            "learning_rate": 1e-6, "steps": 2, "terms": 0, "report": every > 0,
            "report_every": every,
        }  # fmt: skip
        update = client.run(Task(TaskKind.TRAIN, 1, payload, settings), device)
        encode_update(update.payload, {}, WireSpec(), device.private, device.generator)

    # What is set up once is no round's.
    round_of(MOST_EVERY)
    return peak_bytes(lambda: round_of(report_every))


def in_a_process(report_every: int) -> int:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(peak_of_round, report_every).result(timeout=120)


@pytest.mark.skipif(library() is None, reason="there are no kernels here")
def test_a_round_with_a_report_holds_no_more_than_predicted() -> None:
    every = 100
    layer = LayerProfile(kept=(0, WIDTH * WIDTH), gains=(0.0, 0.0))
    profile = Profile(layers=dict.fromkeys(map(str, range(LAYERS)), layer), levels=1, base_gain=0.0)
    more = in_a_process(every) - in_a_process(0)
    # A second gradient, let alone the squares of all entries, would be too much.
    assert more <= report_bytes(profile, every)
