"""`estl teach`: a CLIP vision tower trained on the images of a paired set, where no hub is near.

It sees the RGB half of the *training* split, and further images that have no recordings. It is
saved by `save_pretrained`, so that `ClipTeacher` loads it as it would load the real one.
"""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from lightning import Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F

from estl.data.check import refuse_leaks
from estl.data.images import list_images
from estl.data.module import EventData
from estl.data.pairs import Item, file_content
from estl.evaluate import evaluate
from estl.guidance.teacher import CLIP_MEAN, CLIP_STD
from estl.learner import Learner
from estl.recipe import Run
from estl.run import ProgressBar, describe
from estl.types import Batch, Loss, Output, Supervision

Objective = Literal["embedding", "linear"]


class ClipTower(nn.Module):
    """A CLIP vision tower with a classifier, as a student of still images (T = 1).

    objective="embedding": supervised contrastive against learned class embeddings w_k, which play
    the part of CLIP's text embeddings (Radford et al. 2021, section 2.3), with a learned scale s:

        logit_k = exp(s) * cos(P pooled, w_k)

    objective="linear": a linear layer on the pooled feature.

    Two heads of the objective: one reads the pooled feature (`logits`), one the mean of the patches
    (`classify`). The second is there because a tower that is trained through its class token alone
    leaves its patches, of which the distillation's target is made, far less telling (docs/log.md).

    In training mode every image is shifted and scaled by up to a tenth, and mirrored if `flip`.

    Args:
        classes: number of classes K.
        image_size: side of the square that images are resized to, a multiple of `patch`.
        patch: side of a patch in pixels.
        dim: width E, a multiple of `heads`.
        depth: number of layers.
        heads: attention heads.
        objective: see above.
        flip: whether mirrored images are of the same class.

    Raises:
        ValueError: sizes that do not divide.

    >>> output = ClipTower(5, image_size=16, patch=8, dim=16, depth=1, heads=2)(
    ...     torch.rand(2, 1, 3, 16, 16))
    >>> output.logits.shape, output.features.shape
    (torch.Size([2, 1, 5]), torch.Size([2, 1, 16, 2, 2]))
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        classes: int,
        *,
        image_size: int = 32,
        patch: int = 4,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        objective: Objective = "embedding",
        flip: bool = False,
    ) -> None:
        super().__init__()
        if image_size % patch or dim % heads:
            raise ValueError(
                f"image_size={image_size} must be a multiple of patch={patch}, and dim={dim} of "
                f"heads={heads}"
            )
        from transformers import CLIPVisionConfig, CLIPVisionModel

        config = CLIPVisionConfig(
            hidden_size=dim,
            intermediate_size=4 * dim,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            image_size=image_size,
            patch_size=patch,
        )
        self.tower = CLIPVisionModel(config)
        self.image_size, self.grid, self.flip = image_size, image_size // patch, flip
        self.dim, self.in_channels, self.classes = dim, 3, classes
        head = CosineHead if objective == "embedding" else nn.Linear
        self.head: nn.Module = head(dim, classes)
        self.patch_head: nn.Module = head(dim, classes)
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1), persistent=False)

    def forward(self, events: Tensor) -> Output:
        """Logits and patch features of images (B,1,3,H,W) in [0,1]."""
        x = events[:, 0]
        size = (self.image_size, self.image_size)
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0.0, 1.0)
        if self.training:
            x = jitter(x, flip=self.flip)
        out = self.tower(pixel_values=(x - self.mean) / self.std)
        pooled = out.pooler_output[:, None]
        patches = out.last_hidden_state[:, 1:].transpose(1, 2)
        return Output(
            logits=self.head(pooled),
            features=patches.unflatten(2, (self.grid, self.grid))[:, None],
            classify=self.patch_head,
            class_token=pooled,
            pooled_head=False,
        )


class BothHeads(Supervision):
    """CE(logits, label) + CE(classify(mean of the patches), label), see `ClipTower`."""

    def forward(self, output: Output, batch: Batch) -> Loss:
        """The loss of one batch."""
        patches = output.classify(output.features.mean((-2, -1)))
        terms = {
            "pooled": F.cross_entropy(output.logits.mean(1), batch.target),
            "patches": F.cross_entropy(patches.mean(1), batch.target),
        }
        return Loss(sum(terms.values(), start=terms["pooled"].new_zeros(())), terms)


class CosineHead(nn.Module):
    """exp(s) * cos(P x, w_k), see `ClipTower`; exp(s) is at most 100, as in CLIP."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, dim, bias=False)
        self.embeddings = nn.Parameter(torch.randn(classes, dim))
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows K"]:
        """Logits of pooled features."""
        cosine = F.normalize(self.project(x), dim=-1) @ F.normalize(self.embeddings, dim=-1).T
        return self.scale.exp().clamp(max=100.0) * cosine


