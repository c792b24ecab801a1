"""Attention whose keys are its values, of few queries over many keys, as edge tokens are."""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from estl.neurons.linear import by_onednn, product

DENSE = 2**23
"""Maximum number of scores formed where that is faster (see `attend`): 32 MiB of float32."""

CHUNK = 512
"""Number of keys whose scores exist at a time where oneDNN multiplies."""


def attend(
    q: Float[Tensor, "B N F"], keys: Float[Tensor, "B M F"], scale: float
) -> Float[Tensor, "B N F"]:
    """softmax(scale * q keys^T) keys, without its second derivative if there are many scores.

    That is PyTorch's fused attention but in two cases on the CPU. That one computes a gradient of
    keys that need none, such as frozen edges: if there are few scores, forming them is faster. And
    its products are by MKL: where oneDNN's are faster (`neurons.linear`) it is done by these.

    >>> attend(torch.ones(1, 1, 2), torch.eye(2).unsqueeze(0), scale=1.0)
    tensor([[[0.5000, 0.5000]]])
    """
    on_cpu, scores = q.device.type == "cpu", q.shape[:-1].numel() * keys.shape[-2]
    if on_cpu and scores <= DENSE and not keys.requires_grad:
        return (scale * q @ keys.mT).softmax(-1) @ keys
    if scores > DENSE and by_onednn(q, keys[0]):
        return cast(Tensor, _Attend.apply(q, keys, scale))
    # The CPU's kernel runs one thread per image and head: a small batch has its queries dealt to a
    # few heads, without copies of the keys.
    groups = math.gcd(q.shape[1], math.ceil(torch.get_num_threads() / len(q))) if on_cpu else 1
    each = q.unflatten(1, (groups, -1))
    shared = keys.unsqueeze(1).expand(-1, groups, -1, -1)
    return F.scaled_dot_product_attention(each, shared, shared, scale=scale).flatten(1, 2)


class _Attend(torch.autograd.Function):
    """For a chunk of keys after the other, as Dao et al. (FlashAttention, 2022) do:

        s = scale q k^T;    out = sum_chunks exp(s - lse) k,    lse = log sum exp(s)

    with the running maximum and sum of the forward pass; the backward pass computes s again. With
    p = exp(s - lse) and ds = p * (dout k^T - <dout, out>),

        dq = scale sum_chunks ds k,    dk = p^T dout + scale ds^T q.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, keys: Tensor, scale: float) -> Tensor:
        out, lse = torch.empty_like(q), q.new_empty(*q.shape[:2], 1)
        for b, x in enumerate(q * scale):
            top, total = x.new_full((len(x), 1), -torch.inf), x.new_zeros(len(x), 1)
            sums = torch.zeros_like(x)
            for k in keys[b].split(CHUNK):
                s = product(x, k)
                higher = torch.maximum(top, s.amax(1, keepdim=True))
                s.sub_(higher).exp_()
                top.sub_(higher).exp_()
                total.mul_(top).add_(s.sum(1, keepdim=True))
                sums.mul_(top).add_(product(s, k.mT))
                top = higher
            torch.div(sums, total, out=out[b])
            torch.add(top, total.log(), out=lse[b])
        ctx.save_for_backward(q, keys, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, keys, out, lse = ctx.saved_tensors
        of_keys = ctx.needs_input_grad[1]
        grad_q, grad_keys = torch.zeros_like(q), torch.empty_like(keys) if of_keys else None
        inner = (grad * out).sum(-1, keepdim=True)
        for b, x in enumerate(q * ctx.scale):
            columns, grads = x.mT.contiguous(), grad[b].mT.contiguous()
            for i, k in enumerate(keys[b].split(CHUNK)):
                p = product(x, k).sub_(lse[b]).exp_()
                s = product(grad[b], k).sub_(inner[b]).mul_(p)
                grad_q[b] += product(s, k.mT)
                if grad_keys is not None:
                    into = grad_keys[b, i * CHUNK :][: len(k)]
                    into.copy_((product(grads, p.mT) + product(columns, s.mT)).mT)
        return grad_q.mul_(ctx.scale), grad_keys, None
