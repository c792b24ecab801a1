"""Classes of event files by a checkpoint. Lightning, which takes seconds, is not imported."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from estl.data.frames import normalize
from estl.data.reading import read_file
from estl.evaluation.accuracy import running_mean
from estl.training.checkpoint import build_student, part_of, read_checkpoint
from estl.training.names import refuse_strangers


@torch.inference_mode()
def predict(
    path: Path, files: Sequence[Path], trust: Sequence[str] = ()
) -> Iterator[tuple[Path, list[tuple[str, float]]]]:
    """For each event file the class and its probability after every time step t = 1..T.

    Args:
        path: the checkpoint.
        files: recordings, of the kind that the student was trained on.
        trust: modules that the checkpoint may name beside ESTL's own.

    Raises:
        ValueError: no checkpoint of ESTL, a class that is not trusted, a broken file.
    """
    saved = read_checkpoint(path)
    data = part_of(saved, "data", path)
    refuse_strangers(data, trust)
    student = build_student(saved, path, trust)
    options = data["init_args"]
    for file in files:
        frames = read_file(file, data["class_path"], options)
        frames = normalize(frames, options.get("normalize", "none"))
        logits = running_mean(student(frames[None]).logits)[0]
        if logits.shape[-1] != len(saved["classes"]):
            raise ValueError(
                f"{path} has names of {len(saved['classes'])} classes, but its student tells "
                f"{logits.shape[-1]} apart: give the checkpoint as estl fit wrote it"
            )
        probability, label = logits.softmax(-1).max(-1)
        names = [saved["classes"][k] for k in label.tolist()]
        yield file, list(zip(names, probability.tolist(), strict=True))
