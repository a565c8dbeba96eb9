"""What a device says of the rounds that it finished: to the server, to people, and to nobody."""

from __future__ import annotations

import pytest

from coppice.domain import Capability, Forecast, RoundReport, Why
from coppice.errors import NotJoined, RoundClosed, ServerBusy
from coppice.method import Choice, Local, Task, Update
from coppice.methods.fedavg.client import Client
from coppice.methods.fedavg.settings import Settings
from coppice.tensors import Payload
from coppice.wire import coordination_pb2 as pb
from coppice.wire.codec import blob_to_message
from coppice.wire.report import report_from_message
from edge_client.costs import Costs
from edge_client.limits import MARGIN_BYTES
from edge_client.meter import Laps
from edge_client.ready import ReadyRun
from edge_client.status import read_status
from tests.edge_client.conftest import ThreadedDevice
from tests.edge_client.fake_server import (
    PATIENCE_SECONDS,
    FakeServer,
    masks_in,
    model_payload,
    pruned_payload,
)

FORECAST = Forecast(
    download_seconds=0.25,
    compute_seconds=11.5,
    upload_seconds=1.25,
    peak_bytes=300_000_000,
    why="memory",
)


def reports(server: FakeServer) -> list[RoundReport | None]:
    """What each poll brought."""
    return [
        report_from_message(poll.report) if poll.HasField("report") else None
        for poll in server.of("PollTask")
    ]


def live(device: ThreadedDevice) -> None:
    assert device.start(once=True).result(PATIENCE_SECONDS) == 0


def test_a_round_is_told_with_the_next_poll_and_once(
    server: FakeServer, device: ThreadedDevice
) -> None:
    ref = server.add_blob(model_payload())
    server.offer_run()
    server.offer_task(ref)
    server.offer_task(ref, task_id=12, round_number=2)
    server.offer_task(ref, task_id=13, kind="evaluate", round_number=2, settings_json="{}")
    server.end_run()
    live(device)
    before, ready, first, second, evaluated = reports(server)
    assert (before, ready, evaluated) == (None, None, None)
    assert first is not None
    assert second is not None
    assert (first.round_number, second.round_number) == (1, 2)
    assert (first.steps, first.density, first.forecast) == (2, 1.0, None)
    assert first.download_seconds > 0
    assert first.compute_seconds > 0
    assert first.upload_seconds > 0
    assert first.peak_bytes > 2**20
    capability = server.of("PollTask")[2].capability
    assert first.budget_bytes == pytest.approx(capability.memory_bytes, rel=0.5)
    assert first.bound_by == capability.memory_bound_by


