"""Any folder of class-named images, paired with events by the saccade simulator."""

from functools import partial
from pathlib import Path

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from estl.data.images import list_images, read_rgb
from estl.data.module import EventData
from estl.data.pairs import Item, select_items, split_items
from estl.data.saccades import simulate


class ImageFolder(EventData):
    """Photographs in one folder a class, each with its simulated recording.

    The photograph is resized to twice `size`, the sensor; its recording (`simulate`, the third
    saccade 5/240 of the sensor's width, as in N-Caltech101) is counted in cells of 2x2
    pixels. Image and frames so share one field of view. A recording is simulated once and kept as
    bytes in memory.

    Args:
        root: the folder; `root/<class>/<name>.jpg` or .png.
        T: number of frames.
        size: height and width of the frames.
        rgb: height and width of the images.
        batch_size: samples a batch.
        val_fraction: share of the items outside the test split that is the validation split.
        test_fraction: share of the items that is the test split.
        per_class: training items a class, all if None. The rest is unused.
        classes_used: how many classes to keep, in the order of their names; all if None.
        seed: of the order of the training batches.
        split_seed: of the choice of test, validation and `per_class` items.
        num_workers: processes that load.

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
        batch_size: int = 32,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        per_class: int | None = None,
        classes_used: int | None = None,
        seed: int = 0,
        split_seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        items = list_images(Path(root))
        if classes_used is not None:
            names = sorted({item.label for item in items})[:classes_used]
            items = [item for item in items if item.label in names]
        rest, test = split_items(items, test_fraction, split_seed)
        train, val = split_items(rest, val_fraction, split_seed)
        if per_class is not None:
            train = select_items(train, per_class, split_seed)
        super().__init__(
            {"train": train, "val": val, "test": test},
            partial(load_simulated, T=T, size=size, rgb=rgb, kept={}),
            T=T,
            image_size=(size, size),
            batch_size=batch_size,
            seed=seed,
            num_workers=num_workers,
        )
        self.rgb = rgb

    def read_image(self, path: Path) -> Tensor:
        """One image file (3,rgb,rgb)."""
        return read_rgb(path, self.rgb)


def load_simulated(
    item: Item, T: int, size: int, rgb: int, kept: dict[Item, Tensor]
) -> tuple[Float[Tensor, "T 2 h w"], Float[Tensor, "3 H W"]]:
    """Simulated event counts of a photograph, and the photograph; `kept` remembers the counts."""
    assert item.image is not None
    if item not in kept:
        photograph = read_rgb(item.image, 2 * size)[None]
        fine = simulate(photograph, T, amplitude=5 * 2 * size / 240)
        kept[item] = (4 * F.avg_pool2d(fine[0], 2)).round().clamp(max=255).byte()
    return kept[item].float(), read_rgb(item.image, rgb)
