"""`estl fit`: train a student."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from estl.commands.flags import ANY, Overrides, TrainingFlags


def fit(
    *overrides: Overrides,
    flags: TrainingFlags = ANY,
    seed: int | None = None,
    output_dir: Path | None = None,
    resume: Path | None = None,
    keep_checkpoints: int | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    profile: Annotated[bool, Parameter(negative="")] = False,
    help_all: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train a student.

    Any key of the recipe can be overridden: --learner.weight_decay 0, --student.init_args.dim 64.

    Args:
        seed: seed of weights and batch order.
        output_dir: run folder (default: a new one in runs/).
        resume: a run folder to continue.
        keep_checkpoints: last epochs' checkpoints to keep (default: 2).
        dry_run: build all parts, train for two steps, and report the
            parts and how long a run takes; nothing is written.
        profile: train for some twenty steps and report where the time goes; nothing is written.
        help_all: list every key of a recipe.
    """
    from estl.training.recipe import make_parser, parse
    from estl.training.run import fit as run_fit

    if help_all:
        make_parser().print_help()
        return
    from estl.report.collect import Collector
    from estl.report.pictures import Pictures
    from estl.report.run import accuracy_table, finish
    from estl.report.start import Start
    from estl.training.processes import restarted
    from estl.training.resume import kept_recipe, taken

    args = list(overrides)
    if resume is None and output_dir is not None and restarted() and taken(output_dir):
        resume = output_dir
    if resume is not None:
        flags = replace(flags, config=(str(kept_recipe(resume)), *flags.config))
    args += [] if seed is None else [f"--seed={seed}"]
    args += [] if keep_checkpoints is None else [f"--keep_checkpoints={keep_checkpoints}"]
    args += [] if output_dir is None else [f"--output_dir={output_dir}"]
    config, given = parse(flags.spell_out(args))
    if resume is not None and taken(resume) and (dry_run or profile):
        config.init_from = None  # the run has weights of its own, and the file may be gone
    if dry_run:
        from estl.training.rehearsal import rehearse

        print("\n".join(rehearse(config, given).lines()))
        return
    if profile:
        from estl.training.profiling import lines, profiled

        print("\n".join(lines(profiled(config, given))))
        return
    collector = Collector()
    finished = run_fit(config, given, resume, callbacks=[Pictures(), Start()], see=collector)
    if finished is not None:
        folder, results = finished
        print(accuracy_table(results))
        report = finish(folder, collector)
        print(f"run folder: {folder}" + (f"; report: {report}" if report else ""))
