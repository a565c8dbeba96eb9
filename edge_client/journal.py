"""What a running client tells: a person, line by line; `fedclient status`, through a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from coppice.domain import WORK_SECONDS, Capability, Forecast, RoundReport
from edge_client.console import Console, day_text, duration_text, size_text
from edge_client.report_text import memory_text, pruning_text, time_text
from edge_client.status import StatusFile

# Only for their names: they import torch, and this is needed before torch is.
if TYPE_CHECKING:
    from coppice.method import Choice, Task, Update
    from coppice.wire import coordination_pb2 as pb
    from edge_client.ready import ReadyRun

_METRICS_SHOWN = 4


class Journal:
    """Every event of a device's life that somebody may want to know."""

    def __init__(self, console: Console, status: StatusFile) -> None:
        self._console = console
        self._status = status

    @property
    def phase(self) -> str:
        """What the device is doing, in the words of `Status`."""
        return self._status.status.phase

    def enter(self, phase: str, round_number: int | None = None) -> None:
        """The device does something else now."""
        if round_number is None:
            self._status.update(phase=phase)
        else:
            self._status.update(phase=phase, round_number=round_number, step=0)

    def step(self, steps_done: int) -> None:
        """Another local step is done."""
        self._status.update(step=steps_done)

    def waiting(self, error: Exception, seconds: float) -> None:
        """There is no server yet."""
        how_long = "until it works" if math.isinf(seconds) else f"for {seconds:.0f} s"
        self._console.warn("waiting", f"{error}; trying {how_long}")
        self._status.update(last_error=str(error))

    def joined(self, server_name: str, address: str) -> None:
        """The server knows this device."""
        self._console.say("joined", f"{server_name or 'server'} at {address}")

    def enrolled(self, name: str, expires_at: float, *, is_new: bool) -> None:
        """This device has a certificate, and its token was used for it if it is new."""
        if is_new:
            until = day_text(expires_at)
            self._console.say("enrolled", f"as {name}; the certificate is valid until {until}")
        self._status.update(name=name, certificate_until=expires_at)

    def certified(self, expires_at: float) -> None:
        """This device has a new certificate."""
        self._console.say("renewed", f"the certificate is valid until {day_text(expires_at)}")
        self._status.update(certificate_until=expires_at)

    def lost(self, error: Exception) -> None:
        """The connection broke."""
        self._console.warn("lost", f"{error}; trying again until it works")
        self._status.update(phase="reconnecting", last_error=str(error))

    def still_away(self, error: Exception, seconds: float, next_seconds: float) -> None:
        """The server has been away for so long; the next attempt is in so many seconds."""
        text = f"{error}; for {duration_text(seconds)} by now, next attempt in {next_seconds:.0f} s"
        self._console.warn("waiting", text)
        self._status.update(last_error=str(error))

    def busy(self, error: Exception, seconds: float) -> None:
        """The server said when to come back."""
        self._console.warn("busy", f"{error}; the next attempt is in {seconds:.0f} s")
        self._status.update(last_error=str(error))

    def back(self, address: str, phase: str, seconds: float) -> None:
        """The connection is there again after so long, and so is what the device was doing."""
        self._console.say("back", f"connected to {address} again after {duration_text(seconds)}")
        self._status.update(phase=phase)

    def left(self, reason: str, told: bool) -> None:
        """The device said goodbye, or tried to; `reason` is empty for an ordinary one."""
        if told:
            self._console.say("left", "the server knows")
        else:
            self._console.warn("left", "the server could not be told; it will notice")
        self._status.update(phase="left", last_error=reason)

    def ready(self, run: ReadyRun) -> None:
        """This device's data are loaded for a run."""
        self._console.say("run", f"{run.workload.name}, trained by {run.workload.method.name}")
        self._console.say(
            "data", f"{len(run.train)} examples to train on, {len(run.held_out)} held out"
        )
        if run.kernels and (trouble := run.kernel_trouble) is not None:
            self._console.warn("kernels", f"none: {trouble}; `fedclient doctor` says more")
        self._status.update(run=run.workload.name, round_number=0, step=0, last_round=None)

    def answered(
        self,
        task: Task,
        update: Update,
        report: RoundReport,
        seconds_per_step: float,
        moved: tuple[int, int],
    ) -> None:
        """A task is done and receipted. `moved` is in payload bytes, down and up."""
        trained = task.kind == "train"
        if trained:
            done = f"{update.steps} steps of {seconds_per_step:.3f} s, {pruning_text(report)}"
        else:
            done = f"evaluated on {update.num_examples} examples"
        parts = [
            done,
            # How long it worked is said by the steps.
            metrics_text({k: v for k, v in update.metrics.items() if k != WORK_SECONDS}),
            f"{size_text(moved[0])} down, {size_text(moved[1])} up",
            time_text(report),
            memory_text(report),
        ]
        self._console.say(f"round {task.round_number}", ", ".join(part for part in parts if part))
        now = self._status.status
        self._status.update(
            bytes_down=now.bytes_down + moved[0],
            bytes_up=now.bytes_up + moved[1],
            last_error="",
            last_round=report if trained else now.last_round,
        )

    def delivered(self, round_number: int) -> None:
        """What was finished before this process began is receipted."""
        text = "the update that was finished before has arrived"
        self._console.say(f"round {round_number}", text)

    def declined(self, round_number: int, choice: Choice) -> None:
        """This device cannot take part in a round: its memory or the pace does not allow it."""
        text = f"not even the fewest weights fit this device's {choice['declined']}"
        if "needed_bytes" in choice:
            needed, budget = (
                size_text(round(choice[name])) for name in ("needed_bytes", "budget_bytes")
            )
            split = f" with batches in {choice['parts']} parts" if choice["parts"] > 1 else ""
            text += f": they need {needed}{split}, and it may use {budget}"
        text += "; looking again in the next round"
        self._console.warn(f"round {round_number}", text)
        # The phase is another one now, so that the reason is in the file at once.
        self._status.update(phase="waiting", last_error=text)

    def too_large(self, round_number: int, forecast: Forecast, capability: Capability) -> None:
        """There is less memory now than when the device chose its part of a round."""
        text = (
            f"this round would need {size_text(forecast.peak_bytes)}, and this device has "
            f"{size_text(capability.memory_bytes)} left by {capability.memory_bound_by}: the task "
            "goes back, the next one will be smaller"
        )
        self._console.warn(f"round {round_number}", text)
        self._status.update(last_error=text)

    def refused(self, refusal: pb.Refusal, *, heard: bool) -> None:
        """The server did not count an update of this device; `heard` is whether it said so before.

        The words are the server's: only what can be printed of them is.
        """
        reason = "".join(char if char.isprintable() else " " for char in refusal.reason)
        said = "the update was refused" if heard else f"the update was refused: {reason}"
        if refusal.left_out:
            said += f"; after {refusal.strikes} of them this device is left out of the run"
        elif refusal.strikes_allowed:
            said += f"; strike {refusal.strikes} of {refusal.strikes_allowed}"
        self._console.warn(f"round {refusal.round_number}", said)
        self._status.update(last_error=said)

    def gone(self, error: Exception) -> None:
        """The task that the device was working on does not count any more."""
        self._console.warn(f"round {self._status.status.round_number}", str(error))
        self._status.update(last_error=str(error))

    def no_room(self, text: str) -> None:
        """The disk is full, and what the device does about it."""
        self._console.warn("disk", text)
        self._status.update(last_error=text)

    def over(self, name: str, state: str, reason: str) -> None:
        """A run has ended."""
        self._console.say("over", f"{name} {state}{': ' if reason else ''}{reason}")
        self._status.update(run="", round_number=0, step=0)

    def kept(self, path: Path, metrics: Mapping[str, float]) -> None:
        """The model of a run is on this device."""
        here = f", {metrics_text(metrics)} on what is held out here" if metrics else ""
        self._console.say("model", f"{path}{here}")


def metrics_text(metrics: Mapping[str, float]) -> str:
    """The first few metrics: loss 0.412, accuracy 0.93."""
    shown = list(metrics.items())[:_METRICS_SHOWN]
    return ", ".join(f"{name} {value:.4g}" for name, value in shown)
