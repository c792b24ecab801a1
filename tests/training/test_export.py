"""What is exported gives the student's logits where something else reads it."""

import errno
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from estl.data import Digits
from estl.data.formats.events import EVENT
from estl.data.recorded import view_of
from estl.evaluation.accuracy import Accuracy
from estl.students import VGGSNN, ResNet, Spikformer
from estl.students.adapters import Adapter
from estl.supervision import MeanCE
from estl.training.card import frames_of
from estl.training.export import FILES, READERS, WRITERS, Format, export
from estl.training.graphs import Run, read_onnx, to_program, write_onnx
from estl.training.hub import Pretrained
from estl.training.nir import to_nir
from estl.training.reopen import Reopened, reopen
from estl.training.results import Results, provenance
from estl.types import Output

SMALL = {"layers": [6, "AP", 5], "pooled": True, "classes": 10, "frame_size": [16, 16]}
DATA = {"T": 3, "size": 16, "per_class": 4}


def settled(net: nn.Module, events: Tensor) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net(events)
    return net.eval()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """As `estl fit` writes it, of a student on digits."""
    events = torch.poisson(torch.rand(20, 3, 2, 16, 16))
    student = settled(VGGSNN(**{**SMALL, "frame_size": (16, 16)}), events)
    recipe = {
        "seed": 0,
        "data": {"class_path": "estl.data.Digits", "init_args": DATA},
        "student": {"class_path": "estl.students.VGGSNN", "init_args": SMALL},
        "supervision": {"class_path": "estl.supervision.MeanCE", "init_args": {}},
    }
    path = tmp_path / "last.ckpt"
    names = list(map(str, range(10)))
    torch.save({"state_dict": student.state_dict(), "classes": names, "recipe": recipe}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_each_format_is_read_back_and_gives_the_same_logits(
    name: Format, checkpoint: Path, tmp_path: Path
) -> None:
    if name == "nir":
        pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")
    if name in ("onnx", "onnx-step", "nir"):
        package = name.partition("-")[0]
        pytest.importorskip(package, reason=f"{package} is not installed")
    card = export(checkpoint, [name], tmp_path / "out", samples=40, license="CC0-1.0")
    assert card.differs[name] is not None
    assert (tmp_path / "out" / FILES[name]).stat().st_size > 1000
    assert card.input == ["batch", 3, 2, 16, 16]
    assert card.samples == 40
    assert card.license == "CC0-1.0"
    assert card.frames is not None
    assert (card.frames.T, card.frames.by, card.frames.size) == (3, "time", (16, 16))
    # Potentials of 6 maps of 16x16 and, behind the pooling, 5 of 8x8.
    assert card.state == (6 * 16 * 16 + 5 * 8 * 8 if name.endswith("-step") else None)
    assert card == type(card).read(tmp_path / "out" / "card.json")
    (tmp_path / "out" / "another").touch()
    assert len({file.stat().st_mode for file in (tmp_path / "out").iterdir()}) == 1


@pytest.mark.slow
def test_the_card_has_an_accuracy_of_the_very_weights(checkpoint: Path, tmp_path: Path) -> None:
    of = provenance(Digits(**DATA), nn.Linear(1, 1), MeanCE(), {"seed": 0})
    test = {"final": Accuracy((0.5,), 10), "best_on_validation": Accuracy((0.75,), 10)}
    (tmp_path / "results.json").write_text(Results(of, 3, 1.0, 1, {}, test).to_json())
    found = {}
    for name in ("last", "best-002", "epoch-001"):
        shutil.copy(checkpoint, tmp_path / "copy")
        path = (tmp_path / "copy").rename(tmp_path / f"{name}.ckpt")
        found[name] = export(path, ["safetensors"], tmp_path / "out", samples=1).accuracy
    assert found == {"last": 0.5, "best-002": 0.75, "epoch-001": None}
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for epoch, accuracy in ((2, 0.5), (3, None)):  # trained on since
        torch.save(saved | {"epoch": epoch}, tmp_path / "last.ckpt")
        card = export(tmp_path / "last.ckpt", ["safetensors"], tmp_path / "out", samples=1)
        assert card.accuracy == accuracy
    torch.save(saved | {"epoch": 3}, tmp_path / "best-004.ckpt")  # better since then
    card = export(tmp_path / "best-004.ckpt", ["safetensors"], tmp_path / "out", samples=1)
    assert card.accuracy is None


def test_a_student_with_a_part_of_another_module_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Of(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

    for home, kind in (("ones_own", Of), ("anothers", type("Body", (nn.Identity,), {}))):
        kind.__module__, kind.__qualname__ = home, kind.__name__
        monkeypatch.setitem(sys.modules, home, module := ModuleType(home))
        setattr(module, kind.__name__, kind)
    body = {"class_path": "anothers.Body"}
    recipe = {"student": {"class_path": "ones_own.Of", "init_args": {"body": body}}}
    opened = Reopened(Of(nn.Identity()), Digits(**DATA), recipe, "")
    WRITERS["safetensors"](opened, torch.zeros(1), tmp_path / "file")
    assert READERS["safetensors"](opened, tmp_path / "file") is not None


@pytest.mark.slow
def test_a_file_that_gives_other_logits_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = READERS["safetensors"]
    monkeypatch.setitem(
        READERS,
        "safetensors",
        lambda *args: lambda x: read(*args)(x) + 2e-5,
    )
    with pytest.raises(ValueError, match=r"on 40 of 40 recordings, by up to 2.*e-05"):
        export(checkpoint, ["safetensors"], tmp_path / "out", samples=40)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_file_without_room_is_not_there_at_all(
    name: Format, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in ("onnx", "onnx-step", "nir"):
        package = name.partition("-")[0]
        pytest.importorskip(package, reason=f"{package} is not installed")
    opened, events = reopen(checkpoint), torch.rand(2, 1, 2, 16, 16)  # a step is a graph, too
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"student.* cannot be written \(No space left on device\)"):
        WRITERS[name](opened, events, folder / FILES[name])
    assert not list(folder.iterdir())


@pytest.mark.parametrize("by", ["count", "time"])
def test_the_card_says_how_frames_are_made(by: str) -> None:
    options = {
        "T": 4,
        "by": by,
        "sensor": "20x30",
        "size": 8,
        "window": "300ms",
        "normalize": "max",
    }
    card = frames_of("estl.data.Recordings", options)
    assert card is not None
    assert (card.window, card.stride, card.sensor, card.size) == (
        300_000,
        300_000,
        (20, 30),
        (8, 8),
    )
    assert card.channels == ("OFF", "ON")
    rng = np.random.default_rng(0)
    events = np.zeros(300, EVENT)
    events["t"] = np.sort(rng.integers(7, 999, 300))
    for name, below in (("x", 30), ("y", 20), ("p", 2)):
        events[name] = rng.integers(0, below, 300)
    expected = torch.zeros(4, 2, 8, 8)
    for i, event in enumerate(events):
        known = {name: int(event[name]) for name in "txy"} | {"i": i, "n": len(events)}
        known |= {"t0": int(events["t"][0]), "t1": int(events["t"][-1]), "T": card.T}
        (step,), (y, x) = (floors(text, known) for text in (card.steps, card.bins))
        expected[step, int(event["p"]), y, x] += 1
    view = view_of("", "estl.data.Recordings", options)
    found = view.frames(events, (20, 30))
    assert torch.equal(found, expected)
    assert "divided by their largest" in card.scale
    assert frames_of("estl.data.Shards", {"T": 4}) is None


def floors(text: str, known: dict[str, int]) -> list[int]:
    """The values of `floor(...)` in a card's text, for an event."""
    sizes = {"H": 8, "W": 8, "Hs": 20, "Ws": 30}
    formulas = re.findall(r"floor(\(.*?\))(?=,|$)", text)
    products = (re.sub(r"(?<=[\w)]) (?=[TWH]\b)", "*", formula) for formula in formulas)
    return [math.floor(eval(product, known | sizes)) for product in products]


def full(_: int) -> None:
    """As a disk without room."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


DEPLOY = Path(__file__).parents[2] / "docs" / "deploy.md"
STEPPED = {
    "vggsnn": lambda: VGGSNN(4, 2, (9, 9), layers=(5, "AP", 6), neuron={"reset": "soft"}),
    "resnet": lambda: ResNet((1, 1), (5, 6), 4, 2, hidden=7),
    "spikformer": lambda: Spikformer(4, 2, dim=16, depth=1, heads=2, scale=1.0, readout="token"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPPED)
def test_what_is_stepped_elsewhere_equals_the_whole_recording(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    events = torch.poisson(torch.rand(3, 80, 2, 9, 9))
    net = settled(STEPPED[name](), events[:, :6])
    # An ONNX model is made of the program that torch-export-step saves.
    (tmp_path / "OUT").mkdir()
    file = tmp_path / "OUT" / "student-step.onnx"
    write_onnx(net, events[:1, :2], file, stepwise=True)
    found = read_onnx(file, stepwise=True)(events)
    # As docs/deploy.md steps it.
    (code,) = re.findall(r"^```py\n(.*?)^```$", DEPLOY.read_text(), re.MULTILINE | re.DOTALL)
    names = {"frames": [frame.contiguous().numpy() for frame in events[:1].unbind(1)]}
    monkeypatch.chdir(tmp_path)
    exec(code, names)
    mean = found[0].mean(0, keepdim=True)
    torch.testing.assert_close(torch.from_numpy(names["answer"]), mean, rtol=0, atol=1e-5)
    with torch.no_grad():
        expected = net(events).logits
        fresh = torch.stack([net(frame[:, None]).logits[:, 0] for frame in events.unbind(1)], 1)
    off, without = (((x - expected).abs() > 1e-5).float().mean() for x in (found, fresh))
    assert off < 0.02  # a potential within rounding of its threshold may spike otherwise
    assert without > 0.1  # the state counts


def test_a_stepwise_file_without_its_state_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgets(opened: Reopened, _: Path) -> Run:
        def run(events: Tensor) -> Tensor:
            with torch.no_grad():
                return torch.cat([opened.student(e[:, None]).logits for e in events.unbind(1)], 1)

        return run

    monkeypatch.setitem(WRITERS, "onnx-step", lambda *args: None)
    monkeypatch.setitem(READERS, "onnx-step", forgets)
    with pytest.raises(ValueError, match=r"student-step.onnx read back differs .* recordings"):
        export(checkpoint, ["onnx-step"], tmp_path / "out", samples=20)


def test_a_stream_that_loses_its_state_between_recordings_is_noticed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the state were right for the few steps of a recording only."""

    def rests(opened: Reopened, _: Path) -> Run:
        def run(events: Tensor) -> Tensor:
            with torch.no_grad():
                return torch.cat([opened.student(e).logits for e in events.split(3, 1)], 1)

        return run

    monkeypatch.setitem(WRITERS, "onnx-step", lambda *args: None)
    monkeypatch.setitem(READERS, "onnx-step", rests)
    with pytest.raises(ValueError, match=r"student-step.onnx read back differs .* recordings"):
        export(checkpoint, ["onnx-step"], tmp_path / "out", samples=20)


def test_students_whose_state_cannot_be_handed_over_get_one_line() -> None:
    class Plain(nn.Module):
        def forward(self, events: Tensor) -> Output:
            pooled = events.mean((-2, -1))
            return Output(pooled, events, lambda x: x, pooled)

    parts = nn.ModuleDict({"maps": nn.Conv2d(2, 8, 3), "head": nn.Linear(8, 5)})
    adapter = Adapter(
        parts, features=parts["maps"], head=parts["head"], reset=lambda net: None, step_mode="s"
    )
    for student in (Plain(), adapter):
        with pytest.raises(ValueError, match="cannot be expressed frame by frame") as raised:
            to_program(student.eval(), torch.rand(2, 3, 2, 8, 8), stepwise=True)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: VGGSNN(4, 2, (9, 9), layers=(12, "AP", 16)), 9),
        (lambda: VGGSNN(4, 2, layers=("AP", 12, "AP", 16), pooled=True, neuron={"decay": 0.75}), 8),
        (lambda: ResNet((1, 1), (12, 16), 4, 2, hidden=20), 8),
        (lambda: ResNet((1, 1), (4, 6), 4, 2, bottleneck=True), 8),
    ],
    ids=["flat", "pooled", "resnet", "bottleneck"],
)
def test_another_framework_runs_the_nir_of_convolutional_students(
    make: Callable[[], nn.Module], size: int, tmp_path: Path
) -> None:
    nir = pytest.importorskip("nir", reason="nir is not installed")
    exchange = pytest.importorskip(
        "spikingjelly.activation_based.nir_exchange", reason="SpikingJelly is not installed"
    )
    events = torch.poisson(torch.rand(6, 5, 2, size, size))
    net = settled(make(), events).double()  # no potential lies at its threshold then
    to_nir(net, (2, size, size), tmp_path / "student.nir")
    read = exchange.import_from_nir(nir.read(tmp_path / "student.nir"), dtype=torch.float64).eval()
    state, found = None, []
    with torch.no_grad():
        for frame in events.double().unbind(1):
            y, state = read(frame, state)
            found.append(y)
        expected = net(events.double()).logits
    assert expected.std(1).max() > 0  # it fires
    torch.testing.assert_close(torch.stack(found, 1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("student", "says"),
    [
        (Spikformer(dim=16, depth=1, heads=2), "Spikformer cannot be expressed in NIR"),
        (VGGSNN(frame_size=(8, 8), layers=(4,), neuron={"reset": "soft"}), "soft reset"),
        (ResNet((1,), (4,), stem="7x7"), "NIR has no MaxPool"),
    ],
    ids=["spikformer", "soft", "pool"],
)
def test_what_nir_cannot_say_gets_one_line(student: nn.Module, says: str, tmp_path: Path) -> None:
    pytest.importorskip("nir", reason="nir is not installed")
    channels = getattr(student, "in_channels", 2)
    with pytest.raises(ValueError, match=says) as raised:
        to_nir(student.eval(), (channels, 8, 8), tmp_path / "student.nir")
    assert "\n" not in str(raised.value)


def test_a_student_that_is_no_graph_gets_one_line(tmp_path: Path) -> None:
    class Moody(nn.Module):
        def forward(self, events: Tensor) -> Tensor:
            return events if events.sum() > 0 else -events

    data = Digits(**DATA)
    opened = Reopened(Moody().eval(), data, {}, "")
    with pytest.raises(ValueError, match="Moody cannot be expressed as a graph") as raised:
        WRITERS["torch-export"](opened, torch.rand(2, 3, 2, 4, 4), tmp_path / "student.pt2")
    assert "\n" not in str(raised.value)


def test_a_student_goes_to_the_layout_of_the_hub_and_back(checkpoint: Path, tmp_path: Path) -> None:
    one = Pretrained.from_checkpoint(checkpoint)
    one.save_pretrained(tmp_path / "hub")
    two = Pretrained.from_pretrained(str(tmp_path / "hub"))
    events = torch.poisson(torch.rand(2, 3, 2, 16, 16))
    with torch.no_grad():
        assert torch.equal(two(events).logits, one.student(events).logits)
    assert not two.training
    assert two.classes == one.classes == list(map(str, range(10)))
    assert two.data["init_args"] == DATA
    config = (tmp_path / "hub" / "config.json").read_text()
    (tmp_path / "hub" / "config.json").write_text(
        config.replace("estl.students.VGGSNN", "os.system")
    )
    with pytest.raises(ValueError, match=r"names os\.system"):
        Pretrained.from_pretrained(str(tmp_path / "hub"))


@pytest.mark.slow
def test_a_predicting_process_does_not_import_the_hubs_client_of_pretrained() -> None:
    code = "import sys, estl.training.predict; sys.exit('estl.training.hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
