import copy
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from estl.guidance import ClipTeacher
from estl.guidance.teacher import CLIP_MEAN, CLIP_STD

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def save_tower(folder: Path, **changes: int) -> Path:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(1)
    CLIPVisionModel(CLIPVisionConfig(**(SIZES | changes))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tower(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def teacher(folder: Path) -> ClipTeacher:
    return ClipTeacher(folder)


def test_a_tower_itself_is_a_teacher(teacher: ClipTeacher) -> None:
    image = torch.rand(2, 3, 20, 24)
    own = ClipTeacher(copy.deepcopy(teacher.tower).train())
    assert torch.equal(own(image).pooled, teacher(image).pooled)
    assert not any(p.requires_grad for p in own.tower.parameters())


def literal(folder: Path, pixels: torch.Tensor) -> SimpleNamespace:
    """The three outputs of a whole eager forward that returns every attention matrix."""
    from transformers import CLIPVisionModel

    tower = CLIPVisionModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        out = tower(pixel_values=pixels, output_attentions=True)
    row = out.attentions[-1][:, :, 0, 1:].mean(1)
    side = int(row.shape[1] ** 0.5)
    return SimpleNamespace(
        pooled=out.pooler_output,
        patches=out.last_hidden_state[:, 1:],
        attention=(row / row.sum(1, keepdim=True)).view(-1, side, side),
    )


def normalize(
    image: torch.Tensor, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> torch.Tensor:
    return (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def test_outputs_are_those_of_a_whole_eager_forward(folder: Path, teacher: ClipTeacher) -> None:
    image = torch.rand(3, 3, 32, 32)
    expected = literal(folder, normalize(image))
    seen = teacher(image)
    torch.testing.assert_close(seen.pooled, expected.pooled, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen.patches, expected.patches, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen.attention, expected.attention, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(seen.attention.sum((1, 2)), torch.ones(3))
    assert seen.attention.std() > 1e-4  # a flat map would compare equal to much


def test_a_tower_of_vit_b16_has_the_written_shapes(tmp_path: Path) -> None:
    save_tower(
        tmp_path,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=2,  # of 12: depth changes no shape
        num_attention_heads=12,
        image_size=224,
        patch_size=16,
    )
    teacher = ClipTeacher(tmp_path)
    image = torch.rand(1, 3, 224, 224)
    seen, expected = teacher(image), literal(tmp_path, normalize(image))
    assert seen.pooled.shape == (1, 768)
    assert seen.patches.shape == (1, 196, 768)
    assert seen.attention.shape == (1, 14, 14)
    assert (teacher.dim, teacher.grid) == (768, (14, 14))
    torch.testing.assert_close(seen.attention, expected.attention, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(seen.patches, expected.patches, atol=1e-5, rtol=1e-5)


def test_one_call_is_one_forward_with_fused_attention_in_every_layer(
    teacher: ClipTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    towers, fused = [], []
    attention = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: fused.append(1) or attention(*a, **k)
    )
    with teacher.tower.register_forward_hook(lambda *a: towers.append(1)):
        teacher(torch.rand(2, 3, 32, 32))
    assert len(towers) == 1
    assert len(fused) == SIZES["num_hidden_layers"]
    last = teacher.tower.encoder.layers[-1].self_attn
    assert not last.q_proj._forward_hooks  # nothing stays behind
    assert not last.k_proj._forward_hooks


@pytest.mark.parametrize("size", [(45, 60), (20, 12)])
def test_images_of_another_size_are_resized_whole(
    teacher: ClipTeacher, size: tuple[int, int]
) -> None:
    image = torch.rand(2, 3, *size).round()  # black and white: bicubic overshoots
    whole = F.interpolate(image, (32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    torch.testing.assert_close(teacher(image).pooled, teacher(whole).pooled)


def test_images_of_bytes_are_refused(teacher: ClipTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # a user has no type checks
    with pytest.raises(ValueError, match=r"images are uint8, .* divide bytes by 255"):
        teacher(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_the_folder_s_own_mean_and_deviation_are_used(folder: Path, tmp_path: Path) -> None:
    save_tower(tmp_path)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    settings = {"image_mean": mean, "image_std": std}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    image = torch.rand(2, 3, 32, 32)
    expected = literal(folder, normalize(image, mean, std)).pooled
    torch.testing.assert_close(ClipTeacher(tmp_path)(image).pooled, expected, atol=1e-5, rtol=1e-5)


def test_a_whole_clip_model_loads_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    text = CLIPTextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    vision = CLIPVisionConfig(**SIZES)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    caplog.clear()
    capfd.readouterr()
    teacher = ClipTeacher(str(tmp_path))
    assert "UNEXPECTED" not in caplog.text + "".join(capfd.readouterr())
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.vision_model(pixel_values=normalize(image))
    torch.testing.assert_close(teacher(image).pooled, expected.pooler_output)
    for own in (model, model.vision_model):
        teacher = ClipTeacher(own)
        torch.testing.assert_close(teacher(image).pooled, expected.pooler_output)
        assert not any(p.requires_grad for p in teacher.tower.parameters())
    with pytest.raises(ValueError, match="teacher Linear is no CLIP vision tower"):
        ClipTeacher(nn.Linear(2, 2))


def test_a_holder_s_state_has_no_teacher_and_loads_strictly(folder: Path) -> None:
    holder = nn.ModuleDict({"teacher": ClipTeacher(folder), "layer": nn.Linear(2, 2)})
    state = holder.state_dict()
    assert set(state) == {"layer.weight", "layer.bias"}
    assert list(holder["teacher"].state_dict()) == []
    holder.load_state_dict(state, strict=True)
    assert len(list(holder.parameters())) == 2


def test_no_train_and_no_requires_grad_reaches_the_tower(folder: Path) -> None:
    teacher = ClipTeacher(folder)
    holder = nn.Sequential(teacher)
    holder.train()
    teacher.train()
    holder.requires_grad_(True)
    assert not any(module.training for module in teacher.tower.modules())
    assert not any(p.requires_grad for p in teacher.tower.parameters())
    seen = teacher(torch.rand(1, 3, 32, 32, requires_grad=True))
    assert not any(x.requires_grad for x in (seen.pooled, seen.patches, seen.attention))


def test_moving_the_holder_moves_the_tower_and_a_copy_is_its_own(folder: Path) -> None:
    holder = nn.Sequential(ClipTeacher(folder))
    other = copy.deepcopy(holder)
    holder.to(torch.float64)
    assert {p.dtype for p in holder[0].tower.parameters()} == {torch.float64}
    assert {p.dtype for p in other[0].tower.parameters()} == {torch.float32}
    assert holder(torch.rand(1, 3, 32, 32).double()).pooled.dtype == torch.float64
    holder.to("meta")
    assert {p.device.type for p in holder[0].tower.parameters()} == {"meta"}


def test_the_tower_computes_in_the_precision_of_the_run(teacher: ClipTeacher) -> None:
    image, seen = torch.rand(2, 3, 32, 32), []
    layers = [m for m in teacher.tower.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    hooks = [m.register_forward_hook(lambda *args: seen.append(args[2].dtype)) for m in layers]
    plain = teacher(image)
    assert seen == [torch.float32] * len(layers)  # on any processor
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        half = teacher(image)
    assert seen == [torch.bfloat16] * len(layers)
    for hook in hooks:
        hook.remove()
    assert half.patches.dtype == half.pooled.dtype == half.attention.dtype == torch.float32
    torch.testing.assert_close(half.patches, plain.patches, atol=0.1, rtol=0.05)
    torch.testing.assert_close(half.attention, plain.attention, atol=2e-3, rtol=0.05)


def test_a_name_in_the_local_cache_needs_no_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    repository, commit = tmp_path / "models--estl-test--cached", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    save_tower(repository / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(
        huggingface_hub, "get_hf_file_metadata", lambda *a, **k: pytest.fail("asked the hub")
    )
    image = torch.rand(1, 3, 32, 32)
    seen = ClipTeacher("estl-test/cached")(image)
    torch.testing.assert_close(seen.pooled, ClipTeacher(folder)(image).pooled)


def test_a_hub_out_of_reach_is_said_at_once_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers  # noqa: F401  (its import is not what is timed)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(OSError, match=r"estl-test/absent.*estl train-teacher") as error:
        ClipTeacher("estl-test/absent")
    assert time.perf_counter() - start < 5.0
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such/folder", Path("absent")])
def test_a_path_that_does_not_exist_is_no_name_of_a_model(name: str | Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        ClipTeacher(name)


def test_a_folder_without_a_whole_tower_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(ValueError, match="is no folder of a CLIP model") as error:
        ClipTeacher(tmp_path)
    assert "\n" not in str(error.value)
    save_tower(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: x for name, x in weights.items() if "layers.2" not in name}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"no weights for encoder\.layers\.2"):
        ClipTeacher(tmp_path)


@pytest.mark.slow
def test_importing_the_guidance_does_not_import_transformers() -> None:
    code = "import sys, estl.guidance; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
