"""The short flags of the command line, spelled out as overrides of a recipe."""

from pathlib import Path

import yaml

from estl.data.catalog import CATALOG

ARCHS = {
    "vggsnn": ["--student=estl.students.VGGSNN"],
    "vggsnn-pooled": ["--student=estl.students.VGGSNN", "--student.init_args.pooled=true"],
    "resnet18": ["--student=estl.students.resnet18"],
    "resnet19": ["--student=estl.students.resnet19"],
    "resnet34": ["--student=estl.students.resnet34"],
    "resnet50": ["--student=estl.students.resnet50"],
    "spikformer": ["--student=estl.students.Spikformer"],
}
DATASETS = {
    row.name: [
        f"--data={row.class_path}",
        *(f"--data.init_args.{key}={value}" for key, value in row.init_args.items()),
    ]
    for row in CATALOG
}
SUPERVISIONS = {"--tse": "estl.supervision.TSE", "--tet": "estl.supervision.TET"}
SUPERVISION_OF = {"--tau-f": "--tse", "--kappa": "--tse", "--means": "--tet", "--lamb": "--tet"}
PLAIN = "--supervision=estl.supervision.MeanCE"
VALUES = {
    "--data-path": "data.init_args.root",
    "--T": "data.init_args.T",
    "--batch-size": "data.init_args.batch_size",
    "--epochs": "trainer.max_epochs",
    "--lr": "learner.lr",
    "--output-dir": "output_dir",
    "--tau-f": "supervision.init_args.tau_f",
    "--kappa": "supervision.init_args.kappa",
    "--means": "supervision.init_args.means",
    "--lamb": "supervision.init_args.lamb",
    "--teacher": "supervision.init_args.teacher",
}


def spell_out(words: list[str]) -> list[str]:
    """A command line with its short flags spelled out as overrides of a recipe.

    Recipes come first, then classes, then everything else, whatever their order was: a class must
    stand before its arguments, and the command line overrides a recipe.
    `--no-tse` and `--no-tet` are left to `parse`, which knows the recipe.

    >>> spell_out(["--tau-f", "0.3", "--tse"])
    ['--supervision=estl.supervision.TSE', '--supervision.init_args.tau_f=0.3']

    Raises:
        ValueError: `--tse` with `--tet`; a short flag without a value; an unknown name.
    """
    if "--tse" in words and "--tet" in words:
        raise ValueError(
            "--tse and --tet both decide how the outputs over time become one loss, so they "
            "exclude each other: leave one out"
        )
    recipes: list[str] = []
    classes: list[str] = []
    values: list[str] = []
    queue = iter(words)
    for word in queue:
        flag, equals, value = word.partition("=")
        if flag in SUPERVISIONS:
            classes.append(f"--supervision={SUPERVISIONS[flag]}")
        elif flag in VALUES or flag in ("--arch", "--dataset", "--config"):
            value = value if equals else next(queue, "")
            if not value or value.startswith("--"):
                raise ValueError(f"{flag} has no value: write {flag} VALUE")
            if flag == "--config":
                check_yaml(Path(value))
                recipes.append(f"--config={value}")
            elif flag in VALUES:
                values.append(f"--{VALUES[flag]}={value}")
            else:
                classes += _named(ARCHS if flag == "--arch" else DATASETS, flag, value)
        elif flag in ("--data", "--student", "--supervision"):
            classes += [word] if equals else [word, next(queue, "")]
        else:
            values.append(word)
    return recipes + classes + values


def check_yaml(path: Path) -> None:
    """Raise ValueError, with the place, unless `path` is a file that parses as YAML."""
    try:
        yaml.safe_load(path.read_text())
    except OSError:
        raise ValueError(f"--config {path} cannot be read: give a recipe (YAML file)") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        line = f" at line {place.line + 1}" if place else ""
        raise ValueError(f"{path} is not valid YAML{line}: correct it") from None


def _named(table: dict[str, list[str]], flag: str, value: str) -> list[str]:
    key = value.lower().replace("_", "-")
    found = table.get(key) or table.get(key.replace("-", ""))
    if found is None:
        raise ValueError(f"{flag} {value} is not known: choose from {', '.join(table)}")
    return found
