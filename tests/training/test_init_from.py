"""A run begins with the weights of another, or is refused before anything is written."""

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from safetensors.torch import save_file
from torch import Tensor, nn

from estl.commands import main
from estl.report.sections.overview import FACTS
from estl.report.sources import Variant, read_run
from estl.students import VGGSNN, ResNet
from estl.supervision import MeanCE
from estl.training import load_weights
from estl.training.init_from import read_weights, with_weights
from estl.training.recipe import Parts, parse_recipe, plain
from estl.training.results import Results
from estl.training.run import fit
from tests.small_runs import recipe, same, train
from tests.tiny_sets import picture

HEAD = ["head.weight", "head.bias"]


def student(classes: int = 10, width: int = 4, **options: Any) -> nn.Module:
    return VGGSNN(classes, layers=(width, "AP", 4), frame_size=(16, 16), **options)


def altered(net: nn.Module) -> dict[str, Tensor]:
    """Weights that no student starts with, statistics and counts of its norms among them."""
    return {name: x + 1 + torch.rand(x.shape).to(x.dtype) for name, x in net.state_dict().items()}


def checkpoint(path: Path, weights: Any, classes: int = 10) -> Path:
    """As a run writes it, of a student whose module is not here."""
    part = {"class_path": "gone.Student", "init_args": {}}
    names = [str(i) for i in range(classes)]
    torch.save({"recipe": {"student": part}, "classes": names, "state_dict": weights}, path)
    return path


def test_all_is_loaded_buffers_too() -> None:
    net = student()
    weights = altered(net)
    assert any("running_var" in name for name in weights)
    assert any("num_batches" in name for name in weights)
    assert load_weights(net, weights) == []
    assert same(dict(net.state_dict()), weights)


def test_only_a_head_of_other_classes_starts_fresh() -> None:
    net = student(3, pooled=True)
    before, weights = altered(net), altered(student(10, pooled=True))
    net.load_state_dict(before)
    assert load_weights(net, weights) == HEAD
    expected = weights | {name: before[name] for name in HEAD}
    assert same(dict(net.state_dict()), expected)


def test_hidden_layers_of_a_head_are_loaded() -> None:
    few, many = (ResNet((1,), (8,), classes, hidden=6) for classes in (3, 5))
    weights = altered(many)
    assert load_weights(few, weights) == ["head.2.weight", "head.2.bias"]
    assert torch.equal(few.state_dict()["head.0.weight"], weights["head.0.weight"])
    with pytest.raises(ValueError, match=r"^head\.2\.weight is \(5, 6\), but \(3, 7\) in ResNet"):
        load_weights(ResNet((1,), (8,), 3, hidden=7), weights)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (
            student(width=5),
            r"^layers\.0\.0\.weight is \(5, 2, 3, 3\), but \(4, 2, 3, 3\) in VGGSNN: ",
        ),
        (
            student(pooled=True),
            r"^head\.weight is \(10, 4\), but \(10, 256\) in VGGSNN: class, opt",
        ),
        (student(3, pooled=True), r"^head\.weight is \(3, 4\), but \(10, 256\) in VGGSNN: "),
        (nn.Linear(3, 4), r"^no layers\.0\.0\.weight, which VGGSNN has: class, options and frame "),
    ],
    ids=["width", "head", "classes and head", "architecture"],
)
def test_weights_of_another_student_are_refused(other: nn.Module, says: str) -> None:
    net = student()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    with pytest.raises(ValueError, match=says):
        load_weights(net, other.state_dict())
    assert same(dict(net.state_dict()), before)


