"""ESTL: spiking neural networks for vision, trained with better supervision.

The public names are here and, by kind, in `estl.data`, `estl.students` and `estl.supervision`.
A name is imported on first access, since PyTorch and Lightning take seconds to import.

>>> import estl
>>> estl.TSE(tau_f=0.3)
TSE(tau_f=0.3, kappa=1.0, reduction='sum', label_smoothing=0.0)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from estl.data import (
        CIFAR,
        CIFAR10DVS,
        Digits,
        DVSGesture,
        FromDataset,
        ImageFolder,
        NCaltech101Pairs,
        NMNISTPairs,
        Recordings,
        Shards,
    )
    from estl.neurons import LIF
    from estl.students import (
        VGGSNN,
        ResNet,
        Spikformer,
        State,
        fold,
        resnet18,
        resnet19,
        resnet34,
        resnet50,
        step,
    )
    from estl.supervision import (
        TET,
        TRE,
        TSE,
        DenseTSE,
        EdgeGuidedDistillation,
        MeanCE,
        Schedule,
        Sum,
    )
    from estl.training import Learner, Pretrained, load_student, load_weights
    from estl.types import Batch, Loss, Output, Supervision

__version__ = "0.1.0"

_HOMES = ("types", "neurons", "students", "supervision", "data", "training")


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        for home in _HOMES:
            module = import_module(f"{__name__}.{home}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    homes = (import_module(f"{__name__}.{home}") for home in _HOMES)
    return sorted({*globals(), *(name for module in homes for name in module.__all__)})
