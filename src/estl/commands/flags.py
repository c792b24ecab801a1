"""The short flags of the command line, spelled out as overrides of a recipe."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import yaml
from cyclopts import Parameter

from estl.data.catalog import CATALOG

RECIPES = Path(__file__).parents[1] / "recipes"

ARCHS = {
    "vggsnn": ["--student=estl.students.VGGSNN"],
    "vggsnn-pooled": ["--student=estl.students.VGGSNN", "--student.init_args.pooled=true"],
    "resnet18": ["--student=estl.students.resnet18"],
    "resnet19": ["--student=estl.students.resnet19"],
    "resnet34": ["--student=estl.students.resnet34"],
    "resnet50": ["--student=estl.students.resnet50"],
    "spikformer": ["--student=estl.students.Spikformer"],
    "spikformer-small": [
        "--student=estl.students.Spikformer",
        *(f"--student.init_args.{x}" for x in ("dim=64", "depth=1", "heads=4", "poolings=3")),
    ],
}
DATASETS = {
    row.name: [
        f"--data={row.class_path}",
        *(f"--data.init_args.{key}={value}" for key, value in row.init_args.items()),
    ]
    for row in CATALOG
}
OTHER_NAMES = {name: row.name for row in CATALOG for name in row.also}
SUPERVISIONS = {"tse": "estl.supervision.TSE", "tet": "estl.supervision.TET"}
OWNERS = {"tau_f": "tse", "kappa": "tse", "means": "tet", "lamb": "tet"}
PLAIN = "estl.supervision.MeanCE"
AUGMENTS = {
    "none": "null",
    "cifar": '{"padded_crop": 4, "flip": 0.5, "policy": "autoaugment", "cutout": 16}',
    "events": '{"flip": 0.5, "roll": 5}',
}
"""Presets of `--augment`: the field's usual ones for small pictures, and for event frames."""

PRECISIONS = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
"""Short for Lightning's names."""

KEYS = {
    "data_path": "data.init_args.root",
    "T": "data.init_args.T",
    "batch_size": "data.init_args.batch_size",
    "sensor": "data.init_args.sensor",
    "window": "data.init_args.window",
    "stride": "data.init_args.stride",
    "init_from": "init_from",
    "epochs": "trainer.max_epochs",
    "lr": "learner.lr",
    "optimizer": "learner.optimizer",
    "weight_decay": "learner.weight_decay",
    "augment": "data.init_args.augment",
    "precision": "trainer.precision",
    "devices": "trainer.devices",
    "logger": "trainer.logger",
    "tau_f": "supervision.init_args.tau_f",
    "kappa": "supervision.init_args.kappa",
    "means": "supervision.init_args.means",
    "lamb": "supervision.init_args.lamb",
    "teacher": "supervision.init_args.teacher",
}
"""The recipe's key for each flag that takes a value."""


def _shown(default: Any) -> Any:
    """A default as one would type it, nothing for none."""
    return (",".join(map(str, default)) if isinstance(default, tuple) else default) or None


DEFAULTS = Parameter(negative_iterable=(), show_default=_shown, allow_repeating=True)
"""For all options: no flag for an empty list, no uninformative default, the last value wins."""

Overrides = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]
"""Any keys of a recipe, as `--KEY VALUE`; they come after the short flags."""


@Parameter(name="*", group="Recipe")
@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """Short flags that choose the data; a recipe decides what they leave open.

    Args:
        config: a recipe: a YAML file, or the name of one of ESTL's own; a later one overrides.
        dataset: digits, recordings, folder, nmnist, ncaltech101,
            cifar10, cifar100, cifar10dvs, dvsgesture or shards.
        data_path: folder of the data.
        T: time steps.
        batch_size: samples per batch.
        sensor: height by width of your own recordings: 720x1280.
        window: window length for your own recordings, e.g. 300ms.
        stride: time from one window's start to the next one's.
    """

    config: tuple[str, ...] = ()
    dataset: str | None = None
    data_path: str | None = None
    T: Annotated[int | None, Parameter(name="--T")] = None
    batch_size: int | None = None
    sensor: str | None = None
    window: str | None = None
    stride: str | None = None

    def spell_out(self, more: Sequence[str] = ()) -> list[str]:
        """The flags and `more`, `--KEY VALUE` overrides, as arguments of `training.recipe.parse`.

        Recipes come first, then classes, then values: a class must come before its arguments, and
        the command line overrides a recipe.

        >>> TrainingFlags(tse=True, tau_f=0.3).spell_out(["--seed", "1"])
        ['--supervision=estl.supervision.TSE', '--supervision.init_args.tau_f=0.3', '--seed', '1']

        Raises:
            ValueError: `tse` with `tet`; an unknown name; a recipe that cannot be read; an option
                of a supervision that is not chosen.
        """
        given: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        if given.get("tse") and given.get("tet"):
            raise ValueError(
                "--tse and --tet both decide how the outputs over time become one loss, so they "
                "exclude each other: leave one out"
            )
        recipes = [find_recipe(name) for name in self.config]
        supervision = PLAIN
        for recipe in recipes:
            supervision = _supervision_of(read_recipe(recipe), supervision)
        classes: list[str] = []
        if (name := given.get("arch")) is not None:
            classes += _named(ARCHS, "--arch", name)
        if (name := given.get("dataset")) is not None:
            classes += _named(DATASETS, "--dataset", name, OTHER_NAMES)
        if (name := given.get("augment")) is not None:
            given["augment"] = _augment(name)
        if (name := given.get("precision")) is not None:
            if (precision := PRECISIONS.get(name, name)) not in PRECISIONS.values():
                raise ValueError(f"--precision {name}: give 32, or bf16 or 16 (mixed)")
            given["precision"] = precision
        rest: list[str] = []
        queue = iter(more)
        for word in queue:
            key, equals, path = word.partition("=")
            if key in ("--data", "--student", "--supervision"):
                path = path if equals else next(queue, "")
                classes.append(f"{key}={path}")
                supervision = path if key == "--supervision" else supervision
            elif key.startswith("--data.init_args.bridge."):
                rest.append(_bridge(key, path if equals else next(queue, "")))
            else:
                rest.append(word)
        for flag, own in SUPERVISIONS.items():
            chosen = given.get(flag)
            if chosen or (chosen is False and _same(supervision, own)):
                supervision = own if chosen else PLAIN
                classes.append(f"--supervision={supervision}")
        values = []
        for name, key in KEYS.items():
            if (value := given.get(name)) is None:
                continue
            owner = OWNERS.get(name)
            if owner and not _same(supervision, SUPERVISIONS[owner]):
                flag = name.replace("_", "-")
                raise ValueError(
                    f"--{flag} is an option of --{owner}: add --{owner}, or leave --{flag} out"
                )
            if name == "augment":  # in place of the recipe's, not added to it
                values.append(f"--{key}=null")
            values.append(f"--{key}={value}")
        return [*(f"--config={recipe}" for recipe in recipes), *classes, *values, *rest]


