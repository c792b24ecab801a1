"""Event recordings and images, paired, as batches.

Everything here is imported when it is first named: PyTorch, and Lightning for a data set, take
seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from estl.data.catalog import CATALOG

if TYPE_CHECKING:
    from estl.data.formats.atis import read_events
    from estl.data.formats.events import EVENT
    from estl.data.formats.recording import read_recording
    from estl.data.frames import normalize, to_frames
    from estl.data.module import EventData, ItemData
    from estl.data.sets.cifar import CIFAR
    from estl.data.sets.cifar10dvs import CIFAR10DVS
    from estl.data.sets.digits import Digits
    from estl.data.sets.folder import ImageFolder
    from estl.data.sets.gesture import DVSGesture
    from estl.data.sets.ncaltech101 import NCaltech101Pairs
    from estl.data.sets.nmnist import NMNISTPairs
    from estl.data.simulator import simulate, simulate_events
    from estl.data.splits import SplitData
    from estl.data.stream import Shards

_HOMES = [row.home for row in CATALOG] + [
    *("formats.events.EVENT", "formats.atis.read_events", "formats.recording.read_recording"),
    *("frames.normalize", "frames.to_frames", "simulator.simulate", "simulator.simulate_events"),
    *("module.EventData", "module.ItemData", "splits.SplitData"),
]


def __getattr__(name: str) -> Any:
    for home in _HOMES:
        module, _, given = home.rpartition(".")
        if given == name:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "CIFAR",
    "CIFAR10DVS",
    "EVENT",
    "DVSGesture",
    "Digits",
    "EventData",
    "ImageFolder",
    "ItemData",
    "NCaltech101Pairs",
    "NMNISTPairs",
    "Shards",
    "SplitData",
    "normalize",
    "read_events",
    "read_recording",
    "simulate",
    "simulate_events",
    "to_frames",
]
