"""The command `estl`: parses, dispatches, prints. What the commands do is in `run.py`."""

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from estl.experiments.sweep import Variant

T = TypeVar("T")

USAGE = """usage: estl COMMAND ...

  fit      train a student            estl fit --config recipes/digits_tse.yaml
  test     accuracy of a checkpoint   estl test --ckpt RUN/last.ckpt [--data-path ROOT]
  predict  classes of event files     estl predict --ckpt RUN/last.ckpt FILE...
  teach    train a CLIP-like teacher  estl teach --dataset digits --output-dir TEACHER
  data     get, check, show a set     estl data check --root ROOT
  ladder   the distillation in rungs  estl ladder --config recipes/digits_guided.yaml
  compare  plain, TET and TSE         estl compare --config recipes/digits_tse.yaml
  tune     thresholds of TSE          estl tune --config recipes/digits_tse.yaml

estl COMMAND --help lists the options of a command."""


def main(words: Sequence[str] | None = None) -> int:
    """Run `estl` with the words of a command line; returns the exit status.

    A user's mistake ends with one line on standard error and status 2.
    """
    words = list(sys.argv[1:] if words is None else words)
    commands: dict[str, Callable[[list[str]], int | None]] = {
        "fit": _fit,
        "test": _test,
        "predict": _predict,
        "teach": _teach,
        "data": _data,
        "ladder": _ladder,
        "compare": _compare,
        "tune": _tune,
    }
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if words[0] not in commands:
        print(f"estl: no command {words[0]!r}: choose from {', '.join(commands)}", file=sys.stderr)
        return 2
    try:
        return commands[words[0]](words[1:]) or 0
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"estl {words[0]}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        go_on = "estl fit --resume RUN" if words[0] == "fit" else "the same command"
        print(f"estl {words[0]}: interrupted; continue with {go_on}", file=sys.stderr)
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
        ".*IterableDataset. has .__len__. defined.*",
    ):
        warnings.filterwarnings("ignore", message=text)


def _fit(words: list[str]) -> None:
    from estl.training.recipe import make_parser, parse
    from estl.training.run import fit

    _quiet()
    if "-h" in words or "--help" in words:
        make_parser().print_help()
        return
    resume = None
    if "--resume" in words:
        at = words.index("--resume")
        if at + 1 == len(words) or not (Path(words[at + 1]) / "config.yaml").is_file():
            raise ValueError("--resume needs a run folder (one that holds config.yaml)")
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
    parser.add_argument("--attack", action="append", choices=("fgsm", "pgd"), default=[])
    parser.add_argument("--eps", default="8/255", help="of the attack, a share of a sample's range")
    parser.add_argument("--noise", action="store_true", help="Gaussian, event noise, a lost frame")
    options = parser.parse_args(words)
    from estl.evaluation.attacks import parse_eps
    from estl.training.run import test

    results = test(
        options.ckpt,
        options.data_path,
        options.output_dir,
        attacks=options.attack,
        eps=parse_eps(options.eps),
        noisy=options.noise,
    )
    found = results["test"]
    for t, accuracy in enumerate(found["per_step"], 1):
        print(f"after step {t}: {100 * accuracy:.2f} %")
    print(f"test accuracy: {100 * found['accuracy']:.2f} % of {found['samples']} samples")
    for condition, accuracy in results.get("robustness", {}).items():
        print(f"{condition}: {100 * accuracy:.2f} %")


def _predict(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="estl predict", description="Classify event files.")
    parser.add_argument("--ckpt", type=Path, required=True, help="best*.ckpt or last.ckpt")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    options = parser.parse_args(words)
    from estl.training.run import predict

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
    from estl.experiments.train_teacher import teach
    from estl.training.recipe import build_data

    _quiet()
    names = ("image_size", "patch", "dim", "depth", "heads", "objective")
    record = teach(
        build_data(rest),
        options.output_dir,
        tower={name: getattr(options, name) for name in names},
        images=options.images,
        flip=options.flip,
        epochs=options.epochs,
        lr=options.lr,
        seed=options.seed,
    )
    for split, accuracy in record["image_accuracy"].items():
        print(f"accuracy on the {split} images: {100 * accuracy:.2f} %")
    print(f"teacher: {options.output_dir}")


def _data(words: list[str]) -> int:
    from estl.commands.data import main as data

    return data(words)


def _ladder(words: list[str]) -> None:
    options, rest = _sweep_parser(
        "ladder",
        "Every rung of the guided distillation, on the same data, seeds and budget.",
        "--rungs",
        "as 1,2,2s,3,4,5 (default: all)",
    ).parse_known_args(words)
    from estl.experiments.ablate import rungs

    _sweep("ladder", "Ladder", words, options, rest, lambda recipe: rungs(recipe, options.names))


