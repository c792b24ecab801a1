"""Batch norm and the neuron after it, fused in training into one pass over their input.

Run separately, they save the inputs of both norm and neuron, and write and read the normalized
current in between, and once more where a shortcut is added to it. Here only the norm's input and
the shortcut are saved; the current and the potential are recomputed in the backward pass, within
the processor's registers. The code is compiled (`norm_passes.py`).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from estl.neurons.fused import note_large, precision_of, worthwhile
from estl.neurons.fused_norm import Norm, fused_norm_lif, order_of
from estl.neurons.lif import LIF, carried


def pairs(norm: nn.Module, neuron: nn.Module) -> bool:
    """Whether `norm_lif` may take these modules: a batch norm in training that keeps running
    statistics, and a `LIF` that starts from 0. Not if hooks need what passes between them.

    >>> norm = nn.BatchNorm2d(4)
    >>> pairs(norm, LIF.tet()), pairs(norm.eval(), LIF.tet())
    (True, False)
    """
    if torch.compiler.is_compiling() or type(neuron) is not LIF or carried() is not None:
        return False
    if not isinstance(norm, Norm) or type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d):
        return False
    counts = norm.training and norm.affine and norm.track_running_stats
    return counts and norm.momentum is not None and not hooked(norm) and not hooked(neuron)


def hooked(module: nn.Module) -> bool:
    """Whether `module` has hooks, its own or global ones, other than those marked by `of_spikes`.

    >>> module = nn.Identity()
    >>> hooked(module), module.register_forward_hook(print) is None, hooked(module)
    (False, False, True)
    """
    return bool(
        any(not hasattr(hook, "of_spikes") for hook in module._forward_hooks.values())
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch.nn.modules.module._has_any_global_hook()
    )


def of_spikes(hook: Callable[..., None]) -> Callable[..., None]:
    """Mark a neuron's forward hook as one that reads only the spikes: where the neuron is fused
    with the norm before it, the hook is called without the neuron's input, and where the layer is
    recomputed perhaps several times, for bands of rows.

    >>> neuron = LIF.tet()
    >>> handle = neuron.register_forward_hook(of_spikes(lambda module, args, spikes: None))
    >>> hooked(neuron)
    False
    """
    hook.of_spikes = True  # type: ignore[attr-defined]
    return hook


def norm_lif(
    norm: Norm,
    neuron: LIF,
    x: Float[Tensor, "B T *shape"],
    shortcut: Float[Tensor, "B T *shape"] | None = None,
    shortcut_norm: Norm | None = None,
    *,
    may_write: bool = False,
) -> Float[Tensor, "B T *shape"]:
    """`neuron(norm(x) + shortcut)`; the shortcut may be None, and is normalized if it has a norm.
    Statistics are over all dimensions but the channels: x is (B,T,C,H,W) for a `BatchNorm2d`,
    (B,T,N,C) for a `BatchNorm1d`. Norms and neuron must satisfy `pairs`.

    This is one pass, in the norm's own precision, where `fused.worthwhile` says that it pays off;
    otherwise the modules run one after the other.

    With `may_write`, nothing else uses `x` or a shortcut that has a norm, and the backward pass
    writes the gradients over them. It goes in pieces, and twice, for the sums of the statistics
    and for the gradient: a layer then takes the memory of `x` and of the spikes' gradient;
    otherwise it takes half as much again.

    >>> norm_lif(nn.BatchNorm2d(8), LIF.tet(), torch.rand(2, 4, 8, 6, 6)).shape
    torch.Size([2, 4, 8, 6, 6])
    """
    training = torch.is_grad_enabled() and x.requires_grad
    same = norm.weight.dtype == precision_of(x)
    if shortcut is not None:  # it may be of a wider dtype, or be broadcast
        same = same and shortcut.dtype == x.dtype and shortcut.shape == x.shape
    values = x.numel() // x.shape[order_of(norm)[-1]]
    if not (training and same and values > 1 and worthwhile(x.transpose(0, 1), shared=True)):
        current = _normalized(norm, x)
        if shortcut is not None:
            current = current + _normalized(shortcut_norm, shortcut)
        fired: Tensor = neuron(current)
        return fired
    note_large()
    spikes, *found = fused_norm_lif(
        x, norm, shortcut, shortcut_norm, may_write=may_write, **neuron.options
    )
    with torch.no_grad():
        for tracking, mean, variance in zip((norm, shortcut_norm), *found, strict=True):
            if tracking is not None:
                track(tracking, mean, variance, values / (values - 1))
    for hook in neuron._forward_hooks.values():
        hook(neuron, (), spikes)
    return spikes


def _normalized(norm: Norm | None, x: Tensor) -> Tensor:
    """`norm` of x (B,T,...) over all steps, or x itself."""
    if norm is None:
        return x
    steps = x.transpose(0, 1)
    folded = steps.flatten(0, 1) if isinstance(norm, nn.BatchNorm2d) else steps.flatten(0, 2)
    y: Tensor = norm(folded)
    return y.view_as(steps).transpose(0, 1)


def track(norm: Norm, mean: Tensor, variance: Tensor, unbiased: float) -> None:
    """Update running statistics as the norm's own forward pass does, the variance unbiased.

    >>> norm = nn.BatchNorm2d(1)
    >>> track(norm, torch.tensor([2.0]), torch.tensor([3.0]), 4 / 3)
    >>> norm.running_mean, norm.running_var    # with PyTorch's momentum of 0.1
    (tensor([0.2000]), tensor([1.3000]))
    """
    assert norm.momentum is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    for running, new, factor in (
        (norm.running_mean, mean, 1.0),
        (norm.running_var, variance, unbiased),
    ):
        assert running is not None
        running.mul_(1 - norm.momentum).add_(new, alpha=norm.momentum * factor)
