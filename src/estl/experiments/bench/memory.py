"""`estl bench --memory`: what batch of a recipe fits a GPU, computed with fake tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from estl.experiments.bench.bench import machine, write
from estl.experiments.bench.fake import FakeStep
from estl.report.tables import table
from estl.training.recipe import parse

GIB, MIB = 2**30, 2**20

CARDS = (8, 24, 80)
"""GiB of the GPUs that batches are computed for."""

CONTEXT = 0.5
"""GiB that CUDA and its libraries take for themselves."""

RESERVE = 0.1
"""Share of the rest that stays free: for what convolutions work in, and for blocks of the allocator
that are too small for what is asked."""

PRECISIONS = {"float32": False, "bf16-mixed": True}

WHAT = (
    f"Computed with fake tensors, not run on a GPU. Of each GPU {CONTEXT} GiB are CUDA's, and "
    f"{RESERVE:.0%} of the rest stay free. *Held*: between two steps, weights, gradients, "
    "optimizer and teacher. *A sample*: what one more takes. Then the largest batches by the GPU's "
    "GiB; *r.*: with `learner.recompute`."
)


@dataclass(frozen=True)
class Needs:
    """Bytes of a training step as a linear function of the batch size.

    What is held at any one moment of a step grows in proportion to the batch, or faster, and the
    maximum over several such moments is convex: between `small` and `large` it is at most what the
    line says.

    Args:
        held: between two steps.
        small: a batch size, and the most that its step holds.
        large: another one.
    """

    held: int
    small: tuple[int, int]
    large: tuple[int, int]

    @property
    def sample(self) -> float:
        """What a further sample of the batch takes."""
        return (self.large[1] - self.small[1]) / (self.large[0] - self.small[0])

    def batch(self, card: float) -> int:
        """The largest batch that fits a GPU of `card` GiB, 0 if it is less than `small`.

        >>> Needs(0, (2, 4 * GIB), (10, 12 * GIB)).batch(8)    # of (8 - 0.5) * 0.9 = 6.75 GiB
        4
        """
        found = self.small[0] + int((room(card) - self.small[1]) // self.sample)
        return found if found >= self.small[0] else 0


def room(card: float) -> float:
    """Bytes of a GPU of `card` GiB that a step may take."""
    return (card - CONTEXT) * (1 - RESERVE) * GIB


def needs(step: FakeStep, *, bfloat16: bool = False) -> Needs:
    """The line through the peak at a batch of 2, and near the batch that fills the largest card."""
    small, other = ((size, step.peak(size, bfloat16=bfloat16)) for size in (2, 4))
    guess = Needs(step.count.live, small, other).batch(max(CARDS))
    size = max(guess, 4)
    return Needs(step.count.live, small, (size, step.peak(size, bfloat16=bfloat16)))


def memory(recipes: Mapping[str, Sequence[str]], folder: Path | None) -> str:
    """Batches that fit by recipe, precision, and whether layers are recomputed, as Markdown.

    Args:
        recipes: by name, as arguments of `training.recipe.parse`.
        folder: gets `bench.md` and `bench.json`, or None.

    Raises:
        ValueError: a recipe that cannot be read, or whose data's sizes are not known.
    """
    found: dict[str, dict[str, dict[str, Needs]]] = {precision: {} for precision in PRECISIONS}
    for name, args in recipes.items():
        for way in ("kept", "recomputed"):
            step = FakeStep(*parse([*args, f"--learner.recompute={way == 'recomputed'}"]))
            for precision, low in PRECISIONS.items():
                of = found[precision].setdefault(name, {})
                of[way] = needs(step, bfloat16=low)
                print(_line(f"{name}, {precision}, {way}", of[way]), flush=True)
    sections = [f"## {precision}\n\n{_table(rows)}\n" for precision, rows in found.items()]
    tables = "\n".join([f"{WHAT}\n", *sections])
    if folder is not None:
        head = {k: v for k, v in machine().items() if k in ("command", "versions", "when")}
        values = {
            precision: {
                name: {
                    way: asdict(of) | {f"batch_{card}_gib": of.batch(card) for card in CARDS}
                    for way, of in ways.items()
                }
                for name, ways in rows.items()
            }
            for precision, rows in found.items()
        }
        write(folder, head, tables, values)
    return tables


def _line(name: str, of: Needs) -> str:
    batches = ", ".join(f"{of.batch(card)} on {card} GiB" for card in CARDS)
    return f"{name}: {of.held / MIB:.0f} MiB held, {of.sample / MIB:.3g} a sample: {batches}"


def _table(rows: Mapping[str, Mapping[str, Needs]]) -> str:
    head = ["MiB a sample", *map(str, CARDS)]
    cells = []
    for name, ways in rows.items():
        row = [name, f"{ways['kept'].held / MIB:.0f}"]
        for of in ways.values():
            row += [f"{of.sample / MIB:.3g}", *(f"{of.batch(card)}" for card in CARDS)]
        cells.append(row)
    return table(["", "MiB held", *head, *(f"r. {word}" for word in head)], cells)
