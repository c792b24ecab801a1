"""A student on the Hugging Face Hub, or in a folder with the same layout."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from estl.training.checkpoint import build_student, new_student, part_of, read_checkpoint
from estl.types import Output


class Pretrained(nn.Module, PyTorchModelHubMixin, library_name="estl"):
    """A student with its class names and the options of the data that it was trained on.

        Pretrained.from_checkpoint("runs/mine/last.ckpt").save_pretrained("folder")
        Pretrained.from_checkpoint("runs/mine/last.ckpt").push_to_hub("me/my-student")
        student = Pretrained.from_pretrained("me/my-student").student

    Args:
        part: the recipe's entry for the student: its `class_path` and `init_args`.
        classes: names in the order of the logits.
        data: the recipe's entry for the data: how frames are made.
        trust: modules that `part` may name besides ESTL's own.

    Raises:
        ValueError: a class that is not trusted.
    """

    def __init__(
        self,
        part: dict[str, Any],
        classes: list[str],
        data: dict[str, Any],
        trust: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.student = new_student(part, "config.json", trust)
        self.classes, self.data = classes, data

    @classmethod
    def from_checkpoint(cls, path: str | Path, trust: Sequence[str] = ()) -> "Pretrained":
        """The student of a checkpoint of `estl fit`, in eval mode."""
        saved = read_checkpoint(path)
        part, data = part_of(saved, "student", path), part_of(saved, "data", path)
        found = cls(part, saved["classes"], data, trust)
        found.student = build_student(saved, path, trust)
        return found.eval()

    def forward(self, events: Tensor) -> Output:
        """What the student gives."""
        output: Output = self.student(events)
        return output
