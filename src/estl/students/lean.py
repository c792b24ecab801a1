"""Convolutions with their norm, neurons and pool, recomputed from spikes that are kept as bits.

`recompute.py` takes any block. While the backward pass goes through it, it holds what the block
reads, what the norm reads and the gradient of the spikes, each for all steps: of a VGGSNN's second
layer alone that is half of what all layers together store in an ordinary step. Here a layer is one
node of the autograd graph, which holds what the norm reads, and the gradient of what the *pool*
gives, a quarter of the spikes:

    forward    y = conv(s)             from the packed s, which is unpacked only for this
               p = pool(LIF(BN(y)))    in bands of rows of the maps; p is packed, and y is dropped
    backward   y = conv(s)             some steps at a time
               sums for BN             in bands
               dy                      in bands, written over y
               ds, dW                  some steps at a time, whose y is then dropped

Between such layers only the packed p is stored: spikes as bits, sums over windows as bytes. The
numbers are those of an ordinary pass, bit for bit (as far as a convolution computes an image the
same whichever others come with it), but for the weight and bias of a convolution: their gradients
are sums of parts, which round less (measured: docs/log.md).
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from estl.neurons import LIF
from estl.neurons.fused import note_large, precision_of, worthwhile
from estl.neurons.norm import hooked, track
from estl.neurons.norm_passes import in_order
from estl.students.layers import PerStep, one_pass
from estl.students.lean_node import Dense, How, LeanLayer, Spikes
from estl.students.pooling import AvgPool
from estl.students.recompute import again, ending_with_neurons
from estl.types import is_static


def leanly(
    student: nn.Module, layers: nn.Sequential, x: Float[Tensor, "B T C H W"]
) -> Float[Tensor, "B T D h w"]:
    """Pass `x` through `layers`, recomputed in the backward pass: as `lean_layer`s where that is
    possible, and otherwise by `again`, in blocks that end with neurons.

    >>> from estl.students.layers import Layers, conv_norm
    >>> layers = Layers(conv_norm(2, 8), LIF.tet(), PerStep(AvgPool(2)))
    >>> leanly(layers, layers, torch.rand(2, 4, 2, 6, 6)).shape
    torch.Size([2, 4, 8, 3, 3])
    """
    left, levels = layers, None
    spikes: Tensor | Spikes = x
    while len(left) > 0:
        if number := lean(list(left), spikes):
            k = _window(left[2]) if number == 3 else 1
            spikes = lean_layer(cast(PerStep, left[0]), cast(LIF, left[1]), k, spikes)
            levels = 1 if k == 1 else None
        else:
            block = ending_with_neurons(left)[0]
            number = len(block)
            spikes, levels = again(student, block, _dense(spikes), levels=levels), 1
        left = cast(nn.Sequential, left[number:])
    return _dense(spikes)


def lean(layers: Sequence[nn.Module], x: Tensor | Spikes) -> int:
    """How many of the first of these layers can be one `lean_layer` for x: two if they are a
    convolution with its norm and neurons, as `Layers` fuses them, three with an `AvgPool`; or 0.

    >>> from estl.students.layers import conv_norm
    >>> lean([conv_norm(2, 8), LIF.tet()], torch.rand(2, 4, 2, 6, 6))    # too small to be compiled
    0
    """
    link = x.link if isinstance(x, Spikes) else x
    if len(layers) < 2 or not one_pass(layers[0], layers[1]) or (link is x and is_static(x)):
        return 0
    conv, norm = cast(PerStep, layers[0])
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or _changed(conv):
        return 0
    if isinstance(conv.padding, str) or not (link.requires_grad or _trained(conv)):
        return 0
    B, T = link.shape[:2]
    each = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    ways = zip(link.shape[-2:], *each, strict=True)
    H, W = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in ways)
    like = conv.weight.detach().flatten()[0].clone().requires_grad_()  # y without its memory
    y = like.expand(T, B, conv.out_channels, H, W)
    same = norm.weight.dtype == precision_of(y)
    if not (torch.is_grad_enabled() and same and B * T * H * W > 1 and worthwhile(y, shared=True)):
        return 0
    return 3 if len(layers) > 2 and 1 < _window(layers[2]) <= min(H, W, 15) else 2


def _changed(module: nn.Module) -> bool:
    """Whether a user listens to the module, or has replaced its forward."""
    return hooked(module) or "forward" in vars(module)


def _trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _window(layer: nn.Module) -> int:
    """The side k of the windows of a `PerStep(AvgPool(k))`; 0 for another layer."""
    if type(layer) is not PerStep or len(layer) != 1 or _changed(layer):
        return 0
    (pool,) = layer
    return cast(int, pool.kernel_size) if type(pool) is AvgPool and not _changed(pool) else 0


def lean_layer(layer: PerStep, neuron: LIF, k: int, x: Tensor | Spikes) -> Spikes:
    """The spikes of `neuron` for the convolution and norm of `layer`, pooled by `AvgPool(k)` if
    k > 1.

    Args:
        layer: see `lean`.
        neuron: its hooks are called for each band of rows of the maps.
        k: side of the pool's windows.
        x: what the layer reads (B,T,C,H,W).

    >>> from estl.students.layers import conv_norm
    >>> x = lean_layer(conv_norm(2, 1), LIF.tet(), 2, torch.rand(2, 4, 2, 6, 6))
    >>> x.link.shape, x.data.shape
    (torch.Size([2, 4, 1, 3, 3]), torch.Size([4, 2, 3, 3, 1]))
    """
    conv, norm = cast("tuple[nn.Conv2d, nn.BatchNorm2d]", layer)
    link = x.link if isinstance(x, Spikes) else x
    data, of = (x.data, x.k) if isinstance(x, Spikes) else (None, 0)
    device, dtype = link.device.type, None
    if torch.is_autocast_enabled(device) and conv.weight.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)

    def see(spikes: Tensor) -> None:
        for hook in neuron._forward_hooks.values():
            hook(neuron, (), spikes)

    convolution = conv.stride, conv.padding, conv.dilation, conv.groups
    how = How(convolution, dtype, norm.eps, k, in_order(neuron.options), see)
    weights = conv.weight, conv.bias, norm.weight, norm.bias
    note_large()
    out, packed, mean, variance, n = LeanLayer.apply(link, data, of, *weights, how)
    with torch.no_grad():
        track(norm, mean, variance, n / (n - 1))
    return Spikes(out, packed, k)


def _dense(x: Tensor | Spikes) -> Float[Tensor, "B T C H W"]:
    """The values."""
    return cast(Tensor, Dense.apply(*x)) if isinstance(x, Spikes) else x
