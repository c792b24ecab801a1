"""A recipe's training step on tensors that have shapes and no memory, and what it would hold.

Data and teachers are not read: only their sizes are needed.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from jsonargparse import Namespace
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from estl.data.module import EventData
from estl.experiments.bench.counting import LiveBytes
from estl.guidance import ClipTeacher
from estl.neurons import fused, moments, norm_passes
from estl.training.learner import Learner
from estl.training.recipe import networks
from estl.types import Batch, direct_code

SETS: dict[str, tuple[int, int | str, int | str, int | str | None]] = {
    "Digits": (2, 10, "size", "size"),
    "NMNISTPairs": (2, 10, 34, 34),
    "NCaltech101Pairs": (2, 100, "size", "rgb"),
    "CIFAR": (3, "classes", 32, 32),
    "CIFAR10DVS": (2, 10, "size", None),
    "DVSGesture": (2, 11, "size", None),
}
"""For each set: channels, number of classes, side of the frames and of the images, or the name of
the argument that sets it."""

SMALL: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
    "patch_size": 4,
}  # fmt: skip
TOWERS: dict[str, dict[str, Any]] = {
    "openai/clip-vit-base-patch16": {"patch_size": 16},  # the rest is transformers' default
    "teachers/mnist": SMALL | {"image_size": 36},
    "teachers/digits": SMALL | {"image_size": 32},
}
"""Sizes of the teachers that recipes name; others are read from their folder."""


@dataclass(frozen=True)
class Sizes:
    """What a step needs to know about the data.

    Args:
        data: their facts, without any item.
        image: side of the images, None if there are none.
        static: whether all steps of a recording are one image.
        unpaired: number of images of the bridge.
    """

    data: EventData
    image: int | None
    static: bool
    unpaired: int

    @classmethod
    def of(cls, config: Namespace) -> "Sizes":
        """The sizes that a recipe's arguments give.

        Raises:
            ValueError: a set whose sizes they do not give.
        """
        name, args = config.data.class_path.rpartition(".")[2], config.data.init_args
        if name not in SETS:
            raise ValueError(
                f"the sizes of {name} are known from its files alone: choose a recipe of "
                f"{', '.join(SETS)}, or try the batch with `estl fit ... --dry-run`"
            )
        channels, *rest = SETS[name]
        told: list[Any] = [args[x] if isinstance(x, str) else x for x in rest]
        classes, side, image = told
        data = EventData(
            [str(k) for k in range(classes)], {}, T=args.T, frame_size=(side, side),
            in_channels=channels,
        )  # fmt: skip
        unpaired = 0 if args.get("bridge") is None else args.bridge.per_step
        return cls(data, image if args.get("images", True) else None, name == "CIFAR", unpaired)

    def batch(self, size: int) -> Batch:
        """A batch of `size` recordings, with the bridge's images."""
        C, T, (H, W) = self.data.in_channels, self.data.T, self.data.frame_size
        if self.static:
            events = direct_code(torch.rand(size, C, H, W), T)
        else:
            events = torch.rand(size, T, C, H, W).round()
        image = unpaired = None
        if self.image is not None:
            image = torch.rand(size, 3, self.image, self.image)
            unpaired = torch.rand(self.unpaired, 3, self.image, self.image)
        label = torch.zeros(size, dtype=torch.long)
        return Batch(events, label, image, unpaired=unpaired if self.unpaired else None)


class FakeStep:
    """The training step of a recipe, as `estl fit` takes it on a GPU.

    Args:
        config: configuration of the run.
        given: the part of it that was given explicitly.
        fake: whether tensors have no memory; otherwise steps are run as they are.
        block: see `LiveBytes`.

    Raises:
        ValueError: see `Sizes.of`.
    """

    def __init__(
        self, config: Namespace, given: Namespace, *, fake: bool = True, block: int = 512
    ) -> None:
        self.sizes = Sizes.of(config)
        guide = config.supervision.get("init_args", Namespace())
        if "teacher" in guide:
            guide.teacher = teacher(str(guide.teacher))
            guide.cache_teacher = False  # a step in which it looks takes the most
        student, supervision = networks(config, given, self.sizes.data)
        steady = {"schedule": "constant", "warmup": 0.0, "compile": False}
        options = config.learner.as_dict() | steady
        self.learner = Learner(student, supervision, **options).train()
        self.tensors = FakeTensorMode() if fake else None
        self.count = LiveBytes(block)
        self.learner._apply(self._place)
        self.optimizer: torch.optim.Optimizer = self.learner.configure_optimizers()
        for group in self.optimizer.param_groups:
            group["fused"] = True  # asks no tensor for its value

    def _place(self, x: Tensor) -> Tensor:
        x = x if self.tensors is None else self.tensors.from_tensor(x)
        self.count.see(x)
        return x

    def peak(self, size: int, *, bfloat16: bool = False) -> int:
        """The most bytes that a step of `size` recordings holds."""
        with ExitStack() as modes:
            if self.tensors is not None:
                modes.enter_context(as_compiled())
                modes.enter_context(self.tensors)
            modes.enter_context(self.count)
            for _ in range(2):  # the first one makes what the optimizer keeps
                self.count.peak = self.count.live
                self.step(size, bfloat16)
        return self.count.peak

    def step(self, size: int, bfloat16: bool = False) -> None:
        """One step, in Lightning's order: the last one's gradients are there until the loss is."""
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = self._loss(size)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _loss(self, size: int) -> Tensor:
        batch = self.sizes.batch(size)
        if batch.unpaired is not None and self.learner.supervision.extends:
            # What draws these needs values. It is over before the student begins.
            batch = batch.extend(torch.zeros(self.sizes.unpaired, *batch.events.shape[1:]))
        total: Tensor = self.learner.supervision(self.learner.student(batch.events), batch).total
        return total


def teacher(name: str) -> ClipTeacher:
    """A teacher of the sizes that `name` has, with random weights.

    Raises:
        ValueError: neither one of `TOWERS` nor a folder.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    if name in TOWERS:
        return ClipTeacher(CLIPVisionModel(CLIPVisionConfig(**TOWERS[name])))
    try:
        return ClipTeacher(CLIPVisionModel(CLIPVisionConfig.from_pretrained(name)))
    except OSError:
        raise ValueError(
            f"teacher {name!r}: give a folder, or one of {', '.join(TOWERS)}"
        ) from None


@contextmanager
def as_compiled() -> Iterator[None]:
    """Let every `LIF` take a fused scan, as on CUDA, which allocates only what compiled code does:
    what it returns, unless that is a tensor that it was given.
    """

    def outputs(function: Callable[..., Any], *args: Any) -> Any:
        shapes = [x.to("meta") if isinstance(x, Tensor) else x for x in args]  # which take nothing

        def take(made: Tensor) -> Tensor:
            again = [x for x, shape in zip(args, shapes, strict=True) if shape is made]
            return again[0] if again else torch.empty_like(made, device=args[0].device)

        return tree_map(take, function(*shapes))

    with ExitStack() as patches:
        patches.enter_context(patch.dict(os.environ, ESTL_COMPILE="1"))
        for module in (fused, norm_passes, moments):
            patches.enter_context(patch.object(module, "run", outputs))
        yield
