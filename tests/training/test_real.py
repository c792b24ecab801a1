"""From real recordings to predictions, through the command line alone."""

from pathlib import Path

import pytest

from estl.commands import main
from estl.training.results import Results

RECIPE = Path(__file__).parents[2] / "src" / "estl" / "recipes" / "nmnist_tse.yaml"


@pytest.mark.slow
def test_a_student_learns_real_recordings_and_names_the_digits_of_files(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = shared / "data" / "nmnist-pairs", tmp_path / "run"
    fit = ["fit", f"--config={RECIPE}", f"--data-path={root}", f"--output-dir={run}"]
    assert main([*fit, "--epochs=5"]) == 0  # the recipe's 30 epochs reach more (docs/results.md)
    results = Results.read(run / "results.json")
    assert results.test is not None
    final = results.test["final"].final
    assert final >= 0.85

    capsys.readouterr()
    recordings = sorted((root / "N-MNIST" / "Test").glob("*/*.bin"))[::5]
    assert main(["predict", f"--ckpt={run / 'last.ckpt'}", *map(str, recordings)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(recordings) * 6  # a path and five steps each
    right = 0
    for file, step in zip(lines[::6], lines[5::6], strict=True):
        t, name, probability = step.split()
        assert t == "t=5"
        assert 0.0 < float(probability) <= 1.0
        right += name == Path(file).parent.name
    assert right >= 0.75 * len(recordings)

    last = run / "last.ckpt"
    assert main(["test", f"--ckpt={last}", f"--data-path={root / 'N-MNIST'}"]) == 0
    assert f"{100 * final:.2f} %" in capsys.readouterr().out
    assert main(["test", f"--ckpt={last}", f"--data-path={tmp_path / 'none'}"]) == 2
    assert main(["predict", f"--ckpt={last}", str(RECIPE)]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_classes_have_to_be_among_the_checkpoints(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    small = ["--student.init_args.layers=[8,AP]", "--data.init_args.per_class=2", "--epochs=1"]
    data = shared / "data" / "nmnist-pairs"
    fit = ["fit", f"--config={RECIPE}", f"--data-path={data}", f"--output-dir={run}"]
    assert main([*fit, *small]) == 0
    fewer = tmp_path / "fewer"
    for part in ("Train", "Test"):
        (fewer / part).mkdir(parents=True)
        for digit in "012":
            (fewer / part / digit).symlink_to(data / "N-MNIST" / part / digit)
    capsys.readouterr()
    assert main(["test", f"--ckpt={run / 'last.ckpt'}", f"--data-path={fewer}"]) == 0
    # Not all that the recipe's list names is there: the folder's whole test split counts.
    count = sum(1 for digit in "012" for _ in (data / "N-MNIST" / "Test" / digit).iterdir())
    assert f"% of {count} samples" in capsys.readouterr().out
    (fewer / "Train" / "2").rename(fewer / "Train" / "zebra")
    capsys.readouterr()
    assert main(["test", f"--ckpt={run / 'last.ckpt'}", f"--data-path={fewer}"]) == 2
    text = capsys.readouterr().err.strip()
    assert "class 'zebra'" in text
    assert len(text.splitlines()) == 1
