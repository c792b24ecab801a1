"""What a run found, and what its figures rest on: typed here, JSON in the run folder."""

import os
import platform
import re
import resource
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import TypeAdapter

from estl.evaluation.accuracy import Accuracy
from estl.evaluation.early import EarlyExit

if TYPE_CHECKING:  # it brings Lightning, which a report does without
    from estl.data.module import EventData

_FINISHED = "%Y-%m-%dT%H:%M:%S%z"
Weights = Literal["final", "best_on_validation"]


class Json:
    """Mixin of a dataclass: to JSON and back."""

    def to_json(self) -> str:
        """Indented JSON, a line at its end."""
        return TypeAdapter(type(self)).dump_json(self, indent=2).decode() + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """What `to_json` wrote.

        Raises:
            ValueError: a key is missing or of another type.
        """
        return TypeAdapter(cls).validate_json(text)

    @classmethod
    def read(cls, path: Path) -> Self:
        """What a file holds; see `from_json`, whose error names the file here."""
        try:
            return cls.from_json(path.read_bytes())
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path} holds no {cls.__name__}: {reason}") from None


@dataclass(frozen=True)
class DataFacts:
    """Which data: class, fingerprint of items and splits, number of items by split and of classes.

    `classes` is None in files of runs that did not say.
    """

    name: str
    fingerprint: str
    sizes: dict[str, int]
    classes: int | None = None


@dataclass(frozen=True)
class Provenance:
    """What has to accompany a figure.

    `command` began the run, and `resumed` are those that it was continued with, in their order.
    `init_from` is the checkpoint that the student began with: its `path` and `sha256`.
    """

    command: str
    seed: int
    data: DataFacts
    student: str
    parameters: int
    supervision: str
    versions: dict[str, str]
    processor: str
    cores: int
    gpu: str | None
    finished: str
    resumed: tuple[str, ...] = ()
    init_from: dict[str, str] | None = None

    @property
    def machine(self) -> str:
        """Processor or GPU, and cores."""
        return f"{self.gpu or self.processor}, {self.cores} cores"


@dataclass(frozen=True)
class Results(Json):
    """Results of a training run: `results.json` in its folder.

    Args:
        of: what the figures rest on.
        epochs: number of epochs that were trained.
        train_seconds: time spent in training, without the test.
        peak_memory_mib: the most memory that the process held, on the GPU if there is one.
        val: accuracy on the validation split, by weights; empty where there is no such split.
            Without one, or where no epoch was validated, the final weights are the only ones.
        test: accuracy on the test split, read once at the end; None where it was not read.
        diagnosis: `evaluation.diagnostics.summary` of the final weights on the test split.
        uncounted: layers with weights that its energy leaves out; it is too low by their share.
    """

    of: Provenance
    epochs: int
    train_seconds: float
    peak_memory_mib: int
    val: dict[Weights, Accuracy]
    test: dict[Weights, Accuracy] | None = None
    diagnosis: dict[str, float | None] | None = None
    uncounted: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckpointResults(Json):
    """Results of testing a checkpoint: `test.json`, where it was asked for.

    Args:
        of: what the figures rest on.
        checkpoint: the file.
        test: accuracy on the test split.
        eps: size of the attacks, a share of each sample's range.
        robustness: accuracy by disturbance, the undisturbed one as "clean"; empty if not measured.
        early: what answering early gives on the test split; None if not measured.
    """

    of: Provenance
    checkpoint: str
    test: Accuracy
    eps: float
    robustness: dict[str, float]
    early: EarlyExit | None = None

    def since(self, run: Results) -> bool:
        """Whether this tests what `run` ended with, not a state before it was trained further."""
        return _time(self.of.finished) >= _time(run.of.finished)


def _time(finished: str) -> datetime:
    return datetime.strptime(finished, _FINISHED)


def command_line() -> str:
    """The command that this process was started with, on one line, quoted as a shell needs it.

    The password of a database that `--storage` names is left out.
    """
    words = [" ".join(word.split()) for word in ["estl", *sys.argv[1:]]]
    return shlex.join(map(without_password, words))


def without_password(text: str) -> str:
    """The text, with dots for the password of an address in it.

    >>> without_password("postgresql://me:secret@host/name")
    'postgresql://me:...@host/name'
    """
    return re.sub(r"(://[^/:@]*):[^/@]*@", r"\1:...@", text)


def provenance(
    data: "EventData",
    student: torch.nn.Module,
    supervision: object,
    recipe: dict[str, Any],
    commands: Sequence[str] = (),
) -> Provenance:
    """What has to accompany figures of `student` on `data` made here and now.

    `commands` are those that made them, in order; only this process's if there are none.
    """
    command, *resumed = commands or [command_line()]
    names = ("estl", "torch", "lightning", "numpy")
    begun = recipe.get("init_from")
    return Provenance(
        command=command,
        seed=recipe["seed"],
        data=DataFacts(type(data).__name__, data.fingerprint, data.sizes, len(data.classes)),
        student=type(student).__name__,
        parameters=sum(p.numel() for p in student.parameters()),
        supervision=str(supervision),
        versions={"python": platform.python_version()} | {name: version(name) for name in names},
        processor=processor(),
        cores=os.cpu_count() or 1,
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        finished=time.strftime(_FINISHED),
        resumed=tuple(resumed),
        init_from=begun and {"path": begun, "sha256": recipe.get("init_from_sha256") or ""},
    )


def peak_memory() -> int:
    """The most memory this process has held so far, in MiB: on the GPU if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() >> 20
    try:  # getrusage would give at least the peak of the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) >> 10
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 20  # bytes on macOS


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(s.partition(":")[2].strip() for s in lines if s.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
