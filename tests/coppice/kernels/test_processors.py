"""The library compiled for each kind of processor, run where it is one and emulated where not."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("check_kernels.c")
FLAGS = ("-O3", "-std=gnu99", "-fopenmp", "-Wall", "-Wextra", "-Werror")
LAYERS = 100


def compiled(folder: Path, compiler: str, *flags: str) -> Path:
    program = folder / "check"
    subprocess.run([compiler, *FLAGS, *flags, PROGRAM, "-o", program, "-lm"], check=True)
    return program


def checked(*command: str | Path, **variables: str) -> str:
    done = subprocess.run(
        [*command, str(LAYERS)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of another processor")
@pytest.mark.parametrize(("flags", "lanes"), [((), 4), (("-mavx2", "-mfma"), 8)])
def test_x86_64(flags: tuple[str, ...], lanes: int, tmp_path: Path) -> None:
    program = compiled(tmp_path, "cc", *flags)
    assert checked(program).startswith(f"{lanes} lanes, {LAYERS} layers")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="it is no emulation there")
@pytest.mark.parametrize("processor", ["cortex-a72", "cortex-a53"])
def test_processors_of_a_raspberry_pi_emulated(processor: str, tmp_path: Path) -> None:
    """Pi 4 and Pi 3; an instruction that they lack ends the program."""
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    assert emulator, "`make test` installs qemu-user-static"
    program = compiled(tmp_path, "aarch64-linux-gnu-gcc", "-static")
    assert checked(emulator, program, QEMU_CPU=processor).startswith(f"4 lanes, {LAYERS} layers")
