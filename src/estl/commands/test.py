"""`estl test`: accuracy of a checkpoint."""

from pathlib import Path
from typing import Literal


def test(
    *,
    ckpt: Path,
    data_path: Path | None = None,  # noqa: PT028
    attack: tuple[Literal["fgsm", "pgd"], ...] = (),  # noqa: PT028
    eps: str = "8/255",  # noqa: PT028
    noise: bool = False,  # noqa: PT028
    until_sure: float | None = None,  # noqa: PT028
    output_dir: Path | None = None,  # noqa: PT028
    trust: tuple[str, ...] = (),  # noqa: PT028
) -> None:
    """Measure a checkpoint's accuracy on the test split after each time step.

    Args:
        ckpt: best*.ckpt or last.ckpt of a run folder.
        data_path: another root folder with the same layout.
        attack: also test under this attack.
        eps: size of the attacks, as a fraction of each sample's range.
        noise: also test under Gaussian noise, event noise (on counts), and with a frame dropped.
        until_sure: also report accuracy and mean steps if samples are answered at this probability
            (`estl calibrate` chooses it on validation).
        output_dir: folder to write test.json to.
        trust: a module that the checkpoint may name besides ESTL's own.
    """
    from estl.evaluation.attacks import parse_eps
    from estl.training.run import test as run_test

    root = None if data_path is None else str(data_path)
    options = {"attacks": attack, "noisy": noise, "until_sure": until_sure, "trust": trust}
    results = run_test(ckpt, root, eps=parse_eps(eps), **options)  # type: ignore[arg-type]
    if output_dir is not None:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "test.json").write_text(results.to_json())
    for t, accuracy in enumerate(results.test.per_step, 1):
        print(f"after step {t}: {100 * accuracy:.2f} %")
    print(f"test accuracy: {100 * results.test.final:.2f} % of {results.test.samples} samples")
    if (early := results.early) is not None:
        less = 100 * (early.accuracy - early.all_steps)
        print(
            f"at threshold {early.threshold:.6g}: {100 * early.accuracy:.2f} % after "
            f"{early.mean_steps:.2f} of {early.steps} steps on average, {less:+.2f} points"
        )
    for condition, accuracy in results.robustness.items():
        print(f"{condition}: {100 * accuracy:.2f} %")
