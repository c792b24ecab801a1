"""What turns `(Output, Batch)` into a `Loss`."""

from estl.supervision.distillation import EdgeGuidedDistillation
from estl.supervision.mean import MeanCE
from estl.supervision.sum import Sum
from estl.supervision.tet import TET, tet_loss
from estl.supervision.tse import TSE, tse_keep, tse_loss
from estl.types import Supervision

__all__ = [
    "TET",
    "TSE",
    "EdgeGuidedDistillation",
    "MeanCE",
    "Sum",
    "Supervision",
    "tet_loss",
    "tse_keep",
    "tse_loss",
]
