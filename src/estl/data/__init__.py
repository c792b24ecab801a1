"""Event recordings and images, paired, as batches.

Everything here is imported when it is first named: PyTorch, and Lightning for a data set, take
seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from estl.data.catalog import CATALOG

if TYPE_CHECKING:
    from estl.data.bridge import Bridge
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
    from estl.data.sets.own import FromDataset
    from estl.data.sets.recordings import Recordings
    from estl.data.simulator import simulate, simulate_events
    from estl.data.splits import SplitData
    from estl.data.stream import Shards

_HOMES = [row.home for row in CATALOG] + [
    *("formats.events.EVENT", "formats.atis.read_events", "formats.recording.read_recording"),
    *("frames.normalize", "frames.to_frames", "simulator.simulate", "simulator.simulate_events"),
    *("module.EventData", "module.ItemData", "splits.SplitData", "bridge.Bridge"),
    "sets.own.FromDataset",
]
_MODULES = {name: module for module, _, name in (home.rpartition(".") for home in _HOMES)}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
