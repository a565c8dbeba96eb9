"""`python -m benchmarks.one_round DENSITY`: a round of vgg11, to see whether its memory is there.

A device looks how much there is before it takes any; this does not.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from benchmarks.fashion_data import DATA
from coppice.app import bare_model, make_app
from coppice.data import Examples
from coppice.domain import Capability, ClientId, MethodSpec, ModelSpec, WireSpec, Workload
from coppice.method import Local, client_half
from coppice.simulated_device import MemoryPrivate
from coppice.tensors import masks_of, weight_group
from coppice.wire.exchange import encode_update

_SHAPE = (3, 32, 32)
#: Of the same data, and in batches of the same size, as the devices of the scenario.
_EXAMPLES, _STEPS = 2000, 5
_FLOAT_BYTES = 4


class _Unmetered:
    def step_done(self) -> None:
        """Nobody takes this back."""


def main() -> None:
    """Hold what was received, train, and encode the answer."""
    density = float(sys.argv[1])
    torch.set_num_threads(1)
    method = MethodSpec(name="fedavg", settings={"local_steps": _STEPS, "batch_size": 20})
    data = replace(DATA, input_shape=_SHAPE, mean=(0.0,), std=(1.0,))
    app = make_app(Workload(name="any", model=ModelSpec(name="vgg11"), data=data, method=method))
    targets = torch.arange(_EXAMPLES) % len(DATA.classes)
    local = Local(
        client_id=ClientId("one"),
        app=app,
        seed=0,
        train=Examples(torch.rand(_EXAMPLES, *_SHAPE), targets),
        held_out=Examples(torch.empty(0, *_SHAPE), torch.empty(0)),
        capability=Capability(memory_bytes=2**40, num_threads=1, machine="any"),
        private=MemoryPrivate(),
        meter=_Unmetered(),
        generator=torch.Generator().manual_seed(0),
        kernels=True,
    )
    size = sum(parameter.numel() for parameter in bare_model(app, 0).parameters())
    received = bytearray(b"\1" * round(density * _FLOAT_BYTES * size))
    update = client_half(method).rehearse(local, density, _STEPS)
    assert update is not None
    masks = masks_of(weight_group(update.payload, "delta"))
    known = {mask.fingerprint: mask for mask in masks.values()}
    sent = encode_update(update.payload, known, WireSpec(), local.private, local.generator)
    print(f"received {len(received)} bytes, sent {len(sent)}")


if __name__ == "__main__":
    main()