def _compare(words: list[str]) -> None:
    parser = _sweep_parser(
        "compare",
        "Plain cross-entropy, TET, and TSE at three thresholds, on the same data, seeds and "
        "budget; the recipe's own supervision is replaced.",
        "--only",
        "as plain,tet,tse,tse-aggressive,tse-conservative (default: all)",
    )
    parser.add_argument("--robust", action="store_true", help="also under attack and noise")
    parser.add_argument(
        "--eps", default="8/255", help="of the attacks, a share of a sample's range"
    )
    options, rest = parser.parse_known_args(words)
    from estl.evaluation.attacks import parse_eps
    from estl.experiments.compare import experiments, robustness

    eps, variants = parse_eps(options.eps), experiments(options.names)
    _sweep("compare", "Comparison", words, options, rest, lambda _: variants, ["supervision"])
    if options.robust:
        print(robustness(variants, numbers(options.seeds), options.output_dir, eps))


def _sweep_parser(
    command: str, description: str, names: str, names_help: str
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"estl {command}",
        allow_abbrev=False,
        description=f"{description} Further words are those of estl fit.",
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="continues if it exists")
    parser.add_argument("--seeds", default="0,1,2", help="as 0,1,2")
    parser.add_argument(names, dest="names", type=lambda t: t.split(","), help=names_help)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    return parser


def _sweep(
    command: str,
    title: str,
    words: list[str],
    options: argparse.Namespace,
    rest: list[str],
    variants_of: "Callable[[dict[str, Any]], list[Variant]]",
    without: Sequence[str] = (),
) -> None:
    from estl.experiments.sweep import sweep, write
    from estl.training.recipe import write_given

    options.output_dir.mkdir(parents=True, exist_ok=True)
    recipe = write_given(rest, options.output_dir / "recipe.yaml", without)
    variants = variants_of(recipe)
    found = sweep(
        ["--config", str(options.output_dir / "recipe.yaml")],
        variants,
        numbers(options.seeds),
        options.output_dir,
        jobs=options.jobs,
    )
    title = f"{title} on {recipe['data']['class_path'].rpartition('.')[2]}"
    line = " ".join([f"estl {command}", *words])
    print(write(found, variants, options.output_dir, title=title, command=line))
    print(f"table, figures and run folders: {options.output_dir}")


def _tune(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="estl tune",
        allow_abbrev=False,
        description="Search tau_f and kappa of TSE on the validation split with Optuna. "
        "Further words are those of estl fit.",
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="continues if it exists")
    parser.add_argument("--trials", type=int, default=20, help="in all, those before included")
    parser.add_argument("--grid-tau-f", help="as 0.3,0.5,0.7; every pair instead of TPE")
    parser.add_argument("--grid-kappa", help="as 0.5,1,2")
    parser.add_argument("--storage", help="Optuna storage URL (default: SQLite in the folder)")
    parser.add_argument("--no-prune", action="store_true", help="finish every trial")
    options, rest = parser.parse_known_args(words)
    from estl.experiments.tune import tune, write
    from estl.training.recipe import write_given

    _quiet()
    if (options.grid_tau_f is None) != (options.grid_kappa is None):
        raise ValueError("a grid needs both: give --grid-tau-f and --grid-kappa, or neither")
    grid = None
    if options.grid_tau_f is not None:
        pairs = {"tau_f": options.grid_tau_f, "kappa": options.grid_kappa}
        grid = {name: numbers(text, float) for name, text in pairs.items()}
    options.output_dir.mkdir(parents=True, exist_ok=True)
    write_given(rest, options.output_dir / "recipe.yaml")
    study = tune(
        ["--config", str(options.output_dir / "recipe.yaml")],
        options.output_dir,
        trials=options.trials,
        grid=grid,
        storage=options.storage,
        prune=not options.no_prune,
    )
    print(write(study, options.output_dir, " ".join(["estl tune", *words])))
    print(f"table, figure and run folders: {options.output_dir}")


def numbers(text: str, kind: Callable[[str], T] = int) -> list[T]:  # type: ignore[assignment]
    """Numbers separated by commas.

    >>> numbers("0,1,2"), numbers("0.5,2", float)
    ([0, 1, 2], [0.5, 2.0])
    """
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"{text!r} is no list of numbers: write 0,1,2") from None


if __name__ == "__main__":
    sys.exit(main())
