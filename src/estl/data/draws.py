"""The random numbers of an epoch: their seed, and their isolation from all others."""

from collections.abc import Callable, Iterable, Iterator

import torch

from estl.types import Batch


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """The seed of an epoch on a process, so that none depends on the epochs before it.

    >>> epoch_seed(0, epoch=2), epoch_seed(1, epoch=2, rank=1)
    (2000006, 2007926)
    """
    return seed + 1_000_003 * epoch + 7_919 * rank


def drawn(
    batches: Iterable[Batch],
    change: Callable[[Batch], Batch],
    seed: int,
    device: torch.device,
) -> Iterator[Batch]:
    """Apply `change` to each batch on a device, with PyTorch's random numbers from `seed` on.

    Random numbers that others draw between two batches do not affect these, nor these the others:
    the generators of the CPU and of the device are lent to `change`, and given back as they were.

    >>> def noisy(batch: Batch) -> Batch:
    ...     return Batch(batch.events + torch.rand(1), batch.label)
    >>> batches = [Batch(torch.zeros(1, 1, 2, 1, 1), torch.tensor([0]))] * 2
    >>> found = [x.events.unique() for x in drawn(batches, noisy, 3, torch.device("cpu"))]
    >>> torch.equal(torch.cat(found), torch.rand(2, generator=torch.Generator().manual_seed(3)))
    True
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()
        number = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[number])
    states = [torch.Generator(g.device).manual_seed(seed).get_state() for g in generators]
    for batch in batches:
        batch, before = batch.to(device), [g.get_state() for g in generators]
        try:
            _set(generators, states)
            changed = change(batch)
            states = [g.get_state() for g in generators]
        finally:
            _set(generators, before)
        yield changed


def _set(generators: Iterable[torch.Generator], states: Iterable[torch.Tensor]) -> None:
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
