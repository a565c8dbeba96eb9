"""The round machine under any sequence of events, and in a world that carries out what it says."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppice.domain import ClientId, RunSpec, TaskKind
from server.round_events import (
    Aggregate,
    ClientArrived,
    ClientGone,
    DeadlinePassed,
    EndRun,
    EvaluationDone,
    Event,
    FailRound,
    FoldEvaluation,
    Instruction,
    OpenRound,
    Phase,
    PlanTasks,
    RoundCommitted,
    RoundOpened,
    SetDeadline,
    StopRequested,
    TaskDropped,
    TasksCommitted,
    UpdateStored,
)
from server.rounds import RoundMachine
from tests.server.run_samples import A, B, C, D, run_spec

CLIENTS = (A, B, C, D)
ROUNDS = 3

clients = st.sampled_from(CLIENTS)
numbers = st.integers(0, ROUNDS + 1)
plans = st.lists(clients, unique=True).map(tuple)
events = st.one_of(
    st.builds(RoundOpened, numbers, st.booleans(), st.none() | clients),
    st.builds(ClientArrived, clients),
    st.builds(ClientGone, clients),
    st.builds(TasksCommitted, numbers, plans),
    st.builds(UpdateStored, numbers, clients),
    st.builds(TaskDropped, numbers, clients),
    st.builds(RoundCommitted, numbers, st.booleans()),
    st.builds(EvaluationDone, numbers, st.sampled_from(["server", "clients"]), st.just(False)),
    st.builds(EvaluationDone, numbers, st.sampled_from(["server", "clients"]), st.booleans()),
    st.builds(DeadlinePassed, numbers, st.sampled_from(Phase)),
)
specs = st.builds(
    run_spec,
    rounds=st.just(ROUNDS),
    size=st.integers(1, 3),
    quorum=st.sampled_from([None, 1]),
    over_selection=st.sampled_from([1.0, 1.5]),
    on_clients=st.booleans(),
    every=st.integers(1, 2),
)


@st.composite
def beginnings(draw: st.DrawFn) -> tuple[RoundMachine, list[Instruction]]:
    """A machine as it begins or goes on, and its first instructions."""
    machine = RoundMachine(draw(specs))
    number = draw(st.integers(1, ROUNDS))
    match draw(st.sampled_from(["start", "train", "evaluate", "aggregate"])):
        case "start":
            return machine, machine.start(number - 1)
        case "aggregate":
            reported = draw(plans)
            planned = len(reported) + draw(st.integers(0, 2))
            return machine, machine.resume_closed(number, reported, planned)
        case kind:
            plan = draw(st.lists(clients, unique=True, min_size=1))
            answered = draw(st.integers(0, len(plan)))
            told = machine.resume_reporting(
                number, plan[answered:], plan[:answered], 60.0, TaskKind(kind)
            )
            return machine, told


class Watcher:
    """Sees all that a machine says, and holds it to what must never happen."""

    def __init__(self, machine: RoundMachine, first: list[Instruction]) -> None:
        self.machine = machine
        self.said: list[Instruction] = []
        #: Who may be awaited: the clients of the newest plan that the machine accepted.
        self.planned = set(machine.awaited) | set(machine.reported)
        self._note(first)

    def tell(self, event: Event) -> list[Instruction]:
        machine, before = self.machine, copy.deepcopy(self.machine)
        instructions = machine.handle(event)
        if before.phase is Phase.ENDED:
            assert instructions == []
            assert vars(machine) == vars(before)
        assert machine.round_number >= before.round_number
        assert machine.committed >= before.committed
        planning = (before.phase, before.round_number)
        if isinstance(event, TasksCommitted) and planning == (Phase.PLANNING, event.round_number):
            self.planned = set(event.clients)
        self._note(instructions)
        return instructions

    def _note(self, instructions: list[Instruction]) -> None:
        self.said += instructions
        machine = self.machine
        assert machine.awaited <= self.planned
        assert machine.present <= machine.known
        assert not machine.present & machine.awaited
        assert not machine.awaited & set(machine.reported)
        assert machine.round_number <= ROUNDS
        for once in (OpenRound, Aggregate, FailRound, FoldEvaluation):
            numbers = [item.round_number for item in self.said if isinstance(item, once)]
            assert len(numbers) == len(set(numbers)), once
        closed = [x.round_number for x in self.said if isinstance(x, Aggregate | FailRound)]
        assert len(closed) == len(set(closed))
        assert sum(isinstance(item, EndRun) for item in self.said) == (machine.phase is Phase.ENDED)
        for item in instructions:
            match item:
                case SetDeadline(number, phase, seconds):
                    assert number <= machine.round_number
                    assert phase is not Phase.ENDED
                    assert seconds >= 0
                case PlanTasks(number, kind, cohort):
                    assert number == machine.round_number
                    assert 0 < len(cohort) == len(set(cohort))
                    assert machine.known.issuperset(cohort)
                    if kind is TaskKind.TRAIN:
                        assert machine.present.issuperset(cohort)
                        assert len(cohort) <= machine.spec.cohort.planned
                        assert machine.reserved_for in (None, *cohort)
                        assert machine.reserved_for is None or len(cohort) == 1


@given(beginnings(), st.lists(events, max_size=60), st.none() | st.integers(0, 60))
def test_no_sequence_of_events_breaks_the_machine(
    beginning: tuple[RoundMachine, list[Instruction]], sequence: list[Event], stop_at: int | None
) -> None:
    watcher = Watcher(*beginning)
    for index, event in enumerate(sequence):
        if index == stop_at:
            watcher.tell(StopRequested())
            assert watcher.machine.phase is Phase.ENDED
        watcher.tell(event)


@dataclass
class World:
    """Carries out instructions as the driver does: one after the other, each with its answer."""

    watcher: Watcher
    has_terms: bool
    server_evaluates: bool
    #: Whom the rounds are for, the first one first; after these, a cohort.
    reserved: list[ClientId]
    draw: st.DataObject
    answers: list[Event] = field(default_factory=list)
    evaluations: list[Event] = field(default_factory=list)
    deadline: Event | None = None
    tasks: set[ClientId] = field(default_factory=set)

    def carry_out(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case OpenRound(number):
                    reserved = self.reserved.pop(0) if self.reserved else None
                    self.answers.append(RoundOpened(number, self.has_terms, reserved))
                case SetDeadline(number, phase, _):
                    self.deadline = DeadlinePassed(number, phase)
                case PlanTasks(number, _, cohort):
                    self.tasks = set(cohort)
                    self.answers.append(TasksCommitted(number, cohort))
                case Aggregate(number):
                    self.tasks.clear()
                    if self.server_evaluates:
                        self.evaluations.append(EvaluationDone(number, "server", False))
                    self.answers.append(RoundCommitted(number, self.server_evaluates))
                case FoldEvaluation(number):
                    self.tasks.clear()
                    self.answers.append(EvaluationDone(number, "clients", False))
                case FailRound() | EndRun():
                    self.tasks.clear()

    def tell(self, event: Event) -> None:
        self.carry_out(self.watcher.tell(event))

    def step(self) -> None:
        """Something happens that can happen."""
        machine, number = self.watcher.machine, self.watcher.machine.round_number
        moves: list[tuple[str, Event]] = [("client", ClientArrived(c)) for c in CLIENTS]
        moves += [("client", ClientGone(c)) for c in CLIENTS]
        # A client whose task was accepted may answer.
        if machine.phase in (Phase.REPORTING, Phase.EVALUATING):
            for client in sorted(self.tasks):
                moves += [("answer", UpdateStored(number, client))] * 3
                moves += [("answer", TaskDropped(number, client))]
        moves += [("done", event) for event in self.answers[:1]] * 8
        moves += [("evaluated", event) for event in self.evaluations[:1]]
        if self.deadline is not None:
            moves.append(("deadline", self.deadline))
        kind, event = self.draw.draw(st.sampled_from(moves))
        self._forget(kind, event)
        self.tell(event)

    def finish(self) -> None:
        """From here on every client answers and every wait ends: so must the run."""
        for _ in range(40 * ROUNDS):
            if self.watcher.machine.phase is Phase.ENDED:
                return
            if self.answers:
                self.tell(self.answers.pop(0))
            elif self.evaluations:
                self.tell(self.evaluations.pop(0))
            elif self.watcher.machine.phase is Phase.GATHERING:
                for client in CLIENTS:
                    if client not in self.tasks:
                        self.tell(ClientArrived(client))
            elif self.tasks:
                client = min(self.tasks)
                self.tasks.discard(client)
                self.tell(UpdateStored(self.watcher.machine.round_number, client))
            elif self.deadline is not None:
                event, self.deadline = self.deadline, None
                self.tell(event)
            else:
                pytest.fail(f"the run waits for ever in {self.watcher.machine.phase}")
        pytest.fail(f"the run does not end: {self.watcher.said}")

    def _forget(self, kind: str, event: Event) -> None:
        match kind, event:
            case "done", _:
                self.answers.pop(0)
            case "evaluated", _:
                self.evaluations.pop(0)
            case "deadline", _:
                self.deadline = None
            case "answer", UpdateStored(_, client) | TaskDropped(_, client):
                self.tasks.discard(client)


@given(
    specs,
    st.booleans(),
    st.booleans(),
    st.lists(clients, max_size=2),
    st.integers(0, 50),
    st.data(),
)
def test_run_ends_exactly_once_whatever_clients_do(
    spec: RunSpec,
    has_terms: bool,
    server_evaluates: bool,
    reserved: list[ClientId],
    steps: int,
    data: st.DataObject,
) -> None:
    machine = RoundMachine(spec)
    first = machine.start()
    world = World(Watcher(machine, first), has_terms, server_evaluates, reserved, data)
    world.carry_out(first)
    for _ in range(steps):
        world.step()
    world.finish()
    assert isinstance(world.watcher.said[-1], EndRun)
    opened = [item.round_number for item in world.watcher.said if isinstance(item, OpenRound)]
    assert opened == list(range(1, len(opened) + 1))