def jitter(x: Float[Tensor, "B 3 H W"], *, flip: bool) -> Float[Tensor, "B 3 H W"]:
    """Each image shifted and scaled by up to a tenth, and mirrored half the time if `flip`."""
    draw = torch.rand(len(x), 4, device=x.device)
    scale = 0.9 + 0.2 * draw[:, 0]
    mirror = torch.where(draw[:, 1] < 0.5, -1.0, 1.0) if flip else torch.ones_like(scale)
    theta = x.new_zeros(len(x), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = scale * mirror, scale
    theta[:, :, 2] = 0.4 * draw[:, 2:] - 0.2
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


class Photographs(EventData):
    """The images of a paired set, alone: batches whose `events` are the image as one time step.

    Args:
        pairs: the paired set; its splits are kept.
        extra: a folder of further training images `<class>/<name>.png`, or None.

    Raises:
        ValueError: the set has no images, or none for validation; `extra` has other classes, or an
            image of the set's validation or test items (same class and number).
    """

    def __init__(self, pairs: EventData, extra: Path | None = None) -> None:
        splits = {name: list(items) for name, items in pairs.splits.items()}
        if extra is not None:
            held = {*splits["val"], *splits["test"]}
            more = [item for item in list_images(extra) if item not in set(splits["train"])]
            leaks = [item for item in more if item in held]
            strange = {item.label for item in more} - set(pairs.classes)
            if leaks or strange:
                what = f"class {min(strange)}" if strange else f"{leaks[0]}, which is held out"
                raise ValueError(f"--images {extra} has {what}: remove it from the folder")
            splits["train"] += more
        if not splits.get("val"):
            raise ValueError("this data set lists no validation images: choose the set itself")
        image = pairs.load(splits["val"][0])[1]
        if image is None:
            raise ValueError("this data set has no images to teach from: choose a paired one")
        super().__init__(
            splits,
            partial(_load, load=pairs.load, read=pairs.read_image),
            T=1,
            image_size=(image.shape[-2], image.shape[-1]),
            in_channels=3,
            batch_size=pairs.batch_size,
            seed=pairs.seed,
            content=pairs.content if extra is None else file_content,
        )


def _load(item: Item, load: Any, read: Any) -> tuple[Tensor, None]:
    image = read(item.image) if item.events is None and item.image else load(item)[1]
    return image[None], None


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
    photographs.trainer = None
    device = trainer.strategy.root_device
    found = {
        split: evaluate(student, getattr(photographs, f"{split}_dataloader")(), device).final
        for split in ("val", "test")
    }
    run = Run(photographs, student, learner.supervision, recipe)
    record = describe(run) | recipe | {"epochs": epochs, "lr": lr, "image_accuracy": found}
    from transformers.utils import logging

    logging.disable_progress_bar()  # of writing one small file
    student.tower.save_pretrained(folder)
    normalisation = {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}
    (folder / "preprocessor_config.json").write_text(json.dumps(normalisation, indent=2) + "\n")
    (folder / "teacher.json").write_text(json.dumps(record, indent=2) + "\n")
    return record
