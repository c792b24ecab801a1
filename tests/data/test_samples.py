"""What is kept of the files that training has read."""

import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from estl.data import reading
from estl.data.items import Item
from estl.data.module import ItemData
from estl.data.samples import Memory, repeats
from estl.types import is_static

FILE = Path("any.bin")
FRAMES = {
    "counts": torch.tensor([[[[0.0, 3.0]]], [[[1.0, 255.0]]]]),
    "many": torch.tensor([[[[0.0, 300.0]]], [[[1.0, 7.0]]]]),
    "no counts": torch.tensor([[[[0.0, 0.3]]], [[[-1.0, 7.0]]]]),
    "a static image": torch.tensor([[[[0.2, 0.4]]]]).expand(5, -1, -1, -1),
}
IMAGES = {"pixels": torch.tensor([0.0, 1 / 255, 1.0]).view(3, 1, 1), "none": None}


class Source:
    """Loads copies of a sample, and counts how often."""

    def __init__(self, frames: Tensor, image: Tensor | None = None) -> None:
        self.frames, self.image, self.loaded = frames, image, 0

    def __call__(self, item: Item) -> tuple[Tensor, Tensor | None]:
        self.loaded += 1
        frames = self.frames if is_static(self.frames[None]) else self.frames.clone()
        return frames, None if self.image is None else self.image.clone()


@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize("image", IMAGES)
def test_a_second_time_it_gives_the_same_without_loading(frames: str, image: str) -> None:
    source, memory = Source(FRAMES[frames], IMAGES[image]), Memory()
    item = Item("a", "0", events=FILE)
    for _ in range(3):
        found, seen = memory.read(item, source, True)
        assert torch.equal(found, source.frames)
        assert is_static(found[None]) == is_static(source.frames[None])
        assert (seen is None) == (source.image is None)
        if seen is not None:
            assert torch.equal(seen, source.image)
            seen += 1  # is the caller's own
        if not is_static(found[None]):
            found += 1
    assert source.loaded == 1
    memory.read(Item("b", "0", events=FILE), source, True)
    memory.read(item, source, False)
    assert source.loaded == 3


def test_what_does_not_fit_is_loaded_each_time_and_what_has_no_file() -> None:
    counts = Source(FRAMES["counts"])  # four bytes
    memory = Memory(room=11)
    for _ in range(2):
        for number in "012":
            memory.read(Item("a", number, events=FILE), counts, True)
    assert counts.loaded == 4
    assert (len(memory.kept), memory.taken, memory.full) == (2, 8, True)
    counts.loaded, memory = 0, Memory()
    for _ in range(2):
        memory.read(Item("a", "0"), counts, True)
    assert counts.loaded == 2


def test_it_is_empty_for_a_process() -> None:
    memory = Memory(room=100)
    memory.read(Item("a", "0", events=FILE), Source(FRAMES["counts"]), True)
    other = pickle.loads(pickle.dumps(memory))
    assert (other.room, other.taken, other.full, other.kept) == (100, 0, False, {})


def test_a_function_that_calls_a_users_may_draw_something() -> None:
    assert repeats(partial(reading.read_nmnist, T=3))
    assert repeats(partial(partial(reading.read_nmnist, T=3), images=False))
    assert not repeats(partial(reading.read_nmnist, by=load_file))
    assert not repeats(Source(FRAMES["counts"]))


def load_file(item: Item) -> tuple[Tensor, None]:
    assert item.events is not None
    return torch.full((2, 2, 3, 3), float(item.events.read_text())), None


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("own", [True, False])
def test_training_reads_each_file_once_by_a_function_of_estl(
    num_workers: int, own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own:
        monkeypatch.setattr(load_file, "__module__", "estl.data.reading")
        monkeypatch.setattr(reading, "load_file", load_file, raising=False)  # where it is pickled
    items = []
    for i in range(6):
        items.append(Item("ab"[i % 2], str(i), events=tmp_path / str(i)))
        (tmp_path / str(i)).write_text(str(i))
    splits = {"train": items[:4], "val": items[4:5], "test": items[5:]}
    shape = {"T": 2, "frame_size": (3, 3), "batch_size": 2}
    data = ItemData(splits, load_file, num_workers=num_workers, **shape)
    first = [batch.events.flatten(1)[:, 0].tolist() for batch in data.batches(0)]
    assert sorted(x for batch in first for x in batch) == [0, 1, 2, 3]
    for path in tmp_path.iterdir():
        path.write_text("9")
    again = [batch.events.flatten(1)[:, 0].tolist() for batch in data.batches(0)]
    assert again == (first if own and num_workers == 0 else [[9, 9], [9, 9]])
    assert [batch.events.max() for batch in data.loader("train")] == [9, 9]
    assert [batch.events.max() for batch in data.loader("test")] == [9]
