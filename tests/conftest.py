"""What all tests share: shape checks, the seed, data, and the small parts that many need."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jaxtyping import install_import_hook

# Shapes and types in the annotations are checked at every call while the tests run. Not in
# `neurons.fused` (torch.compile traces it) and not in `training.learner` (Lightning introspects).
CHECKED = [
    "types",
    "neurons.lif",
    "neurons.linear",
    "students",
    "supervision",
    "guidance",
    "data",
    "evaluation",
]
install_import_hook([f"estl.{name}" for name in CHECKED], "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_pre_hook  # noqa: E402

from estl.types import Batch, Classify, Output  # noqa: E402

settings.register_profile("estl", deadline=None)  # bounds on time live in benchmarks/
settings.load_profile("estl")

SHARED = Path(os.environ.get("ESTL_SHARED", Path(__file__).parents[2] / "shared"))


def pytest_report_header() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {capability}, {torch.get_num_threads()} threads"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that several processes end at the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _only_slow_tests_train(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """`make fast` trains nothing: a test in which an optimizer steps has to be marked slow.

    Slow ones call the same functions thousands of times, which the fast ones checked the shapes of.
    """
    if request.node.get_closest_marker("slow"):
        monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
        yield
        return

    def refuse(*args: object) -> None:
        pytest.fail("an optimizer steps: mark this test slow", pytrace=False)

    with register_optimizer_step_pre_hook(refuse):
        yield


@pytest.fixture
def without_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """For processes of seconds, which compiling takes longer than."""
    monkeypatch.setenv("ESTL_COMPILE", "0")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs leave no report, and guided ones no pictures."""
    from lightning.pytorch.callbacks import Callback

    monkeypatch.setattr("estl.report.run.finish", lambda *_: None)
    monkeypatch.setattr("estl.report.pictures.Pictures", Callback)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, undrawn: None) -> None:
    """A sweep's `estl fit` runs here, not in a new process that imports all; nothing is drawn."""
    from estl.commands import main

    def call(
        command: list[str], *, stderr: Any, **_: Any
    ) -> AbstractContextManager[SimpleNamespace]:
        with redirect_stderr(stderr):
            status = main(command[3:])
        return nullcontext(SimpleNamespace(wait=lambda: status))

    monkeypatch.setattr("estl.experiments.jobs.subprocess.Popen", call)


@pytest.fixture
def forked_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of a sweep are forked from one that has imported everything."""
    from tests.forked import start

    def popen(
        command: list[str], *, stdout: Any, stderr: Any, env: dict[str, str], cwd: str, **_: Any
    ) -> AbstractContextManager[SimpleNamespace]:
        assert Path(cwd) == Path.cwd()
        # Its parent is the fork server, and it would end at once.
        own = {name: value for name, value in env.items() if name != "ESTL_PARENT"}
        out = os.devnull if stdout is None else stdout.name
        run = start(command[3:], out, stderr.name, environment=own)

        def wait() -> int | None:
            run.join()
            return run.exitcode

        return nullcontext(SimpleNamespace(wait=wait, terminate=run.terminate))

    monkeypatch.setattr("estl.experiments.jobs.subprocess", SimpleNamespace(Popen=popen))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden figures and real recordings."""
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED}: set ESTL_SHARED to the folder with golden/ and data/")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> dict[str, Any]:
    """The figures that must come out."""
    figures: dict[str, Any] = json.loads((shared / "golden" / "golden.json").read_text())
    return figures


@pytest.fixture(scope="session")
def save_clip() -> Callable[..., Path]:
    """Writes a small CLIP vision tower into a folder: `save_clip(folder, patch_size=16)`."""

    def save(folder: Path, **sizes: int) -> Path:
        from transformers import CLIPVisionConfig, CLIPVisionModel

        small: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        }
        torch.manual_seed(1)
        CLIPVisionModel(CLIPVisionConfig(**(small | sizes))).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory, save_clip: Callable[..., Path]) -> Path:
    """A folder with a CLIP vision tower of width 32 that sees 32 x 32 pixels as 4 x 4 patches."""
    return save_clip(tmp_path_factory.mktemp("clip"))


MakeOutput = Callable[[Tensor, Classify, Tensor], tuple[Output, Batch]]


@pytest.fixture
def make_output() -> MakeOutput:
    """The output of a student with the features (B,T,D,H,W) and a mean-pooled head, its batch."""

    def make(features: Tensor, classify: Classify, labels: Tensor) -> tuple[Output, Batch]:
        pooled = features.mean((-2, -1))
        batch = Batch(torch.zeros(*features.shape[:2], 2, 8, 8), labels)
        return Output(classify(pooled), features, classify, pooled), batch

    return make


@pytest.fixture
def pooled_example(make_output: MakeOutput) -> tuple[Output, Batch, nn.Linear]:
    """Random maps of 3 samples, 4 steps, 5 channels and 6 x 7 places, their batch, their head."""
    features, head = 3 * torch.randn(3, 4, 5, 6, 7), nn.Linear(5, 8)
    return *make_output(features, head, torch.tensor([0, 7, 3])), head
