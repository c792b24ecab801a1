"""DVS128 Gesture: eleven gestures of 29 people before a DVS128."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from estl.data.formats.aedat import DVS128, Between, read_aedat
from estl.data.frames import Slicing, to_frames
from estl.data.items import Item, file_content, split_items
from estl.data.module import EventData

GESTURES = (
    "hand_clapping",
    "right_hand_wave",
    "left_hand_wave",
    "right_arm_clockwise",
    "right_arm_counter_clockwise",
    "left_arm_clockwise",
    "left_arm_counter_clockwise",
    "arm_roll",
    "air_drums",
    "air_guitar",
    "other_gestures",
)
"""By the set's own numbers, which start at 1."""


def read_labels(path: Path) -> list[tuple[str, Between]]:
    """Gestures of a recording and when they were made, from its `..._labels.csv`.

    Below the head "class,startTime_usec,endTime_usec" each line holds one gesture's number, 1 to
    11, and the interval, its end excluded, by the recording's clock.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another head, or a line that is not such a gesture; the text names file and
            line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no labels {path}")
    head, *lines = path.read_text(errors="replace").splitlines() or [""]
    if head.replace(" ", "") != "class,startTime_usec,endTime_usec":
        raise ValueError(f"{path}: line 1 is {head[:60]!r}, not class,startTime_usec,endTime_usec")
    found = []
    for i, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        try:
            gesture, start, stop = (int(field) for field in line.split(","))
        except ValueError:
            raise ValueError(
                f"{path}: line {i} is {line[:60]!r}, not three whole numbers"
            ) from None
        if not (1 <= gesture <= len(GESTURES) and 0 <= start < stop < 1 << 62):
            raise ValueError(
                f"{path}: line {i}, {line[:60]!r}, is not a class of 1 to {len(GESTURES)}, a start "
                "and a later end"
            )
        found.append((GESTURES[gesture - 1], (start, stop)))
    return found


def interval(item: Item) -> Between:
    """When an item's gesture was made; its number, "user01_led/3", counts the labels from 0."""
    assert item.events is not None
    return read_labels(_labels_of(item.events))[int(item.number.rpartition("/")[2])][1]


def list_gestures(recordings: Iterable[Path]) -> list[Item]:
    """One item for each labeled gesture of the recordings.

    Raises:
        FileNotFoundError: a recording or its labels are missing.
        ValueError: broken labels.
    """
    items = []
    for path in recordings:
        if not path.is_file():
            raise FileNotFoundError(f"no recording {path}")
        for i, (gesture, _) in enumerate(read_labels(_labels_of(path))):
            items.append(Item(gesture, f"{path.stem}/{i}", events=path))
    return items


def load_gesture(
    item: Item, T: int, size: int, by: Slicing
) -> tuple[Float[Tensor, "T 2 h w"], None]:
    """Event counts of one gesture; of its recording, only these packets are decoded."""
    assert item.events is not None
    events, _ = read_aedat(item.events, DVS128, interval(item))
    return to_frames(events, T, (size, size), by, sensor=DVS128), None


def gesture_content(item: Item) -> Iterable[bytes]:
    """What the fingerprint knows of an item: its file, and its interval."""
    yield from file_content(item)
    yield repr(interval(item)).encode()


class DVSGesture(EventData):
    """Gestures of DVS128 Gesture (Amir et al. 2017), cut from their recordings; without images.

    `root`, or its folder DvsGesture, holds `user01_led.aedat` and so on, each with its
    `user01_led_labels.csv`, and the set's own split: `trials_to_train.txt` (users 1 to 23) and
    `trials_to_test.txt` (users 24 to 29), a list of recordings each. The validation split is
    recordings of training users who are not in the training split, as the test split is of people
    who are in neither.

    Args:
        root: the folder that the archive was unpacked to.
        T: number of frames.
        size: height and width of the frames; the sensor has 128.
        by: frames of equal event "count" or of equal "time".
        val_fraction: share of the training users whose gestures are the validation split.
        split_seed: of the choice of these users.
        loading: arguments of `EventData`: batch_size, seed, num_workers, cache and others.

    Raises:
        FileNotFoundError: a list, a recording or its labels are missing.
        ValueError: broken labels, a recording that is listed twice; on loading, a broken recording
            or an interval without events.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        T: int = 16,
        size: int = 64,
        by: Slicing = "count",
        val_fraction: float = 0.1,
        split_seed: int = 0,
        **loading: Any,
    ) -> None:
        root = Path(root)
        if (root / "DvsGesture").is_dir():
            root = root / "DvsGesture"
        training, test = (_listed(root / f"trials_to_{name}.txt") for name in ("train", "test"))
        if both := sorted(set(training) & set(test)):
            raise ValueError(
                f"{both[0]} is listed in trials_to_train.txt and in trials_to_test.txt"
            )
        users = {Item("user", _user(path)) for path in training}
        _, chosen = split_items(users, val_fraction, split_seed)
        held_out = {user.number for user in chosen}
        super().__init__(
            {
                "train": list_gestures(p for p in training if _user(p) not in held_out),
                "val": list_gestures(p for p in training if _user(p) in held_out),
                "test": list_gestures(test),
            },
            partial(load_gesture, T=T, size=size, by=by),
            T=T,
            image_size=(size, size),
            content=gesture_content,
            **loading,
        )

    @staticmethod
    def read(path: Path, **options: Any) -> Tensor:
        """Frames of one whole recording; T, `size` and `by` of `options` are used."""
        size = (options["size"], options["size"])
        events, _ = read_aedat(path, DVS128)
        return to_frames(events, options["T"], size, options["by"], sensor=DVS128)


def _listed(path: Path) -> list[Path]:
    """The recordings that a list names, one a line."""
    if not path.is_file():
        raise FileNotFoundError(f"no list {path}: point --data-path at DVS128 Gesture")
    names = path.read_text(errors="replace").split()
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: {twice[0]} is listed twice")
    return [path.parent / name for name in names]


def _labels_of(recording: Path) -> Path:
    return recording.with_name(f"{recording.stem}_labels.csv")


def _user(recording: Path) -> str:
    return recording.stem.partition("_")[0]
