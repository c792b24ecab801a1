"""Recipes: the typed configuration of a run, from YAML files and dotted overrides.

A recipe names classes and their arguments: `data`, `student`, `supervision`; and the arguments of
`learner` and `trainer`. What the data decide (class count, channels, frame size) is filled in where
it is left out, and refused where it contradicts them. `init_from` names a checkpoint, or a run
folder, whose weights the student begins with (`training.init_from`); `init_from_sha256` is its
checksum, which the run writes down.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning import Callback, Trainer
from torch import nn

from estl.data.module import EventData
from estl.data.twins import Group
from estl.supervision import MeanCE
from estl.training.checkpoint import make
from estl.training.contract import check_kept_images
from estl.training.learner import Learner
from estl.training.mistakes import one_line
from estl.training.names import public, public_path
from estl.training.trainer import Logging
from estl.types import Supervision

SECTIONS = ("data", "student", "supervision", "learner", "trainer", "init_args")
"""Keys of a recipe that hold further keys; what stands under any other is one value."""

RANGES = {
    "at least 1": {
        "data.init_args.T": "--T",
        "data.init_args.batch_size": "--batch-size",
        "trainer.max_epochs": "--epochs",
        "keep_checkpoints": "--keep-checkpoints",
        "trainer.accumulate_grad_batches": "",
        "trainer.check_val_every_n_epoch": "",
    },
    "at least 0": {
        "seed": "--seed",
        "data.init_args.num_workers": "",
        "learner.weight_decay": "--weight-decay",
        "learner.warmup": "",
        "trainer.gradient_clip_val": "",
    },
    "above 0": {
        "learner.lr": "--lr",
        "trainer.limit_train_batches": "",
        "trainer.val_check_interval": "",
    },
}
"""Valid ranges of a recipe's numbers, with their short flags: outside them, Lightning and loaders
fail late, or train on in silence."""


@functools.cache  # it does not change, and takes longer to make than a recipe to be read
def make_parser() -> ArgumentParser:
    """The schema of a recipe, as a parser of its keys."""
    parser = ArgumentParser(
        prog="estl fit", exit_on_error=False, allow_abbrev=False, usage="estl fit --KEY VALUE ..."
    )
    parser.add_argument("--config", action="config", help="A recipe (YAML).")
    parser.add_argument("--seed", type=int, default=0, help="Seed of weights and batch order.")
    parser.add_argument(
        "--output_dir", type=str | None, default=None, help="Run folder (default: a new one)."
    )
    parser.add_argument(
        "--keep_checkpoints", type=int, default=2, help="Last epochs' checkpoints to keep."
    )
    parser.add_argument(
        "--init_from",
        type=str | None,
        default=None,
        help="Checkpoint with the initial weights.",
    )
    parser.add_argument(
        "--init_from_sha256", type=str | None, default=None, help="Its checksum; null: any."
    )
    parser.add_subclass_arguments(
        EventData, "data", skip={"in_channels", "content", "test", "left_out"}
    )
    parser.add_subclass_arguments(nn.Module, "student")
    parser.add_subclass_arguments(Supervision, "supervision")
    parser.add_class_arguments(
        Learner,
        "learner",
        skip={"student", "supervision", "recipe", "classes", "fingerprint"},
        instantiate=False,
    )
    parser.add_class_arguments(
        Trainer,
        "trainer",
        skip={"logger", "default_root_dir", "enable_checkpointing", "barebones"},
        instantiate=False,
    )
    parser.add_argument(
        "--trainer.logger", type=Logging, default="tensorboard", help="Where metrics are written."
    )
    parser.set_defaults(
        {
            "trainer.max_epochs": 20,
            "trainer.log_every_n_steps": 10,
            "supervision": {"class_path": public_path(MeanCE)},
        }
    )
    return parser


def parse(
    args: Sequence[str], parts: Sequence[str] = ("data", "student")
) -> tuple[Namespace, Namespace]:
    """The complete configuration of `--config FILE` and `--KEY VALUE`, and the part that was given.

    Args:
        args: arguments of the command line.
        parts: parts that have to be chosen.

    Raises:
        ValueError: an unknown key, a wrong type, a number out of range, a missing part.
    """
    parser = make_parser()
    try:
        given = parser.parse_args(list(args), defaults=False)
        for part in parts:
            if given.get(part) is None:
                flag = {"data": "--dataset", "student": "--arch"}[part]
                raise ValueError(f"no {part} chosen: give --config RECIPE, or {flag} NAME")
        return _in_range(parser.parse_args(list(args))), given
    except ArgumentError as error:
        raise ValueError(one_line(str(error))) from None


def parse_recipe(recipe: dict[str, Any]) -> tuple[Namespace, Namespace]:
    """The complete configuration of a recipe's plain values, and the part that they give.

    Raises:
        ValueError: as `parse`.
    """
    parser = make_parser()
    try:
        return _in_range(parser.parse_object(recipe)), parser.parse_object(recipe, defaults=False)
    except ArgumentError as error:
        raise ValueError(one_line(str(error))) from None


def _in_range(config: Namespace) -> Namespace:
    """The configuration, or ValueError for a number out of `RANGES`, or one where keys belong."""
    for part in ("learner", "trainer"):
        if not isinstance(config[part], Namespace):
            raise ValueError(f"{part} is {config[part]}: give keys below it, or leave it out")
    if config.trainer.max_epochs is None:  # which Lightning takes for 1000
        raise ValueError("--epochs (trainer.max_epochs) is null: give a number at least 1")
    if config.trainer.fast_dev_run:  # which keeps no weights
        raise ValueError("trainer.fast_dev_run: use --dry-run, which trains two steps")
    for needed, keys in RANGES.items():
        low = int(needed[-1])
        for key, flag in keys.items():
            value = config.get(key)
            if isinstance(value, int | float) and not (
                value > low or (value == low and needed.startswith("at least"))
            ):
                name = f"{flag} ({key})" if flag else f"--{key}"
                raise ValueError(f"{name} is {value}: give a number {needed}")
    return config


def plain(config: Namespace) -> dict[str, Any]:
    """A configuration as plain values with public class paths: a recipe."""
    values = yaml.safe_load(make_parser().dump(config, skip_validation=True))
    values.pop("config", None)
    return dict(public(values))


def merge(recipe: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """`recipe` with the values of `overlay`; another class drops the old arguments.

    >>> merge({"student": {"class_path": "x", "init_args": {"p": 1}}, "learner": {"lr": 1}},
    ...       {"student": {"class_path": "y"}, "learner": {"warmup": 3}})
    {'student': {'class_path': 'y'}, 'learner': {'lr': 1, 'warmup': 3}}
    """
    merged = dict(recipe)
    for key, value in overlay.items():
        old = merged.get(key)
        if key in SECTIONS and isinstance(value, dict) and isinstance(old, dict):
            same = value.get("class_path") in (None, old.get("class_path"))
            value = merge(old, value) if same else value
        merged[key] = value
    return merged


@dataclass(frozen=True)
class Parts:
    """Everything that a training run is made of.

    Args:
        data: the data module, set up.
        student: the network.
        supervision: what trains it.
        recipe: the resolved configuration as plain values.
        same: what is repeated within a split of the data; None where it was not looked for.
    """

    data: EventData
    student: nn.Module
    supervision: Supervision
    recipe: dict[str, Any]
    same: Sequence[Group] | None = None


def build(config: Namespace, given: Namespace) -> Parts:
    """Instantiate data, student and supervision; the data's facts go into the student's arguments.

    Raises:
        ValueError: an argument that contradicts the data, such as a wrong class count.
    """
    data = build_data(config, given)
    student, supervision = networks(config, given, data)
    augment, bridge = data.augment, getattr(data, "bridge", None)
    if supervision.keeps_images:
        check_kept_images(augment, bridge and bridge.augment)
    recolored = augment is not None and bool(augment.color or augment.gray)
    simulated = bridge is not None and bridge.recordings == "simulated"
    data.training_images = supervision.reads_images or recolored or simulated
    return Parts(data, student, supervision, plain(config))


def networks(config: Namespace, given: Namespace, data: EventData) -> tuple[nn.Module, Supervision]:
    """The student and the supervision of a configuration, for the facts of `data`.

    Raises:
        ValueError: as `build`.
    """
    parser = make_parser()
    facts = {
        "classes": len(data.classes),
        "in_channels": data.in_channels,
        "frame_size": tuple(data.frame_size),
    }
    name = type(data).__name__
    _fill("student", config.student, _written(given, "student"), facts, name)
    student = make(parser, "student", config.student)
    known = {"student_dim": getattr(student, "dim", None), "T": data.T, "classes": facts["classes"]}
    told = _written(given, "supervision")
    _fill("supervision", config.supervision, told, known, f"{name} and its student")
    return student, make(parser, "supervision", config.supervision)


def make_learner(config: Namespace, parts: Parts) -> Learner:
    """The learner of a run's parts, with the configuration's optimizer and rates."""
    return Learner(
        parts.student,
        parts.supervision,
        **config.learner.as_dict(),
        recipe=parts.recipe,
        classes=parts.data.classes,
        fingerprint=parts.data.fingerprint,
    )


def make_callbacks(config: Namespace) -> list[Callback]:
    """Lightning's callbacks that a recipe names under `trainer.callbacks`, or a user's own."""
    found = make(make_parser(), "trainer", config.trainer).callbacks or []
    return list(found) if isinstance(found, list) else [found]


def build_data(config: Namespace, given: Namespace) -> EventData:
    """Only the data of a configuration; they take the run's seed if they have none."""
    if "seed" not in _written(given, "data"):
        config.data.init_args.seed = config.seed
    data: EventData = make(make_parser(), "data", config.data)
    return data


def _written(given: Namespace, part: str) -> Namespace:
    """The arguments of `part` that the user wrote down."""
    return given[part].get("init_args", Namespace()) if part in given else Namespace()


def _fill(name: str, part: Namespace, written: Namespace, facts: dict[str, Any], of: str) -> None:
    """Fill in arguments of a part that are left out from `facts`; refuse those that differ.

    The same is done in each of the supervisions of a `Sum`.
    """
    accepted = part.get("init_args", Namespace())
    for key in [key for key in facts if key in accepted]:
        if written.get(key) not in (None, facts[key]):
            raise ValueError(
                f"{name}.init_args.{key} is {written[key]}, but {key} of {of} is {facts[key]}: "
                "leave it out, or choose matching data"
            )
        accepted[key] = facts[key]
    summed, told = accepted.get("supervisions") or [], written.get("supervisions") or []
    for i, (one, its) in enumerate(zip(summed, told, strict=True)):
        own = its.get("init_args", Namespace())
        _fill(f"{name}.init_args.supervisions.{i}", one, own, facts, of)
