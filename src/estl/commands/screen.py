"""What does not belong on the screen."""

import logging
import warnings


def quiet() -> None:
    """Keep Lightning's notes about hardware, workers and its products off the screen.

    Importing Lightning sets these levels, so that this comes after.
    """
    import lightning.pytorch  # noqa: F401

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*number of training batches.*",
        ".*exists and is not empty.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*IterableDataset. has .__len__. defined.*",
    ):
        warnings.filterwarnings("ignore", message=text)
