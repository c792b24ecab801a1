"""Event recordings and images, paired, as batches.

Reading, framing and simulating are here at once; a data set (`estl.data.NMNISTPairs` and the rest
of `_SETS`) imports Lightning, which takes seconds, when it is first named.
"""

from importlib import import_module
from typing import Any

from estl.data.events import EVENT, normalise, read_events, read_recording, to_frames
from estl.data.saccades import simulate, simulate_events

_SETS = {
    "CIFAR": "cifar",
    "CIFAR10DVS": "cifar10dvs",
    "Digits": "digits",
    "DVSGesture": "gesture",
    "ImageFolder": "folder",
    "NCaltech101Pairs": "ncaltech101",
    "NMNISTPairs": "nmnist",
    "Shards": "stream",
}


def __getattr__(name: str) -> Any:
    if name not in _SETS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_SETS[name]}"), name)


__all__ = [
    "EVENT",
    "normalise",
    "read_events",
    "read_recording",
    "simulate",
    "simulate_events",
    "to_frames",
]
