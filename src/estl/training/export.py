"""A trained student for other frameworks and runtimes, each file read back before it is trusted.

A file returns the logits (B,T,K) of every step; the answer after step t is the softmax of their
mean over the steps 1..t. The batch size is free, the number of steps is that of the data. A
stepwise file takes one frame and a state, and returns the frame's logits and the next state.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from estl.training.card import Frames, frames_of
from estl.training.checkpoint import build_student, read_checkpoint
from estl.training.files import aside
from estl.training.graphs import (
    Run,
    Step,
    read_onnx,
    read_program,
    write_onnx,
    write_program,
)
from estl.training.names import class_paths
from estl.training.nir import from_nir, to_nir
from estl.training.reopen import Reopened, reopen
from estl.training.results import Json, Results, Weights

Format = Literal["safetensors", "onnx", "onnx-step", "nir", "torch-export", "torch-export-step"]
FILES: dict[Format, str] = {
    "safetensors": "student.safetensors",
    "onnx": "student.onnx",
    "onnx-step": "student-step.onnx",
    "nir": "student.nir",
    "torch-export": "student.pt2",
    "torch-export-step": "student-step.pt2",
}
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Card(Json):
    """What a user of the files has to know: `card.json` beside them.

    Args:
        student: its class path.
        classes: in the order of the logits.
        input: shape of the events; "batch" may be any number.
        normalization: of the frames' counts, before they go in.
        accuracy: on the test split after all steps, if the run folder says it.
        protocol: how that was found.
        license: of the weights.
        differs: by format, the largest difference from PyTorch's logits when it was read back; None
            if its reader was not installed.
        samples: recordings that were compared.
        state: numbers in the state of a stream, where a stepwise format was written.
        frames: how events become that input; None where the checkpoint's recipe does not say.
    """

    student: str
    classes: list[str]
    input: list[str | int]
    normalization: Any
    accuracy: float | None
    protocol: str
    license: str
    samples: int
    differs: dict[str, float | None] = field(default_factory=dict)
    state: int | None = None
    frames: Frames | None = None


def export(
    path: Path,
    formats: Sequence[Format],
    folder: Path,
    *,
    data_path: str | None = None,
    license: str = "unspecified",
    samples: int = 100,
    flips: int = 0,
    trust: Sequence[str] = (),
) -> Card:
    """Write the student of a checkpoint in `formats` into `folder`, and check what was written.

    Args:
        path: the checkpoint.
        formats: which ones.
        folder: made if it is missing.
        data_path: another root of the data, on whose test split the files are compared.
        license: of the weights, for the card.
        samples: number of recordings that are compared.
        flips: how many of these may differ by more than `TOLERANCE`: a potential within rounding
            of its threshold can spike in one and not in the other.
        trust: modules that the checkpoint may name besides ESTL's own.

    Raises:
        ValueError: a student that a format cannot express, a package that is missing, a file that
            does not give PyTorch's logits.
    """
    if samples < 1:
        raise ValueError(f"--samples is {samples}: give a number at least 1")
    opened = reopen(path, data_path, trust=trust)
    events = _some(opened, samples)
    card = _card(path, opened, events, license, formats)
    folder.mkdir(parents=True, exist_ok=True)
    for name in formats:
        with tempfile.TemporaryDirectory(dir=folder) as unchecked:  # what fails leaves no file
            file = Path(unchecked, FILES[name])
            WRITERS[name](opened, events, file)
            card.differs[name] = _read_back(name, opened, events, file, flips)
            file.replace(folder / file.name)
    with aside(folder / "card.json") as out:
        out.write(card.to_json().encode())
    return card


def _read_back(
    name: Format, opened: Reopened, events: Tensor, file: Path, flips: int
) -> float | None:
    """Largest difference of a file from PyTorch's logits; None where nothing here reads it."""
    run = READERS[name](opened, file)
    if run is None:
        return None
    differs, alone = _differences(run, opened.student, events, name.endswith("-step"))
    off = int((differs > TOLERANCE).sum())
    if off > flips or (alone > TOLERANCE and not flips):
        raise ValueError(
            f"{file.name} read back differs from PyTorch on {off} of {len(events)} recordings, by "
            f"up to {differs.max():.2g}: a potential within rounding of its threshold may spike "
            f"otherwise; --flips {off} accepts it"
        )
    return differs.max().item()


def _differences(
    run: Run, student: nn.Module, events: Tensor, stepwise: bool
) -> tuple[Float[Tensor, " N"], float]:
    """Largest difference from PyTorch's logits on each recording, and on one in a batch of its own.

    A stepwise file also gets all recordings end to end, as one stream of N*T frames, which PyTorch
    gets as a whole.
    """

    def off(given: Tensor) -> Tensor:
        with torch.no_grad():
            expected: Tensor = student(given).logits
        return (run(given) - expected).abs()

    each = off(events).flatten(1).amax(1)
    if not stepwise:
        return each, off(events[:1]).max().item()
    stream = off(events.flatten(0, 1)[None]).unflatten(1, events.shape[:2])
    return each.maximum(stream[0].flatten(1).amax(1)), 0.0


