"""What was run, and the figures that matter."""

from collections.abc import Sequence
from statistics import mean

from estl.report.chance import chance_warning
from estl.report.intervals import Interval, difference, estimate
from estl.report.parts import Figure, Line, Note, Part, Section, Table, lines
from estl.report.sources import Run, Variant, lacks
from estl.report.tables import plus_minus
from estl.report.words import Text, joined, same, say
from estl.training.results import Weights


def section(variants: Sequence[Variant]) -> Section:
    """Warnings, accuracies with their intervals, and what each run was."""
    parts: list[Part] = [*warnings(variants)]
    measured = [v for v in variants if v.accuracies()]
    if measured:
        parts.append(compared(measured))
        if len(measured) > 1:
            parts.append(accuracies(measured))
    runs = [run for variant in variants for run in variant.runs]
    told = next((run for run in runs if run.results), None)
    if told:
        parts.append(Table([], facts(told, variants), facts=True))
    return Section("overview", parts)


def warnings(variants: Sequence[Variant]) -> list[Note]:
    """Files that are missing or broken, and accuracies at chance."""
    runs = [run for variant in variants for run in variant.runs]
    found = [note for run in runs if (note := unfinished(run)) is not None]
    for (name, why), folders in lacks(runs).items():
        some = ", ".join(str(folder) for folder in folders[:3]) + (", …" if folders[3:] else "")
        where = {"file": name, "n": len(folders), "folders": some}
        found.append(Note(say("broken" if why else "missing", why=why, **where), bool(why)))
    tests = [(v, a) for v in variants if (a := v.accuracies())]
    told = next((run.results for run in runs if run.results), None)
    if tests and told:
        means = [mean(a.final for a in found_here) for _, found_here in tests]
        warning = chance_warning(means, tests[0][1][0].samples, told.of.data.classes)
        if warning:
            found.insert(0, Note(same(warning), warning=True))
    return found


def unfinished(run: Run) -> Note | None:
    """How far a run is that has no results yet."""
    trainer = run.config.get("trainer")
    wanted = trainer.get("max_epochs") if isinstance(trainer, dict) else None
    if run.results is not None or not run.history:
        return None
    done = int(run.history["epoch"][-1])
    return Note(say("unfinished", folder=run.folder, n=done, all=wanted or "?"))


def interval(variant: Variant, weights: Weights = "final") -> Interval | None:
    """Accuracy of a variant in percent."""
    found = variant.accuracies(weights)
    return estimate([a.final for a in found], found[0].samples) if found else None


def compared(variants: Sequence[Variant]) -> Table:
    """A row a variant: accuracies, differences from the first, time, memory."""
    base, *others = variants
    many = any(len(v.runs) > 1 for v in variants)
    head = [
        same(""),
        say("runs"),
        say("final"),
        *([say("against", name=base.name)] if others else []),
    ]
    head += [say("best_on_validation"), say("train_time"), say("memory"), say("energy")]
    rows = []
    for variant in variants:
        best = interval(variant, "best_on_validation")
        known = [run.results for run in variant.runs if run.results]
        energy = [run.diagnosis["energy_uj_total"] for run in variant.runs if run.diagnosis]
        cells = [variant.label, str(len(known))]
        cells += [f"{interval(variant)} %"]
        if others:
            cells.append("" if variant is base else against(variant, base, len(others)))
        cells += [f"{best} %" if best else "-"]
        cells += [f"{mean(r.train_seconds for r in known):.0f} s"]
        cells += [f"{mean(r.peak_memory_mib for r in known):.0f} MiB"]
        cells += [f"{plus_minus(energy, 3)} µJ" if energy else "-"]
        rows.append([same(cell) for cell in cells])
    caption = joined(sample(variants[0]), say("interval_seeds" if many else "interval_samples"))
    return Table(head, rows, joined(caption, say("paired")) if others else caption)


