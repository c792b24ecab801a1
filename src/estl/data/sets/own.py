"""Any PyTorch data set of events, as data for everything that takes a set of ESTL's."""

import hashlib
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from estl.data.cache import Load
from estl.data.formats.columns import from_columns
from estl.data.frames import Slicing, to_frames
from estl.data.items import Item
from estl.data.splits import SplitData
from estl.data.windows import sensor_shape

_ROUNDED = 1e-3
"""How far an image's values may lie outside [0,1]: less than half a step of 8 bits."""


class FromDataset(SplitData):
    """A `torch.utils.data.Dataset`, or a sequence, of (events, label) or (events, label, image).

    Events are a structured array with the fields t (in microseconds), x, y and p, which are binned
    here, or frames (T,C,H,W), a tensor or an array, which are taken as they are. Labels are
    numbers, which stay what they are, or names. An image is a tensor or an array (3,h,w) in [0,1].
    All samples have one shape.

    Labels are taken from the attribute `targets` where there is one, and no `target_transform`
    that changes them; otherwise every sample is asked for once. The fingerprint and the search for
    leaks ask for every sample once more. Samples must not change from call to call; random changes
    are for `augment`.

    Args:
        dataset: the training samples, from which splits that are not given are drawn.
        val: the validation split.
        test: the test split.
        classes: names of the classes 0, 1, ...; the labels themselves if None.
        T: number of frames that events are binned into; if None, 10, or the frames' own number.
        size: height and width of these; if None, 48, or the frames' own.
        by: frames of equal event "count" or of equal "time".
        sensor: height and width in pixels, "720x1280".
        loading: arguments of `SplitData`, `ItemData` and `EventData`, but no `cache`.

    Raises:
        ValueError: a sample of another kind, frames of other `T` or `size`, or a label without a
            class; when a sample is loaded, one of another shape than the first, with values that
            are not finite, or an image that is not in [0,1]. The text names it.

    >>> import torch
    >>> frames = [torch.full((2, 2, 4, 4), float(i)) for i in range(20)]
    >>> data = FromDataset([(x, i % 2) for i, x in enumerate(frames)])
    >>> data.sizes, data.frame_size, next(iter(data.loader("test"))).events.shape
    ({'train': 14, 'val': 2, 'test': 4}, (4, 4), torch.Size([4, 2, 2, 4, 4]))
    """

    def __init__(
        self,
        dataset: Any,
        *,
        val: Any = None,
        test: Any = None,
        classes: Sequence[str] | None = None,
        T: int | None = None,
        size: int | None = None,
        by: Slicing = "count",
        sensor: str | tuple[int, int] | None = None,
        **loading: Any,
    ) -> None:
        given = {"train": dataset, "val": val, "test": test}
        parts = {split: part for split, part in given.items() if part is not None}
        items, numbers = dict[str, list[Item]](), set[Any]()
        for split, part in parts.items():
            labels = _labels(part, split)
            numbers |= set(labels)
            names = [_name(label, classes, f"{split} sample {i}") for i, label in enumerate(labels)]
            place = "" if split == "train" else f"{split}/"
            items[split] = [Item(name, f"{place}{i:06d}") for i, name in enumerate(names)]
        read = partial(read_sample, parts=parts, T=T, size=size, by=by, sensor=sensor_shape(sensor))
        frames, image = read(items["train"][0])
        load = partial(load_sample, read=read, shape=_shape(frames, image))
        super().__init__(
            items["train"],
            load,
            val=items.get("val"),
            test=items.get("test"),
            content=cache(partial(_content, load)),
            T=len(frames),
            frame_size=(frames.shape[-2], frames.shape[-1]),
            in_channels=frames.shape[1],
            **loading,
        )
        if classes is None and all(isinstance(n, int) and n >= 0 for n in numbers):
            classes = [str(n) for n in range(max(numbers) + 1)]
        if classes is not None:
            self.follow(classes)


def load_sample(item: Item, read: Load, shape: str) -> tuple[Tensor, Tensor | None]:
    """What `read` gives for an item, if it has this shape and all its values are finite."""
    frames, image = read(item)
    if (own := _shape(frames, image)) != shape:
        raise ValueError(
            f"{_name_of(item)} has {own}, but train sample 0 has {shape}: give all one shape"
        )
    for name, values in (("frames", frames), ("image", image)):
        if values is not None and not _finite(values):
            raise ValueError(
                f"{_name_of(item)}: NaN or infinite values in its {name}: mend it or leave it out"
            )
    if image is not None:
        _check_range(image, _name_of(item))
    return frames, image


