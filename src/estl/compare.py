"""`estl compare`: the supervisions of the written design side by side, on one recipe.

The five experiments are those of the comparison script: plain cross-entropy, TET, and TSE with its
default, aggressive and conservative thresholds.
"""

from collections.abc import Sequence

from estl.sweep import Variant

EXPERIMENTS = {
    "plain": ("cross-entropy of the mean over time", "MeanCE", {}),
    "tet": ("TET, means 1, lamb 0.001", "TET", {"means": 1.0, "lamb": 1e-3}),
    "tse": ("TSE, tau_f 0.5, kappa 1", "TSE", {"tau_f": 0.5, "kappa": 1.0}),
    "tse-aggressive": ("TSE, tau_f 0.3, kappa 0.5", "TSE", {"tau_f": 0.3, "kappa": 0.5}),
    "tse-conservative": ("TSE, tau_f 0.7, kappa 2", "TSE", {"tau_f": 0.7, "kappa": 2.0}),
}
"""By name: what it is, which supervision, its arguments."""


def experiments(names: Sequence[str] | None = None) -> list[Variant]:
    """The experiments as words for `estl fit`; all if `names` is None.

    Raises:
        ValueError: an unknown name.

    >>> experiments(["tet"])[0].words
    ('--supervision=estl.supervision.TET', '--supervision.init_args.means=1.0',
     '--supervision.init_args.lamb=0.001')
    """
    unknown = set(names or ()) - set(EXPERIMENTS)
    if unknown:
        raise ValueError(
            f"no experiment {min(unknown)!r}: the experiments are {', '.join(EXPERIMENTS)}"
        )
    return [
        Variant(
            name,
            what,
            (
                f"--supervision=estl.supervision.{supervision}",
                *(f"--supervision.init_args.{key}={value}" for key, value in arguments.items()),
            ),
        )
        for name, (what, supervision, arguments) in EXPERIMENTS.items()
        if names is None or name in names
    ]
