"""A trained student for other frameworks and runtimes, each file read back before it is trusted.

What is written gives the logits (B,T,K) of every step; the answer after step t is the softmax of
their mean over the steps 1..t. The batch is free, the number of steps is that of the data.
"""

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from estl.training.checkpoint import build_student
from estl.training.nir import from_nir, to_nir
from estl.training.reopen import Reopened, reopen
from estl.training.results import Json, Results

Format = Literal["safetensors", "onnx", "nir", "torch-export"]
FILES: dict[Format, str] = {
    "safetensors": "student.safetensors",
    "onnx": "student.onnx",
    "nir": "student.nir",
    "torch-export": "student.pt2",
}
TOLERANCE = 1e-5

Run = Callable[[Tensor], Tensor]
"""Events (B,T,C,H,W) to logits (B,T,K)."""


@dataclass(frozen=True)
class Card(Json):
    """What somebody has to know who uses the files: `card.json` beside them.

    Args:
        student: its class path.
        classes: in the order of the logits.
        input: shape of the events; "batch" may be any number.
        normalization: of the frames' counts, before they go in.
        accuracy: on the test split after all steps, if the run folder says it.
        protocol: how that was found.
        license: of the weights.
        differs: by format, the largest difference from PyTorch's logits when it was read back; None
            where what reads it was not installed.
        samples: recordings that were compared.
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
        formats: which.
        folder: made if it is missing.
        data_path: another root of the data, whose test split is what the files are compared on.
        license: of the weights, for the card.
        samples: number of recordings that are compared.
        flips: of these, how many may differ by more than `TOLERANCE`: a potential within rounding
            of its threshold can spike otherwise.
        trust: modules that the checkpoint may name beside ESTL's own.

    Raises:
        ValueError: a student that a format cannot express, a package that is missing, a file that
            does not give PyTorch's logits.
    """
    opened = reopen(path, data_path, trust=trust)
    events = _some(opened, samples)
    with torch.no_grad():
        expected = opened.student(events).logits
    card = _card(path, opened, events, license)
    folder.mkdir(parents=True, exist_ok=True)
    for name in formats:
        file = folder / FILES[name]
        WRITERS[name](opened, events, file)
        run = READERS[name](opened, file)
        if run is None:
            card.differs[name] = None
            continue
        differs = (run(events) - expected).abs().flatten(1).amax(1)
        one = (run(events[:1]) - expected[:1]).abs().max()  # the batch is free
        off = int((differs > TOLERANCE).sum())
        if off > flips or (one > TOLERANCE and not flips):
            raise ValueError(
                f"{file} read back differs from PyTorch on {off} of {len(events)} recordings, by "
                f"up to {differs.max():.2g}: a potential within rounding of its threshold may "
                f"spike otherwise; --flips {off} accepts it"
            )
        card.differs[name] = differs.max().item()
    (folder / "card.json").write_text(card.to_json())
    return card