def read_sample(
    item: Item,
    parts: Mapping[str, Any],
    T: int | None,
    size: int | None,
    by: Slicing,
    sensor: tuple[int, int] | None,
) -> tuple[Tensor, Tensor | None]:
    """Frames and image of the sample that an item's number, "test/000012", names."""
    split, number = _place(item)
    what = _name_of(item)
    events, _, *rest = map(_tensor, _sample(parts[split], number, what))
    if isinstance(events, Tensor):
        if events.ndim != 4:
            raise ValueError(f"{what}: frames of shape {tuple(events.shape)}, not (T,C,H,W)")
        for name, value, own in (("T", T, events.shape[:1]), ("size", size, events.shape[-2:])):
            if value is not None and set(own) != {value}:
                raise ValueError(
                    f"{what}: frames (T,C,H,W) of shape {tuple(events.shape)} are taken as they "
                    f"are, and not by {name}={value}: leave {name} out"
                )
        frames = events.float()
    elif not {*"txyp"} <= {*(getattr(events, "dtype", np.dtype(int)).names or ())}:
        raise ValueError(
            f"{what}: events are neither frames (T,C,H,W) nor an array of fields t, x, y, p"
        )
    elif sensor is None:
        raise ValueError(f'{what}: events need the sensor\'s size: give sensor="720x1280"')
    else:
        known, _ = from_columns(what, {name: events[name] for name in "txyp"}, sensor)
        count, side = 10 if T is None else T, 48 if size is None else size
        frames = to_frames(known, count, (side, side), by, sensor=sensor)
    image = rest[0] if rest else None
    if image is not None and not (isinstance(image, Tensor) and image.shape[:-2] == (3,)):
        raise ValueError(
            f"{what}: its image is no tensor (3,h,w) in [0,1]: of bytes (h,w,3), as PIL has them, "
            "it is torch.from_numpy(numpy.array(image)).permute(2, 0, 1) / 255"
        )
    # As frames are; bytes are refused later.
    return frames, image.float() if image is not None and image.is_floating_point() else image


def _check_range(image: Tensor, what: str) -> None:
    """Raise ValueError for an image that is not in [0,1], as bytes are."""
    low, high = (x.item() for x in image.aminmax())
    if not image.is_floating_point() or low < -_ROUNDED or high > 1 + _ROUNDED:
        raise ValueError(
            f"{what}: its image is {str(image.dtype).rpartition('.')[2]} from {low:g} to {high:g}, "
            "and has to be floats in [0,1]: divide bytes by 255, leave other scalings out"
        )


def _tensor(x: Any) -> Any:
    """An array of numbers as a tensor, all else as it is."""
    plain = isinstance(x, np.ndarray) and x.dtype.kind in "buif"
    return torch.tensor(x) if plain and x.ndim else x


def _place(item: Item) -> tuple[str, int]:
    """The split and the number in it that an item's number, "test/000012" or "000012", names."""
    split, _, number = item.number.rpartition("/")
    return split or "train", int(number)


def _name_of(item: Item) -> str:
    return "{} sample {}".format(*_place(item))


def _sample(part: Any, number: int, what: str) -> Sequence[Any]:
    sample = part[number]
    if not isinstance(sample, tuple | list) or len(sample) < 2:
        raise ValueError(
            f"{what} is a {type(sample).__name__}: a sample has to be (events, label) or "
            "(events, label, image)"
        )
    return sample


def _shape(frames: Tensor, image: Tensor | None) -> str:
    beside = "no image" if image is None else f"an image {tuple(image.shape)}"
    return f"T={len(frames)} frames {tuple(frames.shape[1:])} and {beside}"


def _finite(values: Tensor) -> bool:
    """Whether all values are finite; a sum, which tells nearly always, takes a thirtieth of it."""
    return math.isfinite(values.sum().item()) or bool(values.isfinite().all())


def _labels(part: Any, split: str) -> list[Any]:
    labels = getattr(part, "targets", None)
    if labels is None or getattr(part, "target_transform", None) is not None:
        labels = [_sample(part, i, f"{split} sample {i}")[1] for i in range(len(part))]
    if not len(labels):
        raise ValueError("a data set without samples: give one that has some")
    return [_label(label, f"{split} sample {i}") for i, label in enumerate(labels)]


def _label(label: Any, what: str) -> Any:
    """A label as a plain number or name."""
    if isinstance(label, Tensor | np.ndarray | np.generic) and label.ravel().shape == (1,):
        label = label.item()
    if isinstance(label, bool) or (isinstance(label, float) and label.is_integer()):
        return int(label)
    if isinstance(label, Tensor) or not isinstance(label, Hashable):
        kind = getattr(label, "shape", None)
        kind = type(label).__name__ if kind is None else f"shape {tuple(kind)}"
        raise ValueError(
            f"{what} has a label of {kind}: give a number or a name, of one-hot labels the argmax"
        )
    return label


def _name(label: Any, classes: Sequence[str] | None, what: str) -> str:
    if classes is None or label in classes:
        return str(label)
    if not (isinstance(label, int) and 0 <= label < len(classes)):
        raise ValueError(f"{what} has label {label!r}, none of {len(classes)} classes")
    return classes[label]


def _content(load: Any, item: Item) -> tuple[bytes, ...]:
    """A digest of the sample's frames and image."""

    def pieces() -> Iterator[bytes]:
        for x in load(item):
            if x is not None:
                yield repr(tuple(x.shape)).encode() + x.contiguous().numpy().tobytes()

    return (hashlib.sha256(b"".join(pieces())).digest(),)
