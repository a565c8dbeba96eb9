"""What people are told of a wait: who, what each is doing, until when, and what comes then."""

from __future__ import annotations

import pytest

from coppice.domain import ClientId
from server.records import LiveClient, Wait
from server.round_events import ClientGone, DeadlinePassed, Phase, UpdateStored
from server.rounds import RoundMachine
from server.waiting import waiting
from tests.server.run_samples import (
    SPEC,
    A,
    B,
    C,
    aggregating,
    arrive,
    gathering,
    reporting,
    run_spec,
    tell,
    waits_for,
    wanted,
)

UNTIL = 1000.0


def live(name: ClientId, activity: str = "", share: float | None = None) -> LiveClient:
    return LiveClient(name, "working", 0.0, 4, 0, 0, activity, share)


def wait(machine: RoundMachine, *clients: LiveClient) -> Wait:
    return waiting(machine, {client.client_id: client for client in clients}, UNTIL)


class TestReporting:
    def test_names_the_last_one_with_what_it_has_uploaded(self) -> None:
        names = [ClientId(f"pi-{index:02}") for index in range(8)]
        machine = reporting(run_spec(size=8, quorum=4), *names)
        tell(machine, *(UpdateStored(1, name) for name in names if name != "pi-03"))
        found = wait(machine, live(ClientId("pi-03"), "uploading", 0.714))
        assert found.text == "1 of 8: pi-03, 71 % uploaded"
        assert found.until == UNTIL
        assert found.then == "then the round closes with what has come: 4 are enough"
        assert [client.client_id for client in found.clients] == ["pi-03"]

    @pytest.mark.parametrize(
        ("client", "doing"),
        [
            (live(B), "has not come for its task"),
            (live(B, "fetching"), "fetching"),
            (live(B, "fetching", 0.25), "25 % downloaded"),
            (live(B, "at work"), "training"),
            (LiveClient(B, "working", 2.0, 4, 17, 0, "at work"), "training (step 17)"),
            (
                LiveClient(B, "suspect", 14.2, 4, 17, 0, "at work"),
                "training (step 17), silent for 14 s (given up after 60 s)",
            ),
            (live(B, "unheard"), "not heard of since the server started"),
            (None, "not heard of since the server started"),
        ],
    )
    def test_says_what_a_client_is_doing(self, client: LiveClient | None, doing: str) -> None:
        machine = reporting(SPEC)
        machine.handle(UpdateStored(1, A))
        assert wait(machine, *([client] if client else [])).text == f"1 of 2: b, {doing}"

    def test_says_what_is_missing_for_the_quorum(self) -> None:
        machine = reporting(run_spec(size=3, quorum=2), A, B, C)
        assert wait(machine).then == ("then the round fails, unless 2 more have come: it needs 2")
        machine.handle(UpdateStored(1, C))
        assert "unless 1 more has come" in wait(machine).then
        machine.handle(UpdateStored(1, B))
        assert "2 are enough" in wait(machine).then

    def test_over_selection_waits_for_the_first_ones(self) -> None:
        machine = reporting(run_spec(size=2, over_selection=1.5), A, B, C)
        machine.handle(UpdateStored(1, A))
        assert waits_for(machine) == "1 of 2, the first of 2 at work: b; c"

    def test_names_five_clients_and_counts_the_others(self) -> None:
        names = [ClientId(f"pi-{index}") for index in range(7)]
        machine = reporting(run_spec(size=7), *names)
        machine.handle(UpdateStored(1, names[0]))
        assert waits_for(machine) == "6 of 7: pi-1; pi-2; pi-3; pi-4; pi-5 and 1 more"
        assert len(wait(machine).clients) == 6


class TestGathering:
    def test_without_the_quorum_there_is_no_deadline(self) -> None:
        machine = gathering(run_spec(size=3), A)
        assert wait(machine) == Wait(
            "2 more clients (1 of 3 are here)", None, "a round begins with 2 at least"
        )

    def test_with_the_quorum_it_waits_until_the_gathering_is_over(self) -> None:
        machine = gathering(run_spec(size=3), A, B)
        found = wait(machine)
        assert (found.text, found.until) == ("1 more client (2 of 3 are here)", UNTIL)
        assert found.then == "then the round begins with those that are here"

    def test_says_which_labels_are_wanted(self) -> None:
        machine = gathering(run_spec(size=1, labels={"room": "attic"}))
        assert waits_for(machine) == "1 more client with room=attic (0 of 1 are here)"

    def test_names_who_is_known_and_still_busy(self) -> None:
        machine = gathering(run_spec(size=3), A)
        machine.known.add(B)
        found = wait(machine, live(B, "uploading", 0.5))
        assert found.text == "2 more clients (1 of 3 are here): b, 50 % uploaded"

    def test_names_who_was_lost_where_somebody_is_missing(self) -> None:
        machine = gathering(run_spec(size=2), A)
        lost = LiveClient(B, "lost", 41.0, 4, 17, 0, "at work")
        text = wait(machine, live(A), lost).text
        assert text == "1 more client (1 of 2 are here): b, silent for 41 s"

    def test_a_fleet_that_is_too_small_waits_for_those_that_it_has(self) -> None:
        machine = gathering(run_spec(size=4), A, B)
        machine.known.add(C)
        machine.handle(ClientGone(C))
        machine.handle(DeadlinePassed(1, Phase.GATHERING))
        assert machine.phase is Phase.PLANNING
        assert wait(machine) == Wait()
        machine.phase = Phase.GATHERING
        machine.present.discard(B)
        assert waits_for(machine) == "1 more client (1 of 2 are here): b"

    def test_others_may_be_here_than_those_that_are_wanted(self) -> None:
        machine = gathering(run_spec(size=1))
        machine.known = {A, B, C}
        (absent,) = wanted(machine, A, B, C)
        arrive(machine, *(machine.known - {absent}))
        assert waits_for(machine) == f"1 more client (0 of 1 are here): {absent}"


def test_a_wait_is_empty_while_the_server_works() -> None:
    assert wait(aggregating()) == wait(RoundMachine(SPEC)) == Wait()
