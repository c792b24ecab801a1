"""`estl teach`: a CLIP vision tower trained on the images of a paired set, where no hub is near.

It sees the RGB half of the *training* split, and further images that have no recordings. It is
saved by `save_pretrained`, so that `ClipTeacher` loads it as it would load the real one.
"""

import json
from pathlib import Path
from typing import Any

from lightning import Trainer, seed_everything

from estl.data.check import refuse_leaks
from estl.data.module import EventData
from estl.data.sets.photographs import Photographs
from estl.evaluation.accuracy import evaluate
from estl.guidance.teacher import CLIP_MEAN, CLIP_STD
from estl.guidance.tower import BothHeads, ClipTower
from estl.training.learner import Learner
from estl.training.recipe import Run
from estl.training.run import ProgressBar, describe


def teach(
    pairs: EventData,
    folder: Path,
    *,
    tower: dict[str, Any],
    images: Path | None = None,
    epochs: int = 30,
    lr: float = 1e-3,
    seed: int = 0,
) -> dict[str, Any]:
    """Train a tower on the images of `pairs`, and save it into `folder`.

    Args:
        pairs: the paired set; only its training items are learned from.
        folder: becomes what `ClipTeacher` loads.
        tower: arguments of `ClipTower`, without `classes`.
        images: a folder of further training images, see `Photographs`.
        epochs: passes over the images.
        lr: peak learning rate of AdamW, weight decay 0.05, a cosine with two epochs of warm-up.
        seed: of weights, batch order and jitter.

    Returns:
        What `teacher.json` in the folder holds: accuracies on the images, and what they stand on.

    Raises:
        ValueError: the folder already holds a model; see `Photographs` and `ClipTower`.
    """
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} already holds a model: choose another --output-dir")
    seed_everything(seed, verbose=False)
    photographs = Photographs(pairs, images)
    if not pairs.allow_leaks:
        refuse_leaks(photographs)
    student = ClipTower(len(pairs.classes), **tower)
    recipe = {"seed": seed, "tower": tower, "images": None if images is None else str(images)}
    learner = Learner(student, BothHeads(), lr=lr, weight_decay=0.05, warmup=2.0, recipe=recipe)
    trainer = Trainer(
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[ProgressBar()],
    )
    trainer.fit(learner, photographs)
    device = trainer.strategy.root_device
    found = {
        split: evaluate(student, photographs.loader(split), device).final
        for split in ("val", "test")
    }
    run = Run(photographs, student, learner.supervision, recipe)
    record = describe(run) | recipe | {"epochs": epochs, "lr": lr, "image_accuracy": found}
    from transformers.utils import logging

    logging.disable_progress_bar()  # of writing one small file
    student.tower.save_pretrained(folder)
    normalization = {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}
    (folder / "preprocessor_config.json").write_text(json.dumps(normalization, indent=2) + "\n")
    (folder / "teacher.json").write_text(json.dumps(record, indent=2) + "\n")
    return record
