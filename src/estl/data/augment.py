"""Augmentation of a whole batch on its device: image and event frames together, and mixing.

Samples draw their own transforms all at once: no loop over them, and no waiting for a GPU.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Gamma

from estl.data.pixels import auto_augment, box, inside, move_pixels, square, warp
from estl.types import LUMA, Batch, direct_code, is_static

_RANGES = {
    "rotation": (0.0, 180.0),
    "scale": (0.0, 0.9),
    "crop": (0.1, 1.0),
    "noise": (0.0, math.inf),
    "padded_crop": (0.0, math.inf),
    "roll": (0.0, math.inf),
    "cutout": (0.0, math.inf),
    "mixup": (0.0, math.inf),
    "cutmix": (0.0, math.inf),
}
"""Ranges of the options that are not probabilities or shares; those are in [0,1]."""


@dataclass(frozen=True)
class Augment:
    """Random changes of a training batch; every option is off by default.

    **Geometric**, the same for the image and all event frames of a sample: one affine map in
    normalized coordinates, in which a side runs from -1 to 1 whatever its number of pixels, so that
    a place in the image stays the same place in the frames. Images are read bilinearly and repeat
    their border beyond it. Event frames take the nearest pixel and are empty beyond the border, so
    that counts stay counts and frames as sparse as they were (docs/log.md). What is enlarged has
    more events, in proportion to its area, as on a sensor. What leaves the frame is lost.

    **Event-only**, on counts (normalize afterwards): the three of EventDrop (Gu et al., IJCAI
    2021), each drawn by itself, while the paper applies one of them or none; then polarity, noise.

    **RGB-only**, on pictures in [0,1]: the image, and events that are a picture themselves (three
    channels, a static set).

    **Mixing** of each sample with a random one of its batch: mixup (Zhang et al., ICLR 2018) and
    CutMix (Yun et al., ICCV 2019; of event frames, Li et al., ECCV 2022). With both on, a coin
    decides per sample. `Batch.soft_label` gets the shares, `Batch.label` the larger part.

    Args:
        flip: probability of mirroring left and right, in [0,1].
        shift: largest shift along each axis, share of the side, in [0,1].
        rotation: largest angle in degrees, either way, in [0,180]; rigid on the event frames.
        scale: largest change of size, in [0,0.9]: the factor is in [1-scale, 1+scale].
        crop: smallest side of the random window that is enlarged to the full field of view, share
            of the side, in [0.1,1]; 1 is off.
        drop_time: largest share of time steps erased, in one run of steps, in [0,1].
        drop_area: largest side of a rectangle erased in all steps, share of the side, in [0,1].
        drop_events: largest share of events lost, each with the same probability, in [0,1].
        polarity: probability that ON and OFF are exchanged, in [0,1].
        noise: expected number of background events per pixel and step, half of them ON, >= 0.
        padded_crop: pixels of zeros around a picture that is cut back to its size at a random place
            (static sets), >= 0.
        roll: largest roll of event frames in whole pixels along each axis, >= 0.
        cutout: side in pixels of a square of zeros in each picture (DeVries and Taylor 2017), >= 0.
        policy: "autoaugment" for AutoAugment's CIFAR-10 policy (`pixels.auto_augment`), or "none".
        color: largest change of the factors of brightness, contrast and saturation, in [0,1].
        gray: probability that color is taken away, in [0,1].
        mixup: alpha of Beta(alpha, alpha), from which the share is drawn, >= 0; 0 is off.
        cutmix: likewise.

    Raises:
        ValueError: an option outside its range; in a call, an event-only option for frames that are
            no event counts, an RGB-only option for a batch without pictures.

    >>> augment = Augment(flip=0.5, shift=0.1, rotation=10.0, drop_time=0.3, mixup=0.2)
    >>> batch = Batch(torch.ones(4, 10, 2, 48, 48), torch.tensor([0, 1, 2, 1]))
    >>> batch = augment(batch, classes=3)
    >>> batch.events.shape, batch.target.shape
    (torch.Size([4, 10, 2, 48, 48]), torch.Size([4, 3]))
    """

    flip: float = 0.0
    shift: float = 0.0
    rotation: float = 0.0
    scale: float = 0.0
    crop: float = 1.0
    drop_time: float = 0.0
    drop_area: float = 0.0
    drop_events: float = 0.0
    polarity: float = 0.0
    noise: float = 0.0
    padded_crop: int = 0
    roll: int = 0
    cutout: int = 0
    policy: Literal["none", "autoaugment"] = "none"
    color: float = 0.0
    gray: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        numbers = {name: value for name, value in asdict(self).items() if name != "policy"}
        for name, value in numbers.items():
            low, high = _RANGES.get(name, (0.0, 1.0))
            if not (low <= value <= high and math.isfinite(value)):
                span = f"[{low:g},{high:g}]"
                raise ValueError(f"{name} must be a finite number in {span}, not {value}")
        if self.policy not in ("none", "autoaugment"):
            raise ValueError(f"policy must be none or autoaugment, not {self.policy!r}")

    def __call__(self, batch: Batch, classes: int) -> Batch:
        """The batch, changed, with soft labels of K = `classes` columns if it is mixed.

        Its tensors are not written to; unchanged ones are shared.
        """
        changes = (self._mirror, self._move, self._step, self._disturb, self._recolor, self._erase)
        for change in changes:
            batch = change(batch)
        return self._mix(batch, classes) if self.mixup or self.cutmix else batch

    def _mirror(self, batch: Batch) -> Batch:
        if not self.flip:
            return batch
        flipped = _chance(batch, self.flip)
        return _each(batch, lambda x: torch.where(flipped, x.flip(-1), x))

    def _move(self, batch: Batch) -> Batch:
        if not (self.shift or self.rotation or self.scale or self.crop < 1.0):
            return batch
        matrix = self._matrix(batch)
        return _each(batch, lambda x: warp(x, matrix))

    def _matrix(self, batch: Batch) -> Float[Tensor, "B 2 3"]:
        """From normalized coordinates of the result to those of the source.

        The picture is scaled, rotated and shifted, then cropped. Read backwards: a place o of the
        result is q = side o + center before the crop, and R(-angle) (q - shift) / scale before all.
        """
        angle = torch.deg2rad(_uniform(batch, -self.rotation, self.rotation))
        scale = _uniform(batch, 1.0 - self.scale, 1.0 + self.scale)
        side = _uniform(batch, self.crop, 1.0)
        # A side is 2 long in normalized coordinates.
        shift = _uniform(batch, -2.0 * self.shift, 2.0 * self.shift, 2)
        center = _uniform(batch, -1.0, 1.0, 2) * (1.0 - side).unsqueeze(-1)
        H, W = batch.events.shape[-2:]
        cos, sin = angle.cos(), angle.sin()
        rows = torch.stack([cos, sin * (H / W), -sin * (W / H), cos], -1)
        linear = rows.view(-1, 2, 2) / scale.view(-1, 1, 1)
        offset = linear @ (center - shift).unsqueeze(-1)
        return torch.cat([linear * side.view(-1, 1, 1), offset], -1)

    def _step(self, batch: Batch) -> Batch:
        """Padded crop and roll, by whole pixels: of events, and of an image on the same pixels."""
        for most, wrap, channels in ((self.padded_crop, False, 3), (self.roll, True, 2)):
            if not most:
                continue
            size = batch.events.shape[-2:]
            if batch.events.shape[2] != channels:
                name = "roll is for event frames" if wrap else "padded_crop is for pictures"
                raise ValueError(f"{name}: leave it out for this data set")
            if batch.image is not None and batch.image.shape[-2:] != size:
                raise ValueError(
                    f"whole pixels of the frames, {tuple(size)}, are none of the images, "
                    f"{tuple(batch.image.shape[-2:])}: use shift in place of padded_crop and roll"
                )
            draws = _uniform(batch, -float(most), most + 1.0, 2)
            rows, columns = draws.floor().clamp(max=most).long().T
            batch = _each(batch, partial(move_pixels, rows=rows, columns=columns, wrap=wrap))
        return batch

    def _erase(self, batch: Batch) -> Batch:
        """The policy, then Cutout, on events that are pictures."""
        if not self.cutout and self.policy == "none":
            return batch
        x = batch.events
        if (x.shape[1] > 1 and not is_static(x)) or x.shape[2] != 3 or batch.image is not None:
            raise ValueError(
                "cutout and policy are for static pictures without images: leave them out here"
            )
        picture = auto_augment(x[:, 0]) if self.policy == "autoaugment" else x[:, 0]
        if self.cutout:
            H, W = picture.shape[-2:]
            i, j = (_uniform(batch, 0.0, float(n)).long().clamp(max=n - 1) for n in (H, W))
            picture = picture.masked_fill(square(i, j, self.cutout, H, W)[:, 0], 0.0)
        return replace(batch, events=direct_code(picture, x.shape[1]))

    def _disturb(self, batch: Batch) -> Batch:
        x = batch.events
        B, T, C, H, W = x.shape
        if not any((self.drop_time, self.drop_area, self.drop_events, self.polarity, self.noise)):
            return batch
        if C != 2:
            raise ValueError(
                "drop_time, drop_area, drop_events, polarity and noise are for event frames of 2 "
                f"channels, not {C}: leave them out for this data set"
            )
        if self.drop_events:
            kept = 1.0 - _uniform(batch, 0.0, self.drop_events)
            x = torch.binomial(x, kept.view(-1, 1, 1, 1, 1).expand_as(x).contiguous())
        if self.drop_area:
            sides = _uniform(batch, 0.0, self.drop_area, 2)
            corner = _uniform(batch, 0.0, 1.0, 2) * (1.0 - sides)
            x = x.masked_fill(box(corner, sides, H, W), 0.0)
        if self.drop_time:  # in whole steps, each number of them as likely
            longest = math.floor(self.drop_time * T + 1e-9)
            length = _uniform(batch, 0.0, longest + 1.0).floor().clamp(max=longest)
            start = (_uniform(batch, 0.0, 1.0) * (T - length + 1.0)).floor()
            erased = inside(start / T, length / T, T)
            x = x.masked_fill(erased.view(B, T, 1, 1, 1), 0.0)
        if self.polarity:
            x = torch.where(_chance(batch, self.polarity), x.flip(2), x)
        if self.noise:
            x = x + torch.poisson(torch.full_like(x, self.noise / 2.0))
        return replace(batch, events=x)

    def _recolor(self, batch: Batch) -> Batch:
        if not (self.color or self.gray):
            return batch
        if batch.image is None and batch.events.shape[2] != 3:
            raise ValueError("color and gray need images: leave them out for this data set")
        draws = _uniform(batch, 1.0 - self.color, 1.0 + self.color, 3, 1, 1, 1)
        brightness, contrast, saturation = draws.unbind(1)
        saturation = saturation.masked_fill(_chance(batch, self.gray).squeeze(-1), 0.0)
        luma = torch.cat([torch.full((1,), share, device=draws.device) for share in LUMA])
        colors = saturation * torch.eye(3, device=draws.device) + (1.0 - saturation) * luma
        colors = brightness * contrast * colors  # (B,1,3,3)

        def change(x: Float[Tensor, "B S C H W"]) -> Float[Tensor, "B S C H W"]:
            """Brightness, contrast about the mean luma, saturation about the luma, as one map."""
            if x.shape[2] != 3:
                return x
            mean = brightness * (x.mean((-2, -1)) @ luma).view(*x.shape[:2], 1, 1)
            y = (colors @ x.flatten(3)).add_((1.0 - contrast) * mean)
            return y.clamp_(0.0, 1.0).view(x.shape)

        return _each(batch, change)

    def _mix(self, batch: Batch, classes: int) -> Batch:
        order = _uniform(batch, 0.0, 1.0).argsort()
        own = _beta(batch, self.mixup).view(-1, 1, 1, 1, 1)
        sides = (1.0 - _beta(batch, self.cutmix)).sqrt().unsqueeze(-1).expand(-1, 2)
        corner = _uniform(batch, 0.0, 1.0, 2) * (1.0 - sides)
        boxed = _chance(batch, 1.0 if not self.mixup else 0.5 if self.cutmix else 0.0)

        def weight(x: Float[Tensor, "B S C H W"]) -> Float[Tensor, "B 1 1 H W"]:
            """The sample's own share of each place."""
            outside = ~box(corner, sides, x.shape[-2], x.shape[-1])
            return torch.where(boxed, outside.to(x.dtype), own.to(x.dtype))

        mixed = _each(batch, lambda x: torch.lerp(x[order], x, weight(x)))
        share = weight(batch.events).mean((1, 2, 3, 4)).unsqueeze(-1)
        target = batch.soft_label
        if target is None:
            target = F.one_hot(batch.label, classes).to(share.dtype)
        target = torch.lerp(target[order], target, share)
        return replace(mixed, soft_label=target, label=target.argmax(-1))


