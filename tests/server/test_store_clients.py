"""Clients and the log in the store."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from coppice.domain import (
    ClientId,
    TaskKind,
)
from coppice.errors import (
    NameTaken,
    NotJoined,
)
from server.records import (
    NewEvent,
    RunState,
)
from server.store import Store
from tests.server.store_samples import (
    EVENT,
    KINDS_OF_STORE,
    NOON,
    SPEC,
    blob,
    fresh_store,
    new_client,
    new_task,
)


@pytest.fixture(params=KINDS_OF_STORE)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with fresh_store(request.param, tmp_path) as made:
        yield made


class TestClients:
    def test_a_client_is_kept_as_it_joined(self, store: Store) -> None:
        store.join_client(new_client("pi-2", "device-2"), NOON)
        store.join_client(new_client(), NOON)
        assert store.client(ClientId("pi-1")) == new_client()
        assert [client.client_id for client in store.clients()] == ["pi-1", "pi-2"]
        assert store.client(ClientId("pi-9")) is None

    def test_a_name_belongs_to_the_device_that_had_it_first(self, store: Store) -> None:
        store.join_client(new_client(), NOON)
        store.leave_client(ClientId("pi-1"), "goodbye", NOON)
        with pytest.raises(NameTaken, match="'pi-1'"):
            store.join_client(new_client(device_id="other"), NOON, [EVENT])
        assert store.events(None) == []

    def test_a_client_that_comes_back_keeps_its_refusals(self, store: Store) -> None:
        store.join_client(new_client(), NOON)
        store.count_refusal(ClientId("pi-1"), NOON)
        store.count_refusal(ClientId("pi-1"), NOON)
        store.leave_client(ClientId("pi-1"), "shutting down", NOON + 1)
        left = store.client(ClientId("pi-1"))
        assert left is not None
        assert (left.left_at, left.left_reason, left.refusals) == (NOON + 1, "shutting down", 2)

        back = dataclasses.replace(new_client(), software="coppice 0.2", joined_at=NOON + 9)
        store.join_client(dataclasses.replace(back, left_at=NOON, left_reason="old"), NOON + 9)
        assert store.client(ClientId("pi-1")) == dataclasses.replace(back, refusals=2)

    def test_a_stranger_cannot_leave_but_can_be_refused(self, store: Store) -> None:
        with pytest.raises(NotJoined):
            store.leave_client(ClientId("pi-9"), "", NOON)
        store.count_refusal(ClientId("pi-9"), NOON, [EVENT])
        assert store.clients() == []
        assert len(store.events(None)) == 1


class TestLog:
    def test_lines_are_read_on_from_the_last_one(self, store: Store) -> None:
        other = NewEvent("client_joined", "pi-1 joined", client_id=ClientId("pi-1"))
        store.append([EVENT, other], NOON)
        store.append([], NOON)
        store.append([EVENT], NOON + 1)
        lines = store.events(None)
        assert [(line.at, line.kind) for line in lines] == [
            (NOON, "round_committed"),
            (NOON, "client_joined"),
            (NOON + 1, "round_committed"),
        ]
        assert (lines[1].run_id, lines[1].client_id, lines[1].text) == (None, "pi-1", "pi-1 joined")
        assert store.events(None, after=lines[0].event_id, limit=1) == [lines[1]]
        assert store.events(1) == [lines[0], lines[2]]
        assert store.events(2) == []

    def test_every_change_brings_its_lines(self, store: Store) -> None:
        run_id = store.submit_run(SPEC, NOON, [EVENT])
        store.start_run(run_id, blob("0"), NOON, [EVENT])
        store.open_round(run_id, 1, NOON, [EVENT])
        task = store.commit_tasks(run_id, 1, "0" * 64, NOON, [new_task("pi-1")], NOON, [EVENT])[0]
        store.store_update(task.task_id, blob("u"), 1, 1, {}, NOON, [EVENT])
        store.close_tasks(run_id, 1, TaskKind.TRAIN, 300, NOON, [EVENT])
        store.commit_round(run_id, 1, blob("1"), {}, [task.task_id], NOON, [EVENT])
        store.open_round(run_id, 2, NOON)
        store.fail_round(run_id, 2, NOON, [EVENT])
        store.record_evaluation(run_id, 1, "server", {}, now=NOON, events=[EVENT])
        store.join_client(new_client(), NOON, [EVENT])
        store.count_refusal(ClientId("pi-1"), NOON, [EVENT])
        store.leave_client(ClientId("pi-1"), "", NOON, [EVENT])
        store.end_run(run_id, RunState.FINISHED, "", NOON, [EVENT])
        assert len(store.events(None)) == 13
