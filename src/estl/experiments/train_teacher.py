"""`estl train-teacher`: a CLIP vision tower for where the Hub is out of reach.

It sees the RGB half of the *training* split, and further images that have no recordings. It is
saved by `save_pretrained`, so that `ClipTeacher` loads it as it would load the real one.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import seed_everything

from estl.data.augment import Augment
from estl.data.check import refuse_leaks
from estl.data.loader import batch_share
from estl.data.module import EventData
from estl.data.sets.photographs import Photographs
from estl.data.twins import image_key
from estl.evaluation.accuracy import evaluate
from estl.guidance.teacher import CLIP_MEAN, CLIP_STD, TRAINED_ON, quiet_transformers
from estl.guidance.tower import BothHeads, ClipTower
from estl.training.files import aside
from estl.training.history import History
from estl.training.learner import Learner
from estl.training.processes import rank
from estl.training.results import Json, Provenance, provenance
from estl.training.screen import progress_bars, quiet
from estl.training.trainer import make_trainer, plainly


@dataclass(frozen=True)
class TeacherRecord(Json):
    """`teacher.json` beside a teacher's weights.

    Args:
        of: what the figures rest on.
        tower: arguments of `ClipTower`.
        images: folder of further training images, or None.
        flip: whether training images were mirrored.
        epochs: passes over the images.
        lr: peak learning rate.
        image_accuracy: accuracy on images of the validation and, if there are any, the test split.
    """

    of: Provenance
    tower: dict[str, Any]
    images: str | None
    flip: bool
    epochs: int
    lr: float
    image_accuracy: dict[str, float]


@quiet()
def train_teacher(
    pairs: EventData,
    folder: Path,
    *,
    tower: dict[str, Any],
    images: Path | None = None,
    flip: bool = False,
    epochs: int,
    lr: float,
    seed: int = 0,
) -> TeacherRecord | None:
    """Train a tower on the images of `pairs`, and save it into `folder`.

    Training images are shifted and scaled by up to a tenth.

    Args:
        pairs: the paired set; only its training items are learned from.
        folder: becomes what `ClipTeacher` loads, and holds `history.csv` and, so that no run holds
            out what the teacher has learned, `trained_on.txt`.
        tower: arguments of `ClipTower`, without `classes`.
        images: a folder of further training images, see `Photographs`.
        flip: whether mirrored images are of the same class; if so, half of the images are mirrored.
        epochs: passes over the images.
        lr: peak learning rate of AdamW, weight decay 0.05, a cosine with two epochs of warm-up.
        seed: of weights, batch order and augmentation.

    Returns:
        What `teacher.json` in the folder holds; None in all processes but the first.

    Raises:
        ValueError: the folder already holds a model; see `Photographs` and `ClipTower`.
    """
    if epochs < 1:
        raise ValueError(f"--epochs is {epochs}: give a number at least 1")
    if rank() == 0 and (folder / "config.json").exists():
        raise ValueError(f"{folder} already holds a model: choose another --output-dir")
    seed_everything(seed, verbose=False)
    augment = Augment(shift=0.1, scale=0.1, flip=0.5 if flip else 0.0)
    photographs = Photographs(pairs, images, augment)
    photographs.seed = seed
    if not pairs.allow_leaks:
        refuse_leaks(photographs)
    student = ClipTower(len(pairs.classes), **tower)
    recipe = {"seed": seed}
    learner = Learner(student, BothHeads(), lr=lr, weight_decay=0.05, warmup=2.0, recipe=recipe)
    bars = progress_bars()
    off = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = make_trainer(
        {"max_epochs": epochs, "enable_progress_bar": bool(bars), **off},
        callbacks=[History(folder), *bars],
    )
    batch_share(photographs.batch_size, trainer.world_size)
    with plainly():
        trainer.fit(learner, photographs)
    if not trainer.is_global_zero:
        return None
    device = trainer.strategy.root_device
    found = {
        split: evaluate(student, photographs.loader(split), device).final
        for split in ("val", "test")
        if photographs.sizes[split]
    }
    record = TeacherRecord(
        provenance(photographs, student, learner.supervision, recipe),
        tower=tower,
        images=None if images is None else str(images),
        flip=flip,
        epochs=epochs,
        lr=lr,
        image_accuracy=found,
    )
    normalization = {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}
    with tempfile.TemporaryDirectory() as made:
        with quiet_transformers():
            student.tower.save_pretrained(made)
        files = {file.name: file.read_bytes() for file in Path(made).iterdir()}
    files["preprocessor_config.json"] = f"{json.dumps(normalization, indent=2)}\n".encode()
    keys = sorted({image_key(photographs, item) for item in photographs.splits["train"]})
    files[TRAINED_ON] = "".join(f"{key}\n" for key in keys).encode()
    files["teacher.json"] = record.to_json().encode()
    config = files.pop("config.json")  # comes last: a folder that has it holds a model
    for name, content in (files | {"config.json": config}).items():
        with aside(folder / name) as file:
            file.write(content)
    return record
