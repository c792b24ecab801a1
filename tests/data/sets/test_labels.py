"""Labels by time: which stretch of which own recording is of which class."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from estl.commands import main
from estl.data import Recordings, Shards
from estl.data.check import check, refuse_leaks
from estl.data.items import Item
from estl.data.labels import read_table, recording_of, span_of
from estl.data.shards import write_shards
from estl.data.show import views
from estl.data.splits import split_items
from tests import encoders
from tests.encoders import Event, write
from tests.tiny_sets import read_file, write_labelled

SIZE = (4, 16)
FIRST = 777_000  # a recording's own clock does not start at 0
LABELS = ((0, 2_000, "walk"), (2_000, 3_500, "run"), (5_000, None, "fall"))
"""Of each recording, in milliseconds; from 3.5 to 5 s it is of nothing."""
COUNTS = {"walk": 20, "run": 15, "fall": 30}
"""Its events in each stretch: one in each 100 ms, to 8 s."""


def recording(path: Path, seed: int = 0) -> Path:
    """An event in each 100 ms; the n-th is at row n % 4, of polarity n % 2, at column n + seed."""
    events: list[Event] = [(FIRST + 100_000 * n, (n + seed) % 16, n % 4, n % 2) for n in range(80)]
    return write(path, encoders.csv(events, SIZE))


def labelled(root: Path, recordings: int = 5, text: str | None = None) -> Path:
    """`root` with recordings day/0.csv and so on, and their table."""
    lines = ["recording,start,end,class"]
    for i in range(recordings):
        recording(root / "day" / f"{i}.csv", i)
        for start, stop, label in LABELS:
            lines.append(
                f"day/{i}.csv,{start}ms,{'' if stop is None else f'{stop / 1000}s'},{label}"
            )
    write(root / "labels.csv", (text or "\n".join(lines)).encode())
    return root


def everything(data: Recordings) -> list[Item]:
    return [item for items in data.splits.values() for item in items]


def test_an_item_holds_the_events_of_its_stretch_and_no_others(tmp_path: Path) -> None:
    data = Recordings(labelled(tmp_path), T=1, size=4)
    assert data.classes == ("fall", "run", "walk")
    assert len(everything(data)) == 5 * 3
    for item in everything(data):
        frames, image = data.load(item)
        assert frames.sum() == COUNTS[item.label]
        assert image is None
    (run,) = (item for item in everything(data) if str(item) == "run/day/0/2000000-3500000")
    counts = torch.zeros(1, 2, 4, 4)
    for n in range(20, 35):
        counts[0, n % 2, n % 4, n % 16 // 4] += 1
    assert torch.equal(data.load(run)[0], counts)
    (fall,) = (item for item in everything(data) if str(item) == "fall/day/0/5000000-end")
    assert span_of(fall, np.array([0, 7_900_000])) == (5_000_000, 7_900_001)


@pytest.mark.parametrize(("window", "stride"), [(400, 400), (600, 250), (1_800, 100), (9_000, 70)])
def test_windows_are_cut_from_each_stretch_and_never_leave_it(
    tmp_path: Path, window: int, stride: int
) -> None:
    root = labelled(tmp_path, 2)
    data = Recordings(root, T=1, size=4, window=f"{window}ms", stride=f"{stride}ms")
    expected = Counter[str]()
    for i in range(2):
        for start, stop, label in LABELS:
            end = 7_900.001 if stop is None else stop
            at = start
            while at == start or at + window <= end:
                to = min(at + window, end)
                events = [n for n in range(80) if at <= 100 * n < to]
                if events:
                    span = f"{round(1000 * at)}-{round(1000 * to)}"
                    expected[f"{label}/day/{i}/{span}: {len(events)}"] += 1
                at += stride
    found = Counter(f"{item}: {int(data.load(item)[0].sum())}" for item in everything(data))
    assert found == expected
    assert not set(data.splits["train"]) & set(data.splits["test"])


def test_all_stretches_of_a_recording_are_in_one_split(tmp_path: Path) -> None:
    root = labelled(tmp_path, 10)
    for how in ({}, {"window": "500ms"}):
        data = Recordings(root, **how)
        of = {s: {i.events for i in items} for s, items in data.splits.items()}
        assert [len(of[s]) for s in ("train", "val", "test")] == [7, 1, 2]
        assert len(set().union(*of.values())) == 10
        for items in data.splits.values():
            assert {item.label for item in items} == {"fall", "run", "walk"}
        refuse_leaks(data)
    few = Recordings(root, per_class=2, window="500ms")
    for label in few.classes:
        stretches = {i.events for i in few.splits["train"] if i.label == label}
        assert len(stretches) == 2


def test_of_a_class_the_last_recording_stays_in_training(tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(200):
        classes = [f"c{k}" for k in range(rng.randint(1, 6))]
        items = [
            Item(label, f"{i}/0-end")
            for i in range(rng.randint(1, 12))
            for label in rng.sample(classes, rng.randint(1, len(classes)))
        ]
        fraction = rng.choice((0.0, 0.1, 0.3, 0.6))
        rest, part = split_items(items, fraction, rng.randint(0, 9), recording_of)
        assert sorted(rest + part) == sorted(items)
        assert {item.label for item in rest} == {item.label for item in items}
        assert not {recording_of(i) for i in rest} & {recording_of(i) for i in part}
        if fraction == 0:
            assert not part
    # Recordings of one class each are drawn as items are.
    items = [Item(label, f"{label}{i}/0-end") for label in "ab" for i in range(20)]
    for seed in range(5):
        alone = [recording_of(item) for item in items if item.label == "a"]
        part = split_items(items, 0.2, seed, recording_of)[1]
        assert [recording_of(i) for i in part if i.label == "a"] == split_items(alone, 0.2, seed)[1]


def test_a_class_of_one_recording_is_learned_and_not_tested(tmp_path: Path) -> None:
    root = labelled(tmp_path)
    with (root / "labels.csv").open("a") as file:
        file.write("\nday/3.csv,4s,5s,rare\n")
    for seed in range(5):
        data = Recordings(root, split_seed=seed)
        assert "rare" in {item.label for item in data.splits["train"]}
    assert not check(data).wrong
    alone = Recordings(labelled(tmp_path / "one", 1))
    assert alone.sizes == {"train": 3, "val": 0, "test": 0}
    with pytest.raises(ValueError, match=r"the test split is empty: all of a recording is in one"):
        alone.require("test")
    alone.require("train")


def test_folders_for_splits_and_lists_name_recordings(tmp_path: Path) -> None:
    root = labelled(tmp_path / "set", 4)
    lists = tmp_path / "list.yaml"
    lists.write_text("train: [day/0-1]\nval: [day/2.csv]\ntest: [3]\n")
    data = Recordings(root, splits=lists)
    of = {s: {i.events.name for i in items} for s, items in data.splits.items()}
    assert of == {"train": {"0.csv", "1.csv"}, "val": {"2.csv"}, "test": {"3.csv"}}
    assert data.sizes == {"train": 6, "val": 3, "test": 3}
    lists.write_text("train: [day/0-2, day/4]\ntest: [day/3]\n")
    with pytest.raises(ValueError, match=r"'day/4' is no item of this data set, such as 'day/0'"):
        Recordings(root, splits=lists)

    own, table = tmp_path / "own", ["recording,start_s,end_s,class"]
    for split, n in (("train", 2), ("val", 1), ("test", 3)):
        for i in range(n):
            path = recording(own / split / f"{i}.csv", i).relative_to(own)
            table += [f"{path},0,2,walk", f"{path},2,3.5,run"]
    write(own / "labels.csv", "\n".join(table).encode())
    assert Recordings(own).sizes == {"train": 4, "val": 2, "test": 6}
    write(own / "labels.csv", "\n".join([table[0], *(x for x in table if "test/" in x)]).encode())
    data = Recordings(own)
    assert data.sizes == {"train": 0, "val": 0, "test": 6}
    with pytest.raises(
        ValueError, match=r"train split is empty: .*labels\.csv has no recordings in"
    ):
        data.require("train")


@pytest.mark.parametrize(
    "text",
    [
        "recording,start,end,class\na.csv,0.5s,1500ms,x\nb/b.csv,,,y\n",
        "class,note,end_us,start_us,recording\nx,?,1500000,500000,a.csv\ny,,,,b/b.csv\n",
        "recording,start_ms,end_s,class\na.csv,500,1.5,x\n\nb/b.csv,0,,y",
        "\ufeffRecording;Start_s;End_s;Class\r\na.csv;0,5;1,5;x\r\nb\\b.csv;0,0;;y\r\n;;;\r\n",
        "recording\tstart\tend\tclass\na.csv\t0.5 s\t1.5 s\tx\nb/b.csv\t0\t\ty\n",
        '"recording","start","end","class"\n"./a.csv","500000us","1.5s","x"\n"b/b.csv","0ms","","y"',
    ],
)
def test_a_table_as_people_and_programs_write_it(tmp_path: Path, text: str) -> None:
    a, b = recording(tmp_path / "a.csv"), recording(tmp_path / "b" / "b.csv")
    write(tmp_path / "labels.csv", text.encode())
    found = [(str(item), item.events) for item in read_table(tmp_path)]
    assert found == [("x/a/500000-1500000", a), ("y/b/b/0-end", b)]


HEAD = "recording,start,end,class\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"labels\.csv: no rows below a first line recording,start,end,class"),
        (HEAD, r"labels\.csv: no rows below"),
        ("a.csv,1s,2s,x\n", r"line 1: no column recording in 'a\.csv,1s,2s,x': let the first"),
        ("recording,start,class\n", r"line 1: no column end in"),
        ("recording,start,start_s,end,class\n", r"line 1: two columns for start"),
        (HEAD + "a.csv,1s,2s\n", r"line 2: 3 cells, but the first line has 4"),
        (HEAD + "a.csv,1s,2s,x\n\na.csv,2s,3s,\n", r"line 4: an empty class"),
        (HEAD + ",1s,2s,x\n", r"line 2: an empty recording"),
        (HEAD + "c.csv,1s,2s,x\n", r"line 2: no recording .*c\.csv: give its path in"),
        (HEAD + "../a.csv,1s,2s,x\n", r"line 2: \.\./a\.csv is not below the folder of labels"),
        (HEAD + "/a.csv,1s,2s,x\n", r"line 2: /a\.csv is not below"),
        (HEAD + "a.csv,1,2s,x\n", r"line 2: start is 1, a time without a unit: name the column"),
        (HEAD + "a.csv,1s,soon,x\n", r"line 2: end: 'soon' is no time: give 300ms, 1\.5s or"),
        (HEAD + "a.csv,-1s,2s,x\n", r"line 2: start: '-1s' is no time"),
        (HEAD + 'a.csv,"1,5s",2s,x\n', r"line 2: start: '1,5s' is no time"),
        (HEAD + "a.csv,2s,2000ms,x\n", r"line 2: the end, 2000ms, is not after the start"),
        (HEAD + "a.csv,,0,x\n", r"line 2: the end, 0, is not after"),
        ("recording,start_s,end_ms,class\na.csv,1s,2,x\n", r"line 2: start_s is '1s': give a num"),
        ("recording,start_s,end_ms,class\na.csv,1,1.2.3,x\n", r"line 2: end: '1\.2\.3ms' is no"),
        (HEAD + "a.csv,0s,2s,x\na.csv,3s,4s,x\na.csv,1.9s,3s,y\n", r"lines 2 and 4: stretches of"),
        (HEAD + "a.csv,3s,4s,x\na.csv,1s,,y\n", r"lines 2 and 3: .*overlap \(y, x\)"),
        (HEAD + "a.csv,,,x\na.csv,,,x\n", r"lines 2 and 3: stretches of a\.csv that overlap"),
        (HEAD + "a.csv,,,x\na.txt,,,y\n", r"line 3: a\.txt and a\.csv have the same name"),
        (HEAD.encode("utf-16"), r"labels\.csv: byte 0 is not UTF-8: save it as CSV UTF-8"),
        (
            HEAD + "a.csv,,,x\n",
            r"labels\.csv has recordings of one class, x: give rows of two classes",
        ),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    recording(tmp_path / "a.csv"), write(tmp_path / "a.txt", b"")
    write(tmp_path / "labels.csv", text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as raised:
        Recordings(tmp_path)
    assert str(tmp_path / "labels.csv") in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ("8s,9s", r"'y' from 8 s to 9 s is not in .*day/1\.csv, which takes 7\.900001 s: mend"),
        ("7s,8.5s", r"'y' from 7 s to 8\.5 s is not in .*, or leave the end empty"),
        ("9s,", r"'y' from 9 s to the end is not in .* first event \(777000 us of its clock\)"),
        ("7.91s,8.01s", r"'y' from 7\.91 s to 8\.01 s is not in"),
        ("3.01s,3.09s", r"'y' from 3\.01 s to 3\.09 s has no events in .*day/1\.csv: mend or"),
    ],
)
def test_a_stretch_that_is_not_in_its_recording_is_found(
    tmp_path: Path, times: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled(tmp_path, 3)
    with (tmp_path / "labels.csv").open("w") as file:
        file.write(f"recording,start,end,class\nday/0.csv,1s,2s,x\nday/1.csv,{times},y\n")
    data = Recordings(tmp_path, T=1, size=4)
    (item,) = (item for item in everything(data) if item.label == "y")
    with pytest.raises(ValueError, match=r"labels\.csv line 3: " + message):
        data.load(item)
    with pytest.raises(ValueError, match=message):
        Recordings(tmp_path, window="500ms")
    report = check(data, tmp_path)
    assert report.wrong
    assert list(report.unreadable) == [item]


def test_a_tenth_of_a_stretch_may_lie_behind_the_last_event(tmp_path: Path) -> None:
    text = "recording,start,end,class\nday/0.csv,0s,1s,x\nday/0.csv,7s,8s,y\n"
    for how in ({}, {"window": "500ms"}, {"window": "300ms"}):
        data = Recordings(labelled(tmp_path, 1, text), T=1, size=4, **how)
        frames = [data.load(item)[0].sum() for item in everything(data) if item.label == "y"]
        # Of 0.9 s a window of 0.5 s is one, and three are of 0.3 s.
        assert frames == {"": [10], "500ms": [5], "300ms": [3, 3, 3]}[how.get("window", "")]


def test_cache_fingerprint_and_leaks_know_the_stretches(tmp_path: Path) -> None:
    root = labelled(tmp_path / "set")
    how = {"T": 2, "size": 4, "window": "500ms"}
    data = Recordings(root, **how)
    cached = Recordings(root, cache=tmp_path / "cache", **how)
    for a, b in zip(data.loader("train"), cached.loader("train"), strict=True):
        assert torch.equal(a.events, b.events)
        assert torch.equal(a.label, b.label)
    assert cached.fingerprint == data.fingerprint == Recordings(root, **how).fingerprint
    text = (root / "labels.csv").read_text()
    write(root / "labels.csv", text.replace("2.0s", "1.9s").encode())
    assert Recordings(root, **how).fingerprint != data.fingerprint
    train, test = (data.splits[split][0].events for split in ("train", "test"))
    test.write_bytes(train.read_bytes())
    with pytest.raises(ValueError, match=r"leak: .* have the same recording"):
        refuse_leaks(Recordings(root))


def test_shards_and_predicted_files_have_the_frames_of_the_items(tmp_path: Path) -> None:
    text = HEAD + "day/0.csv,0s,4s,x\nday/0.csv,4s,,y\nday/1.csv,,,x\nday/2.csv,,,y\n"
    data = Recordings(labelled(tmp_path / "set", 3, text), T=3, size=4, test_fraction=0.4)
    write_shards(data, tmp_path / "shards")
    shards = Shards(tmp_path / "shards")
    assert shards.sizes == data.sizes == {"train": 2, "val": 0, "test": 2}
    for a, b in zip(data.loader("test"), shards.loader("test"), strict=True):
        assert torch.equal(a.events, b.events)
        assert torch.equal(a.label, b.label)
    for item in everything(data):
        if item.events.name != "0.csv":
            how = {"T": 3, "size": 4, "by": "count", "sensor": SIZE}
            frames = read_file(item.events, "estl.data.Recordings", how)
            assert torch.equal(frames, data.load(item)[0])


def test_a_recording_is_decoded_once_although_its_stretches_are_of_many_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from estl.data import reading

    read, count = reading.read_recording, Counter[Path]()

    def counting(path: Path):  # type: ignore[no-untyped-def]
        count[path] += 1
        return read(path)

    monkeypatch.setattr(reading, "read_recording", counting)
    root = labelled(tmp_path / "set")
    reading._kept.cache_clear()
    Recordings(root, T=1, size=4, window="1s")
    assert max(count.values()) == 1
    count.clear(), reading._kept.cache_clear()
    data = Recordings(root, T=1, size=4, cache=tmp_path / "cache")
    assert max(count.values()) == 1
    count.clear(), reading._kept.cache_clear()
    check(data)
    assert len(count) == 5
    assert max(count.values()) == 1


def test_the_table_comes_before_folders_and_the_check_says_what_it_leaves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_labelled(tmp_path)
    other = recording(root / "chair" / "walk.csv")
    assert main(["data", "check", f"--root={root}"]) == 0
    said = capsys.readouterr().out
    assert f"recordings that labels.csv does not name (not used): 1\n  {other}\n" in said
    assert "decoded: 12 of 12 items" in said
    assert "nothing is wrong" in said
    for images in ("true", "images"):
        words = ["data", "check", f"--root={root}", f"--data.init_args.images={images}"]
        assert main(words) == 2
        assert "labels.csv has none: leave images out" in capsys.readouterr().err


def test_each_stretch_is_drawn(tmp_path: Path) -> None:
    root = write_labelled(tmp_path, 2)
    drawn = views(root, rows=9)
    assert [view.title for view in drawn] == [str(item) for item in read_table(root)]
    assert [len(view.events) for view in drawn] == [10, 10, 20, 20]
    assert len(views(root, rows=2)) == 2
