"""The heavy work of one run: states, plans, sums. On the compute thread; no clock, no database."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from coppice import __version__, tree
from coppice.app import build_model, make_app
from coppice.domain import BlobRef, ClientId, Metrics, Participant, RunSpec, TaskKind
from coppice.folding import Folded, fold
from coppice.method import InitContext, Task, Update, server_half
from coppice.model_file import ModelInfo, load_weights, save_model
from coppice.wire import payload as wire
from coppice.wire.exchange import Known, TaskEncoder, known_masks
from coppice.wire.header import largest_size_bytes
from server.blobs import Blobs
from server.records import EvaluationRecord, NewTask, UpdateRecord, Work


class RunWork:
    """The server's half of the run's method, and its newest state. Blocking calls."""

    def __init__(self, spec: RunSpec, blobs: Blobs) -> None:
        self._spec = spec
        self._blobs = blobs
        self._half = server_half(spec.method)
        self._encoder = TaskEncoder(spec.wire, spec.seed)
        self._state: Any = None
        self._known: dict[BlobRef, Known] = {}
        #: When the server came back, if it was away.
        self._began_at = 0.0
        #: When the last answer of the newest round came, if that was since then.
        self._last_answer_at: float | None = None

    def init_state(self, app_path: Path | None) -> BlobRef:
        """Make and store the state before round 1."""
        app = make_app(self._spec, app_path)
        warm_start = None
        if self._spec.warm_start is not None:
            warm_start = load_weights(self._blobs.path(self._spec.warm_start.digest))
        self._state = self._half.init(
            InitContext(
                self._spec.seed,
                partial(build_model, app, seed=self._spec.seed),
                warm_start,
                self._spec.cohort,
            )
        )
        return self._blobs.put(tree.save(self._state))

    def load_state(self, ref: BlobRef) -> None:
        """Go on from a stored state, after the server was away."""
        self._began_at = time.time()
        self._last_answer_at = None
        self._state = self._load(ref)

    def opening(self, round_number: int) -> tuple[BlobRef | None, ClientId | None]:
        """Store the round's terms, if it has any; and the one client that it is for, if any."""
        terms = self._half.terms(self._state, round_number)
        ref = None if terms is None else self._blobs.put(wire.encode(terms))
        return ref, self._half.reserved_for(self._state, round_number)

    def plan(
        self, kind: TaskKind, cohort: Sequence[Participant], round_number: int
    ) -> list[NewTask]:
        """The tasks of a round, in plan order, with their payloads stored.

        Tasks to evaluate or keep the model after a round carry what the next round would train on.
        """
        if kind is TaskKind.TRAIN:
            tasks = self._half.plan(self._state, cohort, round_number)
        else:
            # What they chose was for a round that is over.
            unchosen = [replace(participant, choice=None) for participant in cohort]
            following = self._half.plan(self._state, unchosen, round_number + 1)
            tasks = {
                client_id: replace(task, kind=kind, expects={})
                for client_id, task in following.items()
            }
        encoded = self._encoder.encode(tasks.values())
        num_examples = {participant.client_id: participant.num_examples for participant in cohort}
        stored: dict[int, BlobRef] = {}
        new = []
        for (client_id, task), sent in zip(tasks.items(), encoded, strict=True):
            payload, masks = self._store(task.payload, sent.payload, stored), None
            if sent.masks is not None:
                masks = self._store(sent.masks, sent.masks, stored)
                self._known[masks] = sent.known
            # What the method says is of tasks to train.
            trains = task.kind is TaskKind.TRAIN
            steps = self._half.most_steps(task, num_examples[client_id]) if trains else None
            checked = trains and self._spec.protection.firewall
            new.append(
                NewTask(
                    client_id,
                    task.kind,
                    payload,
                    masks,
                    task.settings,
                    task.expects,
                    most_examples=num_examples[client_id] if checked else None,
                    most_steps=steps if checked else None,
                    work=_work(payload, masks, steps, task),
                )
            )
        return new

    def aggregate(
        self, answers: Sequence[UpdateRecord], round_number: int, devices: int = 0
    ) -> tuple[BlobRef, Folded]:
        """Judge and fold stored updates, given in plan order, and store the next state.

        `devices` were given a task in the round.
        """
        by_client = {record.client_id: record for record in answers}
        self._know_masks(answers)
        folded = fold(
            self._half,
            self._spec.protection,
            self._state,
            list(by_client),
            lambda clients: self._updates([by_client[name] for name in clients]),
            round_number,
            devices=devices,
            scratch=self._blobs.folder,
        )
        self._last_answer_at = max((record.received_at for record in answers), default=None)
        self._state = folded.state
        return self._blobs.put(tree.save(self._state)), folded

    def export(
        self,
        ref: BlobRef,
        path: Callable[[str], Path],
        round_number: int,
        evaluations: Mapping[str, EvaluationRecord],
    ) -> None:
        """Save the models of a stored state, if there are any, as files at their names' paths.

        `evaluations` are those of the round by where they were done.
        """
        models = self._half.models(self._load(ref))
        metrics: dict[str, Metrics] = {}
        if (done := evaluations.get("server")) is not None:
            metrics = {"global": done.metrics, **done.others}
        # Where there are others, clients have measured what each of them holds.
        elif (done := evaluations.get("clients")) is not None and len(models) == 1:
            metrics = {"global": done.metrics}
        for name, weights in models.items():
            info = ModelInfo(
                workload=self._spec.workload,
                round_number=round_number,
                metrics=metrics.get(name, {}),
                written_by=f"fedserver {__version__}",
            )
            save_model(path(name), weights, info)

    def _load(self, ref: BlobRef) -> Any:
        return tree.load(self._half.state_type, bytes(self._blobs.read(ref.digest)))

    def _know_masks(self, answers: Sequence[UpdateRecord]) -> None:
        # Only after a restart have they to be read: else they are those of the plan.
        refs = {record.masks for record in answers if record.masks is not None}
        self._known = {ref: self._known.get(ref) or self._read_masks(ref) for ref in refs}

    def _updates(self, answers: Sequence[UpdateRecord]) -> Iterator[Update]:
        for record in answers:
            known = {} if record.masks is None else self._known[record.masks]
            # Checked against the task when it came; the digest in the record vouches for it since.
            data = self._blobs.read(record.blob.digest)
            yield Update(
                record.client_id,
                wire.decode(data, known=known),
                record.num_examples,
                record.steps,
                record.metrics,
                seconds=self._seconds(record),
                pause_seconds=self._pause_seconds(record),
            )

    def _seconds(self, record: UpdateRecord) -> float | None:
        """What the server saw of a task's time; None where it was away for a part of that."""
        if record.offered_at < self._began_at:
            return None
        return max(0.0, record.received_at - record.offered_at)

    def _pause_seconds(self, record: UpdateRecord) -> float | None:
        if self._last_answer_at is None:
            return None
        return max(0.0, record.offered_at - self._last_answer_at)

    def _read_masks(self, ref: BlobRef) -> Known:
        return known_masks(wire.decode(self._blobs.read(ref.digest)))

    def _store(self, source: object, data: bytearray, stored: dict[int, BlobRef]) -> BlobRef:
        """Encoded bytes as a blob, those of one source once; sources outlive `stored`."""
        if id(source) not in stored:
            stored[id(source)] = self._blobs.put(data)
        return stored[id(source)]


def _work(payload: BlobRef, masks: BlobRef | None, steps: int | None, task: Task) -> Work:
    down_bytes = payload.size_bytes + (masks.size_bytes if masks is not None else 0)
    return Work(down_bytes, steps, largest_size_bytes(task.expects))
