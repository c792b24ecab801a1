"""What was run, and the figures that matter."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from estl.report.chance import chance_warning
from estl.report.intervals import Interval, difference, estimate
from estl.report.parts import Figure, Line, Note, Part, Section, Table, lines
from estl.report.sources import Run, Variant, lacks, sweep_command
from estl.report.tables import plus_minus
from estl.report.words import Text, joined, same, say
from estl.training.results import Provenance, Weights


def section(variants: Sequence[Variant]) -> Section:
    """Warnings, accuracies with their intervals, and what each run was."""
    parts: list[Part] = [*warnings(variants)]
    measured = [v for v in variants if v.accuracies()]
    if measured:
        parts.append(compared(measured))
        if len(measured) > 1:
            parts.append(accuracies(measured))
    if rows := facts(variants):
        parts.append(Table([], rows, facts=True))
    return Section("overview", parts)


def warnings(variants: Sequence[Variant]) -> list[Note]:
    """Files that are missing or broken, and accuracies at chance."""
    runs = [run for variant in variants for run in variant.runs]
    found = [note for run in runs if (note := unfinished(run)) is not None]
    for (folders, why), names in lacks(runs).items():
        some = ", ".join(str(folder) for folder in folders[:3]) + (", …" if folders[3:] else "")
        where = {"file": ", ".join(names), "n": len(folders), "folders": some}
        found.append(Note(say("broken" if why else "missing", why=why, **where), bool(why)))
    tests = [(v, a) for v in variants if (a := v.accuracies())]
    told = next((run.results for run in runs if run.results), None)
    if tests and told:
        means = [mean(a.final for a in found_here) for _, found_here in tests]
        warning = chance_warning(means, tests[0][1][0].samples, told.of.data.classes)
        if warning:
            found.insert(0, Note(same(warning), warning=True))
    prints = {run.results.of.data.fingerprint for run in runs if run.results}
    if len(prints) > 1:
        found.append(Note(say("other_data"), warning=True))
    return found


def unfinished(run: Run) -> Note | None:
    """How far a run without results has come."""
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
        diagnosed = [run.diagnosis for run in variant.runs if run.diagnosis]
        energy = [found["energy_uj_total"] for found in diagnosed]
        above = "> " if any(found.get("uncounted") for found in diagnosed) else ""
        cells = [variant.label, str(len(known))]
        cells += [f"{interval(variant)} %"]
        if others:
            cells.append("" if variant is base else against(variant, base, len(others)))
        cells += [f"{best} %" if best else "-"]
        cells += [f"{mean(r.train_seconds for r in known):.0f} s"]
        cells += [f"{mean(r.peak_memory_mib for r in known):.0f} MiB"]
        cells += [f"{above}{plus_minus(energy, 3)} µJ" if energy else "-"]
        rows.append([same(cell) for cell in cells])
    caption = joined(sample(variants[0]), say("interval_seeds" if many else "interval_samples"))
    return Table(head, rows, joined(caption, say("paired")) if others else caption)


def sample(variant: Variant) -> Text:
    """How many samples of which split the accuracies are on."""
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


def facts(variants: Sequence[Variant]) -> list[list[Text]]:
    """What figures stand on, said once where it is the same for all variants."""
    known = [(v, run) for v in variants if (run := v.first(lambda run: run.results))]
    rows = []
    for name, tell in FACTS.items():
        told = {variant.name: tell(variant, run) for variant, run in known}
        if len(set(told.values())) == 1:
            told = {"": next(iter(told.values()))}
        for variant, value in told.items():
            if value:
                rows.append([say(name), same(f"{variant}: {value}" if variant else value)])
    return rows


def _of(run: Run) -> Provenance:
    assert run.results is not None
    return run.results.of


def _data(_: Variant, run: Run) -> str:
    data = _of(run).data
    sizes = ", ".join(f"{split} {n}" for split, n in data.sizes.items())
    return f"{data.name}, {data.fingerprint}; {sizes}"


def _student(_: Variant, run: Run) -> str:
    return f"{_of(run).student}({options(run.arguments('student'))}), {_of(run).parameters:,}"


def _init_from(_: Variant, run: Run) -> str:
    begun = _of(run).init_from
    return f"{begun['path']} (SHA-256 {begun['sha256'][:12]})" if begun else ""


def _learner(_: Variant, run: Run) -> str:
    learner = run.config.get("learner")
    return options(learner) if isinstance(learner, dict) else ""


def _epochs(variant: Variant, _: Run) -> str:
    return ", ".join(map(str, sorted({r.results.epochs for r in variant.runs if r.results})))


def _seeds(variant: Variant, _: Run) -> str:
    return ", ".join(map(str, sorted({r.seed for r in variant.runs if r.seed is not None})))


def _versions(_: Variant, run: Run) -> str:
    return ", ".join(f"{name} {number}" for name, number in _of(run).versions.items())


def _command(_: Variant, run: Run) -> str:
    return sweep_command(run) or "; ".join([_of(run).command, *_of(run).resumed])


def _folder(_: Variant, run: Run) -> str:
    return str(run.folder.parents[1] if sweep_command(run) else run.folder)


def options(arguments: Mapping[str, Any]) -> str:
    """Plain arguments in one line, without those that are off.

    >>> options({"T": 6, "lr": 0.020833333, "augment": None, "layers": [16, "AP"]})
    'T 6, lr 0.02083, layers [16, AP]'
    """

    def told(value: Any) -> str:
        if isinstance(value, list):
            return f"[{', '.join(map(told, value))}]"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    kept = {k: v for k, v in arguments.items() if v not in (None, [], {})}
    return ", ".join(f"{k} {told(v)}" for k, v in kept.items() if not isinstance(v, dict))


def supervision(variant: Variant, _: Run) -> str:
    """The class of a variant's supervision and its options in one line."""
    run = variant.first(lambda run: run.config)
    if run is None or not run.kind("supervision"):
        return "?"
    arguments = run.arguments("supervision")
    weights = arguments.get("weights")
    if isinstance(weights, dict):
        arguments = {k: v for k, v in weights.items() if v}
    return f"{run.kind('supervision')}({options(arguments)})"


FACTS: dict[str, Callable[[Variant, Run], str]] = {
    "data": _data,
    "options": lambda _, run: options(run.arguments("data")),
    "student": _student,
    "init_from": _init_from,
    "supervision": supervision,
    "learner": _learner,
    "epochs": _epochs,
    "seeds": _seeds,
    "versions": _versions,
    "machine": lambda _, run: _of(run).machine,
    "finished": lambda _, run: _of(run).finished,
    "command": _command,
    "folder": _folder,
}
"""What is told of a variant and the first of its runs that is finished."""
