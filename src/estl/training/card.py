"""What anyone who makes a student's frames without ESTL has to know: part of `card.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from estl.data.frames import Slicing
from estl.data.recorded import view_of
from estl.data.windows import microseconds

STEPS: dict[Slicing, str] = {
    "count": "event i of n, counted from 0 in order of time, is in step floor(i T / n)",
    "time": "an event at time t, of events from t0 to t1, in whole microseconds, is in step "
    "floor((t - t0) T / (t1 - t0 + 1))",
}
BINS = "an event at (x, y) of a sensor of (Hs,Ws) pixels is counted at row floor(y H / Hs), column "
BINS += "floor(x W / Ws)"
SWAPPED = "; x and y of .aedat files are exchanged first"
OVER = "over all steps, channels and pixels of a recording or window, if not 0"
SCALES = {
    "none": "counts as they are",
    "max": f"counts, divided by their largest {OVER}",
    "std": f"counts, divided by their standard deviation {OVER}; their mean is not subtracted",
}

STANDARD = "counts f of channel c as (f - mean_c) / std_c, by the figures of normalization"


@dataclass(frozen=True)
class Frames:
    """How frames (T,C,H,W) are made from events; see `estl.data.frames`.

    Args:
        T: number of frames of a recording, or of a window of it.
        by: slices of equal "count" or "time".
        steps: the same as a formula.
        window: microseconds that recordings were cut into; None if they were taken whole.
        stride: microseconds from one window's start to the next one's.
        sensor: (H,W) of recordings that do not state it; None if each states its own.
        size: (H,W) of the frames.
        bins: the pixel that an event is counted at.
        channels: in their order: of darker (polarity 0) and brighter (1) pixels.
        scale: what is done to the counts, after all of them are known.
    """

    T: int
    by: Slicing
    steps: str
    window: int | None
    stride: int | None
    sensor: tuple[int, int] | None
    size: tuple[int, int]
    bins: str
    channels: tuple[str, str]
    scale: str


def frames_of(class_path: str, init_args: Mapping[str, Any]) -> Frames | None:
    """The frames that a student of a data set sees, None if its recipe does not say.

    It does not for shards (written elsewhere), for images, and for a user's own set.

    >>> frames = frames_of("estl.data.NMNISTPairs", {"T": 5, "by": "count", "normalize": "max"})
    >>> frames.by, frames.sensor, frames.size, frames.channels
    ('count', (34, 34), (34, 34), ('OFF', 'ON'))
    """
    try:
        view = view_of("", class_path, init_args)
    except ValueError:
        return None
    how, window = init_args.get("normalize", "none"), init_args.get("window")
    length = None if window is None else microseconds(window)
    stride = init_args.get("stride")
    return Frames(
        T=view.T,
        by=view.by,
        steps=STEPS[view.by],
        window=length,
        stride=length if stride is None else microseconds(stride),
        sensor=view.sensor,
        size=view.size,
        bins=BINS + (SWAPPED if class_path.endswith(".CIFAR10DVS") else ""),
        channels=("OFF", "ON"),
        scale=SCALES[how] if isinstance(how, str) else STANDARD,
    )
