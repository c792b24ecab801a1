"""Plain supervision: the cross-entropy of the logits averaged over time."""

import torch.nn.functional as F

from estl.supervision.steps import check_smoothing
from estl.types import Batch, Loss, Output, Supervision


class MeanCE(Supervision):
    """Cross-entropy of the mean logits: CE(1/T sum_t z_t, y), averaged over the batch.

    y is the class, or the class weights of a mixed sample (`Batch.target`). It is the baseline for
    TET and TSE. Its only term is "cls".

    Args:
        label_smoothing: share of the target spread evenly over all classes, in [0,1].

    Raises:
        ValueError: `label_smoothing` outside [0,1].

    >>> MeanCE(label_smoothing=0.1)
    MeanCE(label_smoothing=0.1)
    """

    reads_images = False

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        check_smoothing(label_smoothing)
        self.label_smoothing = label_smoothing

    def forward(self, output: Output, batch: Batch) -> Loss:
        """The loss of one batch."""
        total = F.cross_entropy(
            output.logits.mean(1), batch.target, label_smoothing=self.label_smoothing
        )
        return Loss(total, {"cls": total})

    def extra_repr(self) -> str:
        """The options, as `print` shows them."""
        return f"label_smoothing={self.label_smoothing}"