@Parameter(name="*", group="Recipe")
@dataclass(frozen=True, kw_only=True)
class TrainingFlags(DataFlags):
    """Short flags that choose data, student and supervision, and how to train.

    Args:
        arch: student: vggsnn, vggsnn-pooled, resnet18, resnet19,
            resnet34, resnet50, spikformer or spikformer-small.
        init_from: checkpoint or run folder with the initial weights.
        tse: temporal-self-erasing supervision.
        tau_f: fixed threshold of TSE.
        kappa: dynamic threshold of TSE, in standard deviations.
        tet: temporal efficient training.
        means: value that TET's second term pulls logits to.
        lamb: share of TET's second term.
        teacher: for a guided run: a folder, or a name on the Hub.
        lr: learning rate.
        optimizer: adamw, adam or sgd (momentum 0.9).
        weight_decay: weight decay of the optimizer.
        augment: none, cifar (crop, flip, policy, cutout), events (flip, roll), or flip=0.5,roll=5.
        precision: 32, or bf16 or 16 (mixed).
        devices: how many devices, or which: 2, or 0,1.
        logger: where metrics are written: tensorboard, csv or wandb.
        epochs: passes over the training split.
    """

    arch: str | None = None
    init_from: str | None = None
    tse: bool | None = None
    tau_f: float | None = None
    kappa: float | None = None
    tet: bool | None = None
    means: float | None = None
    lamb: float | None = None
    teacher: str | None = None
    lr: float | None = None
    optimizer: str | None = None
    weight_decay: float | None = None
    augment: str | None = None
    precision: str | None = None
    devices: str | None = None
    logger: str | None = None
    epochs: int | None = None


ANY_DATA = DataFlags()
ANY = TrainingFlags()


def find_recipe(name: str) -> Path:
    """The file of a recipe: ESTL's own of this name, unless `name` itself is a file."""
    own = RECIPES / f"{name}.yaml"
    return own if own.is_file() and not Path(name).is_file() else Path(name)


def read_recipe(path: Path) -> Any:
    """What a recipe's YAML holds.

    Raises:
        ValueError: no such file, no YAML, or one without keys; the text names file and line.
    """
    try:
        recipe = yaml.safe_load(path.read_text())
        if isinstance(recipe, dict):
            return recipe
    except OSError:
        own = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
        raise ValueError(
            f"--config {path} cannot be read: give a recipe (a YAML file, or one of {own})"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        place = getattr(error, "problem_mark", None)
        line = f" at line {place.line + 1}" if place else ""
        raise ValueError(f"{path} is not valid YAML{line}: correct it") from None
    raise ValueError(f"{path} is no recipe: give a YAML file of keys such as data and student")


def _supervision_of(recipe: Any, default: str) -> str:
    part = recipe.get("supervision") if isinstance(recipe, dict) else None
    return str(part.get("class_path", default)) if isinstance(part, dict) else default


def _same(path: str, other: str) -> bool:
    """Whether two class paths, of which one may be a bare name, mean the same class."""
    return path.rpartition(".")[2] == other.rpartition(".")[2]


def _named(
    table: dict[str, list[str]], flag: str, value: str, others: Mapping[str, str] = {}
) -> list[str]:
    key = value.lower().replace("_", "-")
    short = key.replace("-", "")
    found = table.get(key) or table.get(others.get(short, short))
    if found is None:
        raise ValueError(f"{flag} {value} is not known: choose from {', '.join(table)}")
    return found


def _bridge(key: str, value: str) -> str:
    """An override of a dataclass, null as JSON: jsonargparse would turn it into the text None.

    >>> _bridge("--bridge.images", "null"), _bridge("--bridge.per_step", "5")
    ('--bridge={"images": null}', '--bridge.per_step=5')
    """
    whole, _, own = key.rpartition(".")
    return f'{whole}={{"{own}": null}}' if value == "null" else f"{key}={value}"


def _augment(text: str) -> str:
    """`--augment` as the value of a recipe's key.

    >>> _augment("events"), _augment("flip=0.5,policy=autoaugment")
    ('{"flip": 0.5, "roll": 5}', '{"flip": 0.5, "policy": "autoaugment"}')
    """
    if text in AUGMENTS:
        return AUGMENTS[text]
    pairs = [word.split("=") for word in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        names = ", ".join(AUGMENTS)
        raise ValueError(f"--augment {text}: give {names}, or options such as flip=0.5,roll=5")
    return json.dumps({key: yaml.safe_load(value) for key, value in pairs})
