"""Event recordings and images, paired, as batches.

Reading, framing and simulating are here at once; a data set (`estl.data.NMNISTPairs`,
`estl.data.Digits`,
`estl.data.ImageFolder`) imports Lightning, which takes seconds, when it is first named.
"""

from importlib import import_module
from typing import Any

from estl.data.events import EVENT, read_events, to_frames
from estl.data.saccades import simulate, simulate_events

_SETS = {"NMNISTPairs": "nmnist", "Digits": "digits", "ImageFolder": "folder"}


def __getattr__(name: str) -> Any:
    if name not in _SETS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_SETS[name]}"), name)


__all__ = ["EVENT", "read_events", "simulate", "simulate_events", "to_frames"]
