"""What the models of a run are worth: evaluated beside the rounds, the best one remembered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from coppice.domain import BlobRef, Metrics
from coppice.errors import AppError, DataError
from server.records import NewEvent, RunRecord
from server.resources import Resources
from server.round_events import EvaluationDone


class Judge:
    """One run's evaluations on the server, and the verdicts of all."""

    def __init__(
        self,
        record: RunRecord,
        resources: Resources,
        tell: Callable[[EvaluationDone | BaseException], None],
    ) -> None:
        """`tell` learns of each verdict, and of what made one impossible."""
        self._spec = record.spec
        self._run_id = record.run_id
        self._resources = resources
        self._tell = tell
        #: The best round so far, its value and its state.
        self.best: tuple[int, float, BlobRef] | None = None
        if record.best_round and record.best_value is not None and record.best_blob:
            self.best = (record.best_round, record.best_value, record.best_blob)
        self._evaluations: dict[asyncio.Task[None], str] = {}

    @property
    def digests(self) -> set[str]:
        """The states that are being evaluated, or wait for it."""
        return set(self._evaluations.values())

    def evaluate(self, round_number: int, state: BlobRef) -> None:
        """Have a state evaluated on the server, beside the rounds that follow."""
        task = asyncio.create_task(self._evaluate(round_number, state))
        self._evaluations[task] = state.digest
        task.add_done_callback(self._ended)

    def cancel(self) -> None:
        """Give up the evaluations on the server that are not done."""
        for task in self._evaluations:
            task.cancel()

    async def record(
        self,
        round_number: int,
        where: str,
        metrics: Metrics,
        state: BlobRef,
        others: Mapping[str, Metrics] | None = None,
    ) -> None:
        """Store an evaluation; the server's decides where there is one, else the clients'.

        `others` are those of the state's other models, by name, which decide nothing.
        """
        evaluation, target = self._spec.evaluation, self._spec.stop.target
        judges = where == "server" or evaluation.data is None
        value = metrics.get(evaluation.metric) if judges else None
        best = None
        if value is not None and evaluation.better(value, self.best and self.best[1]):
            self.best, best = (round_number, value, state), (value, state)
        text = f"round {round_number} evaluated on {where}" + shown(metrics)
        for name, measured in (others or {}).items():
            text += f"; {name}" + shown(measured)
        await self._resources.write(
            self._resources.store.record_evaluation,
            self._run_id,
            round_number,
            where,
            metrics,
            best,
            others or {},
            events=[NewEvent("evaluation_done", text, self._run_id, round_number)],
        )
        reached = value is not None and target is not None and evaluation.reaches(value, target)
        self._tell(EvaluationDone(round_number, where, reached))

    async def _evaluate(self, round_number: int, state: BlobRef) -> None:
        spec, resources = self._spec, self._resources
        app_path = None if spec.app is None else resources.app_path(spec.app.digest)
        assert spec.evaluation.data is not None
        try:
            measured = await resources.evaluator.evaluate(
                spec.workload, app_path, spec.evaluation.data, resources.blobs.path(state.digest)
            )
        except (DataError, AppError) as error:
            text = f"evaluation of round {round_number}: {error}"
            event = NewEvent("evaluation_failed", text, self._run_id, round_number)
            await resources.write(resources.store.append, events=[event])
            self._tell(EvaluationDone(round_number, "server", False))
            return
        metrics = measured.pop("global")
        await self.record(round_number, "server", metrics, state, measured)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._evaluations[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._tell(error)


def shown(metrics: Metrics) -> str:
    """Metrics as the end of a line of the log."""
    return "".join(f", {name} {value:.4g}" for name, value in sorted(metrics.items()))
