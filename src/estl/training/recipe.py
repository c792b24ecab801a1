"""Recipes: the typed configuration of a run, from YAML files, dotted overrides and short flags.

A recipe names classes and their arguments: `data`, `student`, `supervision`; and the arguments of
`learner` and `trainer`. What the data decide (class count, channels, frame size) is filled in where
it is left out, and refused where it contradicts them.
"""

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning import Trainer
from torch import nn

from estl.commands.flags import PLAIN, SUPERVISION_OF, SUPERVISIONS, VALUES, spell_out
from estl.data.module import EventData
from estl.training.checkpoint import make
from estl.training.learner import Learner
from estl.types import Supervision


def make_parser() -> ArgumentParser:
    """The parser of `estl fit`, which is also the schema of a recipe."""
    parser = ArgumentParser(
        prog="estl fit",
        exit_on_error=False,
        allow_abbrev=False,
        description="Train a student. Short flags: --arch --dataset --tse/--no-tse --tet/--no-tet "
        + " ".join(VALUES),
    )
    parser.add_argument("--config", action="config", help="A recipe (YAML).")
    parser.add_argument("--seed", type=int, default=0, help="Seed of weights and batch order.")
    parser.add_argument(
        "--output_dir", type=str | None, default=None, help="Run folder (default: a new one)."
    )
    parser.add_subclass_arguments(
        EventData, "data", skip={"in_channels", "content", "test", "left_out"}
    )
    parser.add_subclass_arguments(nn.Module, "student")
    parser.add_subclass_arguments(Supervision, "supervision")
    parser.add_class_arguments(
        Learner, "learner", skip={"student", "supervision", "recipe", "classes"}, instantiate=False
    )
    parser.add_class_arguments(
        Trainer,
        "trainer",
        skip={"logger", "callbacks", "default_root_dir", "enable_checkpointing", "barebones"},
        instantiate=False,
    )
    parser.set_defaults({"trainer.max_epochs": 20, "trainer.log_every_n_steps": 10})
    return parser


def parse(words: list[str]) -> tuple[Namespace, Namespace]:
    """The complete configuration of a command line (without the word `fit`), and what was given.

    Raises:
        ValueError: an unknown key, a wrong type, a missing part.
    """
    refused = {SUPERVISIONS[f"--{w[5:]}"] for w in words if w in ("--no-tse", "--no-tet")}
    words = spell_out([w for w in words if w not in ("--no-tse", "--no-tet")])
    parser = make_parser()
    try:
        given = parser.parse_args(words, defaults=False)
        for part, how in (("data", "--dataset NAME"), ("student", "--arch NAME")):
            if part not in given:
                raise ValueError(f"no {part} chosen: give --config RECIPE.yaml, or {how}")
        if "supervision" not in given:
            words = [PLAIN, *words]
        elif _name(given.supervision) in {path.rpartition(".")[2] for path in refused}:
            words = [*words, PLAIN]
        return parser.parse_args(words), given
    except ArgumentError as error:
        raise ValueError(one_line(str(error))) from None


def build_data(words: list[str]) -> EventData:
    """The data that a command line chooses; the rest of a recipe is left alone.

    Raises:
        ValueError: no data chosen, or an unknown key.
    """
    parser = make_parser()
    try:
        config = parser.parse_args(spell_out(words))
        if config.get("data") is None:
            raise ValueError("no data chosen: give --dataset NAME, or --config RECIPE.yaml")
        data: EventData = make(parser, "data", config.data)
        return data
    except ArgumentError as error:
        raise ValueError(one_line(str(error))) from None


def write_given(words: list[str], path: Path, without: Sequence[str] = ()) -> dict[str, Any]:
    """Write what a command line gives, without defaults, as a recipe of its own; return it.

    Parts named in `without` are left out.

    Raises:
        ValueError: as `parse`; or `path` holds another recipe.
    """
    _, given = parse(words)
    recipe: dict[str, Any] = yaml.safe_load(make_parser().dump(given, skip_validation=True))
    for part in ("config", *without):
        recipe.pop(part, None)
    if path.exists() and yaml.safe_load(path.read_text()) != recipe:
        raise ValueError(f"{path} holds another recipe: choose another --output-dir")
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return recipe