def _some(opened: Reopened, samples: int) -> Tensor:
    found: list[Tensor] = []
    for batch in opened.data.loader("test"):
        found.append(batch.events.contiguous())
        if sum(map(len, found)) >= samples:
            break
    return torch.cat(found)[:samples]


def _card(
    path: Path, opened: Reopened, events: Tensor, license: str, formats: Sequence[Format]
) -> Card:
    accuracy, protocol = None, "no results.json beside the checkpoint tells of these weights"
    file = path.parent / "results.json"
    told: dict[str, Weights] = {"last": "final", "best": "best_on_validation"}
    weights = told.get(path.stem.partition("-")[0])  # of an epoch between them it tells nothing
    if file.is_file() and weights is not None:
        results = Results.read(file)
        epochs = read_checkpoint(path).get("epoch", results.epochs - 1) + 1
        # A run that is being continued has the results of before; its best may be of since then.
        same = epochs == results.epochs or (weights != "final" and epochs < results.epochs)
        if same and results.test is not None and weights in results.test:
            found = results.test[weights]
            accuracy, data = found.final, results.of.data
            protocol = (
                f"weights {weights}, {found.samples} samples of the test split of {data.name} "
                f"(fingerprint {data.fingerprint}), mean logits of {len(found.per_step)} steps"
            )
    of_data = opened.recipe["data"]
    stepwise = any(name.endswith("-step") for name in formats)
    return Card(
        student=opened.recipe["student"]["class_path"],
        classes=list(opened.data.classes),
        input=["batch", *events.shape[1:]],
        normalization=of_data["init_args"].get("normalize", "none"),
        accuracy=accuracy,
        protocol=protocol,
        license=license,
        samples=len(events),
        state=Step(opened.student, events[:1, 0]).size if stepwise else None,
        frames=frames_of(of_data["class_path"], {"T": opened.data.T} | of_data["init_args"]),
    )


def _write_safetensors(opened: Reopened, events: Tensor, file: Path) -> None:
    from safetensors.torch import save

    metadata = {"student": json.dumps(opened.recipe["student"])}
    state = {name: x.contiguous() for name, x in opened.student.state_dict().items()}
    with aside(file) as out:
        out.write(save(state, metadata))


def _read_safetensors(opened: Reopened, file: Path) -> Run:
    from safetensors import safe_open

    with safe_open(file, "pt") as parts:
        state = {name: parts.get_tensor(name) for name in parts.keys()}  # noqa: SIM118
        recipe = {"student": json.loads(parts.metadata()["student"])}
    trust = [name.rpartition(".")[0] for name in class_paths(recipe)]  # written a moment ago
    return _run(build_student({"recipe": recipe, "state_dict": state}, file, trust))


def _run(student: nn.Module) -> Run:
    def run(events: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = student(events).logits
        return logits

    return run


def _write_nir(opened: Reopened, events: Tensor, file: Path) -> None:
    _need("nir")
    to_nir(opened.student, tuple(events.shape[2:]), file)


def _need(*packages: str) -> None:
    for name in packages:
        try:
            __import__(name)
        except ImportError:
            raise ValueError(f"{name} is not installed: pip install 'estl[export]'") from None


def _onnx(opened: Reopened, events: Tensor, file: Path, *, stepwise: bool) -> None:
    _need("onnx", "onnxscript", "onnxruntime")
    write_onnx(opened.student, events, file, stepwise=stepwise)


def _program(opened: Reopened, events: Tensor, file: Path, *, stepwise: bool) -> None:
    write_program(opened.student, events, file, stepwise=stepwise)


WRITERS: dict[Format, Callable[[Reopened, Tensor, Path], None]] = {
    "safetensors": _write_safetensors,
    "onnx": partial(_onnx, stepwise=False),
    "onnx-step": partial(_onnx, stepwise=True),
    "nir": _write_nir,
    "torch-export": partial(_program, stepwise=False),
    "torch-export-step": partial(_program, stepwise=True),
}
READERS: dict[Format, Callable[[Reopened, Path], Run | None]] = {
    "safetensors": _read_safetensors,
    "onnx": lambda _, file: read_onnx(file, stepwise=False),
    "onnx-step": lambda _, file: read_onnx(file, stepwise=True),
    "nir": lambda _, file: from_nir(file),
    "torch-export": lambda _, file: read_program(file, stepwise=False),
    "torch-export-step": lambda _, file: read_program(file, stepwise=True),
}
