"""A connection that lasts: it joins, waits out failures, joins again, and says goodbye."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TypeVar

from coppice.errors import (
    CertificateExpired,
    CoppiceError,
    HandshakeRefused,
    NotJoined,
    Retryable,
    ServerBusy,
)
from coppice.wire import coordination_pb2 as pb
from edge_client.backoff import Backoff
from edge_client.connection import Connection
from edge_client.heartbeat import Heartbeat
from edge_client.journal import Journal
from edge_client.outage import Outage
from edge_client.papers import Papers
from edge_client.stop import Stop, Stopped

T = TypeVar("T")

#: How long to try for the first contact with a server that does not know this device yet.
FIRST_CONTACT_SECONDS = 30.0


class Link:
    """Calls that only return when they succeeded, or failed for good. Leaving it says goodbye."""

    def __init__(
        self,
        connection: Connection,
        request: pb.JoinRequest,
        stop: Stop,
        journal: Journal,
        backoff: Backoff | None = None,
        papers: Papers | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`request` is what this device joins with, the first time and again.

        `papers` are what `connection` shows the server, if anything.
        """
        self.heartbeat = Heartbeat(connection)
        self._connection = connection
        self._request = request
        self._stop = stop
        self._journal = journal
        self._backoff = backoff if backoff is not None else Backoff()
        self._papers = papers
        self._clock = clock
        self._joined = False
        #: That the server signs its receipts by; empty before it was joined.
        self.receipt_key = b""

    def __enter__(self) -> Link:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.goodbye(error)

    @property
    def bytes_moved(self) -> tuple[int, int]:
        """Payload bytes received and sent so far."""
        return self._connection.bytes_down, self._connection.bytes_up

    def meet(self, wait_seconds: float) -> None:
        """The first contact; `wait_seconds` may be infinite.

        Raises ServerUnreachable when there was none after so long.
        """
        began = self._clock()
        wrong_since: float | None = None
        crowd = Outage(self._journal, self._clock, self._journal.busy)
        outage = Outage(
            self._journal, self._clock, lambda error, _: self._journal.waiting(error, wait_seconds)
        )
        while not self._joined:
            try:
                self._join()
            except (Retryable, CertificateExpired) as error:
                if self._mended(error):
                    continue
                now = self._clock()
                left = began + wait_seconds - now
                if not isinstance(error, HandshakeRefused):
                    wrong_since = None
                else:
                    # What somebody has to put right is said soon; counted from here, for a proxy
                    # in front of a server that is only about to start says the same.
                    wrong_since = now if wrong_since is None else wrong_since
                    left = min(left, wrong_since + FIRST_CONTACT_SECONDS - now)
                if left <= 0:
                    raise
                seconds = min(self._backoff.next_seconds(error), left)
                (crowd if _says_when(error) else outage).failed(error, seconds)
                self._pause(error, seconds)
        self._backoff.reset()

    def poll(self, request: pb.PollRequest) -> pb.PollReply:
        """Wait for work, for ever if need be."""
        reply = self.until_done(lambda connection: connection.poll(request))
        if reply.renew and self._papers is not None:
            self._renew(self._papers)
        return reply

    def until_done(self, attempt: Callable[[Connection], T]) -> T:
        """What the attempt gives, made again and again until the server answers it."""
        before = self._journal.phase
        unknown = False
        crowd = Outage(self._journal, self._clock, self._journal.busy)
        outage = Outage(self._journal, self._clock, lambda error, _: self._journal.lost(error))
        while True:
            try:
                if unknown:
                    self._join()
                    unknown = False
                result = attempt(self._connection)
            except (Retryable, NotJoined, CertificateExpired) as error:
                if self._mended(error):
                    continue
                seconds = self._backoff.next_seconds(error)
                if isinstance(error, NotJoined):
                    unknown = True
                else:
                    (crowd if _says_when(error) else outage).failed(error, seconds)
                self._pause(error, seconds)
            else:
                self._backoff.reset()
                if outage.seconds is not None:
                    self._journal.back(self._connection.address, before, outage.seconds)
                return result

    def goodbye(self, error: BaseException | None = None) -> None:
        """Tell the server that this device leaves, and why if it fails; end the heartbeat."""
        self.heartbeat.end()
        if self._joined:
            self._joined = False
            reason = _reason(error)
            self._journal.left(reason, told=self._leave(reason))
        self._connection.close()
        self.heartbeat.join()

    def _join(self) -> None:
        reply = self._connection.join(self._request)
        self._joined = True
        self.receipt_key = reply.receipt_key
        self.heartbeat.start(reply.heartbeat_seconds)
        self._journal.joined(reply.server_name, self._connection.address)

    def _pause(self, error: CoppiceError, seconds: float) -> None:
        # One that says when answers: to connect anew would only cost it more.
        if not _says_when(error):
            self._connection.close()
        self._stop.wait(seconds)

    def _mended(self, error: CoppiceError) -> bool:
        """Whether a new certificate may make the same call succeed."""
        if self._papers is None or not self._papers.mend(error):
            return False
        self._renewed(self._papers)
        return True

    def _renew(self, papers: Papers) -> None:
        # What fails now is tried again when the next poll is answered.
        with suppress(Retryable):
            papers.renew(self._connection.renew)
            self._renewed(papers)

    def _renewed(self, papers: Papers) -> None:
        # The next call opens a channel with the new certificate.
        self._connection.close()
        self._journal.certified(papers.membership.expires_at)

    def _leave(self, reason: str) -> bool:
        try:
            self._connection.leave(reason)
        except (CoppiceError, Stopped):
            return False
        return True


def _says_when(error: CoppiceError) -> bool:
    """Whether this is a busy server that told when to come back."""
    return isinstance(error, ServerBusy) and error.retry_seconds > 0


def _reason(error: BaseException | None) -> str:
    """What the server is told. Of a foreign error only the type: its text may quote data."""
    if error is None or isinstance(error, Stopped):
        return ""
    return str(error) if isinstance(error, CoppiceError) else type(error).__name__
