"""The library under AddressSanitizer and UndefinedBehaviorSanitizer, on what torch allocates."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from coppice.kernels import library

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "coppice" / "kernels" / "sparse_kernels.c"
FLAGS = {"baseline": (), "avx2": ("-mavx2", "-mfma")}
LAYERS = 40

PROGRAM = """
import copy, random, sys
from pathlib import Path
import torch
from coppice.kernels import library

library._FOLDER = Path(sys.argv[1])
found = library.load(sys.argv[2])
library._load = lambda: found
from coppice.kernels.layers import make_sparse
from coppice.kernels.neighbours import adapt
from coppice.kernels.step import Step, Stepper
from tests.coppice.kernels.test_layers import DENSITIES, masked, random_layer

for seed in range(int(sys.argv[3])):
    torch.manual_seed(seed)
    torch.set_num_threads(1 + seed % 2)
    choice = random.Random(seed)
    dense, inputs = random_layer(choice)
    layer = make_sparse(dense, masked(dense, choice.choice(DENSITIES)))
    layer.stepper = Stepper(Step(0.1, momentum=0.9, decay=0.1, pull=0.1))
    for _ in range(2):
        layer.stepper.is_armed = True
        outputs = layer(inputs.clone().requires_grad_())
        if outputs.dim() == 4:
            pool = torch.nn.MaxPool2d(choice.choice((1, 2)), ceil_mode=False)
            adapt(pool)
            if min(outputs.shape[2:]) >= pool.kernel_size:
                outputs = pool(outputs)
        outputs.sum().backward()
print("clean")
"""


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("variant", FLAGS)
def test_no_access_is_out_of_bounds_and_nothing_is_undefined(variant: str, tmp_path: Path) -> None:
    if variant == "avx2" and library.load("baseline").level() < 2:
        pytest.skip("this processor has no AVX2")
    command = ["cc", "-O1", "-g", "-std=gnu99", "-fPIC", "-fopenmp", *FLAGS[variant]]
    command.append(f"-DCOPPICE_SOURCE={library.checksum()}")
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    compiled = tmp_path / "kernels.o"
    subprocess.run([*command, *checks, "-c", SOURCE, "-o", compiled], check=True)
    linked = tmp_path / f"_{variant}.so"
    # Without -fopenmp: torch's runtime is the one.
    subprocess.run(["cc", "-shared", *checks, compiled, "-o", linked], check=True)
    found = subprocess.run(
        ["cc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path, variant, str(LAYERS)],
        cwd=ROOT,
        env=os.environ
        | {
            "LD_PRELOAD": found.stdout.strip(),
            # What Python and torch never free is theirs.
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "clean"
