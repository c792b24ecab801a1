"""The command `estl`: parses, dispatches, prints. What the commands do is in `run.py`."""

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

USAGE = """usage: estl COMMAND ...

  fit      train a student            estl fit --config recipes/digits_tse.yaml
  test     accuracy of a checkpoint   estl test --ckpt RUN/last.ckpt [--data-path ROOT]
  predict  classes of event files     estl predict --ckpt RUN/last.ckpt FILE...

estl COMMAND --help lists the options of a command."""


def main(words: Sequence[str] | None = None) -> int:
    """Run `estl` with the words of a command line; returns the exit status.

    A user's mistake ends with one line on standard error and status 2.
    """
    words = list(sys.argv[1:] if words is None else words)
    commands: dict[str, Callable[[list[str]], None]] = {
        "fit": _fit,
        "test": _test,
        "predict": _predict,
    }
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if words[0] not in commands:
        print(f"estl: no command {words[0]!r}: choose from {', '.join(commands)}", file=sys.stderr)
        return 2
    _quiet()
    try:
        commands[words[0]](words[1:])
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"estl {words[0]}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"estl {words[0]}: interrupted; continue with estl fit --resume RUN", file=sys.stderr)
        return 130
    return 0


def _quiet() -> None:
    """Keep Lightning's notes about hardware, workers and its products off the screen."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*number of training batches.*",
        ".*exists and is not empty.*",
        ".*isinstance.treespec, LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message=text)


def _fit(words: list[str]) -> None:
    from estl.recipe import RecipeError, make_parser, parse
    from estl.run import fit

    if "-h" in words or "--help" in words:
        make_parser().print_help()
        return
    resume = None
    if "--resume" in words:
        at = words.index("--resume")
        if at + 1 == len(words) or not (Path(words[at + 1]) / "config.yaml").is_file():
            raise RecipeError("--resume needs a run folder (one that holds config.yaml)")
        resume = Path(words[at + 1])
        words = ["--config", str(resume / "config.yaml"), *words[:at], *words[at + 2 :]]
    config, given = parse(words)
    results = fit(config, given, resume)
    if results:
        _print_results(results)


def _print_results(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    test = results["test"]
    steps = range(1, len(test["final"]["per_step"]) + 1)
    table = Table(title=f"Test accuracy, % of {test['samples']} samples, after t time steps")
    table.add_column("weights")
    for t in steps:
        table.add_column(f"t={t}", justify="right")
    for name in ("final", "best_on_validation"):
        figures = [f"{100 * a:.1f}" for a in test[name]["per_step"]]
        table.add_row(name.replace("_", " "), *figures)
    Console().print(table)
    print(f"test accuracy: {100 * test['final']['accuracy']:.2f} %")
    print(f"run folder: {results['folder']}")


def _test(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="estl test", description="Test a checkpoint.")
    parser.add_argument("--ckpt", type=Path, required=True, help="best*.ckpt or last.ckpt")
    parser.add_argument("--data-path", help="another root of the same layout")
    parser.add_argument("--output-dir", type=Path, help="write test.json there")
    options = parser.parse_args(words)
    from estl.run import test

    found = test(options.ckpt, options.data_path, options.output_dir)["test"]
    for t, accuracy in enumerate(found["per_step"], 1):
        print(f"after step {t}: {100 * accuracy:.2f} %")
    print(f"test accuracy: {100 * found['accuracy']:.2f} % of {found['samples']} samples")


def _predict(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="estl predict", description="Classify event files.")
    parser.add_argument("--ckpt", type=Path, required=True, help="best*.ckpt or last.ckpt")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    options = parser.parse_args(words)
    from estl.run import predict

    for file, steps in predict(options.ckpt, options.files):
        print(file)
        for t, (name, probability) in enumerate(steps, 1):
            print(f"  t={t}  {name}  {probability:.3f}")


if __name__ == "__main__":
    sys.exit(main())
