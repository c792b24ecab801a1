"""Students of your own, and adapters for plain, SpikingJelly and snnTorch networks.

A student is any module whose forward takes events (B,T,C,H,W) and returns an `Output`. TSE and TRE
need three things: the logits of each step, the maps before pooling, and `classify`, the whole head
on pooled features, which leaves no state behind. This is a student:

    >>> class Tiny(nn.Module):
    ...     def __init__(self, classes):
    ...         super().__init__()
    ...         self.maps = nn.Sequential(conv_norm(2, 8, stride=2), LIF.tet())
    ...         self.classify = nn.Linear(8, classes)
    ...
    ...     def forward(self, events):
    ...         maps = self.maps(events)
    ...         pooled = maps.mean((-2, -1))
    ...         return Output(self.classify(pooled), maps, self.classify, pooled)
    >>> from estl.neurons import LIF
    >>> from estl.students.layers import conv_norm
    >>> from estl.supervision import TSE
    >>> from estl.types import Batch
    >>> batch = Batch(torch.rand(2, 4, 2, 8, 8), torch.tensor([0, 2]))
    >>> TSE()(Tiny(3)(batch.events), batch).total.backward()

A network of a framework that keeps state in its modules is wrapped in an `Adapter`, which runs it
over time and resets it:

    student = from_spikingjelly(net, features=net.features, head=net.head)
    ...                                      # train it like any student
    net = student.unwrap()                   # your network, with its own keys
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from estl.types import Output

Part = Callable[..., Any]
"""A module of the wrapped network, or a method of one."""


class Adapter(nn.Module):
    """A network with state in its modules, as a student.

    The network is cut in two at its global pooling, which the adapter performs itself:

        features_t = features(events_t),  logits_t = head(1/(H*W) sum_{i,j} features_t(i,j))

    Each part runs over all steps from a fresh state, which is cleared afterwards, so that batches
    may differ in size, and a supervision may call the head in between.

    Args:
        net: the whole network. It remains the caller's object; in the student's `state_dict` its
            keys have the prefix "net.".
        features: turns events into the maps before pooling, (B,C,H,W) to (B,D,h,w) at one step: a
            module within `net`, or a method of one.
        head: turns pooled features into logits, (B,D) to (B,K) at one step; likewise.
        reset: clears all state of `net`.
        step_mode: "s" calls the parts step by step; a part that returns a tuple (y, *state) gets
            its state back at the next step, as part(x, *state). "m" calls them once with time
            first: (T,B,...) to (T,B,...).

    Raises:
        ValueError: a part that is neither a module nor a method of one, or has parameters that are
            not in `net`; another `step_mode`; in `forward`, features that are not maps.

    >>> net = nn.ModuleDict({"maps": nn.Conv2d(2, 8, 3), "head": nn.Linear(8, 5)})
    >>> parts = {"features": net["maps"], "head": net["head"]}
    >>> student = Adapter(net, **parts, reset=lambda net: None, step_mode="s")
    >>> student(torch.rand(3, 4, 2, 6, 6)).features.shape
    torch.Size([3, 4, 8, 4, 4])
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        features: Part,
        head: Part,
        reset: Callable[[nn.Module], None],
        step_mode: Literal["s", "m"],
    ) -> None:
        super().__init__()
        if step_mode not in ("s", "m"):
            raise ValueError(f"step_mode must be 's' or 'm', not {step_mode!r}")
        _check("features", features, net)
        _check("head", head, net)
        self.net, self.reset, self.step_mode = net, reset, step_mode
        self._parts = (features, head)  # in a tuple: not registered a second time

    def forward(self, events: Float[Tensor, "B T C H W"]) -> Output:
        """Logits and features of each step."""
        features = self._over_time(self._parts[0], events)
        if features.dim() != 5:
            raise ValueError(
                f"features returned shape {tuple(features.shape)}, not (B,T,D,H,W): cut the "
                "network before its global pooling"
            )
        pooled = features.mean((-2, -1))
        return Output(self.classify(pooled), features, self.classify, class_token=pooled)

    def classify(self, pooled: Float[Tensor, "B T D"]) -> Float[Tensor, "B T K"]:
        """The whole head, run over the steps from a fresh state."""
        return self._over_time(self._parts[1], pooled)

    def unwrap(self) -> nn.Module:
        """The wrapped network, the same object."""
        return self.net

    def _over_time(self, part: Part, x: Float[Tensor, "B T *shape"]) -> Float[Tensor, "B T *out"]:
        steps = x.transpose(0, 1)
        self.reset(self.net)
        try:
            y: Tensor = part(steps.contiguous()) if self.step_mode == "m" else _each(part, steps)
        finally:
            self.reset(self.net)
        return y.transpose(0, 1)


