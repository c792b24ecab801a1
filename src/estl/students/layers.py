"""What the students share: the memory layout, and stateless layers applied at every step.

Public tensors are (B,T,...), but their memory is (T,B,...), with the channels of images last:
`time_first` lays out the (small) input once, and all layers, `PerStep` and `LIF` alike, take and
return views in this order. Folding time into the batch is then a view too, nothing is copied
between layers, and convolutions need not reorder their input first.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from estl.neurons import LIF
from estl.neurons.fused_norm import Norm
from estl.neurons.linear import Linear
from estl.neurons.norm import hooked, norm_lif, pairs
from estl.students.recompute import for_one_backward
from estl.types import direct_code, is_static


def time_first(events: Tensor, channels: int) -> Float[Tensor, "B T C H W"]:
    """Check `events` (B,T,C,H,W) and lay them out in memory as (T,B,H,W,C), in the same shape.

    Direct-coded events (`estl.types.is_static`) stay so, and `PerStep` treats them as one image.

    Raises:
        ValueError: if `events` does not have five dimensions and `channels` channels.

    >>> time_first(torch.rand(2, 4, 3, 8, 8), 3).stride()    # of sample, step, channel, row, column
    (192, 384, 1, 24, 3)
    """
    if events.dim() != 5:
        raise ValueError(
            f"events must have the five dimensions (B,T,C,H,W), got shape {tuple(events.shape)}:"
            " add the missing one, e.g. with unsqueeze or estl.types.direct_code"
        )
    if events.shape[2] != channels:
        raise ValueError(
            f"events have {events.shape[2]} channels in shape {tuple(events.shape)}, but the"
            f" student was built for in_channels={channels}: build it with the channels of the data"
        )
    B, T = events.shape[:2]
    if is_static(events):
        return direct_code(events[:, 0].contiguous(memory_format=torch.channels_last), T)
    folded = events.transpose(0, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return folded.unflatten(0, (T, B)).transpose(0, 1)


def per_step(
    layer: Callable[[Tensor], Tensor], x: Float[Tensor, "B T *shape"], *, folded: bool
) -> Float[Tensor, "B T *out"]:
    """Apply a stateless `layer` of (B,...) to every step of `x`, in one call (`folded`) or T calls.

    In one call the layer sees T*B samples, for which libraries choose another kernel than for B,
    with different rounding in the last bit. So inference computes one step after the other: then
    the result of a step does not depend on how many steps there are, and frames that arrive one at
    a time (`estl.students.step`) get exactly the logits of the whole recording.

    >>> per_step(nn.Linear(3, 5), torch.rand(2, 4, 3), folded=False).shape
    torch.Size([2, 4, 5])
    """
    if x.shape[1] == 1 and not folded:  # a frame of a stream: skip transposing and concatenating
        return layer(_dense(x[:, 0])).unsqueeze(1)
    steps = x.transpose(0, 1)
    if folded:
        flat = steps.flatten(0, 1)
        if not torch.compiler.is_compiling() and x.shape[:2] == (1, 1):
            # A view of one sample may have any strides, and so any memory order: on the CPU, batch
            # norm in one order gives wrong gradients in PyTorch if incoming ones are in another.
            flat = flat.clone(memory_format=_order(flat))
        return layer(flat).unflatten(0, steps.shape[:2]).transpose(0, 1)
    outputs = torch.cat([layer(_dense(step)) for step in steps])  # which keeps channels last
    return outputs.unflatten(0, steps.shape[:2]).transpose(0, 1)


def gradient_in_order(x: Float[Tensor, "B T *shape"]) -> Float[Tensor, "B T *shape"]:
    """`x`, with its gradient brought into the memory order of `time_first`.

    The gradient of a mean over tokens is batch first in memory, and sums keep the order of their
    first term: along the residual connections of a transformer each layer would copy it, and
    folding time into the batch would take maps out of channels last.

    >>> x = torch.rand(2, 4, 9, 8).transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    >>> gradient_in_order(x).mean(2).sum().backward()
    >>> x.grad.stride() == x.stride()
    True
    """
    return x if torch.compiler.is_compiling() else cast(Tensor, _InOrder.apply(x))


class _InOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.transpose(0, 1).contiguous().transpose(0, 1)


def _dense(step: Tensor) -> Tensor:
    """One step in the memory order of `time_first`, aligned like a tensor of its own.

    Libraries choose kernels by strides too, and on some processors by the offset within 64 bytes.
    """
    step = step.contiguous(memory_format=_order(step))
    begins = step.storage_offset() * step.element_size()  # data_ptr() is refused on fake tensors
    return step.clone() if begins % 64 else step


def _order(step: Tensor) -> torch.memory_format:
    """The memory order of `time_first`."""
    return torch.channels_last if step.ndim == 4 else torch.contiguous_format


def folds(training: bool) -> bool:
    """Whether layers fold time into the batch: in training, with gradients on, and in export."""
    return training or torch.is_grad_enabled() or torch.compiler.is_compiling()


class PerStep(nn.Sequential):
    """Stateless modules applied at every time step: (B,T,...) to (B,T,...).

    In training, time is folded into the batch, so that a batch norm takes its statistics over all
    steps (tdBN, Zheng et al. 2021). If all steps are one image (`estl.types.is_static`), it is
    computed once and expanded over T, with the same output and gradients: over n values per channel
    instead of T*n, batch norm has the same mean and biased variance. Only the unbiased
    `running_var` is larger, by n/(n-1) * (Tn-1)/(Tn).

    >>> PerStep(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))(torch.rand(2, 4, 3, 6, 6)).shape
    torch.Size([2, 4, 8, 6, 6])
    """

    def forward(self, x: Float[Tensor, "B T *shape"]) -> Float[Tensor, "B T *out"]:
        """Apply the modules to every step of `x`."""
        B, T = x.shape[:2]
        if is_static(x):
            y = cast(Tensor, super().forward(x[:, 0]))
            return y.unsqueeze(1).expand(B, T, *y.shape[1:])
        return per_step(super().forward, x, folded=folds(self.training))


class PerToken(nn.Sequential):
    """Stateless modules applied to every token: (B,T,N,D) to (B,T,N,...).

    Tokens are folded into rows, so that a batch norm in here takes its statistics over B, T and N.

    >>> PerToken(nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16))(torch.rand(2, 4, 9, 8)).shape
    torch.Size([2, 4, 9, 16])
    """

    def forward(self, x: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T N F"]:
        """Apply the modules to every token of `x`."""
        return per_step(self._rows, x, folded=folds(self.training))

    def _rows(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N F"]:
        y = cast(Tensor, super().forward(x.flatten(0, 1)))
        return y.unflatten(0, x.shape[:2])


class Layers(nn.Sequential):
    """An `nn.Sequential` that in training fuses batch norms with the neurons after them where that
    pays off (`fire`).

    >>> Layers(conv_norm(2, 8), LIF.tet())(torch.rand(2, 4, 2, 6, 6)).shape
    torch.Size([2, 4, 8, 6, 6])
    """

    def forward(self, x: Float[Tensor, "B T *shape"]) -> Float[Tensor, "B T *out"]:
        """Apply the modules in order."""
        return one_by_one(self, x)


def one_by_one(
    layers: Iterable[nn.Module], x: Float[Tensor, "B T *shape"]
) -> Float[Tensor, "B T *out"]:
    """Pass `x` through `layers`, each together with the neuron after it, if any, by `fire`.

    >>> one_by_one([conv_norm(2, 8), LIF.tet()], torch.rand(2, 4, 2, 6, 6)).shape
    torch.Size([2, 4, 8, 6, 6])
    """
    left = list(layers)
    while left:
        layer = left.pop(0)
        neuron = left.pop(0) if left and isinstance(left[0], LIF) else None
        x = layer(x) if neuron is None else fire(layer, neuron, x)
    return x


def fire(
    layer: nn.Module,
    neuron: nn.Module,
    x: Float[Tensor, "B T *shape"],
    shortcut: Float[Tensor, "B T *other"] | None = None,
    shortcut_layer: nn.Module | None = None,
) -> Float[Tensor, "B T *out"]:
    """Spikes of `neuron` for `layer(x)`, plus `shortcut_layer(shortcut)` or, without such a layer,
    `shortcut` itself.

    If `layer` ends with a norm, this norm and the neuron are fused in training where that pays off
    (`estl.neurons.norm`), and so is a norm of the shortcut.

    >>> fire(conv_norm(2, 8), LIF.tet(), torch.rand(2, 4, 2, 6, 6)).shape
    torch.Size([2, 4, 8, 6, 6])
    """
    if is_static(x) or not one_pass(layer, neuron):
        y = layer(x)
        if shortcut is not None:
            y = y + (shortcut if shortcut_layer is None else shortcut_layer(shortcut))
        spikes: Tensor = neuron(y)
        return spikes
    linear, norm = cast("PerStep | PerToken", layer)
    shortcut_norm, may_write = None, for_one_backward.get() and _is_new(linear)
    if shortcut is not None and shortcut_layer is not None:
        if one_pass(shortcut_layer, neuron) and not is_static(shortcut):
            other, shortcut_norm = cast("PerStep | PerToken", shortcut_layer)
            shortcut = per_step(other, shortcut, folded=True)
            may_write = may_write and _is_new(other)
        else:
            shortcut = shortcut_layer(shortcut)
    y = per_step(linear, x, folded=True)
    others = shortcut, cast("Norm | None", shortcut_norm)
    return norm_lif(cast(Norm, norm), cast(LIF, neuron), y, *others, may_write=may_write)


def one_pass(layer: nn.Module, neuron: nn.Module) -> bool:
    """Whether `layer` ends with a norm that may be fused with `neuron`.

    >>> one_pass(conv_norm(2, 8), LIF.tet())
    True
    """
    if not isinstance(layer, PerStep | PerToken) or len(layer) != 2:
        return False
    linear, norm = layer
    if type(layer) is PerStep:
        plain = isinstance(norm, nn.BatchNorm2d)
    else:
        plain = type(layer) is PerToken and isinstance(norm, nn.BatchNorm1d)
        plain = plain and isinstance(linear, nn.Linear)
    return plain and pairs(norm, neuron) and not hooked(layer)


def _is_new(layer: nn.Module) -> bool:
    """Whether the output of `layer` is in memory of its own, and nothing else has seen it."""
    return isinstance(layer, nn.Conv2d | nn.Linear) and not hooked(layer)


class Readout(Linear):
    """A head's linear layer, at every step: (B,T,D) to (B,T,K); rows (B,D) have no steps."""

    def forward(self, input: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows K"]:
        """Apply the layer to every step of `input`."""
        if input.ndim < 3 or folds(self.training):
            return super().forward(input)
        return per_step(super().forward, input, folded=False)


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    bias: bool = False,
    weight: float = 1.0,
) -> PerStep:
    """Convolution and batch norm at every step; `kernel` is odd, with padding that keeps the size.

    The convolution is initialized Kaiming normal (fan out, as in TET), the norm with `weight` and
    bias 0. A neuron after it fires in about 15 % of the steps if `weight` is tdBN's threshold /
    gain (Zheng et al. 2021): 1 for `LIF.tet`, 2 for `LIF.spikformer`.

    >>> conv_norm(2, 64)
    PerStep(
      (0): Conv2d(2, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
      (1): BatchNorm2d(64, ...)
    )
    """
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=bias)
    norm = nn.BatchNorm2d(out_channels)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.constant_(norm.weight, weight)
    # Channels last like the images, or each step would reorder it.
    conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
    return PerStep(conv, norm)
