"""One row a set: recognition, readers, `check`, `show`, `fit`, `test` and the documents agree."""

import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import estl.data
from estl.commands import app, main
from estl.commands.flags import DATASETS, DataFlags, TrainingFlags
from estl.data.catalog import BY_NAME, CATALOG, PAIRS, recognize
from estl.data.module import ItemData
from estl.data.show import partner, views
from estl.training.recipe import build, build_data, parse
from tests.tiny_sets import (
    names_of,
    write_cifar10,
    write_cifar10dvs,
    write_cifar100,
    write_gestures,
    write_images,
    write_labelled,
    write_ncaltech101,
    write_nmnist,
    write_recordings,
)

DOCS = Path(__file__).parents[3] / "docs"
PAGE, CHINESE = ((DOCS / name).read_text() for name in ("data.md", "data.zh-CN.md"))
BLOCK = PAGE.partition("### Layouts")[2].partition("```text\n")[2].partition("```")[0]


def layouts() -> list[tuple[str, str]]:
    """(set, path) of each documented file that tells a set."""
    return re.findall(r"^(\w+) +FOLDER/(\S+)", BLOCK, re.MULTILINE)


def copy(name: str, path: str, root: Path) -> Path:
    """A tiny copy of a set, in the layout that has `path`."""
    above = str(Path(path).parents[1]) + "/" if path.count("/") > 1 else ""
    match name:
        case "nmnist":
            return write_nmnist(root, path.partition("Train")[0])
        case "ncaltech101":
            return write_ncaltech101(
                root, [*names_of("chair", 5), *names_of("cup", 5)], below=above
            )
        case "cifar10":
            return write_cifar10(root, below=path.removesuffix("data_batch_1"))
        case "cifar100":
            return write_cifar100(root, below=path.removesuffix("train"))
        case "dvsgesture":
            write_gestures(root / Path(path).parent, training=4, test=1, lights=["led"], apart=9)
            return root
        case "cifar10dvs":
            return write_cifar10dvs(root, above, Path(path).suffix[1:], each=5)
        case "recordings" if path == "labels.csv":
            return write_labelled(root)
        case "recordings":
            write_recordings(root / above, Path(path).suffix[1:], images=not above)
            for i, split in enumerate(["val", "test"] if above else [], start=1):
                write_recordings(root / split, "raw", each=2, seed=100 * i)
            return root
    write_images(root / above)
    if above == "train/":
        write_images(root / "test", seed=100)
    return root


def chosen(root: Path, name: str) -> list[str]:
    student = ["--arch=vggsnn-pooled", "--student.init_args.layers=[4]", "--T=2"]
    return [f"--dataset={name}", f"--data-path={root}", *student]


def spelled_out(words: list[str]) -> list[str]:
    """A command line of `estl fit` as arguments of `parse`."""
    _, bound, _ = app.parse_args(["fit", *words], print_error=False, exit_on_error=False)
    flags: TrainingFlags = bound.arguments["flags"]
    return flags.spell_out(bound.arguments.get("overrides", ()))


def checkpoint(words: list[str], path: Path) -> Path:
    """What `estl fit` with these words would leave, without the training."""
    run = build(*parse(spelled_out(words)))
    content = {"state_dict": run.student.state_dict(), "classes": list(run.data.classes)}
    run.recipe["data"]["init_args"]["root"] = "/nowhere"
    torch.save(content | {"recipe": run.recipe, "supervision": {}}, path)
    return path


def listed(data: ItemData) -> dict[str, list[tuple[str, Path | None, Path | None]]]:
    return {s: [(str(i), i.events, i.image) for i in items] for s, items in data.splits.items()}


def built(*more: str, **flags: Any) -> Any:
    """The data that `estl fit` builds."""
    return build_data(*parse(DataFlags(**flags).spell_out(more), ["data"]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "path"), layouts())
