"""Several runs: sweeps of variants, comparisons, searches, and the training of a teacher."""
