"""The token of a join line: a secret for the server, and how to know the server before telling it.

```
coppice1-<56 letters and digits: base32 of 35 bytes>
15  secret
16  the first bytes of the SHA-256 of the certificate authority's certificate, in DER
2   port for enrolment, big-endian
2   the first bytes of the SHA-256 of all before: finds slips of the pen
```
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass, field

from coppice.errors import TokenRefused

PREFIX = "coppice1-"
SECRET_BYTES = 15
FINGERPRINT_BYTES = 16
_CHECK_BYTES = 2
_BYTES = SECRET_BYTES + FINGERPRINT_BYTES + 2 + _CHECK_BYTES


@dataclass(frozen=True)
class JoinToken:
    """What lets a device in."""

    secret: bytes = field(repr=False)
    #: `fingerprint_of` the server's authority.
    fingerprint: bytes
    #: Where the server enrols devices.
    port: int

    def __str__(self) -> str:
        data = self.secret + self.fingerprint + self.port.to_bytes(2, "big")
        return PREFIX + base64.b32encode(data + _check(data)).decode().lower()


def new_secret() -> bytes:
    """A secret that nobody guesses."""
    return secrets.token_bytes(SECRET_BYTES)


def fingerprint_of(authority: bytes) -> bytes:
    """What a token says of an authority's certificate (DER)."""
    return hashlib.sha256(authority).digest()[:FINGERPRINT_BYTES]


def parse_token(text: str) -> JoinToken:
    """The token that was written so; TokenRefused when it is none."""
    code = text.strip()
    if not code.lower().startswith(PREFIX):
        raise TokenRefused(f"a token begins with {PREFIX}: copy the whole line of the server")
    try:
        data = base64.b32decode(code[len(PREFIX) :].upper())
    except (binascii.Error, ValueError):
        data = b""
    told, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if len(data) != _BYTES or check != _check(told):
        raise TokenRefused("the token is not complete or has a slip in it: copy it again")
    secret, rest = told[:SECRET_BYTES], told[SECRET_BYTES:]
    port = int.from_bytes(rest[FINGERPRINT_BYTES:], "big")
    return JoinToken(secret, rest[:FINGERPRINT_BYTES], port)


def _check(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:_CHECK_BYTES]