def _each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Apply `change` as (B,S,C,H,W) to the events, S = 1 if directly coded, and to the image."""
    events, image = batch.events, batch.image
    if is_static(events):
        events = direct_code(change(events[:, :1])[:, 0], events.shape[1])
    else:
        events = change(events)
    if image is not None:
        image = change(image.unsqueeze(1)).squeeze(1)
    return replace(batch, events=events, image=image)


def _uniform(batch: Batch, low: float, high: float, *size: int) -> Float[Tensor, "B *size"]:
    """Independent draws for each sample."""
    draws = torch.empty(len(batch.label), *size, device=batch.events.device)
    return draws.uniform_(low, high)


def _chance(batch: Batch, probability: float) -> Bool[Tensor, "B 1 1 1 1"]:
    """True with `probability`, for each sample."""
    return _uniform(batch, 0.0, 1.0, 1, 1, 1, 1) < probability


def _beta(batch: Batch, alpha: float) -> Float[Tensor, " B"]:
    """Draws of Beta(alpha, alpha), for each sample; 1 for alpha 0.

    As g / (g + h) of two gamma variables, by their logarithms: for small alpha both would be 0 in
    floating point. log Gamma(alpha) is that of alpha + 1 plus log(u) / alpha.
    """
    ones = torch.ones(len(batch.label), 2, device=batch.events.device)
    if alpha == 0.0:
        return ones[:, 0]
    gamma = Gamma(ones * (alpha + 1.0), ones, validate_args=False).sample()
    log = gamma.log() + torch.log1p(-_uniform(batch, 0.0, 1.0, 2)) / alpha
    return (log[:, 0] - log[:, 1]).sigmoid()
