"""Events as they come: windows of them, growing files, pipes and packets."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from estl.data.formats.events import EVENT
from estl.data.formats.recording import read_recording
from estl.data.live import PACKET, Live
from estl.data.windows import Cutter, windows
from tests.encoders import csv, dat, write


def of_times(t: np.ndarray) -> np.ndarray:
    events = np.zeros(len(t), EVENT)
    events["t"], events["x"] = t, np.arange(len(t))
    return events


def in_pieces(events: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    while len(events):
        n = int(rng.integers(1, 5))
        yield events[:n]
        events = events[n:]


def test_windows_of_pieces_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        longest = int(rng.choice([20, 200, 5000]))
        t = np.sort(rng.integers(7, 8 + longest, rng.integers(1, 25)))
        window, stride = (int(n) for n in rng.integers(1, 60, 2))
        events, cutter, found = of_times(t), Cutter(window, stride), []
        for some in in_pieces(events, rng):
            closed = list(cutter.add(some))
            # Not before an event after its end has come.
            assert all(end <= some["t"][-1] - t[0] for (_, end), _ in closed)
            found += closed
        found += list(cutter.end())
        assert [span for span, _ in found] == windows(t, window, stride)
        since = t - t[0]
        for (start, stop), part in found:
            inside = (since >= start) & (since < stop)
            assert part["x"].tolist() == np.flatnonzero(inside).tolist()


def test_only_open_windows_are_kept() -> None:
    cutter = Cutter(window=100, stride=50)
    for start in range(0, 100_000, 10):
        list(cutter.add(of_times(np.arange(start, start + 10))))
        assert len(cutter.kept) <= 110


def test_a_long_silence_takes_no_time() -> None:
    cutter = Cutter(window=2, stride=1)
    events = of_times(np.array([0, 1 << 50, (1 << 50) + 9]))
    spans = [span for span, _ in cutter.add(events)]
    assert spans[:3] == [(0, 2), ((1 << 50) - 1, (1 << 50) + 1), (1 << 50, (1 << 50) + 2)]


EVENTS = [(10 * k, k % 40, k % 30, k % 2) for k in range(400)]


def test_a_file_is_followed_while_it_grows(tmp_path: Path) -> None:
    data = dat(EVENTS, (30, 40))
    path = write(tmp_path / "x.dat", data[:301])

    def grow() -> None:
        with path.open("ab") as file:
            for start in range(301, len(data), 500):
                time.sleep(0.005)
                file.write(data[start : start + 500])
                file.flush()

    writer = threading.Thread(target=grow)
    writer.start()
    before = time.perf_counter()
    live = Live(str(path))
    assert live.sensor == (30, 40)
    found: list[np.ndarray] = []
    for events in live:
        found.append(events)
        assert before <= live.arrived <= time.perf_counter()
        if sum(map(len, found)) == len(EVENTS):
            break
    writer.join()
    assert np.array_equal(np.concatenate(found), read_recording(path)[0])


def test_a_pipe_ends_when_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "pipe.csv"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(csv(EVENTS, (30, 40))))
    writer.start()
    live = Live(str(path))
    assert sum(map(len, live)) == len(EVENTS)
    assert live.sensor == (30, 40)
    writer.join()


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as some:
        some.bind(("127.0.0.1", 0))
        return int(some.getsockname()[1])


def until_someone_listens(port: int) -> None:
    while f":{port:04X} " not in Path("/proc/net/udp").read_text():
        time.sleep(0.01)


def packets(events: np.ndarray, n: int = 50) -> list[bytes]:
    packed = np.empty(len(events), PACKET)
    for name in "txyp":
        packed[name] = events[name]
    return [packed[i : i + n].tobytes() for i in range(0, len(events), n)]


def sent(port: int, some: list[bytes]) -> threading.Thread:
    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            until_someone_listens(port)
            for data in some:
                out.sendto(data, ("127.0.0.1", port))

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_packets_are_events_and_late_ones_are_left_out() -> None:
    events, port = of_times(np.arange(400)), free_port()
    one, two, *rest = packets(events)
    sender = sent(port, [two, one, *rest])
    pieces: Any = iter(Live(f"udp://127.0.0.1:{port}"))
    found = np.concatenate(list(islice(pieces, 7)))
    sender.join()
    assert np.array_equal(found, events[50:])
    pieces.close()


@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket")  # faery leaves its own open
def test_faery_sends_such_packets() -> None:
    faery = pytest.importorskip("faery")
    array = np.array(EVENTS, faery.EVENTS_DTYPE)
    port = free_port()

    def send() -> None:
        until_someone_listens(port)
        faery.events_stream_from_array(array, (40, 30)).to_udp(("127.0.0.1", port))

    sender = threading.Thread(target=send)
    sender.start()
    pieces: Any = iter(Live(f"udp://127.0.0.1:{port}"))
    found = np.concatenate(list(islice(pieces, 4)))
    sender.join()
    assert found.tolist() == EVENTS
    pieces.close()


@pytest.mark.parametrize("source", ["udp:host", "udp://host", "udp://:1", "udp://host:99999"])
def test_an_address_that_is_none(source: str) -> None:
    with pytest.raises(ValueError, match="give udp://HOST:PORT"):
        Live(source)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no recording .*x\.raw"):
        Live(str(tmp_path / "x.raw"))