def sample(variant: Variant) -> Text:
    """On how many samples of which split accuracies are."""
    run = variant.first(lambda run: run.accuracy())
    accuracy = run.accuracy() if run else None
    if run is None or run.results is None or accuracy is None:
        return same("")
    split = "on_test" if run.results.test else "on_validation"
    return say(split, n=accuracy.samples, data=run.results.of.data.name)


def against(variant: Variant, base: Variant, comparisons: int) -> str:
    """The difference of a variant from a base, over the seeds that both have."""
    mine = {run.seed: a for run in variant.runs if (a := run.accuracy())}
    its = {run.seed: a for run in base.runs if (a := run.accuracy())}
    both = [seed for seed in mine if seed in its]
    if not both or len({a.samples for a in [*mine.values(), *its.values()]}) > 1:
        return "-"
    return difference([mine[s] for s in both], [its[s] for s in both], comparisons)


def accuracies(variants: Sequence[Variant]) -> Figure:
    """A point a variant with its interval, and its seeds as small ones."""
    drawn = []
    for variant in variants:
        found = interval(variant)
        assert found is not None
        label = same(variant.label)
        drawn.append(Line(label, variant.color, [variant.name], [found.value], [found], None))
        if len(variant.runs) > 1:
            seeds = [100 * a.final for a in variant.accuracies()]
            names = [variant.name] * len(seeds)
            drawn.append(Line(label, variant.color, names, seeds, dash=None, faint=True))
    caption = joined(say("accuracy_caption"), chance(variants))
    figure = lines(
        "accuracy", drawn, x=same(""), y=say("test_accuracy"), caption=caption, unit=" %"
    )
    figure.layout["xaxis"] |= {"type": "category", "range": [-0.6, len(variants) - 0.4]}
    figure.layout["hovermode"] = "closest"
    return figure


def chance(variants: Sequence[Variant]) -> Text:
    """What guessing gives, if the number of classes is known."""
    runs = [run.results for v in variants for run in v.runs if run.results]
    classes = next((r.of.data.classes for r in runs if r.of.data.classes), None)
    return say("chance", percent=f"{100 / classes:.3g}") if classes else same("")


def facts(run: Run, variants: Sequence[Variant]) -> list[list[Text]]:
    """What figures stand on: data, student, supervision, seeds, versions, machine, command."""
    assert run.results is not None
    of = run.results.of
    options = {k: v for k, v in run.arguments("data").items() if v is not None}
    sizes = ", ".join(f"{split} {n}" for split, n in of.data.sizes.items())
    epochs = sorted({r.results.epochs for v in variants for r in v.runs if r.results})
    seeds = sorted({r.seed for v in variants for r in v.runs if r.seed is not None})
    rows = [
        ("data", f"{of.data.name}, {of.data.fingerprint}; {sizes}"),
        ("options", ", ".join(f"{k} {v}" for k, v in options.items() if not isinstance(v, dict))),
        ("student", f"{of.student}, {of.parameters:,}"),
        *(("supervision", f"{v.name}: {supervision(v)}") for v in variants),
        ("epochs", ", ".join(map(str, epochs))),
        ("seeds", ", ".join(map(str, seeds))),
        ("versions", ", ".join(f"{name} {number}" for name, number in of.versions.items())),
        ("machine", of.machine),
        ("finished", of.finished),
        ("command", of.command),
        ("folder", str(run.folder)),
    ]
    return [[say(name), same(value)] for name, value in rows if value]


def supervision(variant: Variant) -> str:
    """The class of a variant's supervision and its options in one line."""
    run = variant.first(lambda run: run.config)
    if run is None or not run.kind("supervision"):
        return "?"
    arguments = run.arguments("supervision")
    weights = arguments.get("weights")
    if isinstance(weights, dict):
        arguments = {k: v for k, v in weights.items() if v}
    options = ", ".join(f"{k} {v}" for k, v in arguments.items() if v not in (None, {}, []))
    return f"{run.kind('supervision')}({options})"