def from_torch(net: nn.Module, *, features: Part, head: Part) -> Adapter:
    """A network without state, such as a plain CNN, as a student: it sees each step by itself.

    See `Adapter`.

    >>> net = nn.ModuleDict({"maps": nn.Conv2d(2, 8, 3), "head": nn.Linear(8, 5)})
    >>> student = from_torch(net, features=net["maps"], head=net["head"])
    >>> student(torch.rand(3, 4, 2, 6, 6)).logits.shape
    torch.Size([3, 4, 5])
    """
    return Adapter(net, features=features, head=head, reset=_nothing, step_mode="s")


def _nothing(_: nn.Module) -> None:
    """There is no state to clear."""


def from_spikingjelly(net: nn.Module, *, features: Part, head: Part) -> Adapter:
    """A SpikingJelly network as a student, in the step mode of its layers; see `Adapter`.

    Raises:
        ValueError: SpikingJelly is not installed, or the layers' step modes differ.
    """
    try:
        from spikingjelly.activation_based import functional
    except ImportError as error:
        raise ValueError(
            "SpikingJelly is not installed: pip install --no-deps spikingjelly (with its "
            "dependencies it replaces torch)"
        ) from error
    modes = {mode for m in net.modules() if (mode := getattr(m, "step_mode", None)) is not None}
    if len(modes) != 1:
        raise ValueError(
            f"step_mode of the network's layers is {sorted(modes)}, not one for all: call "
            "spikingjelly.activation_based.functional.set_step_mode(net, 'm') first"
        )
    return Adapter(
        net, features=features, head=head, reset=functional.reset_net, step_mode=modes.pop()
    )


def from_snntorch(net: nn.Module, *, features: Part, head: Part) -> Adapter:
    """A snnTorch network as a student, step by step; see `Adapter`.

    With neurons of `init_hidden=True`, a part returns only its output. One with explicit state
    returns (y, *state) and takes the state back: `Leaky` and `Synaptic` themselves do, and so does
    a module with `forward(x, mem1=None, mem2=None)` that returns (y, mem1, mem2).

    Raises:
        ValueError: snnTorch is not installed.
    """
    try:
        import snntorch  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "snnTorch is not installed: pip install --no-deps snntorch (with its dependencies it "
            "may replace torch)"
        ) from error
    return Adapter(net, features=features, head=head, reset=_reset_snntorch, step_mode="s")


def _reset_snntorch(net: nn.Module) -> None:
    """Reset each neuron of `net`: snnTorch's own resets affect all networks, or miss layers."""
    for module in net.modules():
        if callable(reset := getattr(module, "reset_mem", None)):
            reset()


def _each(part: Part, steps: Float[Tensor, "T B *shape"]) -> Float[Tensor, "T B *out"]:
    """Run `part` step by step, passing on the state it returns."""
    outputs: list[Tensor] = []
    state: list[Any] = []
    for x in steps:
        y = part(x, *state)
        if isinstance(y, tuple):
            y, *state = y
        outputs.append(y)
    return torch.stack(outputs)


def _check(name: str, part: Part, net: nn.Module) -> None:
    owner = getattr(part, "__self__", part)
    if not isinstance(owner, nn.Module):
        raise ValueError(
            f"{name} is {part!r}: give a module within the network or a method of one, so that it "
            "is copied and pickled with it"
        )
    own = {id(p) for p in net.parameters()}
    if any(id(p) not in own for p in owner.parameters()):
        raise ValueError(f"{name} has parameters that are not the network's: give a part of it")
