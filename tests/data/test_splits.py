"""Published lists: the same meaning for every set, and the same set as its items alone."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from estl.data.catalog import BY_NAME
from estl.data.items import Item
from estl.data.module import ItemData
from estl.data.published import pick_items, read_lists
from estl.data.sets.digits import Digits
from estl.data.sets.nmnist import NMNISTPairs
from estl.data.sets.photographs import Photographs
from tests.tiny_sets import (
    names_of,
    write_cifar10,
    write_cifar10dvs,
    write_cifar100,
    write_gestures,
    write_images,
    write_ncaltech101,
    write_nmnist,
)

SETS: dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]] = {
    "nmnist": (write_nmnist, {"each": 4}, {"each": 7}),
    "ncaltech101": (
        write_ncaltech101,
        {"names": [*names_of("chair", 5), *names_of("cup", 5)]},
        {"names": [*names_of("chair", 5), *names_of("cup", 5), *names_of("ant", 2), "cup/image_9"]},
    ),
    "cifar10": (write_cifar10, {"n": 10}, {"n": 20}),
    "cifar100": (write_cifar100, {"n": 200}, {"n": 300}),
    "cifar10dvs": (write_cifar10dvs, {"each": 10}, {"each": 12}),
    # The test user of the few is a training user of the many.
    "dvsgesture": (
        write_gestures,
        {"training": 10, "test": 1, "lights": ["led"]},
        {"training": 12, "test": 2},
    ),
    "folder": (write_images, {"each": 5}, {"each": 7, "labels": "chair cup pan"}),
}


def load(name: str, root: Path, **options: Any) -> ItemData:
    row = BY_NAME[name]
    data: ItemData = row.import_class()(root, **row.init_args, **options)
    return data


def names(data: ItemData) -> dict[str, list[str]]:
    return {split: [str(item) for item in items] for split, items in data.splits.items()}


def write_list(path: Path, lists: dict[str, list[str]]) -> Path:
    """As YAML, as JSON, or as a folder of text files, by the suffix."""
    if path.suffix:
        path.write_text({".yaml": yaml.safe_dump, ".json": json.dumps}[path.suffix](lists))
        return path
    path.mkdir()
    for word, listed in lists.items():
        (path / f"{word}.txt").write_text("\n".join(listed) + "\n")
    return path


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("form", ["list.yaml", "list.json", "list"])
def test_listed_items_are_the_set_that_they_are_alone(name: str, form: str, tmp_path: Path) -> None:
    write, few, many = SETS[name]
    write(tmp_path / "few", **few)
    write(tmp_path / "many", **many)
    alone = load(name, tmp_path / "few")
    listed = names(alone)
    whole = load(name, tmp_path / "many", splits=write_list(tmp_path / form, listed))
    assert sum(load(name, tmp_path / "many").sizes.values()) > sum(whole.sizes.values())
    assert (names(whole), whole.classes) == (listed, alone.classes)
    assert whole.fingerprint == alone.fingerprint

    drawn = {"train": listed["train"] + listed["val"], "test": listed["test"]}
    kind = tmp_path / f"drawn-{form}"
    whole = load(name, tmp_path / "many", splits=write_list(kind, drawn))
    assert names(whole) == listed  # `val_fraction` of the training list
    assert whole.fingerprint == alone.fingerprint


@pytest.mark.parametrize("name", SETS)
def test_a_listed_item_that_is_not_there_is_one_error(name: str, tmp_path: Path) -> None:
    write, few, _ = SETS[name]
    write(tmp_path / "few", **few)
    listed = names(load(name, tmp_path / "few"))
    listed["test"] += ["nowhere/1", "nowhere/2-4"]
    source = write_list(tmp_path / "list.yaml", listed)
    place = rf"list\.yaml test {len(listed['test']) - 1}: 'nowhere/1' is no item of this data set"
    with pytest.raises(
        ValueError, match=rf"{place}, such as .* \(nor are 3 other names\)"
    ) as error:
        load(name, tmp_path / "few", splits=source)
    assert "\n" not in str(error.value)


def test_digits_are_listed_by_number(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("test: 0000-0009\ntrain: [0010-0019, 0020]\nval: 0021-0022\n")
    data = Digits(T=3, size=8, splits=path)
    assert list(data.splits) == ["train", "val", "test"]  # the fingerprint knows their order
    assert data.sizes == {"train": 11, "val": 2, "test": 10}
    assert {item.number for item in data.splits["test"]} == {f"{i:04d}" for i in range(10)}
    swapped = tmp_path / "swapped.json"
    lists = {"val": ["0021", "0022"], "train": ["0010-0020"], "test": ["0000-0009"]}
    swapped.write_text(json.dumps(lists))
    assert Digits(T=3, size=8, splits=str(swapped)).fingerprint == data.fingerprint


ITEMS = [Item("cat", f"{i:04d}") for i in range(20)] + [Item("dog", "0007"), Item("dog", "2-5")]


def picked(tmp_path: Path, *listed: str) -> list[str]:
    source = write_list(tmp_path / "list.yaml", {"train": list(listed), "test": ["cat/0000"]})
    return [str(item) for item in pick_items(read_lists(source), ITEMS)["train"]]


def test_a_name_may_be_a_number_or_a_range(tmp_path: Path) -> None:
    assert picked(tmp_path, "0009-0011") == ["cat/0009", "cat/0010", "cat/0011"]
    assert picked(tmp_path, "cat/0006-0008", "dog/2-5", "0012.png", "") == [
        *("cat/0006", "cat/0007", "cat/0008", "cat/0012"),
        "dog/2-5",  # a name before it is a range
    ]
    with pytest.raises(ValueError, match=r"train 2: '0007' is in cat and dog: name the class"):
        picked(tmp_path, "cat/0001", "0006-0008")
    with pytest.raises(ValueError, match=r"train 2: 'cat/0003' is already in list\.yaml train 1"):
        picked(tmp_path, "0001-0003", "cat/0003-0004")
    with pytest.raises(ValueError, match=r"train 1: '9-6' is no item"):
        picked(tmp_path, "9-6")
    with pytest.raises(ValueError, match=r"train 1: '0-9999999' is more than 1000000 names"):
        picked(tmp_path, "0-9999999")
    with pytest.raises(ValueError, match=r"train 1: '9999.* is no item"):
        picked(tmp_path, 60_000 * "9")  # was looked at for minutes


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("a.yaml", "train: [", r"a\.yaml: neither YAML nor JSON \(.*line 1"),
        ("a.json", "{", r"a\.json: neither YAML nor JSON"),
        ("a.yaml", "train: [a/1]", r"a\.yaml: give the lists train and test"),
        ("a.yaml", "- a/1", r"a\.yaml: give the lists train and test"),
        ("a.yaml", "{train: a/1, test: a/2, valid: a/3}", r"maybe val and extra, no others"),
        ("a.json", '{"train": [1], "test": ["2"]}', r"a\.json: train is no list of names .*quotes"),
        ("a.yaml", "{train: {a: 1}, test: 2}", r"a\.yaml: train is no list of names"),
        ("a.yaml", "{train: cat/0001, test: []}", r"a\.yaml: no items in this list \(test\)"),
        ("a.yaml", "{train: , test: cat/0001}", r"a\.yaml: no items in this list \(train\)"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path: Path, file: str, text: str, message: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        pick_items(read_lists(tmp_path / file), ITEMS)
    assert "\n" not in str(error.value)


def test_a_list_that_is_nowhere_names_those_of_the_package() -> None:
    with pytest.raises(FileNotFoundError, match=r"no list nowhere: .* one of .*nmnist-subset"):
        read_lists("nowhere")


def test_of_a_test_split_alone_the_training_list_does_not_count(tmp_path: Path) -> None:
    write_nmnist(tmp_path)
    listed = names(NMNISTPairs(tmp_path))
    listed["test"].pop()
    source = write_list(tmp_path / "list.yaml", listed)
    shutil.rmtree(tmp_path / "N-MNIST" / "Train")
    data = NMNISTPairs(tmp_path, splits=source)
    assert names(data) == {"train": [], "val": [], "test": listed["test"]}
    with pytest.raises(ValueError, match="the train split is empty: no recordings"):
        data.require("train")


def test_the_list_of_the_guide_is_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    (text,) = re.findall(r"^```text\n(train: .*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "list.yaml").write_text(text)
    write_ncaltech101(tmp_path, [*names_of("chair", 62), *names_of("cup", 57)])
    data = load("ncaltech101", tmp_path, splits=tmp_path / "list.yaml")
    assert data.sizes == {"train": 79, "val": 10, "test": 30}


# The list of the figures, and the further images of their teacher


def test_the_list_takes_its_extra_images_from_the_folder(tmp_path: Path) -> None:
    write_nmnist(tmp_path, each=4)
    lists = {"train": ["00001-00002", "00011-00012"], "test": ["60001", "60011"]}
    lists["extra"] = ["0/00003", "00013-00014"]
    source = write_list(tmp_path / "list.yaml", lists)
    images = tmp_path / "MNIST" / "Train"
    data = NMNISTPairs(tmp_path, splits=source, val_fraction=0.5)
    photographs = Photographs(data, images)
    more = {str(item) for item in photographs.splits["train"]} - set(names(data)["train"])
    assert more == {"0/00003", "1/00013", "1/00014"}
    assert Photographs(data).sizes == data.sizes
    image = images / "1" / "00014.png"
    image.rename(image.with_name("00015.png"))
    with pytest.raises(ValueError, match=r"extra 2: '00014' is no item of .*Train, such as"):
        Photographs(data, images)
    image.with_name("00015.png").rename(image)
    lists["extra"] = [str(data.splits["val"][0])]
    source = write_list(tmp_path / "held-out.yaml", lists)
    data = NMNISTPairs(tmp_path, splits=source, val_fraction=0.5)
    with pytest.raises(ValueError, match="held out"):
        Photographs(data, images)


@pytest.fixture
def public(shared: Path, tmp_path: Path) -> Path:
    """The real recordings as in the public set, among others.

    Test files are numbered from 1, every image has a recording, and there are further digits.
    """
    source = shared / "data" / "nmnist-pairs"
    other = source / "N-MNIST" / "Train" / "0" / "00002.bin"

    def link(file: Path, below: str) -> None:
        path = tmp_path / below
        path.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(file, path)

    for file in source.glob("*/T*/*/*"):
        kind, part, label = file.relative_to(source).parts[:3]
        number = int(file.stem) - (60_000 if part == "Test" else 0)
        link(file, f"{kind}/{part}/{label}/{number:05d}{file.suffix}")
    for file in source.glob("MNIST-extra/*/*"):
        link(file, f"MNIST/Train/{file.parent.name}/{file.name}")
        link(other, f"N-MNIST/Train/{file.parent.name}/{file.stem}.bin")
    for place in ("Train/0/00701", "Test/0/00101"):
        link(other, f"N-MNIST/{place}.bin")
        link(source / "MNIST/Train/0/00002.png", f"MNIST/{place}.png")
    return tmp_path


@pytest.mark.slow
def test_the_figures_of_the_subset_can_be_repeated_from_the_public_set(
    shared: Path, public: Path
) -> None:
    source = shared / "data" / "nmnist-pairs"
    results = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    results = " ".join(results.split())  # lines may break between the name and its fingerprint
    assert NMNISTPairs(public).sizes == {"train": 3106, "val": 345, "test": 101}
    tried: list[dict[str, Any]] = [{"images": False}, {"per_class": 5}]
    for options in tried:
        data = NMNISTPairs(public, splits="nmnist-subset", **options)
        alone = NMNISTPairs(source, **options)
        assert names(data) == names(alone)
        assert data.fingerprint == alone.fingerprint
        assert f"NMNISTPairs {data.fingerprint}" in results
        assert NMNISTPairs(source, splits="nmnist-subset", **options).splits == alone.splits

    data = NMNISTPairs(public, splits="nmnist-subset", per_class=10)
    teacher = Photographs(data, public / "MNIST" / "Train")
    published = Photographs(NMNISTPairs(source, per_class=10), source / "MNIST-extra")
    assert teacher.sizes["train"] == 100 + 2750
    assert names(teacher) == names(published)
    assert teacher.fingerprint == published.fingerprint