def one_line(text: str) -> str:
    r"""jsonargparse's message without its scaffolding.

    >>> one_line("Parser key 'a':\n  Errors:\n    - Option 'b' is not accepted")
    "Parser key 'a': option 'b' is not accepted: correct it in the recipe or on the command line"
    """
    noise = (
        "Does not validate",
        "Subtypes:",
        "Errors:",
        "Expected a <class 'NoneType'>",
        "Expected a path",
        "Given value type:",
        "Given value: NestedArg",
        "Problem with given class_path",
    )
    lines = [line.strip().removeprefix("- ") for line in text.strip().splitlines()]
    kept = [line for line in lines if line and not line.startswith(noise)]
    message = " ".join(kept).replace('Parser key "', "key ").replace('":', ":")
    message = message.replace("Option", "option").rstrip(".")
    for flag, key in VALUES.items():
        owner = SUPERVISION_OF.get(flag)
        if owner and f"'{key.rpartition('.')[2]}' is not accepted" in message:
            return f"{flag} is an option of {owner}: add {owner}, or leave {flag} out"
    return f"{message}: correct it in the recipe or on the command line"


def _name(part: Namespace) -> str:
    """Last word of a class path."""
    return str(part.class_path.rpartition(".")[2])


@dataclass
class Run:
    """Everything that a training run is made of.

    Args:
        data: the data module, set up.
        student: the network.
        supervision: what trains it.
        recipe: the resolved configuration as plain values.
    """

    data: EventData
    student: nn.Module
    supervision: Supervision
    recipe: dict[str, Any]


def build(config: Namespace, given: Namespace, classes: Sequence[str] | None = None) -> Run:
    """Instantiate data, student and supervision; the data's facts go into the student's arguments.

    Args:
        config: the complete configuration.
        given: the part of it that was written down.
        classes: class names that the labels follow, those of a checkpoint; the data's own if None.

    Raises:
        ValueError: an argument that contradicts the data, such as a wrong class count; a class of
            the data that is not in `classes`.
    """
    parser = make_parser()
    if "seed" not in _written(given, "data"):
        config.data.init_args.seed = config.seed
    data = make(parser, "data", config.data)
    if classes is not None:
        data.follow(classes)
    facts = {
        "classes": len(data.classes),
        "in_channels": data.in_channels,
        "frame_size": tuple(data.frame_size),
    }
    _fill(config, given, "student", facts, of=_name(config.data))
    student = make(parser, "student", config.student)
    width = {"student_dim": getattr(student, "dim", None)}
    _fill(config, given, "supervision", width, of=_name(config.student))
    supervision = make(parser, "supervision", config.supervision)
    recipe = yaml.safe_load(parser.dump(config, skip_validation=True))
    recipe.pop("config", None)
    return Run(data, student, supervision, recipe)


def _written(given: Namespace, part: str) -> Namespace:
    """The arguments of `part` that the user wrote down."""
    return given[part].get("init_args", Namespace()) if part in given else Namespace()


def _fill(
    config: Namespace, given: Namespace, part: str, facts: dict[str, Any], *, of: str
) -> None:
    """Put `facts` into the arguments of `part` that are left out; refuse those that differ."""
    accepted = inspect.signature(import_path(config[part].class_path)).parameters
    written = _written(given, part)
    for key in facts.keys() & accepted.keys():
        if written.get(key) not in (None, facts[key]):
            raise ValueError(
                f"{part}.init_args.{key} is {written[key]}, but {key} of {of} is {facts[key]}: "
                "leave it out, or choose matching data"
            )
        config[part].init_args[key] = facts[key]


def import_path(path: str) -> Any:
    """The object that a class path names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def from_recipe(recipe: dict[str, Any]) -> Namespace:
    """The configuration that a checkpoint or a run folder holds."""
    try:
        return make_parser().parse_object(recipe)
    except ArgumentError as error:
        raise ValueError(one_line(str(error))) from None
