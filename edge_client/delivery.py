"""The way of a finished update from this device to a receipt, over every kind of trouble."""

from __future__ import annotations

import math
from typing import Literal, get_args

from coppice.errors import (
    DiskFull,
    InvalidMessage,
    Retryable,
    RoundClosed,
    UnknownTask,
    UpdateRefused,
)
from coppice.method import Update
from coppice.wire import coordination_pb2 as pb
from coppice.wire.chunks import blob_ref
from edge_client.backoff import Backoff
from edge_client.connection import Connection
from edge_client.journal import Journal
from edge_client.link import Link
from edge_client.meter import Meter
from edge_client.outbox import Outbox, Parcel
from edge_client.ready import ReadyRun
from edge_client.receipts import Receipts, check_receipt
from edge_client.refusals import Refusals
from edge_client.stop import Stop, Stopped

#: When a finished update goes to disk: before it is sent, or when the first attempt to send it
#: fails or the client is asked to end.
OutboxMode = Literal["always", "on-trouble"]
OUTBOX_MODES: tuple[OutboxMode, ...] = get_args(OutboxMode)


class Delivery:
    """Sends what is finished, and what a process before this one had finished."""

    def __init__(
        self,
        link: Link,
        outbox: Outbox,
        receipts: Receipts,
        refusals: Refusals,
        journal: Journal,
        mode: OutboxMode,
        stop: Stop,
    ) -> None:
        self._link = link
        self._outbox = outbox
        self._receipts = receipts
        self._refusals = refusals
        self._journal = journal
        self._mode = mode
        self._stop = stop

    def deliver(
        self, ready: ReadyRun, offer: pb.TaskOffer, update: Update, data: bytearray, meter: Meter
    ) -> None:
        """Send a task's answer; returns when the receipt is there and the private state follows.

        Raises UpdateRefused, RoundClosed, UnknownTask or TaskAbandoned when it does not count, and
        Stopped with the update on disk.
        """
        parcel = Parcel(
            run_key=ready.run_key,
            task_id=offer.task_id,
            round_number=offer.round_number,
            num_examples=update.num_examples,
            steps=update.steps,
            # A diverged model has metrics that are not finite; those may not travel.
            metrics={
                name: float(value) for name, value in update.metrics.items() if math.isfinite(value)
            },
            private=self._stage(ready, meter),
            ref=blob_ref(data),
            data=data,
        )
        attempts = _Attempts(parcel, self._outbox, self._journal, is_written=False)
        if self._mode == "always":
            attempts.write_down()
        self._send(ready, attempts)

    def settle(self, ready: ReadyRun) -> None:
        """Deliver what an earlier process finished for this run, or learn what became of it."""
        parcel = self._outbox.get(ready.run_key)
        if parcel is None or not _is_whole(ready, parcel):
            self._discard(ready)
            return
        self._journal.enter("pushing", parcel.round_number)
        try:
            self._send(
                ready,
                _Attempts(parcel, self._outbox, self._journal, is_written=True, is_new=False),
            )
        except (UpdateRefused, RoundClosed, UnknownTask) as error:
            self._journal.gone(error)
        else:
            self._journal.delivered(parcel.round_number)

    def forget(self, ready: ReadyRun) -> None:
        """The run is over."""
        self._outbox.drop(ready.run_key)

    def _stage(self, ready: ReadyRun, meter: Meter) -> str:
        """The private state that goes with an update, on disk: room for it is waited for.

        Sent without it, the update would count and the state would not. Nobody waits for longer
        than the task is wanted.
        """
        backoff, is_told = Backoff(), False
        while True:
            try:
                return ready.private.write()
            except DiskFull as error:
                if not is_told:
                    self._journal.no_room(f"{error}; waiting for room")
                    is_told = True
            self._stop.wait(backoff.next_seconds())
            meter.check()

    def _send(self, ready: ReadyRun, attempts: _Attempts) -> None:
        parcel = attempts.parcel
        try:
            receipt = self._link.until_done(attempts.make)
            check_receipt(receipt, ready.client_id, parcel.run_key, parcel.task_id)
        except Stopped:
            attempts.write_down()
            raise
        except (UpdateRefused, RoundClosed, UnknownTask, InvalidMessage) as error:
            if isinstance(error, UpdateRefused):
                self._refusals.heard(parcel.task_id)
            self._discard(ready)
            raise
        if receipt.digest == parcel.ref.digest:
            ready.private.promote(parcel.task_id)
        # Else the answer that counts is from before a crash, and this one was made a second time.
        try:
            self._receipts.keep(receipt, self._link.receipt_key)
        except DiskFull as error:
            self._journal.no_room(f"{error}; the receipt is not kept")
        self._discard(ready)

    def _discard(self, ready: ReadyRun) -> None:
        ready.private.drop()
        self._outbox.drop(ready.run_key)


class _Attempts:
    """To send one update."""

    def __init__(
        self,
        parcel: Parcel,
        outbox: Outbox,
        journal: Journal,
        *,
        is_written: bool,
        is_new: bool = True,
    ) -> None:
        """`is_written`: it is on disk; `is_new`: no byte of it has left this device yet."""
        self.parcel = parcel
        self._outbox = outbox
        self._journal = journal
        self._is_written = is_written
        self._is_new = is_new

    def make(self, connection: Connection) -> pb.Receipt:
        """Send what the server has not got yet."""
        parcel, offset = self.parcel, 0
        if not self._is_new:
            status = connection.push_status(parcel.task_id, parcel.ref)
            if status.HasField("receipt"):
                return status.receipt
            offset = status.offset
            if offset > parcel.ref.size_bytes:
                raise InvalidMessage(f"the server has {offset} bytes of {parcel.ref.size_bytes}")
        self._is_new = False
        try:
            return connection.push(parcel.task_id, parcel, parcel.data, parcel.ref, offset)
        except Retryable:
            self.write_down()
            raise

    def write_down(self) -> None:
        """Put the update on disk, if it is not there yet and there is room.

        A full disk does not keep it from being sent.
        """
        if self._is_written:
            return
        try:
            self._outbox.put(self.parcel)
        except DiskFull as error:
            self._journal.no_room(f"{error}; the update is sent from memory")
        else:
            self._is_written = True


def _is_whole(ready: ReadyRun, parcel: Parcel) -> bool:
    """Whether what the method keeps of this update is here as well."""
    return not parcel.private or ready.private.holds(parcel.task_id, parcel.private)