def test_every_documented_layout_is_the_same_set_to_every_command(
    name: str, path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy(name, path, tmp_path / "set")
    assert (root / path).is_file()
    row = recognize(root)
    assert row is BY_NAME[name]

    data = built(dataset=name, data_path=str(root), T=2)
    assert f"estl.data.{type(data).__name__}" == row.class_path
    items = [item for split in data.splits.values() for item in split]
    assert len(items) >= 10
    assert main(["data", "check", f"--root={root}", "--T=2"]) == 0
    out = capsys.readouterr().out
    for split, size in data.sizes.items():
        assert re.search(rf"^{split}: {size} items", out, re.MULTILINE)
    assert f"decoded: {len(items)} of {len(items)} items" in out

    saved = checkpoint(chosen(root, name), tmp_path / "last.ckpt")
    assert main(["test", f"--ckpt={saved}", f"--data-path={root}", f"--output-dir={tmp_path}"]) == 0
    tested = json.loads((tmp_path / "test.json").read_text())
    assert tested["of"]["data"]["name"] == type(data).__name__
    assert tested["of"]["data"]["sizes"] == data.sizes
    assert tested["of"]["data"]["fingerprint"] == data.fingerprint
    assert tested["test"]["samples"] == data.sizes["test"] > 0

    files = {"/".join(p.parts[-2:]): i for i in items if (p := i.events or i.image)}
    if path == "labels.csv":  # of which each stretch is drawn
        files = {str(item): item for item in items}
    if not files:
        assert {v.title for v in views(root, rows=3)} < {str(item) for item in items}
        return
    rows = {v.title: v for v in views(root, rows=10_000)}
    assert rows.keys() == files.keys()
    for title, item in files.items():
        assert rows[title].simulated == (item.events is None)
        assert (rows[title].image is not None) == (item.image is not None)
        if item.events is not None:
            assert partner(item.events) == (None if item.image is None else (name, item.image))


def test_every_place_of_the_catalog_is_documented() -> None:
    documented = re.findall(r"FOLDER/(\S+)", BLOCK)
    kinds = [f for row in CATALOG for f in row.files.values() if row.name != "shards"]
    for files in [*kinds, *(images for _, _, images in PAIRS)]:
        for place in files.places:
            below = "" if place == "." else f"{place}/"
            found = [p.removeprefix(below) for p in documented if p.startswith(below)]
            test_too = [p.replace("Train", "Test").replace("train", "test") for p in documented]
            found += [p.removeprefix(below) for p in test_too if p.startswith(below)]
            names = {p.replace("data_batch_1", "test_batch") for p in found} | set(found)
            assert any(Path(p).match(q) for p in names for q in files.patterns), (place, files)


@pytest.mark.parametrize(
    "photographs", ["101_ObjectCategories", "caltech-101/101_ObjectCategories"]
)
def test_photographs_are_found_in_both_documented_places(tmp_path: Path, photographs: str) -> None:
    names = [*names_of("chair", 3), *names_of("cup", 3)]
    write_ncaltech101(tmp_path, names, photographs=f"{photographs}/")
    row = recognize(tmp_path)
    assert row is not None
    data = row.import_class()(tmp_path)
    for item in (item for items in data.splits.values() for item in items):
        assert item.image is not None
        assert f"FOLDER/{photographs}/chair/image_0001.jpg" in BLOCK
        assert partner(item.events) == ("ncaltech101", item.image)
        assert partner(item.image) == ("ncaltech101", item.events)


def test_an_unknown_folder_is_no_set(tmp_path: Path) -> None:
    assert recognize(tmp_path) is None
    (tmp_path / "Caltech101" / "chair").mkdir(parents=True)
    assert recognize(tmp_path) is None


# A test split alone


def remove_training(root: Path) -> None:
    for path in [root / "N-MNIST/Train", root / "MNIST/Train"]:
        shutil.rmtree(path, ignore_errors=True)
    for path in [*root.glob("data_batch_*"), root / "train", root / "trials_to_train.txt"]:
        path.unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "path", "missing"),
    [
        ("nmnist", "N-MNIST/Train/0/00002.bin", "N-MNIST/Train"),
        ("cifar10", "data_batch_1", "data_batch_1"),
        ("cifar100", "train", "train"),
        ("dvsgesture", "trials_to_train.txt", "trials_to_train.txt"),
    ],
)
def test_a_test_split_alone_is_tested_and_not_trained_on(
    name: str, path: str, missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy(name, path, tmp_path / "set")
    saved = checkpoint(chosen(root, name), tmp_path / "last.ckpt")
    whole = built(dataset=name, data_path=str(root))
    remove_training(root)
    assert main(["data", "check", f"--root={root}"]) == 0
    assert main(["test", f"--ckpt={saved}", f"--data-path={root}", f"--output-dir={tmp_path}"]) == 0
    sizes = json.loads((tmp_path / "test.json").read_text())["of"]["data"]["sizes"]
    assert sizes == {"train": 0, "val": 0, "test": whole.sizes["test"]}
    assert len(views(root, rows=1)) == 1
    capsys.readouterr()
    run = tmp_path / "run"
    assert main(["fit", *chosen(root, name), f"--output-dir={run}"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "the train split is empty" in said
    assert missing in said
    assert str(root) in said
    assert not run.exists()


@pytest.mark.slow
def test_labels_follow_the_checkpoints_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_nmnist(tmp_path / "all", digits="0123")
    saved = checkpoint(chosen(root, "nmnist"), tmp_path / "last.ckpt")
    fewer = write_nmnist(tmp_path / "fewer", below="", digits="13")
    shutil.rmtree(fewer / "Train")
    data: Any = built(dataset="nmnist", data_path=str(fewer))
    assert data.classes == ("1", "3")
    data.follow(("0", "1", "2", "3"))
    assert {label for _, label, _ in data.dataset("test")} == {1, 3}
    assert torch.cat([batch.label for batch in data.loader("test")]).unique().tolist() == [1, 3]
    words = ["test", f"--ckpt={saved}", f"--data-path={fewer}"]
    assert main(words) == 0
    assert "of 8 samples" in capsys.readouterr().out
    (fewer / "Test" / "1").rename(fewer / "Test" / "zebra")
    (fewer / "MNIST" / "Test" / "1").rename(fewer / "MNIST" / "Test" / "zebra")
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "class" in said
    assert "zebra" in said
    assert len(said.splitlines()) == 1


# What follows from the catalog


def test_the_names_of_the_package_and_of_the_command_line_are_those_of_the_catalog() -> None:
    assert list(DATASETS) == [row.name for row in CATALOG]
    for row in CATALOG:
        name = row.class_path.rpartition(".")[2]
        assert row.import_class() is getattr(estl.data, name)
        assert name in estl.data.__all__
        words = [f"--dataset={row.name}", "--arch=vggsnn"] + ["--data-path=x"] * bool(row.files)
        config, _ = parse(spelled_out(words))
        assert config.data.class_path == row.class_path
        for key, value in row.init_args.items():
            assert config.data.init_args[key] == value
    assert all(hasattr(estl.data, name) for name in estl.data.__all__)


def test_the_catalog_imports_nothing_heavy() -> None:
    code = "import estl.data.catalog, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "lightning", "PIL"} & set(run.stdout.split())


def table(head: str, page: str = PAGE) -> dict[str, list[str]]:
    """The rows of a table of docs/data.md by their first cell."""
    rows = page.partition(head)[2].partition("\n\n")[0].splitlines()[1:]
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[1:]]
    return {first.strip("` "): rest for first, *rest in cells}


ARCHIVES = "| set | archives | folders |"
SETS = "| `--dataset` | class | T | frames | splits | images |"


def test_the_table_of_archives_is_the_catalogs() -> None:
    documented = table(ARCHIVES)
    assert list(documented) == [row.name for row in CATALOG if row.archives]
    for row in (row for row in CATALOG if row.archives):
        archives = [one for a in row.archives for one in (a, a.labels) if one is not None]
        files, folders = [re.findall(r"`([^`]+)`", cell) for cell in documented[row.name]]
        if row.name == "cifar10dvs":  # from the first to the last
            archives = [archives[0], archives[-1]]
        assert files == [archive.file for archive in archives]
        assert folders == [archive.into for archive in archives if archive.into]
        assert ("by hand" in documented[row.name][0]) == any(a.by_hand for a in archives)


@pytest.mark.slow
def test_the_table_of_sets_is_what_the_sets_are(tmp_path: Path) -> None:
    documented = table(SETS)
    assert list(documented) == [row.name for row in CATALOG]
    first = dict(reversed(layouts()))
    for row in CATALOG:
        class_name, T, frames, splits, images = documented[row.name]
        assert class_name.strip("`") == row.class_path.rpartition(".")[2]
        if row.name == "shards":
            continue
        root = None
        if row.files:
            root = str(copy(row.name, first[row.name], tmp_path / row.name))
        data = built(dataset=row.name, data_path=root)
        H, W = data.frame_size
        assert int(T) == data.T
        assert frames.replace("\u00d7", "x").startswith(f"{H}x{W}")
        assert ("3 channels" in frames) == (data.in_channels == 3)
        image = data.load(data.splits["test"][0])[1]
        assert images.startswith("no" if image is None else "yes")
        takes = inspect.signature(row.import_class()).parameters
        assert ("images:" in images) == ("images" in takes)
        assert ("own" in splits) == ("test" in row.files)
        if "lists" in splits:
            lists = tmp_path / f"{row.name}-lists"
            lists.mkdir()
            names = [str(item) for items in data.splits.values() for item in items]
            (lists / "train.txt").write_text("\n".join(names[2:]))
            (lists / "test.txt").write_text("\n".join(names[:2]))
            more = [f"--data.init_args.splits={lists}"]
            assert built(*more, dataset=row.name, data_path=root).sizes["test"] == 2


@pytest.mark.parametrize(
    ("head", "translated"),
    [
        (ARCHIVES, "| 数据集 | 压缩包 | 目录 |"),
        (SETS, "| `--dataset` | 类 | T | 帧 | 划分 | 图像 |"),
    ],
    ids=["archives", "sets"],
)
def test_the_chinese_tables_say_the_same(head: str, translated: str) -> None:
    words = {"own": "自带", "fractions": "比例", "lists": "列表", "3 channels": "3 通道"}
    words |= {"yes": "有", "no": "无", "by hand": "手动", "as packed": "打包时"}
    said = [
        (name, [{word for word in words if re.search(rf"\b{word}\b", cell)} for cell in cells])
        for name, cells in table(head).items()
    ]
    assert said == [
        (name, [{word for word, chinese in words.items() if chinese in cell} for cell in cells])
        for name, cells in table(translated, CHINESE).items()
    ]


# A file as its set reads it


@pytest.mark.slow
def test_frames_of_a_file_need_neither_lightning_nor_the_sets_class(tmp_path: Path) -> None:
    write_nmnist(tmp_path)
    path = tmp_path / "N-MNIST/Test/0/60001.bin"
    options = {"T": 3, "by": "count", "root": "ignored"}
    code = (
        "import sys; from pathlib import Path; from estl.data.recorded import read_parts; "
        f"((_, frames),) = read_parts(Path({str(path)!r}), 'estl.data.NMNISTPairs', {options}); "
        "print(*frames.shape, int(frames.sum()), 'lightning' in sys.modules, "
        "any(name.startswith('estl.data.sets.') for name in sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["3", "2", "34", "34", "60", "False", "False"]


@pytest.mark.slow
def test_frames_of_a_file_are_those_of_its_item(tmp_path: Path) -> None:
    from tests.tiny_sets import read_file

    first = dict(reversed(layouts()))
    for name in ("nmnist", "ncaltech101", "cifar10dvs", "dvsgesture", "recordings", "folder"):
        root = copy(name, first[name], tmp_path / name)
        run = build(*parse(spelled_out(chosen(root, name))))
        recipe = yaml.safe_load(yaml.safe_dump(run.recipe))["data"]
        data: Any = run.data
        item = data.splits["test"][0]
        frames = read_file(item.events or item.image, **recipe)
        assert frames.shape == data.load(item)[0].shape
        if name != "dvsgesture":  # an item is an interval of its file
            assert torch.equal(frames, data.load(item)[0])


def test_a_set_without_files_and_a_set_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.tiny_sets import read_file

    for name in ("cifar10", "cifar100", "shards"):
        with pytest.raises(ValueError, match=r"x\.bin: a student of .* has no recordings"):
            read_file(Path("x.bin"), BY_NAME[name].class_path, {})
    module = tmp_path / "own_set.py"
    module.write_text(
        "import torch\nclass Mine:\n    @staticmethod\n    def read(path, T, **rest):\n"
        "        return torch.full((T, 2, 1, 1), len(path.name))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    frames = read_file(Path("x.bin"), "own_set.Mine", {"T": 3, "size": 4})
    assert frames.flatten().tolist() == [5] * 6
