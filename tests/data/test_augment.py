"""Augmentation: image and frames stay aligned, and each change is what its definition says."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from estl.data.augment import Augment
from estl.types import Batch, direct_code, is_static

GEOMETRIC: list[dict[str, float]] = [
    {"flip": 0.5},
    {"shift": 0.2},
    {"rotation": 30.0},
    {"scale": 0.3},
    {"crop": 0.6},
    {"flip": 0.5, "shift": 0.1, "rotation": 20.0, "scale": 0.2, "crop": 0.7},
]
EVENT_ONLY: list[dict[str, float]] = [
    {"drop_time": 0.5},
    {"drop_area": 0.5},
    {"drop_events": 0.5},
    {"polarity": 0.5},
    {"noise": 0.1},
]
RGB_ONLY: list[dict[str, float]] = [{"color": 0.4}, {"gray": 0.5}]
MIXING: list[dict[str, float]] = [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}]
EVERYTHING = Augment(
    flip=0.5,
    shift=0.1,
    rotation=15.0,
    scale=0.1,
    crop=0.8,
    drop_time=0.3,
    drop_area=0.3,
    drop_events=0.3,
    polarity=0.5,
    noise=0.01,
    color=0.4,
    gray=0.1,
    mixup=0.2,
    cutmix=1.0,
)


def make(B: int = 4, T: int = 5, size: int = 12, image_size: int = 20) -> Batch:
    """Random counts and pictures; every sample is a class of its own."""
    counts = torch.poisson(torch.full((B, T, 2, size, size), 1.5))
    return Batch(counts, torch.arange(B), torch.rand(B, 3, image_size, image_size))


def picture(batch: Batch) -> Tensor:
    assert batch.image is not None
    return batch.image


def soft(batch: Batch) -> Tensor:
    assert batch.soft_label is not None
    return batch.soft_label


def blob(center: Tensor, size: int, width: float) -> Tensor:
    """A bright round spot (B,size,size) about `center` (B,2), (x,y) in 0..1."""
    places = (torch.arange(size) + 0.5) / size
    x, y = (places - center[:, i : i + 1] for i in (0, 1))
    square = x[:, None, :] ** 2 + y[:, :, None] ** 2
    return torch.exp(-0.5 * square / width**2)


def middle(spot: Tensor) -> Tensor:
    """Center of mass (B,2), (x,y) in 0..1, of maps (B,H,W)."""
    H, W = spot.shape[-2:]
    x, y = (torch.arange(W) + 0.5) / W, (torch.arange(H) + 0.5) / H
    total = spot.sum((-2, -1)).clamp(min=1e-6)
    return torch.stack([spot.sum(-2) @ x / total, spot.sum(-1) @ y / total], -1)


# Off, and bit for bit


def test_with_every_option_off_nothing_is_touched() -> None:
    batch = make()
    assert Augment()(batch, classes=4) == batch  # the very same tensors
    assert Augment()(batch, classes=4).events is batch.events


@pytest.mark.parametrize("options", EVENT_ONLY, ids=str)
def test_an_event_only_option_leaves_the_image_and_changes_the_events(
    options: dict[str, float],
) -> None:
    batch = make(B=16)
    before = batch.events.clone()
    after = Augment(**options)(batch, classes=16)
    assert after.image is batch.image
    assert after.label is batch.label
    assert after.soft_label is None
    assert not after.events.equal(batch.events)
    assert batch.events.equal(before)  # not written to
    assert after.events.equal(after.events.round())
    assert (after.events >= 0).all()


@pytest.mark.parametrize("options", RGB_ONLY, ids=str)
def test_an_rgb_only_option_leaves_the_events_and_changes_the_image(
    options: dict[str, float],
) -> None:
    batch = make(B=16)
    before = picture(batch).clone()
    after = Augment(**options)(batch, classes=16)
    assert after.events is batch.events
    assert after.label is batch.label
    assert not picture(after).equal(before)
    assert picture(batch).equal(before)
    assert picture(after).min() >= 0.0
    assert picture(after).max() <= 1.0


@pytest.mark.parametrize("options", [*GEOMETRIC, *EVENT_ONLY, *MIXING], ids=str)
def test_a_batch_without_images_gets_the_same_events(options: dict[str, float]) -> None:
    batch, augment = make(), Augment(**options)
    torch.manual_seed(5)
    expected = augment(batch, classes=4).events
    torch.manual_seed(5)
    after = augment(dataclasses.replace(batch, image=None), classes=4)
    assert after.image is None
    assert after.events.equal(expected)


def test_a_seed_repeats_everything() -> None:
    batch = make()
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        after = EVERYTHING(batch, classes=4)
        runs.append((after.events, picture(after), soft(after), after.label))
    assert all(a.equal(b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not any(a.equal(b) for a, b in zip(runs[0][:3], runs[2][:3], strict=True))


def test_no_value_is_read_back_from_the_device() -> None:
    with FakeTensorMode() as mode:  # holds no values: reading one raises
        batch = mode.from_tensor(torch.zeros(4, 5, 2, 8, 8)), mode.from_tensor(torch.zeros(4))
        image = mode.from_tensor(torch.zeros(4, 3, 9, 9))
        after = EVERYTHING(Batch(batch[0], batch[1].long(), image), classes=10)
    assert after.events.shape == (4, 5, 2, 8, 8)
    assert soft(after).shape == (4, 10)


# Geometric


@pytest.mark.parametrize("options", GEOMETRIC, ids=str)
def test_a_corner_marked_in_image_and_frames_stays_aligned(options: dict[str, float]) -> None:
    B, coarse, fine = 200, 48, 224
    center = torch.rand(B, 2) * 0.6 + 0.2
    frames = (blob(center, coarse, 0.03) * 50).round()[:, None, None].repeat(1, 2, 2, 1, 1)
    image = blob(center, fine, 0.03)[:, None].expand(-1, 3, -1, -1)
    after = Augment(**options)(Batch(frames, torch.zeros(B).long(), image), classes=1)
    seen, moved = middle(picture(after)[:, 0]), middle(after.events[:, 1, 0])
    inside = ((seen > 0.15) & (seen < 0.85)).all(-1)  # the whole spot is in sight
    assert inside.sum() > B / 2
    apart = (seen - moved)[inside].abs() * coarse
    assert apart.max() < 1.0
    # It is the spot that has moved, not the two with nothing done to them.
    assert (seen - center)[inside].abs().max() * coarse > 2.0
    # One and the same transform at all steps and polarities.
    assert after.events.equal(after.events[:, :1, :1].expand_as(after.events))


def test_flips_are_those_of_torch_and_the_rest_is_exact() -> None:
    batch = make(B=64)
    after = Augment(flip=0.5)(batch, classes=64)
    both = [
        (x.equal(y) and i.equal(j), x.equal(y.flip(-1)) and i.equal(j.flip(-1)))
        for x, y, i, j in zip(
            after.events, batch.events, picture(after), picture(batch), strict=True
        )
    ]
    assert all(kept != mirrored for kept, mirrored in both)
    assert 16 < sum(mirrored for _, mirrored in both) < 48


def affine(options: dict[str, float], B: int, H: int, W: int) -> tuple[Tensor, Tensor, Tensor]:
    """The map from pixels of the result to pixels of the source, read from pictures of x and y.

    Returns the linear parts (B,2,2), the offsets (B,2) and the frames after, whose counts before
    are the pixels' numbers from 1.
    """
    y, x = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    ramps = torch.stack([x, y, torch.zeros(H, W)]).expand(B, -1, -1, -1)
    counts = (1.0 + torch.arange(H * W)).view(H, W).expand(B, 1, 2, -1, -1)
    after = Augment(**options)(Batch(counts, torch.zeros(B).long(), ramps), classes=1)
    sources = picture(after)[:, :2].double()
    # Pixels read from beyond the border repeat it: they are no longer on the ramp.
    edge = torch.tensor([W, H]).view(2, 1, 1) - 0.5
    good = ((sources > 0.5 + 1e-3) & (sources < edge - 1e-3)).all(1)
    places = torch.stack([x, y, torch.ones(H, W)], -1).double()
    linear, offset = [], []
    for i in range(B):
        rows = torch.linalg.lstsq(places[good[i]], sources[i][:, good[i]].T).solution.T
        linear.append(rows[:, :2])
        offset.append(rows[:, 2])
    return torch.stack(linear), torch.stack(offset), after.events


@pytest.mark.parametrize("options", GEOMETRIC[1:], ids=str)
def test_frames_are_read_from_the_nearest_pixel_as_in_a_scalar_loop(
    options: dict[str, float],
) -> None:
    H, W = 10, 14
    linear, offset, after = affine(options, 5, H, W)
    compared = 0
    for i in range(5):
        (a, b), (c, d) = linear[i].tolist()
        e, f = offset[i].tolist()
        for row in range(H):
            for column in range(W):
                x = a * (column + 0.5) + b * (row + 0.5) + e
                y = c * (column + 0.5) + d * (row + 0.5) + f
                if min(abs(x - round(x)), abs(y - round(y))) < 1e-3:
                    continue  # between two pixels: either may be taken
                inside = 0 <= x < W and 0 <= y < H
                expected = 1 + math.floor(y) * W + math.floor(x) if inside else 0
                assert after[i, 0, 0, row, column].item() == expected
                compared += 1
    assert compared > 600


def test_each_geometric_option_draws_from_its_own_range() -> None:
    B, H, W = 100, 12, 18
    eye, size = torch.eye(2).double(), torch.tensor([W, H])
    center = size / 2.0

    linear, offset, _ = affine({"shift": 0.2}, B, H, W)
    torch.testing.assert_close(linear, eye.expand(B, 2, 2), atol=1e-4, rtol=0)
    shares = offset / size
    assert 0.18 < shares.max() < 0.2001
    assert -0.2001 < shares.min() < -0.18

    linear, offset, _ = affine({"rotation": 30.0}, B, H, W)  # rigid in pixels, about the center
    torch.testing.assert_close(linear.mT @ linear, eye.expand(B, 2, 2), atol=1e-4, rtol=0)
    assert linear.det().min() > 0
    torch.testing.assert_close(
        linear @ center.double() + offset, center.double().expand(B, 2), atol=1e-3, rtol=0
    )
    degrees = torch.rad2deg(torch.atan2(linear[:, 1, 0], linear[:, 0, 0]))
    assert 27 < degrees.max() < 30.01
    assert -30.01 < degrees.min() < -27

    linear, offset, _ = affine({"scale": 0.3}, B, H, W)
    factor = 1.0 / linear[:, 0, 0]
    torch.testing.assert_close(linear, eye / factor.view(B, 1, 1), atol=1e-4, rtol=0)
    assert 1.27 < factor.max() < 1.3001
    assert 0.6999 < factor.min() < 0.73

    linear, offset, _ = affine({"crop": 0.5}, B, H, W)
    side = linear[:, 0, 0]
    torch.testing.assert_close(linear, eye * side.view(B, 1, 1), atol=1e-4, rtol=0)
    assert 0.4999 < side.min() < 0.53
    assert 0.97 < side.max() < 1.0001
    start, end = offset, offset + size * side.unsqueeze(-1)  # the window lies in the picture
    assert start.min() > -1e-3
    assert (size - end).min() > -1e-3
    assert (start / size).max() > 0.35


def test_the_nearest_pixel_keeps_the_number_of_events_a_pixel() -> None:
    frames = torch.zeros(200, 2, 2, 48, 48)
    frames[..., 16:32, 16:32] = torch.poisson(torch.full((200, 2, 2, 16, 16), 0.5))
    batch = Batch(frames, torch.zeros(200).long())
    turned = Augment(rotation=20.0, shift=0.1)(batch, classes=1).events
    assert turned.equal(turned.round())
    assert turned.sum().item() == pytest.approx(frames.sum().item(), rel=0.01)


@pytest.mark.parametrize("options", [*GEOMETRIC, *RGB_ONLY, *MIXING], ids=str)
def test_a_static_batch_stays_one_image_over_time(options: dict[str, float]) -> None:
    image = torch.rand(4, 3, 12, 12)
    batch = Batch(direct_code(image, steps=6), torch.arange(4), image)
    after = Augment(**options)(batch, classes=4)
    assert is_static(after.events)
    assert after.events.shape == batch.events.shape
    assert not after.events[:, 0].equal(image)
    # The same picture in both places gets the same change.
    assert after.events[:, 0].equal(picture(after))


# Event-only


def test_thinning_loses_each_event_with_the_probability_of_its_sample() -> None:
    n = 40_000
    batch = Batch(torch.full((300, 1, 2, 100, 200), 3.0), torch.zeros(300).long())
    events = Augment(drop_events=0.6)(batch, classes=1).events
    assert events.equal(events.round())
    assert events.min() >= 0
    assert events.max() <= 3
    kept = events.flatten(1).mean(1) / 3
    assert 0.4 < kept.min() < 0.42
    assert 0.98 < kept.max() < 1.0
    assert kept.mean().item() == pytest.approx(0.7, abs=5 * 0.6 / math.sqrt(12 * 300))
    # Binomial of three: variance 3 p (1-p), up to the noise of n draws.
    variance = events.flatten(1).var(1)
    torch.testing.assert_close(variance, 3 * kept * (1 - kept), atol=8 / math.sqrt(n), rtol=0)


def test_noise_is_poisson_half_on_half_off_everywhere() -> None:
    batch = Batch(torch.full((10, 5, 2, 50, 50), 2.0), torch.zeros(10).long())
    added = Augment(noise=0.4)(batch, classes=1).events - 2.0
    assert added.equal(added.round())
    assert added.min() == 0
    for polarity in (0, 1):  # 125,000 draws of mean and variance 0.2
        draws = added[:, :, polarity]
        assert draws.mean().item() == pytest.approx(0.2, abs=0.006)
        assert draws.var().item() == pytest.approx(0.2, abs=0.008)
        assert (draws == 0).float().mean().item() == pytest.approx(math.exp(-0.2), abs=0.006)


@pytest.mark.parametrize(("share", "T", "longest"), [(0.5, 7, 3), (0.3, 10, 3), (1.0, 4, 4)])
def test_time_is_erased_in_one_run_of_steps_each_length_and_place_as_likely(
    share: float, T: int, longest: int
) -> None:
    B = 4000
    batch = Batch(torch.ones(B, T, 2, 2, 3), torch.zeros(B).long())
    events = Augment(drop_time=share)(batch, classes=1).events
    erased = events[:, :, 0, 0, 0] == 0
    assert events.equal((~erased).float().view(B, T, 1, 1, 1).expand_as(events))
    starts = (erased[:, 1:] & ~erased[:, :-1]).sum(1) + erased[:, 0]
    assert starts.max() == 1
    lengths = erased.sum(1).bincount()
    assert len(lengths) == longest + 1
    assert (lengths - B / (longest + 1)).abs().max() < 5 * math.sqrt(B / (longest + 1))
    single = erased[erased.sum(1) == 1].sum(0)
    assert (single - single.float().mean()).abs().max() < 5 * single.float().mean().sqrt()


def test_area_is_one_rectangle_erased_at_all_steps() -> None:
    B, H, W = 500, 20, 30
    batch = Batch(torch.ones(B, 3, 2, H, W), torch.zeros(B).long())
    events = Augment(drop_area=0.4)(batch, classes=1).events
    erased = events[:, 0, 0] == 0
    assert events.equal((~erased).float().view(B, 1, 1, H, W).expand_as(events))
    rows, columns = erased.any(2), erased.any(1)
    assert erased.equal(rows[:, :, None] & columns[:, None, :])
    for lines, n in ((rows, H), (columns, W)):
        jumps = (lines[:, 1:] & ~lines[:, :-1]).sum(1) + lines[:, 0]
        assert jumps.max() == 1
        lengths = lines.sum(1) / n
        assert 0.35 < lengths.max() <= 0.4 + 1 / n
        assert lines[:, 0].any()
        assert lines[:, -1].any()


def test_polarity_exchanges_on_and_off_of_whole_samples() -> None:
    batch = make(B=64)
    after = Augment(polarity=0.5)(batch, classes=64).events
    exchanged = [x.equal(y.flip(1)) for x, y in zip(after, batch.events, strict=True)]
    kept = [x.equal(y) for x, y in zip(after, batch.events, strict=True)]
    assert all(a != b for a, b in zip(exchanged, kept, strict=True))
    assert 16 < sum(exchanged) < 48


# RGB-only


def test_color_equals_brightness_then_contrast_then_saturation_in_a_scalar_loop() -> None:
    B, side, limit = 50, 6, 0.2
    image = torch.rand(B, 3, side, side) * 0.2 + 0.4  # far enough from 0 and 1 to stay inside
    batch = Batch(torch.zeros(B, 1, 2, 4, 4), torch.zeros(B).long(), image)
    after = picture(Augment(color=limit)(batch, classes=1))
    seen = []
    for i in range(B):
        # The affine map of colors that was applied, and from it the three factors.
        pixels = torch.cat([image[i].flatten(1), torch.ones(1, side * side)]).double()
        map_ = torch.linalg.lstsq(pixels.T, after[i].flatten(1).double().T).solution.T
        mean = sum(w * image[i, k].double().mean() for k, w in enumerate((0.299, 0.587, 0.114)))
        gain = map_[0, :3].sum()
        brightness = (map_[0, 3] / mean + gain).item()
        contrast = gain.item() / brightness
        saturation = ((map_[0, 0] - map_[1, 0]) / gain).item()
        seen.append((brightness, contrast, saturation))
        for row in range(side):
            for column in range(side):
                r, g, b = (v * brightness for v in image[i, :, row, column].tolist())
                gray_mean = brightness * float(mean)
                r, g, b = (gray_mean + contrast * (v - gray_mean) for v in (r, g, b))
                gray = 0.299 * r + 0.587 * g + 0.114 * b
                expected = [gray + saturation * (v - gray) for v in (r, g, b)]
                assert after[i, :, row, column].tolist() == pytest.approx(expected, abs=1e-4)
    factors = torch.tensor(seen)
    assert (factors.amax(0) > 1 + 0.8 * limit).all()
    assert (factors.amax(0) < 1 + 1.02 * limit).all()
    assert (factors.amin(0) < 1 - 0.8 * limit).all()
    assert (factors.amin(0) > 1 - 1.02 * limit).all()


def test_gray_gives_three_times_the_luma_or_the_image_itself() -> None:
    batch = make(B=64)
    after = picture(Augment(gray=0.5)(batch, classes=64))
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    luma = (picture(batch) * weights).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    gray = [torch.allclose(a, b, atol=1e-6) for a, b in zip(after, luma, strict=True)]
    kept = [a.equal(b) for a, b in zip(after, picture(batch), strict=True)]
    assert all(a != b for a, b in zip(gray, kept, strict=True))
    assert 16 < sum(gray) < 48


# Mixing


def test_mixup_gives_one_weighted_sum_of_events_image_and_label() -> None:
    B = 64
    batch = make(B=B)
    after = Augment(mixup=1.0)(batch, classes=B)
    weights = soft(after)  # every sample is a class of its own, so a row names both and their share
    torch.testing.assert_close(weights.sum(1), torch.ones(B))
    assert ((weights > 0).sum(1) <= 2).all()
    for mixed, whole in ((after.events, batch.events), (picture(after), picture(batch))):
        expected = torch.einsum("ij,j...->i...", weights, whole)
        torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=0)
    assert after.label.equal(weights.argmax(1))
    share = weights.diag()  # a sample may meet itself: share 1
    assert 0.4 < share.mean() < 0.65
    assert len(share.unique()) > B // 2


def test_cutmix_pastes_the_same_field_of_view_and_the_share_is_its_area() -> None:
    B, coarse, fine = 64, 12, 50
    batch = make(B=B, size=coarse, image_size=fine)
    number = torch.arange(B).float()
    events = number.view(B, 1, 1, 1, 1).expand(-1, 2, 2, coarse, coarse)
    image = number.view(B, 1, 1, 1).expand(-1, 3, fine, fine)
    batch = Batch(events, torch.arange(B), image)
    after = Augment(cutmix=1.0)(batch, classes=B)
    assert after.events.equal(after.events[:, :1, :1].expand_as(after.events))
    own, own_fine = after.events[:, 0, 0] == number.view(B, 1, 1), picture(after)[:, 0]
    own_fine = own_fine == number.view(B, 1, 1)
    weights = soft(after)
    torch.testing.assert_close(weights.sum(1), torch.ones(B))
    torch.testing.assert_close(weights.diag(), own.float().mean((1, 2)))
    assert after.label.equal(weights.argmax(1))
    met = [i for i in range(B) if not own[i].all()]
    assert len(met) > B // 2
    for i in met:
        partner = int(after.events[i, 0, 0][~own[i]][0])
        assert weights[i, partner].item() == pytest.approx(1 - own[i].float().mean().item())
        assert (after.events[i, 0, 0][~own[i]] == partner).all()
        assert (picture(after)[i][:, ~own_fine[i]] == partner).all()
        rows, columns = (~own[i]).any(1), (~own[i]).any(0)
        assert (~own[i]).equal(rows[:, None] & columns[None, :])  # a rectangle
        for lines, fine_lines in ((rows, (~own_fine[i]).any(1)), (columns, (~own_fine[i]).any(0))):
            at, fine_at = lines.nonzero() / coarse, fine_lines.nonzero() / fine
            assert (at.min() - fine_at.min()).abs() < 1 / coarse
            assert (at.max() + 1 / coarse - fine_at.max() - 1 / fine).abs() < 1 / coarse


def test_with_mixup_and_cutmix_a_coin_decides_per_sample() -> None:
    B = 200
    events = torch.arange(B).float().view(B, 1, 1, 1, 1).expand(-1, 2, 2, 12, 12)
    mixed = Augment(mixup=8.0, cutmix=8.0)(Batch(events, torch.arange(B)), classes=B).events
    flat = mixed.flatten(1)
    blended = (flat == flat[:, :1]).all(1)  # mixup leaves a constant; a box of another class none
    assert 60 < blended.sum() < 140


@pytest.mark.parametrize("options", MIXING, ids=str)
def test_labels_that_are_mixed_already_are_mixed_again(options: dict[str, float]) -> None:
    batch = make()
    once = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.6, 0.4], [0.2, 0.0, 0.8], [1.0, 0.0, 0.0]])
    torch.manual_seed(1)
    hard = soft(Augment(**options)(batch, classes=4))
    torch.manual_seed(1)
    again = Augment(**options)(dataclasses.replace(batch, soft_label=once), classes=3)
    torch.testing.assert_close(soft(again), hard @ once)
    assert again.label.equal(soft(again).argmax(1))


@pytest.mark.parametrize("alpha", [1e-3, 0.2, 1.0, 10.0])
@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_the_share_is_drawn_from_beta(name: str, alpha: float) -> None:
    B, side = 20_000, 1 if name == "mixup" else 16
    batch = Batch(torch.zeros(1, 1, 2, side, side).expand(B, -1, -1, -1, -1), torch.arange(B) % 2)
    weights = soft(Augment(**{name: alpha})(batch, classes=2))
    # Half of the samples meet one of the other class: E of share (1 - share), and of nothing. The
    # area of a box is one of the grid.
    expected = alpha / (2 * (2 * alpha + 1)) / 2
    assert weights.prod(1).mean().item() == pytest.approx(expected, rel=0.1, abs=2e-4)
    assert weights.isfinite().all()


# Options


@pytest.mark.parametrize("field", ["padded_crop", "roll", "cutout"])
def test_a_negative_number_of_pixels_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} .*-1"):
        Augment(**{field: -1})


def test_an_unknown_policy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # a user has no type checks
    with pytest.raises(ValueError, match=r"^policy must be none or autoaugment, not 'randaugment'"):
        Augment(policy="randaugment")


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Augment) if f.type is float])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_an_option_outside_its_range_is_refused_by_name_and_value(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must be a finite number in \[.*\], not") as e:
        Augment(**{field: value})
    assert str(e.value).endswith(f"not {value}")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, 1.1) for name in ("flip", "shift", "crop", "drop_time", "drop_area", "polarity")),
        *((name, 1.1) for name in ("drop_events", "color", "gray")),
        ("rotation", 181.0),
        ("scale", 1.0),
        ("crop", 0.0),
    ],
)
def test_each_upper_limit_holds(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must be .*, not {value}$"):
        Augment(**{field: value})


@pytest.mark.parametrize("options", EVENT_ONLY, ids=str)
def test_an_event_only_option_refuses_frames_that_are_no_events(options: dict[str, float]) -> None:
    batch = Batch(torch.rand(2, 4, 3, 8, 8), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=f"^.*{next(iter(options))}.* 2 channels, not 3: .*$"):
        Augment(**options)(batch, classes=2)


@pytest.mark.parametrize("options", RGB_ONLY, ids=str)
def test_an_rgb_only_option_refuses_a_batch_without_pictures(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"^color and gray need images: .*$"):
        Augment(**options)(Batch(torch.zeros(2, 4, 2, 8, 8), torch.tensor([0, 1])), classes=2)


@pytest.mark.parametrize(
    "entry",
    [
        {"flip": 0.5, "mixup": 1},
        {"class_path": "estl.data.augment.Augment", "init_args": {"flip": 0.5, "mixup": 1}},
    ],
    ids=["fields", "class_path"],
)
def test_a_recipe_fills_it(entry: dict[str, Any]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--augment", type=Augment | None, default=None)
    filled = parser.instantiate(parser.parse_object({"augment": entry})).augment
    assert filled == Augment(flip=0.5, mixup=1.0)
