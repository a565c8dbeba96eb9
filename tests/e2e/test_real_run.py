"""The whole system as its users meet it: real programs train real data, and a browser watches."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from coppice.model_file import load_model, read_info
from coppice.partition import DirichletPartitioner
from server.api_client import ApiClient, find_server

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "deploy" / "demo" / "digits.npz"
START_SECONDS = 60.0
RUN_SECONDS = 90.0
ROUNDS = 5
RUN_FILE = f"""
name = "digits"
[model]
name = "mlp"
[data]
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
input_shape = [1, 8, 8]
scale = 16
[method]
name = "fedavg"
local_epochs = 2
learning_rate = 0.2
[cohort]
size = 2
[evaluation]
data = "test.npz"
on_clients = true
[stop]
rounds = {ROUNDS}
"""


def deal_out(folder: Path) -> None:
    """A file for each of two devices, one that nobody trains on, and the run file."""
    with np.load(DIGITS, allow_pickle=False) as digits:
        x, y = digits["x"], digits["y"]
    np.savez(folder / "test.npz", x=x[:300], y=y[:300])
    parts = DirichletPartitioner(num_partitions=2, alpha=1.0).partition(y[300:], seed=1)
    for number, part in enumerate(parts, start=1):
        np.savez(folder / f"pi-{number}.npz", x=x[300:][part], y=y[300:][part])
    (folder / "run.toml").write_text(RUN_FILE)


@contextmanager
def program(folder: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """One of our programs, which ends with the block and must not mind."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with (folder / "output.txt").open("ab") as output:
        started = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(30)
        finally:
            started.kill()
            started.wait()


def addresses(folder: Path, server: subprocess.Popen[bytes]) -> dict[str, str]:
    """Where the server is, as soon as it has written that down."""
    end = time.monotonic() + START_SECONDS
    while not (folder / "server" / "server.json").exists():
        assert server.poll() is None, (folder / "output.txt").read_text()
        assert time.monotonic() < end, "the server does not start"
        time.sleep(0.05)
    where: dict[str, str] = json.loads((folder / "server" / "server.json").read_text())
    return where


@pytest.mark.timeout(300)
def test_a_run_of_real_programs_is_watched_to_its_end(browser: Browser, tmp_path: Path) -> None:
    deal_out(tmp_path)
    loopback = ("--listen", "127.0.0.1:0", "--dashboard", "127.0.0.1:0")
    with ExitStack() as stack:
        server = stack.enter_context(
            program(tmp_path, "server", "start", "--data", "server", *loopback)
        )
        where = addresses(tmp_path, server)
        page = stack.enter_context(browser.new_context()).new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(where["dashboard"])
        token = (tmp_path / "server" / "operator.token").read_text().strip()
        page.locator("#login-token").fill(token)
        page.locator("#login-token").press("Enter")
        expect(page.locator("#empty")).to_be_visible()

        submit = ["-m", "server", "run", "submit", "run.toml", "--data", "server", "--json"]
        submitted = subprocess.run(
            [sys.executable, *submit],
            cwd=tmp_path,
            capture_output=True,
            timeout=START_SECONDS,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert submitted.returncode == 0, submitted.stderr
        assert json.loads(submitted.stdout) == {"run_id": 1}
        expect(page.locator("#run-name")).to_have_text("digits")

        token = ApiClient(find_server(None, tmp_path / "server")).post("/tokens", {"uses": 2})[
            "token"
        ]
        for name in ("pi-1", "pi-2"):
            enrol = ("join", where["grpc"], "--token", token)
            join = (*enrol, "--name", name, "--data", f"{name}.npz")
            stack.enter_context(
                program(tmp_path, "edge_client", *join, "--state", name, "--threads", "1")
            )
        finished = expect(page.locator("#run-state"))
        finished.to_have_text("finished", timeout=RUN_SECONDS * 1000)
        expect(page.locator("#rounds-table tbody tr")).to_have_count(ROUNDS)
        expect(page.locator("#clients-table")).to_contain_text("pi-2")
        curve = page.locator("#metric-chart svg")
        expect(curve).to_have_attribute("aria-label", re.compile("held-out set .* after round 5"))
        for line in ("server", "clients"):
            path = page.locator(f"#metric-chart path.{line}").get_attribute("d") or ""
            assert len(re.findall("[ML]", path)) == ROUNDS
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        with page.expect_download() as download:
            page.locator("#run-model").click()
        download.value.save_as(tmp_path / "model.safetensors")
        assert said == []

    _, info = load_model(tmp_path / "model.safetensors")
    assert info == read_info(tmp_path / "server" / "models" / "1-digits.safetensors")
    assert info.metrics["accuracy"] > 0.8
