"""What a step holds, computed without memory, is what PyTorch's allocator gave to a real one."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from estl.commands import main
from estl.commands.flags import RECIPES, TrainingFlags
from estl.experiments.bench import fake
from estl.experiments.bench.counting import LiveBytes
from estl.experiments.bench.fake import FakeStep
from estl.experiments.bench.memory import CARDS, needs, room
from estl.neurons import kernels
from estl.training.recipe import parse
from tests.held import most_held

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 2, "image_size": 36, "patch_size": 12}


@pytest.fixture(autouse=True)
def small_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fake.TOWERS, "teachers/mnist", TINY)


NARROW = [
    "--student=estl.students.ResNet",
    *("--student.init_args.blocks=[1,1,1]", "--student.init_args.widths=[32,64,128]"),
]
"""All kinds of blocks that the ResNet-19 of CIFAR's recipes has, which takes a minute to try."""


def step(recipe: str, *, recompute: bool = False, real: bool = False) -> FakeStep:
    narrow = NARROW if recipe.startswith("cifar") else []
    words = [*narrow, "--data.init_args.T=3", f"--learner.recompute={recompute}"]
    flags = TrainingFlags(config=(recipe,)).spell_out(words)
    return FakeStep(*parse(flags), fake=not real, block=1)


def test_what_autograd_keeps_counts_until_it_is_used() -> None:
    x = torch.rand(1000)
    with LiveBytes() as count:
        w = torch.ones(1000, requires_grad=True)
        kept = (x * w).exp().exp()  # each exp keeps what it gave; x was there before
        assert (count.live, count.peak) == (12_000, 12_000)
        kept.sum().backward()
        del kept
    assert count.live == 8000  # w and its gradient
    assert w.view(10, 100).data_ptr() == w.data_ptr()


def test_blocks_are_filled_up_and_views_take_nothing() -> None:
    with LiveBytes(block=512) as count:
        a = torch.zeros(3)
        b, c = a[1:], torch.empty(200, device="meta")
        assert count.live == 512
        del a
        assert count.live == 512
        del b
    assert count.live == 0
    assert c.is_meta


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "recompute", "bfloat16"),
    [
        ("nmnist_tse", False, True),
        ("nmnist_guided", False, False),
        ("nmnist_guided", True, True),
        ("cifar10_tse", True, False),
    ],
)
def test_a_computed_step_holds_what_a_real_one_does(
    recipe: str, recompute: bool, bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESTL_COMPILE", "1")  # as on a GPU
    monkeypatch.setattr(kernels, "_no_compiler", set())
    computed, real = step(recipe, recompute=recompute), step(recipe, recompute=recompute, real=True)
    size = 2 if recipe.startswith("cifar") else 12
    real.step(size, bfloat16)  # compiles, and makes what the optimizer keeps
    real.optimizer.zero_grad()
    measured = most_held(lambda: [real.step(size, bfloat16) for _ in range(2)])
    peak = computed.peak(size, bfloat16=bfloat16)
    computed.optimizer.zero_grad()
    found = peak - computed.count.live
    # Convolutions on the CPU take copies of weights and of their input in an order of their own,
    # which no operation returns: at most as much as there are weights, and frames where a bridge
    # adds to them.
    copies = sum(p.nbytes for p in real.learner.parameters())
    if real.sizes.unpaired:
        events = real.sizes.batch(size).events
        copies += events.nbytes + real.sizes.unpaired * events[0].nbytes
    assert not kernels._no_compiler
    assert 0 <= measured - found <= copies, (found, measured, copies)
    assert measured < 1.1 * found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("cifar10_plain", []),
        ("cifar10dvs_plain", []),
        ("ncaltech101_clip", ["--supervision=estl.supervision.MeanCE", "--learner.part_lr=null"]),
    ],
)
def test_recomputed_memory_grows_by_a_third_of_plain_at_most(recipe: str, words: list[str]) -> None:
    """ResNet-19, VGGSNN, and Spikformer of events only, from 2 to 8 steps."""

    def peak(T: int, recompute: bool) -> int:
        given = [*words, f"--data.init_args.T={T}", f"--learner.recompute={recompute}"]
        return FakeStep(*parse(TrainingFlags(config=(recipe,)).spell_out(given))).peak(2)

    kept, recomputed = (peak(8, lean) - peak(2, lean) for lean in (False, True))
    assert recomputed < kept / 3, recomputed / kept


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["nmnist_plain", "nmnist_guided"])
def test_between_steps_weights_gradients_optimizer_and_teacher_are_held(recipe: str) -> None:
    computed = step(recipe)
    computed.peak(2)
    learner = computed.learner
    trained = sum(p.nbytes for p in learner.parameters() if p.requires_grad)
    others = [*learner.buffers(), *(p for p in learner.parameters() if not p.requires_grad)]
    if recipe == "nmnist_guided":
        others += [*learner.supervision.teacher.tower.state_dict().values()]
    states = sum(8 if p.requires_grad else 0 for p in learner.parameters())  # steps, 4 bytes each
    held = 4 * trained + sum(x.nbytes for x in others)
    assert held <= computed.count.live <= held + states


@pytest.mark.slow
def test_batches_fit_and_one_more_does_not() -> None:
    computed = step("nmnist_plain")
    found = needs(computed)
    for card in CARDS[:2]:
        batch = found.batch(card)
        assert computed.peak(batch) <= room(card)
        assert computed.peak(batch + max(1, batch // 100)) > room(card)
    assert found.batch(0.5) == 0


@pytest.mark.slow
def test_the_command_writes_what_fits_by_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = yaml.safe_load((RECIPES / "nmnist_plain.yaml").read_text())
    recipe["data"]["init_args"]["T"] = 3
    recipe["student"]["init_args"]["layers"] = [8, 8, 8, 8]
    small = str(tmp_path / "small.yaml")
    Path(small).write_text(yaml.safe_dump(recipe))
    assert main(["bench", "--memory", small, "--output-dir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "bench.json").read_text())["found"]
    kept, recomputed = (found["float32"][small][way] for way in ("kept", "recomputed"))
    assert kept["batch_8_gib"] < recomputed["batch_8_gib"] < recomputed["batch_24_gib"]
    low = found["bf16-mixed"][small]["kept"]["batch_8_gib"]
    assert 1.5 < low / kept["batch_8_gib"] < 2.0  # weights and losses stay in float32
    assert "not run on a GPU" in (tmp_path / "bench.md").read_text()
    assert f"| {small} |" in capsys.readouterr().out


def test_data_whose_sizes_are_in_their_files_are_refused(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "data: {class_path: estl.data.Recordings, init_args: {root: data}}\n"
        "student: {class_path: estl.students.VGGSNN}\n"
    )
    flags = TrainingFlags(config=(str(own),)).spell_out()
    with pytest.raises(ValueError, match="the sizes of Recordings are known from its files alone"):
        FakeStep(*parse(flags))
