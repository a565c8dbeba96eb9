"""A program that writes every frame of one network interface into a file, until it is ended."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

_ALL_PROTOCOLS = 3
# Of Linux, on all that Python runs on; its name is not in the module.
_SO_RCVBUFFORCE = 33
_ROOM_BYTES = 2**26


def main(interface: str, path: Path) -> None:
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
    listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM_BYTES)
    listener.bind((interface, 0))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with path.open("wb", buffering=0) as file:
        print("ready", flush=True)
        try:
            while True:
                file.write(listener.recv(2**18))
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
