"""Every parser of files that come from elsewhere, fed with damaged ones.

    python -m tests.harness.fuzz --inputs 1000000

Whole files are changed at random: bits flipped, bytes replaced by telling ones, pieces cut out,
doubled, or taken from another file of the kind. A parser may read what comes out, or raise a
ValueError of one line. It may raise nothing else, end the process, take longer than `SECONDS` of
processor time (or six times that on the clock, since the machine may be busy), or more memory than
four times the file and some to spare. A finding is written to a file, to look at and to make a test
of.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from tests.harness.parsers import Parser, parsers

SECONDS = 10
CHUNK = 500  # inputs a process
TELLING = [bytes([n]) for n in b'\0\xff\x80\x7f\n[{"-'] + [b"9" * 12, b"/..", b": "]
TELLING += [struct.pack(kind, n) for kind in ("<I", ">I", "<Q") for n in (1 << 30, (1 << 31) - 1)]


def mutated(rng: random.Random, parser: Parser) -> bytes:
    """A whole file, changed in one to four places."""
    data = bytearray(rng.choice(parser.whole))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        size = min(len(data) - at, rng.choice((1, 2, 4, 8, 64, 512)))
        match rng.randrange(8):
            case 0 | 1 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 2 if at < len(data):
                data[at] = rng.randrange(256)
            case 3:
                new = rng.choice(TELLING)
                data[at : at + len(new)] = new
            case 4:
                data[at:at] = rng.choice(TELLING) * rng.choice((1, 1, 2, 5000))
            case 5:
                del data[at : at + size]
            case 6:
                data[at:at] = data[at : at + size] * rng.choice((1, 2, 50))
            case 7:
                other = rng.choice(parser.whole)
                start = rng.randrange(len(other))
                data[at:] = other[start:] if rng.random() < 0.5 else other[start : start + size]
    return bytes(data)


def number(seed: int, name: str, i: int) -> random.Random:
    """The source of the i-th input of a parser."""
    return random.Random(f"{seed}/{name}/{i}")


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"longer than {SECONDS} s")


def feed(parser: Parser, data: bytes, folder: Path) -> str | None:
    """What is wrong with how a parser takes these bytes."""
    path = folder / parser.name
    path.write_bytes(data)
    resource.setrlimit(
        resource.RLIMIT_AS, (virtual() + parser.spare + 4 * len(data), resource.RLIM_INFINITY)
    )
    signal.setitimer(signal.ITIMER_REAL, 6 * SECONDS)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_VIRTUAL, 2 * SECONDS)  # ends the process: C hears no handler
    try:
        parser.read(path)
    except ValueError as error:
        return None if "\n" not in str(error) else f"more than a line: {error}"
    except BaseException:
        return traceback.format_exc(limit=-6)
    finally:
        for timer in (signal.ITIMER_REAL, signal.ITIMER_PROF, signal.ITIMER_VIRTUAL):
            signal.setitimer(timer, 0)
    return None


def virtual() -> int:
    """Bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def some(
    name: str, parser: Parser, seed: int, first: int, last: int, folder: Path
) -> list[tuple[int, str]]:
    """Feed inputs `first` to `last` - 1, in a process of their own; what was found, by number."""
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        os.close(reader)
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        signal.signal(signal.SIGALRM, _too_long)
        signal.signal(signal.SIGPROF, _too_long)
        with os.fdopen(writer, "w", buffering=1) as out:
            for i in range(first, last):
                out.write(json.dumps([i, None]) + "\n")
                rng = number(seed, name, i)
                random.seed(i)
                wrong = feed(parser, mutated(rng, parser), folder)
                if wrong is not None:
                    out.write(json.dumps([i, wrong]) + "\n")
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        told = [json.loads(line) for line in lines]
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    found = [(i, text) for i, text in told if text is not None]
    if status:
        found.append((told[-1][0] if told else first, f"the process ended with {status}"))
        return found + some(name, parser, seed, found[-1][0] + 1, last, folder)
    return found


def main(args: list[str] | None = None) -> int:
    """Feed all parsers in turns; 1 if anything was found."""
    ask = argparse.ArgumentParser(prog="python -m tests.harness.fuzz")
    ask.add_argument("--inputs", type=int, default=5000)
    ask.add_argument("--seconds", type=float, default=float("inf"))
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--parsers", nargs="+")
    ask.add_argument("--output-dir", type=Path, default=Path("fuzz"), help="of what is found")
    given = ask.parse_args(args)
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="estl-fuzz-", dir=memory))
    start, done, kinds = time.monotonic(), dict[str, int](), dict[str, str]()
    try:
        all_of_them = parsers(folder)
        names = given.parsers or list(all_of_them)
        spent = dict.fromkeys(names, 0.0)
        for name in names:  # whole files must be read, or nothing is tested
            for data in all_of_them[name].whole:
                (folder / all_of_them[name].name).write_bytes(data)
                all_of_them[name].read(folder / all_of_them[name].name)
        while sum(done.values()) < given.inputs and time.monotonic() - start < given.seconds:
            name = min(names, key=lambda name: spent[name])  # each has its share of the time
            first, began = done.get(name, 0), time.monotonic()
            size = min(CHUNK, given.inputs - sum(done.values()))
            for i, text in some(name, all_of_them[name], given.seed, first, first + size, folder):
                kind = f"{name}: {text.strip().splitlines()[-1][:200]}"
                if kind not in kinds:
                    kinds[kind] = text
                    given.output_dir.mkdir(parents=True, exist_ok=True)
                    data = mutated(number(given.seed, name, i), all_of_them[name])
                    (given.output_dir / f"{name.replace(' ', '-')}-{i}").write_bytes(data)
                    print(f"{name}, input {i}: {text}", flush=True)
            done[name] = first + size
            spent[name] += time.monotonic() - began
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    each = ", ".join(f"{name} {count}" for name, count in done.items())
    print(f"{sum(done.values())} inputs ({each}): {len(kinds)} kinds of findings")
    return bool(kinds)


if __name__ == "__main__":
    sys.exit(main())
