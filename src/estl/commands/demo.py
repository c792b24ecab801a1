"""`estl demo`: what `make demo` runs, on embedded data, from anywhere."""

from pathlib import Path

from estl.commands.ablate import ablate
from estl.commands.flags import DataFlags, TrainingFlags
from estl.commands.sweep import Seeds
from estl.commands.train_teacher import train_teacher


def demo(
    *,
    output_dir: Path = Path("runs/demo"),
    seeds: Seeds = (0, 1, 2),
    jobs: int = 2,
    teacher_epochs: int = 20,
    epochs: int | None = None,
) -> None:
    """Train a teacher and two students, events-only and guided, on digits; compare them.

    Args:
        output_dir: folder to write to; what is already finished there is not run again.
        seeds: comma-separated, e.g. 0,1,2.
        jobs: number of runs at a time.
        teacher_epochs: passes of the teacher over the images.
        epochs: passes of the students over the recordings (default: the recipe's).
    """
    teacher = output_dir / "teacher"
    if not (teacher / "config.json").is_file():
        digits = DataFlags(dataset="digits")  # of 8x8 pixels, so that four make a patch
        train_teacher(flags=digits, epochs=teacher_epochs, patch=8, output_dir=teacher)
    flags = TrainingFlags(config=("digits_guided",), teacher=str(teacher), epochs=epochs)
    ablate(flags=flags, output_dir=output_dir, rungs=("1", "2bkt"), seeds=seeds, jobs=jobs)
