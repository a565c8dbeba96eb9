"""`make demo` interrupted: it ends with everything that it started."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import psutil
import pytest

from benchmarks.program import ROOT, Program, until
from coppice.errors import ServerUnreachable
from server.api_client import ApiClient


@pytest.mark.parametrize("moment", ["pi-3: ", "round   2/20"], ids=["starting", "training"])
def test_ctrl_c_in_the_demo_leaves_nothing_running(tmp_path: Path, moment: str) -> None:
    log = tmp_path / "demo.log"
    flags = ("--output", tmp_path / "output")
    demo = Program(log, "deploy/demo/demo.py", *flags, PYTHONPATH=str(ROOT))
    try:
        until(lambda: moment in demo.printed, f"the demo says {moment!r}", demo)
        started = psutil.Process(demo.process.pid).children(recursive=True)
        demo.send(signal.SIGINT)
        assert demo.wait() == 130
    finally:
        demo.close()
    assert demo.printed.splitlines()[-1] == "stopped; nothing is left running"
    assert [process for process in started if process.is_running()] == []
    assert [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(str(tmp_path) in word for word in process.info["cmdline"] or ())
    ] == []
    for url in re.findall(r"^dashboard: (\S+)$", demo.printed, re.M):
        with pytest.raises(ServerUnreachable):
            ApiClient(url).get("/status")
