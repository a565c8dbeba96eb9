"""What a device's process may hold after a whole life: every module costs a Pi memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from coppice.models import MODELS
from tests.edge_client.fake_server import PATIENCE_SECONDS, FakeServer, model_payload

ROOT = Path(__file__).parents[2]

#: Packages that no device needs, or only for data of their own kind.
FORBIDDEN = {
    "PIL",
    "alembic",
    # Only to make a key and to ask for a certificate.
    "cryptography",
    "fastapi",
    "pandas",
    "pyarrow",
    "pydantic",
    "server",
    "sklearn",
    "sqlalchemy",
    "starlette",
    "sympy",
    "uvicorn",
    # Only for runs that compress.
    "zstandard",
}

#: Constructing any optimiser of torch.optim brings these, some 70 MiB.
FORBIDDEN_IN_TORCH = ("torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes")

LIFE = """
import json, sys
{before}
code = 0
if sys.argv[1:]:
    from edge_client.cli import main
    code = main(sys.argv[1:])
print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)
"""

#: A step on a sparse model, as a device makes it.
TRAIN = """
import torch
from coppice.app import bare_model, Classification, build_model
from coppice.domain import DataSpec, ModelSpec
from coppice.kernels.placement import Placement
from coppice.masks import full_masks, masked, prunable_names
from coppice.tensors import buffers_of, parameters_of
app = Classification(
    ModelSpec(name="{model}", norm="batch"), DataSpec(classes=("a", "b"), input_shape=(1, 32, 32))
)
model = build_model(app, 0)
weights = masked(parameters_of(model), full_masks(model, prunable_names(model)))
placement = Placement(bare_model(app, 0))
images = torch.randn(2, 1, 32, 32)
placement.assign({{**weights, **buffers_of(model)}}, images, whole=True)
app.loss(placement.model(images), torch.tensor([0, 1])).backward()
"""


def modules_after(before: str, *arguments: str | Path) -> set[str]:
    """The modules that a process holds at its end, which must be a good one."""
    done = subprocess.run(
        [sys.executable, "-c", LIFE.format(before=before), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    code, modules = json.loads(done.stderr)
    assert code == 0, done.stdout
    return set(modules)


def test_device_holds_nothing_that_it_does_not_need(
    server: FakeServer, data: Path, tmp_path: Path
) -> None:
    ref = server.add_blob(model_payload())
    server.offer_run()
    server.offer_task(ref)
    server.offer_task(ref, task_id=12, kind="evaluate")
    server.end_run(keep=ref)
    held = modules_after(
        "",
        "join",
        server.address,
        "--insecure",
        "--data",
        data,
        "--state",
        tmp_path / "state",
        "--once",
    )
    assert len(server.pushed) == 2, "the test is about a device that worked"
    assert {"torch", "grpc", "psutil"} <= held
    assert {name.partition(".")[0] for name in held} & FORBIDDEN == set()
    assert [name for name in held if name.startswith(FORBIDDEN_IN_TORCH)] == []
    bare = modules_after("import torch")
    optimisers = {name for name in held if name.startswith("torch.optim")}
    assert optimisers <= bare, "more of torch.optim than torch itself imports"


@pytest.mark.parametrize("model", MODELS)
def test_no_model_of_the_registry_brings_more(model: str) -> None:
    held = modules_after(TRAIN.format(model=model))
    assert "coppice.kernels.placement" in held
    assert {name.partition(".")[0] for name in held} & FORBIDDEN == set()
    assert [name for name in held if name.startswith(FORBIDDEN_IN_TORCH)] == []
