"""`estl export`: a student for other frameworks and runtimes."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def export(
    *,
    ckpt: Annotated[Path, Parameter(required=True)],
    to: tuple[
        Literal["safetensors", "onnx", "onnx-step", "nir", "torch-export", "torch-export-step"], ...
    ],
    output_dir: Path,
    data_path: Path | None = None,
    license: str = "unspecified",
    samples: int = 100,
    flips: int = 0,
    trust: tuple[str, ...] = (),
) -> None:
    """Write a student in other formats, read each back and compare its logits with PyTorch's.

    Args:
        ckpt: best*.ckpt or last.ckpt of a run folder.
        to: a format; may be given more than once. Formats that
            end in -step take one frame and the neurons' state,
            and return the next state.
        output_dir: folder to write to; card.json there describes inputs and outputs.
        data_path: another root folder of the data; the files are compared on its test split.
        license: license of the weights, for the card.
        samples: number of recordings to compare.
        flips: number of recordings that may differ by over 1e-5 (a spike right at the threshold).
        trust: a module that the checkpoint may name besides ESTL's own.
    """
    from estl.training.export import FILES
    from estl.training.export import export as run_export

    root = None if data_path is None else str(data_path)
    options = {"license": license, "samples": samples, "flips": flips, "trust": trust}
    card = run_export(ckpt, to, output_dir, data_path=root, **options)  # type: ignore[arg-type]
    for name, differs in card.differs.items():
        checked = f"differs from PyTorch by {differs:.1g} at most on {card.samples} recordings"
        if differs is None:
            checked = "not read back: SpikingJelly is not installed"
        print(f"{output_dir / FILES[name]}: {checked}")  # type: ignore[index]
    print(f"card: {output_dir / 'card.json'}")
