"""A run says what it does in its own lines, and nothing else, from the command and from Python."""

import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, Trainer

from estl.data.sets.digits import Digits
from estl.guidance.tower import ClipTower
from estl.students import VGGSNN
from estl.supervision import TSE, MeanCE, Sum
from estl.training.learner import Learner
from estl.training.screen import ProgressBar, progress_bars, quiet

FROM_PYTHON = (
    "import sys; from estl.training.recipe import parse; from estl.training.run import fit; "
    "fit(*parse(sys.argv[1:]))"
)


@pytest.mark.slow
@pytest.mark.parametrize("how", [["-m", "estl.commands", "fit"], ["-c", FROM_PYTHON]])
def test_a_guided_run_prints_its_lines_alone(how: list[str], tmp_path: Path) -> None:
    tower = ClipTower(10, image_size=16, patch=8, dim=16, depth=1, heads=2)
    tower.tower.save_pretrained(tmp_path / "teacher")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"""
data: {{class_path: estl.data.Digits, init_args: {{T: 3, size: 16, per_class: 4}}}}
student: {{class_path: estl.students.VGGSNN, init_args: {{layers: [8, AP], pooled: true}}}}
supervision:
  class_path: estl.supervision.EdgeGuidedDistillation
  init_args: {{teacher: {tmp_path / "teacher"}, heads: 2}}
trainer: {{max_epochs: 2, check_val_every_n_epoch: 5}}
output_dir: {tmp_path / "run"}
""")
    command = [sys.executable, "-W", "default", *how, f"--config={recipe}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    shown = done.stdout.split("\nTest accuracy")[0].splitlines()
    assert len(shown) == 5
    assert shown[0].startswith("EdgeGuidedDistillation: True")
    assert shown[1].startswith("VGGSNN, parameters: student ")
    assert shown[2].startswith("batch: ")
    for epoch, text in enumerate(shown[3:], 1):
        assert text.startswith(f"epoch {epoch}/2 ")
        assert ("val    - " in text) == (epoch == 1)
        for term in ("cls", "global_distill", "patch_distill", "logit_distill", "edge_events"):
            assert f" {term} " in text


def test_only_a_terminal_has_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert progress_bars() == []
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert len(progress_bars()) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_the_bar_shows_the_loss_of_the_step_and_the_terms_that_it_is_the_sum_of(
    tmp_path: Path,
) -> None:
    seen: list[dict[str, float]] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            seen.append(bar.get_metrics(trainer, pl_module))

    bar = ProgressBar()
    student = VGGSNN(classes=10, frame_size=(16, 16), layers=(4, "AP"), pooled=True)
    trainer = Trainer(
        max_steps=3, logger=False, accelerator="cpu", default_root_dir=tmp_path,
        enable_checkpointing=False, callbacks=[bar, Look()], limit_val_batches=0,
    )  # fmt: skip
    learner = Learner(student, Sum([TSE(), MeanCE()], [1.0, 0.5]))
    with quiet():
        trainer.fit(learner, Digits(T=2, size=16, per_class=8, batch_size=8))
    assert len(seen) == 3
    for shown in seen:
        assert len(shown) == 3
        assert sum(shown.values()) == pytest.approx(2 * shown["loss"], rel=1e-5)
    assert len({shown["loss"] for shown in seen}) == 3


def test_quiet_hides_others_deprecations_alone_and_ends() -> None:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level

    def deprecated(module: str) -> None:
        warnings.warn_explicit("old", FutureWarning, "file.py", 1, module=module)

    with quiet():
        deprecated("torch.nn.functional")
        deprecated("lightning.pytorch.trainer")
        assert not logger.isEnabledFor(logging.INFO)
        with pytest.warns(FutureWarning, match="old"):
            deprecated("estl.training.run")
        with pytest.warns(FutureWarning, match="old"):
            deprecated("torchmine")
        with pytest.warns(UserWarning, match="collapsed"):
            warnings.warn("the edge map has collapsed", stacklevel=1)
    assert logger.level == level
    with pytest.warns(FutureWarning, match="old"):
        deprecated("torch.nn.functional")
