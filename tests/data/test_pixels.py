"""Whole-pixel augmentation against plain NumPy transcriptions."""

import numpy as np
import pytest
import torch

from estl.data.augment import Augment
from estl.data.pixels import auto_augment, move_pixels, square
from estl.types import Batch, direct_code


def pictures(B: int, size: int = 8) -> torch.Tensor:
    return torch.rand(B, 3, size, size) + 0.1  # no zeros of its own


def static(image: torch.Tensor, T: int = 2) -> Batch:
    return Batch(direct_code(image, T), torch.zeros(len(image), dtype=torch.long))


@pytest.mark.parametrize("wrap", [False, True])
def test_moving_is_padding_and_slicing_or_numpys_roll(wrap: bool) -> None:
    x = torch.rand(9, 2, 2, 5, 7)
    rows, columns = torch.arange(-4, 5), torch.arange(4, -5, -1)
    moved = move_pixels(x, rows, columns, wrap=wrap).numpy()
    for b, (dy, dx) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        if wrap:
            expected = np.roll(x[b].numpy(), (dy, dx), axis=(-2, -1))
        else:
            padded = np.pad(x[b].numpy(), [(0, 0), (0, 0), (4, 4), (4, 4)])
            expected = padded[:, :, 4 - dy : 9 - dy, 4 - dx : 11 - dx]
        np.testing.assert_array_equal(moved[b], expected)


def test_a_padded_crop_is_one_of_all_crops_and_each_as_likely() -> None:
    image = pictures(1)
    batch = Augment(padded_crop=2)(static(image.expand(4000, -1, -1, -1)), classes=10)
    padded = np.pad(image[0].numpy(), [(0, 0), (2, 2), (2, 2)])
    crops = {padded[:, i : i + 8, j : j + 8].tobytes(): (i, j) for i in range(5) for j in range(5)}
    drawn = [crops[picture.tobytes()] for picture in batch.events[:, 0].numpy()]
    count = np.zeros((5, 5))
    for place in drawn:
        count[place] += 1
    assert count.min() > 160 - 5 * 160**0.5  # 4000 / 25 = 160, five standard deviations
    assert count.max() < 160 + 5 * 160**0.5
    assert batch.events.stride(1) == 0


def test_a_roll_keeps_every_event_and_is_the_same_at_all_steps() -> None:
    frames = torch.poisson(torch.full((500, 3, 2, 6, 6), 0.5))
    batch = Batch(frames, torch.zeros(500, dtype=torch.long))
    rolled = Augment(roll=2)(batch, classes=10).events.numpy()
    seen = set()
    for before, after in zip(frames.numpy(), rolled, strict=True):
        places = [
            (i, j)
            for i in range(-2, 3)
            for j in range(-2, 3)
            if np.array_equal(np.roll(before, (i, j), axis=(-2, -1)), after)
        ]
        assert places
        seen |= set(places)
    assert len(seen) == 25


def test_cutout_is_a_square_around_a_uniform_center() -> None:
    batch = Augment(cutout=4)(static(pictures(3000)), classes=10)
    gone = (batch.events[:, 0] == 0).all(1).numpy()
    masks = set()
    for row in range(8):
        for column in range(8):
            mask = np.zeros((8, 8), bool)
            top, left = max(row - 2, 0), max(column - 2, 0)
            mask[top : row + 2, left : column + 2] = True
            masks.add(mask.tobytes())
    assert {mask.tobytes() for mask in gone} == masks
    mine = square(torch.tensor([3]), torch.tensor([5]), 4, 8, 8)[0, 0, 0].numpy()
    assert mine[1:5, 3:7].all()
    assert mine.sum() == 16


def test_a_picture_of_one_step_is_erased_as_one_of_several() -> None:
    image, augment = pictures(4), Augment(cutout=4, policy="autoaugment")
    found = []
    for T in (1, 3):
        torch.manual_seed(3)
        found.append(augment(static(image, T), classes=10).events)
    assert torch.equal(found[0], found[1][:, :1])
    assert not torch.equal(found[0][:, 0], image)


def test_every_picture_draws_a_policy_of_its_own() -> None:
    image = pictures(1, 32).clamp(max=1.0).expand(200, -1, -1, -1)
    changed = auto_augment(image)
    assert changed.shape == image.shape
    assert 0.0 <= float(changed.min()) <= float(changed.max()) <= 1.0
    assert len({picture.numpy().tobytes() for picture in changed}) > 60
    torch.manual_seed(5)
    one = Augment(policy="autoaugment")(static(image[:20]), classes=10).events
    torch.manual_seed(5)
    two = Augment(policy="autoaugment")(static(image[:20]), classes=10).events
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("augment", "says"),
    [
        (Augment(padded_crop=2), "padded_crop is for pictures"),
        (Augment(cutout=2), "static pictures"),
        (Augment(policy="autoaugment"), "static pictures"),
    ],
)
def test_what_is_for_pictures_is_refused_for_event_frames(augment: Augment, says: str) -> None:
    batch = Batch(torch.ones(2, 3, 2, 8, 8), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=says):
        augment(batch, classes=2)
    with pytest.raises(ValueError, match="roll is for event frames"):
        Augment(roll=1)(static(pictures(2)), classes=2)
    paired = Batch(torch.ones(2, 3, 2, 8, 8), torch.tensor([0, 1]), torch.rand(2, 3, 16, 16))
    with pytest.raises(ValueError, match="use shift"):
        Augment(roll=1)(paired, classes=2)
