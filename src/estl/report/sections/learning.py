"""How the training went: accuracy, loss terms, learning rates, gradients, time."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from estl.report.parts import Figure, Line, Note, Part, Section, lines
from estl.report.sources import COLORS, Run, Variant
from estl.report.words import Text, same, say


def section(variants: Sequence[Variant]) -> Section | None:
    """Curves over the epochs; for several runs, those that can be overlaid."""
    runs = [run for variant in variants for run in variant.runs if run.history]
    if not runs:
        return None
    parts: list[Part] = []
    if len(runs) == 1:
        (run,) = runs
        parts += [accuracy(run), terms(run), *rates(run), *gradients(run)]
    else:
        parts.append(Note(say("thin_lines")))
        parts += [
            over(variants, "curve_val", "val/acc", say("val_accuracy"), 100.0, " %"),
            over(variants, "curve_train", "train/acc", say("train_accuracy"), 100.0, " %"),
            over(variants, "curve_loss", "train/loss", say("loss")),
            *shared_terms(variants),
            over(variants, "curve_lr", "lr", say("learning_rate")),
            over(variants, "curve_gradient", "gradient/student", say("gradient_norm"), log=True),
        ]
    parts += [
        over(variants, "curve_seconds", "seconds", say("seconds_epoch"), span_zero=True),
        over(variants, "curve_step", "step_seconds", say("seconds_step"), span_zero=True),
        over(
            variants, "curve_memory", "memory_mib", say("memory"), 1 / 1024, " GiB", span_zero=True
        ),
    ]
    return Section(
        "learning", [part for part in parts if not isinstance(part, Figure) or part.data]
    )


def accuracy(run: Run) -> Figure:
    """On training and on validation."""
    drawn = [
        curve(run, column, label, color, 100.0)
        for column, label, color in (
            ("train/acc", say("training"), COLORS[0]),
            ("val/acc", say("validation"), COLORS[1]),
        )
    ]
    return _epochs("learning_accuracy", drawn, say("accuracy"), say("learning_caption"), unit=" %")


def terms(run: Run) -> Figure:
    """Every weighted term, and their sum."""
    names = [n for n in run.history if n.startswith("train/") and n != "train/acc"]
    names.sort(key=lambda n: n != "train/loss")
    colors = dict(zip(names, ("#22272E", *COLORS), strict=False))
    drawn = [
        curve(
            run, n, say("loss_sum") if n == "train/loss" else same(n[6:]), colors.get(n, "#8C8C8C")
        )
        for n in names
    ]
    positive = all(np.nanmin(line.y) > 0 for line in drawn if len(line.y))
    return _epochs("learning_terms", drawn, say("loss"), say("terms_caption"), log=positive)


def shared_terms(variants: Sequence[Variant]) -> list[Figure]:
    """The weighted terms that more than one variant has; none if the sum has only one term."""
    logged = Counter(
        name.removeprefix("train/")
        for variant in variants
        for name in dict.fromkeys(n for run in variant.runs for n in run.history)
        if name.startswith("train/") and name not in ("train/acc", "train/loss")
    )
    shared = [name for name, n in logged.items() if n > 1] if len(logged) > 1 else []
    return [
        over(
            variants, f"curve_term_{name}", f"train/{name}", same(name),
            caption=say("curve_term_caption", name=name),
        )
        for name in shared[:8]
    ]  # fmt: skip


def rates(run: Run) -> list[Figure]:
    """Learning rates by part."""
    names = ["lr", *(n for n in run.history if n.startswith("lr/"))]
    drawn = [
        curve(run, n, say("student_part") if n == "lr" else same(n[3:]), color)
        for n, color in zip(names, COLORS, strict=False)
    ]
    return [_epochs("learning_rates", drawn, say("learning_rate"), say("rates_caption"))]


def gradients(run: Run) -> list[Figure]:
    """Norms of the gradients by part, where the run has kept them."""
    names = [n for n in run.history if n.startswith("gradient/")]
    if not names:
        return []
    drawn = [curve(run, n, same(n[9:]), color) for n, color in zip(names, COLORS, strict=False)]
    caption = say("gradients_caption")
    return [_epochs("learning_gradients", drawn, say("gradient_norm"), caption, log=True)]


def curve(run: Run, column: str, label: Text, color: str, factor: float = 1.0) -> Line:
    """A column over the epochs, without epochs that have no number."""
    y = factor * run.history.get(column, np.empty(0))
    known = np.isfinite(y)
    x = run.history["epoch"][known] if len(y) else y
    return Line(label, color, x, y[known])


def over(
    variants: Sequence[Variant],
    name: str,
    column: str,
    title: Text,
    factor: float = 1.0,
    unit: str = "",
    *,
    caption: Text | None = None,
    span: tuple[float, float] | None = None,
    span_zero: bool = False,
    log: bool = False,
) -> Figure:
    """A column of all runs; with several seeds each is thin, and their mean is thick."""
    drawn: list[Line] = []
    for variant in variants:
        runs = [run for run in variant.runs if run.history]
        label = same(variant.label)
        found = [
            line
            for run in runs
            if len((line := curve(run, column, label, variant.color, factor)).x)
        ]
        if len(found) < 2:
            drawn += found
            continue
        drawn += [Line(label, line.color, line.x, line.y, faint=True) for line in found]
        x = [e for e in found[0].x if all(e in line.x for line in found)]
        values = [[dict(zip(line.x, line.y, strict=True))[e] for e in x] for line in found]
        drawn.append(Line(label, variant.color, x, np.mean(values, axis=0)))
    top = max((float(np.max(line.y)) for line in drawn), default=1.0)
    span = (0.0, 1.1 * top) if span_zero else span
    return _epochs(
        name,
        drawn,
        title,
        caption or say(f"{name}_caption"),
        unit,
        span=span,
        log=log,
    )


def _epochs(
    name: str,
    drawn: Sequence[Line],
    y: Text,
    caption: Text,
    unit: str = "",
    *,
    log: bool = False,
    span: tuple[float, float] | None = None,
) -> Figure:
    kept = [line for line in drawn if len(line.x)]
    if not kept:
        return Figure(name, [], {}, caption)
    return lines(name, kept, x=say("epoch"), y=y, caption=caption, unit=unit, log=log, span=span)
