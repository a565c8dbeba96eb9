"""A device's standing at its server: the certificate that it has, and the authority behind it."""

from __future__ import annotations

import json
import ssl
import time
from dataclasses import asdict, dataclass, replace

from coppice.domain import ClientId, valid_name
from coppice.errors import StoreUnusable
from coppice.files import write_file
from coppice.join_token import fingerprint_of
from edge_client.state_folder import REMEDY, StateFolder


@dataclass(frozen=True)
class Membership:
    """What a device keeps of its enrolment, beside its key."""

    name: ClientId
    #: Where its server enrols devices, on the host that it joins.
    enrolment_port: int
    #: The certificates of the server's authority and of this device, in PEM.
    authority: str
    certificate: str
    #: By this device's clock, in seconds since the epoch.
    expires_at: float

    @property
    def fingerprint(self) -> bytes:
        """What tokens of its server say of the authority."""
        return fingerprint_of(ssl.PEM_cert_to_DER_cert(self.authority))

    def seconds_left(self) -> float:
        """How long the certificate is still valid; negative for how long it is not."""
        return self.expires_at - time.time()

    def renewed(self, certificate: bytes, valid_seconds: float) -> Membership:
        """With a new certificate (DER)."""
        pem = ssl.DER_cert_to_PEM_cert(certificate)
        return replace(self, certificate=pem, expires_at=time.time() + valid_seconds)


def read_membership(folder: StateFolder) -> Membership | None:
    """What the folder holds; None when the device was never let in anywhere."""
    try:
        plain = json.loads(folder.membership.read_bytes())
        found = Membership(
            name=ClientId(plain["name"]),
            enrolment_port=int(plain["enrolment_port"]),
            authority=str(plain["authority"]),
            certificate=str(plain["certificate"]),
            expires_at=float(plain["expires_at"]),
        )
        if valid_name(found.name) and found.fingerprint and folder.key.exists():
            return found
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreUnusable(f"{folder.membership} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        pass
    raise StoreUnusable(
        f"{folder.membership} is damaged, or {folder.key.name} beside it is missing; delete it and "
        "join with a token again"
    )


def write_membership(folder: StateFolder, membership: Membership) -> None:
    """Keep it."""
    data = json.dumps(asdict(membership)).encode()
    write_file(folder.membership, data, remedy=REMEDY, secret=True)