def test_a_name_too_many_and_what_is_no_tensor_are_refused() -> None:
    net = student()
    with pytest.raises(ValueError, match=r"^more\.weight, which VGGSNN has not: "):
        load_weights(net, net.state_dict() | {"more.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"^head\.bias is no tensor: "):
        load_weights(net, net.state_dict() | {"head.bias": [0.0]})
    with pytest.raises(ValueError, match=r"head\.bias"):  # same shape, but cannot be copied
        load_weights(net, net.state_dict() | {"head.bias": torch.zeros(10, device="meta")})


def test_an_export_is_read_too(tmp_path: Path) -> None:
    weights = {name: x.contiguous() for name, x in altered(student()).items()}
    save_file(weights, tmp_path / "student.safetensors")
    found, classes = read_weights(tmp_path / "student.safetensors")
    assert same(found, weights)
    assert classes is None
    (tmp_path / "student.safetensors").write_text("x")
    for path in (tmp_path / "student.safetensors", tmp_path / "none.safetensors"):
        with pytest.raises(ValueError, match=r"safetensors cannot be read as safetensors: .*$"):
            read_weights(path)


class Opened:
    def __reduce__(self) -> Any:
        return open, ("opened", "w")


def begun(path: Path, classes: tuple[str, ...], **keys: str) -> Parts:
    config, _ = parse_recipe(recipe() | {"init_from": str(path)} | keys)
    data: Any = SimpleNamespace(classes=classes)
    return with_weights(config, Parts(data, student(len(classes)), MeanCE(), plain(config)))


def test_the_file_is_told_and_has_to_be_the_same_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint(tmp_path / "last.ckpt", altered(student()))
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    digits = tuple("0123456789")
    line = f"beginning with the weights of {path}"
    for place, classes, more in (
        (path, digits, ""),
        (
            tmp_path,
            digits[::-1],
            ", the head's too, whose classes had other names or another order",
        ),
        (path, digits[:3], ", but for head.weight, head.bias, which start fresh: 3 classes here"),
    ):
        recipe = begun(place, classes, init_from_sha256=checksum).recipe
        assert recipe == begun(place, classes).recipe
        assert (recipe["init_from"], recipe["init_from_sha256"]) == (str(place), checksum)
        assert capsys.readouterr().err == 2 * f"{line}{more}\n"
    checkpoint(path, altered(student()))
    with pytest.raises(ValueError, match=f"but init_from_sha256 is {checksum[:12]}...: give the"):
        begun(path, digits, init_from_sha256=checksum)


def test_no_code_of_the_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evil = checkpoint(tmp_path / "evil.ckpt", {"layers.0.0.weight": Opened()})
    with pytest.raises(ValueError, match=r"evil\.ckpt is damaged, or cannot be read"):
        begun(evil, ("0", "1"))
    assert not (tmp_path / "opened").exists()


def test_the_dry_run_reads_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = checkpoint(tmp_path / "wide.ckpt", student(width=5).state_dict())
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe()))
    words = ["fit", f"--config={tmp_path}/recipe.yaml", f"--init-from={wide}", "--dry-run"]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"estl fit: --init-from {wide}: layers.0.0.weight is (5, 2, 3, 3), but")


class Look(Callback):
    """Keeps the weights that the first step begins with."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module.student, nn.Module)
        self.weights = {name: x.clone() for name, x in pl_module.student.state_dict().items()}


@pytest.mark.slow
def test_a_run_on_other_classes_begins_with_them_and_is_resumed_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "first"
    once = {"trainer": {"max_epochs": 1}, "learner": {"recompute": True}}
    given = train(recipe() | once, first)["state_dict"]
    checksum = hashlib.sha256((first / "last.ckpt").read_bytes()).hexdigest()
    for i in range(30):
        picture(tmp_path / f"images/{'abc'[i % 3]}/{i}.png", 32, 32, seed=i)
    data = {"root": str(tmp_path / "images"), "T": 2, "size": 16, "rgb": 16, "batch_size": 8}
    values = recipe() | {"data": {"class_path": "estl.data.ImageFolder", "init_args": data}}
    values |= {"init_from": str(first), "trainer": {"max_epochs": 2}}
    whole, broken, look = tmp_path / "whole", tmp_path / "broken", Look()
    capsys.readouterr()
    fit(*parse_recipe(values | {"output_dir": str(whole)}), callbacks=[look], test=False)
    said = f"beginning with the weights of {first}/last.ckpt, but for head.weight, head.bias, which"
    assert f"{said} start fresh: 3 classes here\n" in capsys.readouterr().err
    assert set(look.weights) == set(given)
    assert [name for name, x in given.items() if not same(look.weights[name], x)] == HEAD
    assert look.weights["head.bias"].shape == (3,)
    told = Results.read(whole / "results.json").of.init_from
    assert told == {"path": str(first), "sha256": checksum}
    assert yaml.safe_load((whole / "config.yaml").read_text())["init_from_sha256"] == checksum

    assert train(values, broken, kill=1)["epoch"] == 0
    shutil.rmtree(first)
    with pytest.raises(ValueError, match=r"no checkpoint .*first"):
        train(values, tmp_path / "anew")
    kept = yaml.safe_load((broken / "config.yaml").read_text())
    with pytest.raises(ValueError, match=r"broken has init_from .*, not other\.ckpt: leave it"):
        fit(*parse_recipe(kept | {"init_from": "other.ckpt"}), broken, test=False)
    assert main(["fit", f"--resume={broken}", "--dry-run"]) == 0
    fit(*parse_recipe(kept), broken, test=False)
    one, two = (torch.load(run / "last.ckpt", weights_only=True) for run in (whole, broken))
    for part in ("epoch", "state_dict", "optimizer_states", "lr_schedulers"):
        left = {"output_dir": None} if part == "recipe" else {}
        assert same(one[part] | left, two[part] | left) if left else same(one[part], two[part]), (
            part
        )
    assert Results.read(broken / "results.json").of.init_from == told
    run = read_run(broken)
    shown = FACTS["init_from"](Variant("a", "", "", [run]), run)
    assert shown == f"{first} (SHA-256 {checksum[:12]})"
