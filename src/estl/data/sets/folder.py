"""Any folder of class-named images, paired with events by the saccade simulator."""

from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from estl.data.formats.images import read_rgb
from estl.data.items import Item, list_images, read_splits, select_items, split_items
from estl.data.module import EventData
from estl.data.simulator import simulate

CALTECH101 = "101_ObjectCategories"


class ImageFolder(EventData):
    """Photographs in one folder a class, each with its simulated recording.

    The photograph is resized to a square of twice `size`, the sensor; its recording (`simulate`)
    is counted in cells of 2x2 pixels. Image and frames so share one field of view. Both are
    squashed to a square, as CLIP-sized students expect, rather than cropped or padded: nothing of a
    photograph is lost, and no border makes events.

    A photograph is simulated whenever it is loaded, unless a `cache` keeps the counts.

    Args:
        root: the folder; `root/<class>/<name>.jpg` or .png. A folder that holds Caltech101's
            `101_ObjectCategories` stands for that.
        T: number of frames; a multiple of 3 lets no frame mix two saccades.
        size: height and width of the frames.
        rgb: height and width of the images.
        amplitude: length of the third saccade, as a share of the sensor's width; 5 pixels of 240
            as in N-Caltech101.
        threshold: contrast that makes an event (`simulate`).
        splits: folder of published lists (`pairs.read_splits`) in place of the two fractions.
        val_fraction: share of the items outside the test split that is the validation split.
        test_fraction: share of the items that is the test split.
        per_class: training items a class, all if None. The rest is unused.
        classes_used: how many classes to keep, in the order of their names; all if None.
        split_seed: of the choice of test, validation and `per_class` items.
        loading: arguments of `EventData`: batch_size, seed, num_workers, cache and others.

    Raises:
        FileNotFoundError: no images.
        ValueError: a class has fewer than `per_class` training items.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        T: int = 6,
        size: int = 48,
        rgb: int = 224,
        amplitude: float = 5 / 240,
        threshold: float = 0.35,
        splits: Path | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        per_class: int | None = None,
        classes_used: int | None = None,
        split_seed: int = 0,
        **loading: Any,
    ) -> None:
        root = Path(root)
        items = list_images(root / CALTECH101 if (root / CALTECH101).is_dir() else root)
        left_out: set[str] = set()
        if classes_used is not None:
            names = sorted({item.label for item in items})
            left_out = {f"{name}/" for name in names[classes_used:]}
            items = [item for item in items if item.label in names[:classes_used]]
        if splits is not None:
            found = read_splits(
                splits, items, val_fraction=val_fraction, seed=split_seed, left_out=left_out
            )
        else:
            rest, test = split_items(items, test_fraction, split_seed)
            train, val = split_items(rest, val_fraction, split_seed)
            found = {"train": train, "val": val, "test": test}
        if per_class is not None:
            found["train"] = select_items(found["train"], per_class, split_seed)
        super().__init__(
            found,
            partial(
                load_simulated, T=T, size=size, rgb=rgb, amplitude=amplitude, threshold=threshold
            ),
            T=T,
            image_size=(size, size),
            **loading,
        )
        self.rgb = rgb

    @staticmethod
    def read(path: Path, **options: Any) -> Tensor:
        """Simulated frames of one photograph; T, size, amplitude, threshold of `options` count."""
        names = ("T", "size", "amplitude", "threshold")
        return simulate_file(path, **{name: options[name] for name in names})

    def read_image(self, path: Path) -> Tensor:
        """One image file (3,rgb,rgb)."""
        return read_rgb(path, self.rgb)


def load_simulated(
    item: Item, T: int, size: int, rgb: int, amplitude: float, threshold: float
) -> tuple[Float[Tensor, "T 2 h w"], Float[Tensor, "3 H W"]]:
    """Simulated event counts of a photograph, and the photograph."""
    assert item.image is not None
    frames = simulate_file(item.image, T, size, amplitude, threshold)
    return frames, read_rgb(item.image, rgb)


def simulate_file(
    path: Path, T: int, size: int, amplitude: float, threshold: float
) -> Float[Tensor, "T 2 h w"]:
    """Event counts of an image file, in cells of 2x2 pixels of a sensor of twice `size`."""
    sensor = 2 * size
    photograph = read_rgb(path, sensor)[None]
    fine = simulate(photograph, T, threshold=threshold, amplitude=amplitude * sensor)[0]
    return (4 * F.avg_pool2d(fine, 2)).round()
