"""`fedserver run list | show | stop | log`: what they print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server import run_commands
from server.cli import main
from server.printing import moment
from tests.server.command_samples import IDLE, LEDGER, REPORT, ROUND, RUN, STATUS, WAIT, Api


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    made = Api()
    monkeypatch.setattr(run_commands, "ApiClient", made)
    return made


def show(api: Api, **run: object) -> None:
    api.answers |= {
        "/runs/3": RUN | run,
        "/runs/3/rounds?after=2": [ROUND],
        "/runs/3/evaluations": [
            {"round_number": 12, "where": "server", "metrics": {"accuracy": 0.5}, "others": {}},
            {"round_number": 12, "where": "clients", "metrics": {"accuracy": 0.25}, "others": {}},
        ],
        "/runs/3/ledger": [LEDGER],
        "/runs/3/reports?newest=true&limit=1000": [],
        "/runs/3/refusals?newest=true&limit=1000": [],
        "/status": IDLE,
    }


class TestWhere:
    def test_server_may_be_given(self, api: Api) -> None:
        api.answers["/runs"] = []
        main(["run", "list", "--server", "http://there:1"])
        assert api.url == "http://there:1"

    def test_server_of_the_data_folder_is_found(self, api: Api, tmp_path: Path) -> None:
        api.answers["/runs"] = []
        (tmp_path / "server.json").write_text('{"dashboard": "http://here:2"}')
        main(["run", "list", "--data", str(tmp_path)])
        assert api.url == "http://here:2"


class TestList:
    def test_is_a_line_for_each_run(self, api: Api, capsys: pytest.CaptureFixture[str]) -> None:
        queued = RUN | {"run_id": 4, "state": "queued", "round_number": 0, "best_value": None}
        api.answers["/runs"] = [RUN, queued]
        assert main(["run", "list"]) == 0
        at = moment(1e9)
        assert capsys.readouterr().out.splitlines()[2:] == [
            f"  3  digits  running  12 of 20  0.9123  {at}",
            f"  4  digits  queued   0 of 20        -  {at}",
        ]

    def test_without_runs_is_a_head(self, api: Api, capsys: pytest.CaptureFixture[str]) -> None:
        api.answers["/runs"] = []
        assert main(["run", "list"]) == 0
        assert capsys.readouterr().out.startswith("run  name")

    def test_as_json_is_what_the_server_says(
        self, api: Api, capsys: pytest.CaptureFixture[str]
    ) -> None:
        api.answers["/runs"] = [RUN]
        main(["run", "list", "--json"])
        assert json.loads(capsys.readouterr().out) == [RUN]


class TestShow:
    def test_tells_what_the_open_run_waits_for(
        self, api: Api, capsys: pytest.CaptureFixture[str]
    ) -> None:
        show(api)
        api.answers["/status"] = STATUS
        assert main(["run", "show", "3"]) == 0
        at = moment(1e9).split()[1]
        assert capsys.readouterr().out.splitlines()[2:4] == [
            f"waiting for 1 of 8: pi-03, 71 % uploaded, until {at}",
            "then the round closes with what has come: 4 are enough",
        ]
        main(["run", "show", "3", "--json"])
        assert json.loads(capsys.readouterr().out)["wait"] == WAIT

    def test_another_run_s_wait_is_not_told(
        self, api: Api, capsys: pytest.CaptureFixture[str]
    ) -> None:
        show(api)
        api.answers["/status"] = STATUS | {"run_id": 4}
        main(["run", "show", "3"])
        assert "waiting" not in capsys.readouterr().out

    def test_tells_state_best_and_the_last_rounds(
        self, api: Api, capsys: pytest.CaptureFixture[str]
    ) -> None:
        show(api)
        assert main(["run", "show", "3"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == [
            "run 3: digits, running",
            "rounds: 12 of 20; best: accuracy 0.9123 in round 11",
        ]
        # The server's evaluation stands where there are both.
        assert lines[-1].split() == [
            "12", "committed", "3", "0.5000", "26.4", "MB", "1.0", "kB", "1.50",
        ]  # fmt: skip

    def test_tells_why_it_ended(self, api: Api, capsys: pytest.CaptureFixture[str]) -> None:
        show(api, state="failed", reason="the app broke", best_round=None)
        main(["run", "show", "3"])
        assert capsys.readouterr().out.startswith(
            "run 3: digits, failed (the app broke)\nrounds: 12 of 20; best: not evaluated\n"
        )

    def test_open_round_has_no_duration(self, api: Api, capsys: pytest.CaptureFixture[str]) -> None:
        show(api)
        api.answers["/runs/3/rounds?after=2"] = [ROUND | {"closed_at": None, "state": "open"}]
        assert main(["run", "show", "3"]) == 0
        assert capsys.readouterr().out.splitlines()[-1].endswith("kB")

    def test_tells_what_rounds_took_on_each_device(
        self, api: Api, capsys: pytest.CaptureFixture[str]
    ) -> None:
        show(api)
        api.answers["/runs/3/reports?newest=true&limit=1000"] = [REPORT]
        main(["run", "show", "3"])
        assert capsys.readouterr().out.splitlines()[-1].split() == [
            "pi", "1", "40", "75.0", "%", "memory-bound", "0.50", "12.00", "0.75", "13.25",
            "13.00", "312.0", "MB", "305.0", "MB", "400.0", "MB",
        ]  # fmt: skip
        main(["run", "show", "3", "--json"])
        assert json.loads(capsys.readouterr().out)["reports"] == [REPORT]

    def test_tells_of_all_models_of_the_newest_evaluation(
        self, api: Api, capsys: pytest.CaptureFixture[str]
    ) -> None:
        show(api)
        measured = {"loss": 1.5, "accuracy": 0.75}
        api.answers["/runs/3/evaluations"] = [
            {
                "round_number": number,
                "where": "server",
                "metrics": measured,
                "others": {f"cut-0.{number}": {"accuracy": 0.625}},
            }
            for number in (11, 12)
        ]
        main(["run", "show", "3"])
        lines = capsys.readouterr().out.splitlines()
        assert lines[-4].split() == ["model", "of", "round", "12", "accuracy", "loss"]
        assert [line.split() for line in lines[-2:]] == [
            ["global", "0.7500", "1.5000"],
            ["cut-0.12", "0.6250", "-"],
        ]

    def test_ledger_is_shown_when_asked_for(
        self, api: Api, capsys: pytest.CaptureFixture[str]
    ) -> None:
        show(api)
        main(["run", "show", "3", "--ledger"])
        assert capsys.readouterr().out.splitlines()[-1].split() == [
            "12", "36", "pi", "train", "0123456789ab", "counted", "60",
        ]  # fmt: skip

    def test_as_json_holds_it_all(self, api: Api, capsys: pytest.CaptureFixture[str]) -> None:
        show(api)
        main(["run", "show", "3", "--json", "--ledger"])
        shown = json.loads(capsys.readouterr().out)
        assert set(shown) == {
            *("run", "rounds", "evaluations", "reports", "refusals", "wait", "ledger")
        }
        main(["run", "show", "3", "--json"])
        assert "ledger" not in json.loads(capsys.readouterr().out)


class TestStop:
    def test_asks_the_server(self, api: Api, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["run", "stop", "3"]) == 0
        assert api.posted == [("/runs/3/stop", {})]
        assert capsys.readouterr().out == "run 3 is being stopped\n"
        main(["run", "stop", "3", "--json"])
        assert json.loads(capsys.readouterr().out) == {"run_id": 3, "stopping": True}


def line(number: int, kind: str = "round_committed") -> dict[str, object]:
    return {"event_id": number, "at": 1e9, "kind": kind, "text": f"line {number}", "run_id": 3}


def log(after: int) -> str:
    return f"/runs/3/log?after={after}&limit=1000"


class TestLog:
    def test_prints_page_after_page(self, api: Api, capsys: pytest.CaptureFixture[str]) -> None:
        api.answers |= {
            log(0): [[line(1), line(2)]],
            log(2): [[line(3)]],
            log(3): [[]],
            "/runs/3": RUN | {"ended_at": 2e9},
        }
        assert main(["run", "log", "3"]) == 0
        at = moment(1e9)
        assert capsys.readouterr().out.splitlines() == [f"{at}  line {n}" for n in (1, 2, 3)]

    def test_follows_until_the_run_ends(self, api: Api, capsys: pytest.CaptureFixture[str]) -> None:
        api.news = [{"kind": "listening"}, {"kind": "of another run"}, {"kind": "x"}, {"kind": "y"}]
        api.answers |= {
            log(0): [[line(1)]],
            log(1): [[], [line(2)], []],
            log(2): [[], [line(3, "run_ended")]],
            "/runs/3": RUN,
        }
        assert main(["run", "log", "3", "--follow", "--json"]) == 0
        printed = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
        assert [event["event_id"] for event in printed] == [1, 2, 3]

    def test_of_a_run_that_has_ended_is_not_followed(
        self, api: Api, capsys: pytest.CaptureFixture[str]
    ) -> None:
        api.news = [{"kind": "x"}]
        api.answers |= {log(0): [[line(1)]], log(1): [[]], "/runs/3": RUN | {"ended_at": 2e9}}
        assert main(["run", "log", "3", "--follow"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1

    def test_that_is_not_followed_ends_with_what_is_there(
        self, api: Api, capsys: pytest.CaptureFixture[str]
    ) -> None:
        api.news = [{"kind": "x"}]
        api.answers |= {log(0): [[line(1)]], log(1): [[]], "/runs/3": RUN}
        assert main(["run", "log", "3"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1
