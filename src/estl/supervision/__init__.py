"""Supervisions: they turn `(Output, Batch)` into a `Loss`."""

from estl.supervision.dense import DenseTSE, dense_tse_keep, dense_tse_loss
from estl.supervision.distillation import EdgeGuidedDistillation
from estl.supervision.mean import MeanCE
from estl.supervision.schedule import Schedule, Scheduled
from estl.supervision.steps import WeightedCE
from estl.supervision.sum import Sum
from estl.supervision.tet import TET, tet_loss
from estl.supervision.tre import TRE, tre_keep, tre_loss
from estl.supervision.tse import TSE, tse_keep, tse_loss
from estl.types import Supervision

__all__ = [
    "TET",
    "TRE",
    "TSE",
    "DenseTSE",
    "EdgeGuidedDistillation",
    "MeanCE",
    "Schedule",
    "Scheduled",
    "Sum",
    "Supervision",
    "WeightedCE",
    "dense_tse_keep",
    "dense_tse_loss",
    "tet_loss",
    "tre_keep",
    "tre_loss",
    "tse_keep",
    "tse_loss",
]
