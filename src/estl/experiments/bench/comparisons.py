"""Everything that `estl bench` compares, and what must hold of it."""

from collections.abc import Sequence
from functools import partial

from estl.experiments.bench import guided, live, scans, students, supervisions
from estl.experiments.bench.race import Bound, Comparison, Make
from estl.students.vggsnn import Layer

VGG: tuple[Layer, ...] = (64, 128, "AP", 256, 256, "AP", 512, 512, "AP", 512, 512, "AP")
RECIPE: tuple[Layer, ...] = (16, "AP", 32, "AP", 64, "AP", 128)

SCAN = (4, 16, 128, 32, 32)


def _lif() -> Comparison:
    def peer(name: str) -> Make:
        return lambda: scans.work(getattr(scans, name)(), SCAN)

    return Comparison(
        "lif",
        f"one layer of TET's neurons, forward and backward, (T,B,C,H,W) = {SCAN}",
        {
            "ESTL": lambda: scans.work(scans.own(fused=True), SCAN),
            "ESTL, plain scan": lambda: scans.work(scans.own(fused=False), SCAN),
            "SpikingJelly": peer("spikingjelly"),
            "SpikingJelly, compiled": lambda: scans.work(scans.spikingjelly(compile=True), SCAN),
            "snnTorch": peer("snntorch"),
        },
        (
            Bound("ESTL", "SpikingJelly", 1 / 5),
            Bound("ESTL", "snnTorch", 1 / 8),
            Bound("ESTL", "SpikingJelly, compiled", 1.0),
        ),
    )


def _student(name: str, size: tuple[int, int, int], over_floor: float) -> Comparison:
    """A student's step over its floor, in float32 and bfloat16, and a peer's where we have one."""
    B, T, side = size
    step = partial(students.step, name, size)
    candidates: dict[str, Make] = {
        "ESTL": step,
        "floor": partial(step, bare=True),
        "ESTL, bfloat16": partial(step, bfloat16=True),
        "floor, bfloat16": partial(step, bare=True, bfloat16=True),
        "ESTL, recomputed": partial(step, recompute=True),
    }
    bounds = [
        Bound("ESTL", "floor", over_floor),
        Bound("ESTL, bfloat16", "floor, bfloat16", over_floor),
    ]
    layers = {"vggsnn": VGG, "recipe": RECIPE}.get(name)
    if layers is not None:
        peer = partial(students.peer_step, layers, size)
        candidates["SpikingJelly's layers"] = peer
        candidates["SpikingJelly's layers, bfloat16"] = partial(peer, bfloat16=True)
        bounds += [
            Bound("ESTL", "SpikingJelly's layers", 1 / 1.1),
            Bound("ESTL, bfloat16", "SpikingJelly's layers, bfloat16", 1 / 1.1),
            Bound("ESTL, bfloat16", "SpikingJelly's layers", 1 / 2),
        ]
    if name == "recipe":  # the deep ones take minutes to compile
        candidates["ESTL, compiled"] = partial(step, compile=True)
    what = f"training step of {name}, {side}x{side}, T = {T}, batch {B}; floor: no LIF, no norm"
    return Comparison(name, what, candidates, tuple(bounds), memory=True)


def _steps(name: str, student: str, size: tuple[int, int], steps: Sequence[int]) -> Comparison:
    """A student's time and memory as the number of steps grows, kept and recomputed."""
    batch, side = size
    ways = {"": False, ", recomputed": True}
    first, last = f"T = {steps[0]}", f"T = {steps[-1]}"
    since = ("T = 8, recomputed", "T = 8")
    return Comparison(
        name,
        f"training step of {student}, {side}x{side}, batch {batch}, by the number of steps",
        {
            f"T = {T}{way}": partial(students.step, student, (batch, T, side), recompute=recompute)
            for way, recompute in ways.items()
            for T in steps
        },
        (
            Bound(last, first, steps[-1] / steps[0]),
            Bound(f"{last}, recomputed", last, 1 / 3, memory=True, since=since),
        ),
        memory=True,
    )


