"""Files to predict: any format, on any sensor, looked at as a student's data set does."""

from pathlib import Path

import pytest
import torch

from estl.data.formats.atis import read_events
from estl.data.frames import to_frames
from estl.data.recorded import read_parts
from tests import encoders
from tests.encoders import as_events, write
from tests.tiny_sets import picture, read_file, write_nmnist

NMNIST = ("estl.data.NMNISTPairs", {"T": 4, "by": "time"})


def test_a_recording_of_n_mnist_in_another_format_gives_the_same_frames(tmp_path: Path) -> None:
    original = write_nmnist(tmp_path, digits="0", each=1) / "N-MNIST/Test/0/60001.bin"
    frames = read_file(original, *NMNIST)
    events = read_events(original)
    assert torch.equal(frames, to_frames(events, 4, (34, 34), "time"))
    for name, data in (
        ("x.raw", encoders.evt3(as_events(events), (34, 34))),
        ("x.csv", encoders.csv(as_events(events), None)),
        ("x.aedat4", encoders.aedat4(as_events(events), (34, 34))),
    ):
        assert torch.equal(read_file(write(tmp_path / name, data), *NMNIST), frames)


def test_a_file_that_tells_its_sensor_is_binned_from_it(tmp_path: Path) -> None:
    path = write(tmp_path / "x.raw", encoders.evt2([(0, 67, 0, 1), (9, 0, 67, 0)], (68, 68)))
    frames = read_file(path, *NMNIST)
    assert frames.nonzero().tolist() == [[0, 1, 0, 33], [3, 0, 33, 0]]
    untold = write(tmp_path / "x.csv", encoders.csv([(0, 67, 0, 1), (9, 0, 67, 0)], None))
    with pytest.raises(ValueError, match=r"x\.csv: event 0, x=67 y=0, outside the sensor of H=34"):
        read_file(untold, *NMNIST)
    ((_, same),) = read_parts(untold, *NMNIST, sensor="68x68")
    assert torch.equal(same, frames)


def test_students_of_simulated_recordings_see_real_ones(tmp_path: Path) -> None:
    events = [(k, k % 50, k % 40, k % 2) for k in range(600)]
    path = write(tmp_path / "x.raw", encoders.evt2(events, (40, 50)))
    digits = read_file(path, "estl.data.Digits", {"T": 3, "size": 16})
    assert digits.sum((1, 2, 3)).tolist() == [200, 200, 200]
    folder = {"T": 3, "size": 16, "rgb": 8, "amplitude": 0.1, "threshold": 0.2}
    seen = read_file(path, "estl.data.ImageFolder", folder | {"coding": "saccades"})
    assert torch.equal(seen, digits)
    image = picture(tmp_path / "x.png", 20, 16)
    ((span, frames),) = read_parts(image, "estl.data.ImageFolder", folder, window=100)
    assert span is None
    assert frames.shape == (3, 2, 16, 16)
    with pytest.raises(ValueError, match="has no recordings to predict"):
        read_file(path, "estl.data.ImageFolder", folder | {"coding": "direct"})
