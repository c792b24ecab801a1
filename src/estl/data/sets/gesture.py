"""DVS128 Gesture: eleven gestures of 29 people before a DVS128."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from estl.data.catalog import BY_NAME, Files
from estl.data.frames import Slicing
from estl.data.items import Item, file_content
from estl.data.reading import interval, read_gesture, read_labels
from estl.data.splits import SplitData


def list_gestures(recordings: Iterable[Path]) -> list[Item]:
    """One item for each labeled gesture of the recordings."""
    items = []
    for path in recordings:
        if not path.is_file():
            raise FileNotFoundError(f"no recording {path}")
        for i, (gesture, _) in enumerate(read_labels(path)):
            items.append(Item(gesture, f"{path.stem}/{i}", events=path))
    return items


def gesture_content(item: Item) -> Iterable[bytes]:
    """What the fingerprint knows of an item: its file, and its interval."""
    yield from file_content(item)
    yield repr(interval(item)).encode()


def user(item: Item) -> Item:
    """Who makes this gesture.

    >>> str(user(Item("arm_roll", "user01_led/8")))
    'user/user01'
    """
    return Item("user", item.number.partition("_")[0])


class DVSGesture(SplitData):
    """Gestures of DVS128 Gesture (Amir et al. 2017), cut from their recordings; without images.

    `root`, or its folder DvsGesture, holds `user01_led.aedat` and so on, each with its
    `user01_led_labels.csv`, and the set's own split: `trials_to_train.txt` (users 1 to 23) and
    `trials_to_test.txt` (users 24 to 29), a list of recordings each. Validation holds all
    recordings of held-out training users, so nobody is in two splits. With the test list alone the
    set can be tested.

    Args:
        root: the folder that the archive was unpacked to.
        T: number of frames.
        size: height and width of the frames; the sensor has 128.
        by: frames of equal event "count" or of equal "time".
        loading: arguments of `SplitData`, `ItemData` and `EventData`; `val_fraction` is a share of
            the training users.

    Raises:
        ValueError: broken labels, or a recording that is listed twice.
    """

    group = staticmethod(user)

    def __init__(
        self,
        root: str | Path,
        *,
        T: int = 16,
        size: int = 64,
        by: Slicing = "count",
        **loading: Any,
    ) -> None:
        root, row = Path(root), BY_NAME["dvsgesture"]
        no_training = row.test_alone(root)
        training = [] if no_training else _listed(row.files["train"], root)
        test = _listed(row.files["test"], root)
        if both := sorted(set(training) & set(test)):
            raise ValueError(
                f"{both[0]} is listed in trials_to_train.txt and in trials_to_test.txt"
            )
        super().__init__(
            list_gestures(training),
            partial(read_gesture, T=T, size=size, by=by),
            test=list_gestures(test),
            T=T,
            frame_size=(size, size),
            content=gesture_content,
            **loading,
        )
        self.no_training = no_training


def _listed(files: Files, root: Path) -> list[Path]:
    """The recordings that a list names, one a line."""
    (path,) = files.find(root)
    names = path.read_text(errors="replace").split()
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: {twice[0]} is listed twice")
    return [path.parent / name for name in names]
