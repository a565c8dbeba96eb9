"""The certificate that a connection shows, kept valid: got by a token once, renewed ever after."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import grpc

from coppice.domain import ClientId
from coppice.errors import (
    CertificateExpired,
    CoppiceError,
    HandshakeRefused,
    NameTaken,
    NotEnrolled,
    Retryable,
)
from coppice.join_token import JoinToken
from coppice.wire import coordination_pb2 as pb
from edge_client.membership import Membership, read_membership
from edge_client.state_folder import StateFolder

#: From one attempt at the port that lets devices in to the next, when it is only a guess that the
#: certificate is to blame.
_LATE_EVERY_SECONDS = 60.0


class Papers:
    """What this device shows its server. The heartbeat's thread reads, the main thread changes."""

    def __init__(
        self,
        folder: StateFolder,
        host: str,
        membership: Membership,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`host` is the server's, without a port."""
        self.membership = membership
        self._folder = folder
        self._host = host
        self._clock = clock
        self._guess_after = clock()

    def credentials(self) -> grpc.ChannelCredentials:
        """What a channel is opened with."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.membership.authority.encode(),
            private_key=self._folder.key.read_bytes(),
            certificate_chain=self.membership.certificate.encode(),
        )

    def renew(self, call: Callable[[pb.RenewRequest], pb.Certificate]) -> None:
        """The server wants the certificate to be renewed."""
        from edge_client.enrolment import renew

        self.membership = renew(self._folder, self.membership, call)

    def mend(self, error: CoppiceError) -> bool:
        """Renew the certificate if that may be why a call failed; raises when it cannot be.

        Returns whether there is a new one. TLS does not say why a server closes a connection, so
        that a certificate which only the server's clock calls expired looks like a dead server.
        """
        guessing = isinstance(error, HandshakeRefused)
        if not guessing and not isinstance(error, CertificateExpired):
            return False
        if guessing and self._clock() < self._guess_after:
            return False
        self._guess_after = self._clock() + _LATE_EVERY_SECONDS
        from edge_client.enrolment import renew_late

        try:
            self.membership = renew_late(self._folder, self._host, self.membership)
        except Retryable:
            return False
        return True


def papers_of(
    folder: StateFolder, host: str, token: JoinToken | None, name: ClientId, wanted: str | None
) -> tuple[Papers, bool]:
    """The papers for a server, and whether a token was used for them.

    Args:
        host: The server's, without a port.
        name: What the device wants to be called where it is not known yet.
        wanted: The name that the user gave, if any.
    """
    membership = read_membership(folder)
    if membership is not None and token is not None and token.fingerprint != membership.fingerprint:
        # The device moves to another server.
        membership = None
    if membership is not None:
        if wanted not in (None, membership.name):
            raise NameTaken(
                f"this device is enrolled as {membership.name!r}: leave out --name, or give "
                "another --state for a second client"
            )
        if membership.seconds_left() > 0:
            return Papers(folder, host, membership), False
    if token is not None:
        from edge_client.enrolment import enrol

        return Papers(folder, host, enrol(folder, host, token, name)), True
    if membership is None:
        raise NotEnrolled(
            "this device is not enrolled at a server yet: join with the whole line that "
            "`fedserver start` printed, or that `fedserver token create` prints there, with "
            "its --token (or --insecure, for a server on this machine that runs so)"
        )
    from edge_client.enrolment import renew_late

    # That port may be closed to this device, and its clock may be wrong: the other port will tell.
    with suppress(Retryable):
        membership = renew_late(folder, host, membership)
    return Papers(folder, host, membership), False
