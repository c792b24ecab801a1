"""`estl train-teacher`: a CLIP vision tower, for where the Hub is out of reach."""

from pathlib import Path
from typing import Literal

from estl.commands.flags import ANY_DATA, DataFlags, Overrides


def train_teacher(
    *overrides: Overrides,
    flags: DataFlags = ANY_DATA,
    output_dir: Path,
    images: Path | None = None,
    epochs: int = 30,
    lr: float = 1e-3,
    seed: int = 0,
    image_size: int = 32,
    patch: int = 4,
    dim: int = 128,
    depth: int = 4,
    heads: int = 4,
    objective: Literal["embedding", "linear"] = "embedding",
    flip: bool = False,
) -> None:
    """Train a CLIP vision tower on the images of a paired set's training split.

    Args:
        output_dir: folder to write the teacher to.
        images: further training images, FOLDER/<class>/<name>.png.
        epochs: passes over the images.
        lr: peak learning rate.
        seed: seed of weights, batch order and augmentation.
        image_size: side that images are resized to, in pixels.
        patch: side of a patch in pixels.
        dim: width E.
        depth: number of layers.
        heads: attention heads.
        objective: what to train with: class embeddings, or a linear layer.
        flip: mirror half of the training images; their class must not change by it.
    """
    from estl.experiments.train_teacher import train_teacher as run
    from estl.training.recipe import build_data, parse

    config, given = parse(flags.spell_out(overrides), ["data"])
    tower = {
        "image_size": image_size,
        "patch": patch,
        "dim": dim,
        "depth": depth,
        "heads": heads,
        "objective": objective,
    }
    record = run(
        build_data(config, given),
        output_dir,
        tower=tower,
        images=images,
        flip=flip,
        epochs=epochs,
        lr=lr,
        seed=seed,
    )
    if record is None:  # not the first process
        return
    for split, accuracy in record.image_accuracy.items():
        print(f"accuracy on the {split} images: {100 * accuracy:.2f} %")
    print(f"teacher: {output_dir}")
