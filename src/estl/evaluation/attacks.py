"""Accuracy when the input is perturbed: attacks through time, and noise.

Event frames hold counts, images values in [0,1], and either may be normalized. So `eps` and `sigma`
are shares of a sample's range, from 0 (or its least value, if that is negative) to its largest
value, and results lie within it. An image shown at all steps (`estl.types.direct_code`) is
perturbed once, identically at every step.
"""

from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from estl.evaluation.accuracy import hits
from estl.supervision.steps import eval_mode
from estl.types import Batch, direct_code, is_static


def parse_eps(text: str) -> float:
    """Parse an attack's size, usually written as "8/255" or "0.03".

    Raises:
        ValueError: no number, or outside [0,1].

    >>> parse_eps("8/255") == 8 / 255
    True
    """
    try:
        eps = float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"eps={text!r}: give a number or a fraction such as 8/255") from error
    if not 0.0 <= eps <= 1.0:
        raise ValueError(f"eps={text!r} must be in [0,1]: it is a share of the input's range")
    return eps


def pgd(
    student: nn.Module,
    events: Float[Tensor, "B T C H W"],
    label: Int[Tensor, " B"],
    eps: float,
    *,
    steps: int = 10,
    alpha: float | None = None,
    random_start: bool = True,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B T C H W"]:
    """Projected gradient descent (Madry et al., ICLR 2018), through all time steps.

        x_0     = x + uniform(-eps, eps)                                  (if `random_start`)
        x_{n+1} = clip(x_n + alpha * sign(dCE(1/T sum_t z_t, y) / dx_n))

    where clip keeps values within eps of x and in the sample's range r; eps and alpha are in units
    of r. The gradient runs back through time with the student's surrogates: where they vanish it is
    uninformative, so that the accuracy under attack is an upper bound. The student is in eval mode
    meanwhile; its modes, statistics and gradients do not change.

    Args:
        student: maps events to an `Output`.
        events: samples x.
        label: their classes y.
        eps: largest change of a value, in [0,1].
        steps: number of gradient steps, >= 1.
        alpha: size of a step, by default 2.5 * eps / steps.
        random_start: whether to start at a random point within eps.
        generator: random generator for the start, on the device of `events`.

    Raises:
        ValueError: `eps`, `steps` or `alpha` outside its range.
    """
    alpha = 2.5 * eps / max(steps, 1) if alpha is None else alpha
    if not 0.0 <= eps <= 1.0:
        raise ValueError(f"eps={eps} must be in [0,1]: it is a share of the input's range")
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    if not alpha >= 0.0:
        raise ValueError(f"alpha={alpha} must be >= 0")
    clean, T = _once(events).detach(), events.shape[1]
    low, high = _range(clean)
    radius = eps * (high - low)
    lowest, highest = (clean - radius).clamp(min=low), (clean + radius).clamp(max=high)
    x = clean
    if random_start:
        x = clean + radius * (2 * torch.rand_like(clean, generator=generator) - 1)
        x = x.clamp(lowest, highest)
    with eval_mode(student):
        for _ in range(steps):
            rise = _gradient(student, x, T, label).sign()
            x = (x + alpha * (high - low) * rise).clamp(lowest, highest)
    return _again(x, T)


def fgsm(
    student: nn.Module, events: Float[Tensor, "B T C H W"], label: Int[Tensor, " B"], eps: float
) -> Float[Tensor, "B T C H W"]:
    """Fast gradient sign method (Goodfellow et al., ICLR 2015): x + eps * sign(dCE / dx).

    `pgd` with one step of full size from the sample itself.
    """
    return pgd(student, events, label, eps, steps=1, alpha=eps, random_start=False)


def gaussian_noise(
    events: Float[Tensor, "B T C H W"], sigma: float, generator: torch.Generator | None = None
) -> Float[Tensor, "B T C H W"]:
    """Normal noise of standard deviation `sigma`, a share of each sample's range, clipped to it.

    Raises:
        ValueError: `sigma` below 0.

    >>> gaussian_noise(torch.rand(2, 4, 2, 8, 8), sigma=0.1).shape
    torch.Size([2, 4, 2, 8, 8])
    """
    if not sigma >= 0.0:
        raise ValueError(f"sigma={sigma} must be >= 0")
    x = _once(events)
    low, high = _range(x)
    noise = sigma * (high - low) * torch.randn_like(x, generator=generator)
    return _again((x + noise).clamp(low, high), events.shape[1])


def event_noise(
    events: Float[Tensor, "B T C H W"], rate: float, generator: torch.Generator | None = None
) -> Float[Tensor, "B T C H W"]:
    """Background activity: `rate` further events per pixel, polarity and time step (Poisson).

    For frames of counts, where one event adds 1. Results may exceed the sample's range, as with a
    camera's noise in a busy pixel.

    Raises:
        ValueError: `rate` below 0.

    >>> bool((event_noise(torch.zeros(1, 4, 2, 32, 32), rate=1.0).mean() - 1).abs() < 0.1)
    True
    """
    if not rate >= 0.0:
        raise ValueError(f"rate={rate} must be >= 0")
    return events + torch.poisson(torch.full_like(events, rate), generator=generator)


def drop_frames(
    events: Float[Tensor, "B T C H W"], k: int, generator: torch.Generator | None = None
) -> Float[Tensor, "B T C H W"]:
    """Zero `k` of the T frames of each sample, chosen at random.

    Raises:
        ValueError: `k` outside 0..T.

    >>> drop_frames(torch.ones(1, 4, 1, 1, 1), k=3).sum()
    tensor(1.)
    """
    B, T = events.shape[:2]
    if not 0 <= k <= T:
        raise ValueError(f"k={k} frames to drop must be in 0..T={T}")
    order = torch.rand(B, T, device=events.device, generator=generator).argsort(1)
    return events * (order >= k).to(events.dtype)[:, :, None, None, None]


Disturb = Callable[[nn.Module, Batch, torch.Generator], Tensor]
"""Maps a student, a batch and a random generator to perturbed events (B,T,C,H,W)."""


def attack(name: str, eps: float, steps: int = 10) -> dict[str, Disturb]:
    """The row of one attack, "fgsm" or "pgd", for `robustness`.

    Raises:
        ValueError: another name.

    >>> list(attack("pgd", eps=8 / 255))
    ['pgd-10 8/255']
    """
    size = f"{255 * eps:.3g}/255"
    if name == "fgsm":
        return {f"fgsm {size}": lambda net, b, _: fgsm(net, b.events, b.label, eps)}
    if name == "pgd":
        run = partial(pgd, eps=eps, steps=steps)
        return {f"pgd-{steps} {size}": lambda net, b, g: run(net, b.events, b.label, generator=g)}
    raise ValueError(f"attack must be 'fgsm' or 'pgd', not {name!r}")


def noise(
    sigma: float | None = None, rate: float | None = None, dropped: int | None = None
) -> dict[str, Disturb]:
    """The rows of Gaussian noise, event noise and dropped frames for `robustness`, unless None.

    >>> list(noise(sigma=0.1, dropped=1))
    ['gaussian 0.1', '1 frame dropped']
    """
    rows: dict[str, Disturb] = {}
    if sigma is not None:
        rows[f"gaussian {sigma:g}"] = lambda _, batch, g: gaussian_noise(batch.events, sigma, g)
    if rate is not None:
        rows[f"event noise {rate:g}"] = lambda _, batch, g: event_noise(batch.events, rate, g)
    if dropped is not None:
        name = f"{dropped} frame{'s' if dropped > 1 else ''} dropped"
        rows[name] = lambda _, batch, g: drop_frames(batch.events, dropped, g)
    return rows


def robustness(
    student: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    rows: dict[str, Disturb],
    seed: int = 0,
) -> dict[str, float]:
    """Accuracy of the mean logits, "clean" and for each of `rows`.

    `attack` and `noise` make the rows. Each has a random generator of its own, so that its result
    depends only on the seed and the batches. The student is moved to `device`; its modes (train or
    eval) do not change.
    """
    student = student.to(device)
    table = {"clean": lambda net, batch, generator: batch.events, **rows}
    generators = {name: torch.Generator(device).manual_seed(seed) for name in table}
    correct, samples = dict.fromkeys(table, 0), 0
    for batch in batches:
        batch = batch.to(device)
        samples += len(batch.label)
        for name, disturb in table.items():
            events = disturb(student, batch, generators[name])
            with eval_mode(student), torch.no_grad():
                logits = student(events).logits
            correct[name] += int(hits(logits, batch.label)[:, -1].sum())
    return {name: count / max(samples, 1) for name, count in correct.items()}


def _once(events: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B t C H W"]:
    """One step if an image is shown at all of them, else all steps."""
    return events[:, :1] if is_static(events) else events


def _again(x: Float[Tensor, "B t C H W"], steps: int) -> Float[Tensor, "B T C H W"]:
    """Inverse of `_once`."""
    return direct_code(x[:, 0], steps) if x.shape[1] < steps else x


def _range(x: Float[Tensor, "B t C H W"]) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each sample, the lowest at most 0; each (B,1,1,1,1)."""
    dims = (1, 2, 3, 4)
    low = x.amin(dims, keepdim=True).clamp(max=0.0)
    return low, x.amax(dims, keepdim=True).maximum(low)


def _gradient(
    student: nn.Module, x: Float[Tensor, "B t C H W"], steps: int, label: Int[Tensor, " B"]
) -> Float[Tensor, "B t C H W"]:
    """Gradient of the summed loss, so that a sample's gradient is the same in any batch."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = student(_again(x, steps)).logits.mean(1)
        loss = F.cross_entropy(logits, label, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
    return gradient
