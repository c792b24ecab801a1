"""The package as a user has it: installed from a wheel, away from the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.tiny_sets import write_nmnist

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def estl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment that holds the wheel, and sees this one's dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    source, home = folder / "source", folder / "venv"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src/estl", source / "src/estl", ignore=lambda _, __: {"__pycache__"})
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run([*pip, *build], cwd=source, check=True)
    (wheel,) = folder.glob("estl-*.whl")
    venv.create(home, with_pip=False)
    paths = {"base": str(home), "platbase": str(home)}
    packages = Path(sysconfig.get_path("purelib", "venv", paths))
    # A path in a .pth file is searched after the environment's own, and no .pth file in it is read:
    # of a checkout that is installed editable there nothing is seen.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = home / "bin" / "python"
    install = ["--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, *install, str(wheel)], check=True)
    return home / "bin" / "estl"


def run(estl: Path, words: list[str], folder: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "ESTL"))}
    environment["ESTL_COMPILE"] = "0"  # which takes longer than these runs do
    done = subprocess.run(
        [str(estl), *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_has_the_recipes_and_its_own_code(estl: Path, tmp_path: Path) -> None:
    recipes = sorted(path.stem for path in (ROOT / "src/estl/recipes").glob("*.yaml"))
    assert [line.split()[0] for line in run(estl, ["recipes"], tmp_path).splitlines()] == recipes
    assert "class_path: estl.data.Digits" in run(estl, ["recipes", "digits_guided"], tmp_path)
    code = "import estl, pathlib; print(pathlib.Path(estl.__file__).parents[4])"
    python = estl.with_name("python")
    home = run(python, ["-c", code], tmp_path).strip()
    assert Path(home) == estl.parents[1]
    said = run(estl, ["doctor"], tmp_path)
    assert said.startswith("python 3.")
    assert "group dev:" in said


@pytest.mark.slow
def test_a_wheel_runs_the_demo_whose_students_predict_and_are_exported(
    estl: Path, tmp_path: Path
) -> None:
    (recipe,) = estl.parents[1].glob("lib/python*/site-packages/estl/recipes/digits_guided.yaml")
    small = {
        "T: 6": "T: 2",
        "per_class: 10": "per_class: 10, val_fraction: 0.05, test_fraction: 0.05",
        "[16, AP, 32, AP, 64, AP, 128]": "[4, AP, 4, AP, 4, AP, 4]",
        "warm_up: 300": "warm_up: 2",
    }
    text = recipe.read_text()
    for given, less in small.items():
        assert given in text
        text = text.replace(given, less)
    recipe.write_text(text)
    both = "import sys; from estl.commands import main as estl; sys.exit({})"
    short = "--seeds=0 --jobs=1 --teacher-epochs=1 --epochs=1 --output-dir=demo"
    ckpt = "--ckpt=demo/2bkt/seed0/last.ckpt"
    more = f"export {ckpt} --to=safetensors --output-dir=out"
    calls = " or ".join(f"estl({words.split()})" for words in (f"demo {short}", more))
    said = run(estl.with_name("python"), ["-c", both.format(calls)], tmp_path)  # imports once
    assert "accuracy on the val images" in said or "accuracy on the test images" in said
    runs = sorted((tmp_path / "demo").glob("*/seed0/results.json"))
    assert len(runs) == 2
    assert "warm_up: 2\n" in (tmp_path / "demo" / "recipe.yaml").read_text()  # the wheel's own
    written = ["card.json", "student.safetensors"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == written
    write_nmnist(tmp_path / "data")
    recordings = sorted(map(str, (tmp_path / "data").rglob("Test/*/*.bin")))
    sure = ["--sensor", "34x34", "--json", "--until-sure", "0.9"]
    said = run(estl, ["predict", ckpt, *sure, *recordings], tmp_path)
    assert len(said.splitlines()) == len(recordings)
