"""Events as they arrive: from a growing file, from standard input, from network packets."""

import os
import re
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from estl.data.formats.columns import from_columns
from estl.data.formats.pieces import read_pieces
from estl.data.windows import Size

PACKET = np.dtype([("t", "<u8"), ("x", "<u2"), ("y", "<u2"), ("p", "u1")])
"""An event in a packet, 13 bytes, which faery calls t64_x16_y16_on8."""

_POLL = 0.01
"""Seconds between two looks at a file that has nothing new."""


class Live:
    """Events of a source as they arrive, in pieces that are not empty and are in order.

    A file is read from its start and never ends; a pipe and standard input end when closed.
    UDP packets hold events of type `PACKET`; a packet that arrives after a later one is left out.

    Args:
        source: a file's path, "-", or "udp://host:port".

    Raises:
        FileNotFoundError: no such file.
        ValueError: an invalid address; on iterating, what `read_pieces` refuses.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.sensor: Size | None = None
        self.arrived = time.perf_counter()
        if source.startswith("udp:"):
            found = re.fullmatch(r"udp://(?:\[([^]]+)\]|([^]:/]+)):(\d{1,5})", source)
            if found is None or not 0 < int(found[3]) < 1 << 16:
                raise ValueError(f"{source} is no address: give udp://HOST:PORT")
            self.pieces = self._packets(found[1] or found[2], int(found[3]))
            return
        if source != "-" and not Path(source).exists():
            raise FileNotFoundError(f"no recording {source}")
        self.sensor, self.pieces = read_pieces(source, self._bytes())

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.pieces

    def _bytes(self) -> Iterator[bytes]:
        """What is written to the source; the time of its arrival is noted."""
        if self.source == "-":
            while data := os.read(sys.stdin.fileno(), 1 << 16):
                self.arrived = time.perf_counter()
                yield data
            return
        with Path(self.source).open("rb", buffering=0) as file:
            grows = stat.S_ISREG(Path(self.source).stat().st_mode)
            while (data := file.read(1 << 16)) or grows:
                if data:
                    self.arrived = time.perf_counter()
                    yield data
                else:
                    time.sleep(_POLL)

    def _packets(self, host: str, port: int) -> Iterator[np.ndarray]:
        """Events of the packets that are sent to an address of this machine."""
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        newest = 0
        with socket.socket(family, socket.SOCK_DGRAM) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            listening.bind(address)
            while True:
                data = listening.recv(1 << 16)
                self.arrived = time.perf_counter()
                packet = np.frombuffer(
                    data[: len(data) // PACKET.itemsize * PACKET.itemsize], PACKET
                )
                if len(packet) and packet["t"][0] >= newest:
                    columns = {name: packet[name] for name in "txyp"}
                    events, _ = from_columns(self.source, columns)
                    newest = events["t"][-1]
                    yield events