def test_parts_of_a_round_end_with_the_fetch_the_work_and_the_receipt(
    server: FakeServer, device: ThreadedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[Task] = []
    answer = ReadyRun.answer

    def noted(self: ReadyRun, task: Task, local: Local) -> Update:
        answered.append(task)
        return answer(self, task, local)

    def done(_: Laps) -> float:
        return float(
            len(server.of("FetchBlob")) + 2 * len(answered) + 4 * len(server.of("PushUpdate"))
        )

    monkeypatch.setattr(ReadyRun, "answer", noted)
    monkeypatch.setattr(Laps, "lap", done)
    server.offer_run()
    server.offer_task(server.add_blob(model_payload()))
    server.end_run()
    live(device)
    report = reports(server)[2]
    assert report is not None
    parts = (report.download_seconds, report.compute_seconds, report.upload_seconds)
    assert parts == (1.0, 3.0, 7.0)
    assert "down 1.0 s, compute 3.0 s, up 7.0 s" in device.printed


def test_density_is_that_of_the_masks(server: FakeServer, device: ThreadedDevice) -> None:
    payload = pruned_payload(every=4)
    masks = masks_in(payload)["parameters"].values()
    kept = sum(mask.count for mask in masks) / sum(mask.size for mask in masks)
    masks_ref = server.add_blob(masks_in(payload))
    ref = server.add_blob(payload, {mask.fingerprint: mask for mask in masks})
    server.offer_run()
    server.offer_task(ref, masks=blob_to_message(masks_ref))
    server.end_run()
    live(device)
    report = reports(server)[2]
    assert report is not None
    assert report.density == pytest.approx(kept)
    assert 0.2 < kept < 0.3
    assert f"prune ratio {100 * (1 - kept):.1f} %," in device.printed


def test_what_was_expected_stands_beside_it_and_not_in_the_update(
    server: FakeServer, device: ThreadedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    class GoingByCost(Client):
        goes_by_cost = True

    def forecast(
        costs: Costs, task: Task, download_bytes: int, why: Why, parts: int
    ) -> Forecast | None:
        return FORECAST if task.round_number == 1 else None

    half = GoingByCost(Settings(local_steps=2))
    monkeypatch.setattr("edge_client.ready.client_half", lambda spec: half)
    monkeypatch.setattr(Costs, "probe", lambda *arguments: None)
    monkeypatch.setattr(Costs, "forecast", forecast)
    ref = server.add_blob(model_payload())
    server.offer_run()
    server.offer_task(ref)
    server.offer_task(ref, task_id=12, round_number=2)
    server.end_run()
    live(device)
    first, second = reports(server)[2:]
    assert first is not None
    assert second is not None
    assert (first.forecast, second.forecast) == (FORECAST, None)
    (with_one, _), (without, _) = server.pushed
    assert with_one.metrics.keys() == without.metrics.keys()
    assert with_one.blob.size_bytes == without.blob.size_bytes
    line = next(text for text in device.printed.splitlines() if text.startswith("round 1"))
    assert "prune ratio 0.0 % (memory-bound)" in line
    assert "(11.5 s predicted)" in line
    assert "(300.0 MB predicted, " in line


def test_a_report_that_was_answered_is_not_sent_again(
    server: FakeServer, device: ThreadedDevice
) -> None:
    server.offer_run()
    server.offer_task(server.add_blob(model_payload()))
    server.reply(wait=pb.Wait())
    server.end_run()
    live(device)
    told = reports(server)
    assert [report is not None for report in told] == [False, False, True, False]


def test_a_report_comes_again_until_a_poll_with_it_was_answered(
    server: FakeServer, device: ThreadedDevice
) -> None:
    gate = server.gate("PushUpdate")
    server.offer_run()
    server.offer_task(server.add_blob(model_payload()))
    life = device.start(once=True)
    assert gate.reached.wait(PATIENCE_SECONDS)
    server.errors["PollTask"] = [ServerBusy("busy"), NotJoined("who are you?")]
    server.end_run()
    gate.opened.set()
    assert life.result(PATIENCE_SECONDS) == 0
    told = reports(server)[2:]
    assert told[0] is not None
    assert told == [told[0]] * 3


def test_a_round_that_closed_without_the_device_is_not_told(
    server: FakeServer, device: ThreadedDevice
) -> None:
    server.errors["PushUpdate"] = [RoundClosed("round 1 is over")]
    server.offer_run()
    server.offer_task(server.add_blob(model_payload()))
    server.end_run()
    live(device)
    assert reports(server) == [None, None, None]


def test_status_holds_the_last_round_until_the_next_run(
    server: FakeServer, device: ThreadedDevice
) -> None:
    ref = server.add_blob(model_payload())
    server.offer_run()
    server.offer_task(ref)
    server.offer_task(ref, kind="evaluate", settings_json="{}")
    server.end_run()
    device.start()
    server.wait_for("PollTask", 5)
    status = read_status(device.folder.status)
    assert status is not None
    assert status.last_round == reports(server)[2]
    server.offer_run(run_id=2)
    server.wait_for("PollTask", 6)
    assert device.status.status.last_round is None


@pytest.mark.parametrize(
    ("missing_bytes", "declines"), [(MARGIN_BYTES // 4, 0), (MARGIN_BYTES, 11)]
)
def test_a_task_for_which_there_is_no_memory_any_more_goes_back(
    server: FakeServer,
    device: ThreadedDevice,
    monkeypatch: pytest.MonkeyPatch,
    missing_bytes: int,
    declines: int,
) -> None:
    class GoingByCost(Client):
        goes_by_cost = True

    def capability(num_threads: int | None) -> Capability:
        has = FORECAST.peak_bytes - missing_bytes
        return Capability(memory_bytes=has, num_threads=1, machine="any", memory_bound_by="a test")

    half = GoingByCost(Settings(local_steps=2))
    monkeypatch.setattr("edge_client.ready.client_half", lambda spec: half)
    monkeypatch.setattr("edge_client.loop.capability", capability)
    monkeypatch.setattr(Costs, "probe", lambda *arguments: None)
    monkeypatch.setattr(Costs, "forecast", lambda *arguments: FORECAST)
    server.offer_run()
    server.offer_task(server.add_blob(model_payload()), task_id=11)
    server.reply(wait=pb.Wait())
    server.end_run()
    live(device)
    told = [poll.declined_task_id for poll in server.of("PollTask")]
    assert told == [0, 0, declines, 0]
    assert len(server.pushed) == (0 if declines else 1)
    assert ("this round would need 300.0 MB" in device.printed) == bool(declines)


def test_a_device_that_declines_again_and_again_measures_anew(
    server: FakeServer, device: ThreadedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Declining(Client):
        goes_by_cost = True

        def choose(self, terms: Payload, local: Local) -> Choice:
            return {"declined": "memory"}

    probes: list[int] = []

    def probe(costs: Costs, *arguments: object) -> None:
        probes.append(len(server.of("FetchBlob")))

    half = Declining(Settings(local_steps=2))
    monkeypatch.setattr("edge_client.ready.client_half", lambda spec: half)
    monkeypatch.setattr(Costs, "probe", probe)
    monkeypatch.setattr(Costs, "forget", lambda costs: len(server.of("FetchBlob")) != 10)
    server.offer_run()
    for number in range(1, 24):
        ref = server.add_blob(model_payload(number))
        server.reply(terms=pb.TermsOffer(round_number=number, payload=blob_to_message(ref)))
    server.end_run()
    live(device)
    # Before the first round, and after more and more, where there is the memory for it.
    assert probes == [0, 5, 20]
