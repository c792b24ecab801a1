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
  teach    train a CLIP-like teacher  estl teach --dataset digits --output-dir TEACHER
  ladder   the distillation in rungs  estl ladder --config recipes/digits_guided.yaml

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
        "teach": _teach,
        "ladder": _ladder,
    }
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if words[0] not in commands:
        print(f"estl: no command {words[0]!r}: choose from {', '.join(commands)}", file=sys.stderr)
        return 2
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
    """Keep Lightning's notes about hardware, workers and its products off the screen.

    Importing Lightning sets these levels, so that this comes after.
    """
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

    _quiet()
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


def _teach(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="estl teach",
        allow_abbrev=False,
        description="Train a CLIP vision tower on the images of a paired set's training split. "
        "Further words choose the data as in estl fit: --dataset, --data-path, --config, --data",
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="becomes the teacher")
    parser.add_argument("--images", type=Path, help="further images, FOLDER/<class>/<name>.png")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=32, help="side images are resized to")
    parser.add_argument("--patch", type=int, default=4, help="side of a patch in pixels")
    parser.add_argument("--dim", type=int, default=128, help="width E")
    parser.add_argument("--depth", type=int, default=4, help="layers")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--objective", choices=("embedding", "linear"), default="embedding")
    parser.add_argument("--flip", action="store_true", help="mirrored images are of the same class")
    options, rest = parser.parse_known_args(words)
    from estl.recipe import build_data
    from estl.teach import teach

    _quiet()
    names = ("image_size", "patch", "dim", "depth", "heads", "objective", "flip")
    record = teach(
        build_data(rest),
        options.output_dir,
        tower={name: getattr(options, name) for name in names},
        images=options.images,
        epochs=options.epochs,
        lr=options.lr,
        seed=options.seed,
    )
    for split, accuracy in record["image_accuracy"].items():
        print(f"accuracy on the {split} images: {100 * accuracy:.2f} %")
    print(f"teacher: {options.output_dir}")


def _ladder(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="estl ladder",
        allow_abbrev=False,
        description="Every rung of the guided distillation, on the same data, seeds and budget. "
        "Further words are those of estl fit.",
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="continues if it exists")
    parser.add_argument("--seeds", default="0,1,2", help="as 0,1,2")
    parser.add_argument("--rungs", help="as 1,2,2s,3,4,5 (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    options, rest = parser.parse_known_args(words)
    from estl.ladder import rungs
    from estl.recipe import write_given
    from estl.sweep import sweep, write

    options.output_dir.mkdir(parents=True, exist_ok=True)
    recipe = write_given(rest, options.output_dir / "recipe.yaml")
    variants = rungs(recipe, options.rungs.split(",") if options.rungs else None)
    found = sweep(
        ["--config", str(options.output_dir / "recipe.yaml")],
        variants,
        numbers(options.seeds),
        options.output_dir,
        jobs=options.jobs,
    )
    title = f"Ladder on {recipe['data']['class_path'].rpartition('.')[2]}"
    command = " ".join(["estl ladder", *words])
    print(write(found, variants, options.output_dir, title=title, command=command))
    print(f"table, figures and run folders: {options.output_dir}")


def numbers(text: str) -> list[int]:
    """Whole numbers separated by commas.

    >>> numbers("0,1,2")
    [0, 1, 2]
    """
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"{text!r} is no list of whole numbers: write 0,1,2") from None


if __name__ == "__main__":
    sys.exit(main())
