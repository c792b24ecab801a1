"""Event recordings and images, paired, as batches.

Reading, framing and simulating are here at once; a data set (`estl.data.NMNISTPairs` and the rest
of `_SETS`) imports Lightning, which takes seconds, when it is first named.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from estl.data.formats.atis import read_events
from estl.data.formats.events import EVENT
from estl.data.formats.recording import read_recording
from estl.data.frames import normalize, to_frames
from estl.data.simulator import simulate, simulate_events

if TYPE_CHECKING:
    from estl.data.sets.cifar import CIFAR
    from estl.data.sets.cifar10dvs import CIFAR10DVS
    from estl.data.sets.digits import Digits
    from estl.data.sets.folder import ImageFolder
    from estl.data.sets.gesture import DVSGesture
    from estl.data.sets.ncaltech101 import NCaltech101Pairs
    from estl.data.sets.nmnist import NMNISTPairs
    from estl.data.stream import Shards

_SETS = {
    "CIFAR": "sets.cifar",
    "CIFAR10DVS": "sets.cifar10dvs",
    "Digits": "sets.digits",
    "DVSGesture": "sets.gesture",
    "ImageFolder": "sets.folder",
    "NCaltech101Pairs": "sets.ncaltech101",
    "NMNISTPairs": "sets.nmnist",
    "Shards": "stream",
}


def __getattr__(name: str) -> Any:
    if name not in _SETS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_SETS[name]}"), name)


__all__ = [
    "CIFAR",
    "CIFAR10DVS",
    "EVENT",
    "DVSGesture",
    "Digits",
    "ImageFolder",
    "NCaltech101Pairs",
    "NMNISTPairs",
    "Shards",
    "normalize",
    "read_events",
    "read_recording",
    "simulate",
    "simulate_events",
    "to_frames",
]