def _supervision(student: str, size: tuple[int, int, int]) -> Comparison:
    kinds = supervisions.KINDS
    others = [kind for kind in kinds if kind != "plain"]
    return Comparison(
        f"supervision-{student}",
        f"training step of {student}, (B,T,side) = {size}, by supervision",
        {kind: partial(supervisions.step, student, size, kind) for kind in kinds},
        (
            *(Bound(kind, "plain", 1.03) for kind in others),
            *(Bound(kind, "plain", 1.05, memory=True) for kind in others),
        ),
        memory=True,
    )


PLAIN = ", channels first"


def _tse(sizes: tuple[int, int, int, int, int]) -> Comparison:
    return Comparison(
        "tse-" + "-".join(map(str, sizes)),
        f"tse_loss alone, forward and backward, (B,T,C,H,K) = {sizes}, features channels last in "
        "memory as a student's",
        {
            name + plain: partial(supervisions.tse, sizes, literal=name == "literal", order=order)
            for plain, order in {"": "student", PLAIN: "plain"}.items()
            for name in ("ESTL", "literal")
        },
        (
            Bound("ESTL", "literal", 1 / 2),
            Bound(f"ESTL{PLAIN}", f"literal{PLAIN}", 1 / 2),
        ),
    )


def _fusion() -> Comparison:
    return Comparison(
        "fusion",
        "fusion of 196 patches and edges of 224x224, forward and backward, batch 4",
        {
            "ESTL": partial(supervisions.fusion, 4, 224, literal=False),
            "literal": partial(supervisions.fusion, 4, 224, literal=True),
        },
        (Bound("ESTL", "literal", 0.3), Bound("ESTL", "literal", 0.1, memory=True)),
        memory=True,
    )


def _guided(sizes: str, *bounds: Bound) -> Comparison:
    size = guided.SIZES[sizes]
    return Comparison(
        f"guided-{sizes}",
        f"guided step of {size.student}, (B,T,side) = {size.frames}, images {size.image}x"
        f"{size.image}, with AdamW",
        {kind: partial(guided.step, sizes, kind) for kind in guided.KINDS},
        bounds,
        memory=True,
    )


def _live() -> Comparison:
    return Comparison(
        "live",
        f"{live.FRAMES} frames of the demo's student, one at a time, batch 1",
        {
            "ESTL": lambda: live.frames("ESTL"),
            "ESTL, folded": lambda: live.frames("folded"),
            "torch-export-step": lambda: live.exported_frames("torch.export"),
            "onnx-step in ONNX Runtime": lambda: live.exported_frames("ONNX Runtime"),
            "SpikingJelly, step mode": live.peer_frames,
        },
    )


def _exported() -> Comparison:
    return Comparison(
        "exported",
        f"{live.FRAMES // live.STEPS} recordings of the demo's student, one after the other, batch "
        f"1, T = {live.STEPS}",
        {
            "ESTL": live.whole,
            "torch-export": lambda: live.exported_whole("torch.export"),
            "onnx in ONNX Runtime": lambda: live.exported_whole("ONNX Runtime"),
            "nir in SpikingJelly": lambda: live.exported_whole("NIR"),
        },
    )


COMPARISONS = {
    comparison.name: comparison
    for comparison in (
        _lif(),
        _student("recipe", (25, 5, 34), 1.25),
        _student("vggsnn", (8, 10, 48), 1.10),
        _student("resnet19", (16, 4, 32), 1.10),
        _student("spikformer", (8, 10, 48), 1.25),
        _steps("steps", "resnet19", (4, 32), (1, 2, 4, 8, 16, 32)),
        _steps("steps-vggsnn", "vggsnn", (2, 48), (8, 32)),
        _steps("steps-spikformer", "spikformer", (2, 48), (8, 32)),
        _supervision("vggsnn", (8, 10, 48)),
        _supervision("resnet19", (16, 4, 32)),
        _tse((32, 4, 512, 8, 10)),
        _tse((32, 4, 512, 8, 100)),
        _tse((16, 10, 512, 6, 100)),
        _tse((8, 4, 512, 7, 1000)),
        _fusion(),
        _live(),
        _exported(),
        _guided(
            "recipe",
            Bound("all terms", "events only", 2.0),
            Bound("all terms, kept", "events only", 2.0),
        ),
        _guided("design", Bound("all terms", "fixed CLIP", 1.3)),
    )
}
"""By name."""