class Logits(nn.Module):
    """The student as a function of tensors alone, which is what a graph can be of."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, events: Tensor) -> Tensor:
        """Events (B,T,C,H,W) to logits (B,T,K)."""
        logits: Tensor = self.student(events).logits
        return logits


def _some(opened: Reopened, samples: int) -> Tensor:
    found: list[Tensor] = []
    for batch in opened.data.loader("test"):
        found.append(batch.events.contiguous())
        if sum(map(len, found)) >= samples:
            break
    return torch.cat(found)[:samples]


def _card(path: Path, opened: Reopened, events: Tensor, license: str) -> Card:
    accuracy, protocol = None, "no results.json beside the checkpoint"
    file = path.parent / "results.json"
    if file.is_file():
        results = Results.read(file)
        weights: Literal["best_on_validation", "final"] = (
            "best_on_validation" if path.name.startswith("best") else "final"
        )
        if results.test is not None and weights in results.test:
            found = results.test[weights]
            accuracy, data = found.final, results.of.data
            protocol = (
                f"weights {weights}, {found.samples} samples of the test split of {data.name} "
                f"(fingerprint {data.fingerprint}), mean logits of {len(found.per_step)} steps"
            )
    return Card(
        student=opened.recipe["student"]["class_path"],
        classes=list(opened.data.classes),
        input=["batch", *events.shape[1:]],
        normalization=opened.recipe["data"]["init_args"].get("normalize", "none"),
        accuracy=accuracy,
        protocol=protocol,
        license=license,
        samples=len(events),
    )


def _write_safetensors(opened: Reopened, events: Tensor, file: Path) -> None:
    from safetensors.torch import save_file

    metadata = {"student": json.dumps(opened.recipe["student"])}
    state = {name: x.contiguous() for name, x in opened.student.state_dict().items()}
    save_file(state, file, metadata)


def _read_safetensors(opened: Reopened, file: Path) -> Run:
    from safetensors import safe_open

    with safe_open(file, "pt") as parts:
        state = {name: parts.get_tensor(name) for name in parts.keys()}  # noqa: SIM118
        recipe = {"student": json.loads(parts.metadata()["student"])}
    trust = [recipe["student"]["class_path"].rpartition(".")[0]]  # written a moment ago
    return _run(build_student({"recipe": recipe, "state_dict": state}, file, trust))


def _run(student: nn.Module) -> Run:
    def run(events: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = student(events).logits
        return logits

    return run


def _program(opened: Reopened, events: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    example = events[[0, 0]]  # one of a single sample would fix the batch
    plain = deepcopy(opened.student)
    for weight in plain.parameters():  # files hold plain rows, not channels last
        weight.data = weight.data.contiguous()
    student = Logits(plain)
    try:
        with torch.no_grad():
            return torch.export.export(student, (example,), dynamic_shapes={"events": {0: batch}})
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        name = type(opened.student).__name__
        raise ValueError(f"{name} cannot be expressed as a graph: {reason}") from None


def _write_program(opened: Reopened, events: Tensor, file: Path) -> None:
    torch.export.save(_program(opened, events), file)


def _read_program(opened: Reopened, file: Path) -> Run:
    """In a process of its own, which does not import ESTL."""
    code = (
        "import sys, torch; file, folder = sys.argv[1:]; events = torch.load(folder + '/events')\n"
        "with torch.no_grad(): logits = torch.export.load(file).module()(events)\n"
        "assert 'estl' not in sys.modules; torch.save(logits.clone(), folder + '/logits')"
    )

    def run(events: Tensor) -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            torch.save(events, f"{folder}/events")
            words = [sys.executable, "-W", "ignore", "-c", code, str(file.resolve()), folder]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise ValueError(f"{file} cannot be read back: {last}")
            return cast(Tensor, torch.load(f"{folder}/logits"))

    return run


def _write_onnx(opened: Reopened, events: Tensor, file: Path) -> None:
    _need("onnx", "onnxscript", "onnxruntime")
    program = _program(opened, events)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch's exporter calls of itself is deprecated
        found = torch.onnx.export(program, dynamo=True, verbose=False, output_names=["logits"])
    assert found is not None
    found.save(file, external_data=False)


def _read_onnx(opened: Reopened, file: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda events: torch.from_numpy(session.run(None, {"events": events.numpy()})[0])


def _write_nir(opened: Reopened, events: Tensor, file: Path) -> None:
    _need("nir")
    to_nir(opened.student, tuple(events.shape[2:]), file)


def _read_nir(opened: Reopened, file: Path) -> Run | None:
    return from_nir(file)


def _need(*packages: str) -> None:
    for name in packages:
        try:
            __import__(name)
        except ImportError:
            raise ValueError(f"{name} is not installed: pip install 'estl[export]'") from None


WRITERS: dict[Format, Callable[[Reopened, Tensor, Path], None]] = {
    "safetensors": _write_safetensors,
    "onnx": _write_onnx,
    "nir": _write_nir,
    "torch-export": _write_program,
}
READERS: dict[Format, Callable[[Reopened, Path], Run | None]] = {
    "safetensors": _read_safetensors,
    "onnx": _read_onnx,
    "nir": _read_nir,
    "torch-export": _read_program,
}
