"""What `ablate` and `compare` share: their options, and how a sweep is run and shown."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, Token

if TYPE_CHECKING:
    from estl.experiments.sweep import Variant


def _listed(kind: Callable[[str], Any]) -> Callable[[Any, Sequence[Token]], tuple[Any, ...]]:
    """A converter of values that are separated by commas."""

    def convert(_: Any, tokens: Sequence[Token]) -> tuple[Any, ...]:
        text = ",".join(token.value for token in tokens)
        try:
            return tuple(kind(word) for word in text.split(","))
        except ValueError:
            raise ValueError(f"{text!r} is no list of numbers: write 0,1,2") from None

    return convert


Launcher = Annotated[
    Literal["local", "ray", "slurm"], Parameter(show_choices=False, show_default=False)
]
PerRun = Annotated[str, Parameter(show=False)]
Seeds = Annotated[tuple[int, ...], Parameter(converter=_listed(int), n_tokens=1)]
Floats = Annotated[tuple[float, ...], Parameter(converter=_listed(float), n_tokens=1)]
Names = Annotated[tuple[str, ...], Parameter(converter=_listed(str), n_tokens=1)]


def check_jobs(jobs: int | None) -> int:
    """What --jobs says, 0 if it is not given.

    Raises:
        ValueError: a number below 1.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs is {jobs}: give a number at least 1")
    return jobs or 0


def run_sweep(
    title: str,
    args: Sequence[str],
    variants_of: Callable[[dict[str, Any]], "list[Variant]"],
    seeds: Sequence[int],
    folder: Path,
    jobs: int | None,
    launcher: str,
    per_run: str,
    without: Sequence[str] = (),
    bases: Sequence[str] = (),
) -> bool:
    """Keep the recipe in `folder`, run its variants, write and print their table.

    Under a launcher such as torchrun, the first process runs as many at a time as the launcher has
    started processes on this machine. Parts of the recipe named in `without` are left to the
    variants; those named in `bases` are what the table compares with.

    Returns:
        True in the first process; False in the others, which have done nothing.
    """
    from estl.experiments.sweep import keep_recipe, sweep
    from estl.report.comparison import write
    from estl.report.run import finish
    from estl.training.processes import take_over
    from estl.training.results import command_line

    at_once = check_jobs(jobs)
    started = take_over()
    if not started:
        return False
    if launcher == "local":
        at_once = max(at_once, started)
    recipe = keep_recipe(args, folder, without)
    variants = variants_of(recipe)
    found = sweep(recipe, variants, seeds, folder, jobs=at_once, launcher=launcher, per_run=per_run)
    what = {variant.name: variant.what for variant in variants}
    title = f"{title} on {recipe['data']['class_path'].rpartition('.')[2]}"
    print(write(found, what, folder, title=title, command=command_line(), bases=bases))
    report = finish(folder)
    print(f"table, figure and run folders: {folder}")
    if report is not None:
        print(f"report: {report}")
    return True
