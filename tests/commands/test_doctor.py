"""`estl doctor` says what is there, and what is missing with how to get it."""

import shutil
import tomllib
from pathlib import Path

import pytest
import torch

import estl
from estl.commands import doctor, main


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What stands behind each word."""
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return dict(line.split(": ", 1) for line in lines if ": " in line) | {"": "\n".join(lines)}


def test_versions_devices_precision_compiler_and_groups_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = said(capsys)
    assert f"estl {estl.__version__}, torch {torch.__version__}" in lines[""]
    assert f"{torch.get_num_threads()} threads" in lines["processor"]
    devices = [key for key in lines if key.startswith("GPU")]
    assert len(devices) == max(1, torch.cuda.device_count())
    assert lines["precision"].startswith("32, bf16 (")
    assert lines["compiler"]
    groups = {key.removeprefix("group ") for key in lines if key.startswith("group ")}
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert groups == set(project["optional-dependencies"])


def test_what_is_missing_is_said_with_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = doctor.found
    absent = {"lz4": None, "h5py": None}
    monkeypatch.setattr(doctor, "found", lambda name: absent.get(name, name) and known(name))
    monkeypatch.setattr(doctor, "PEERS", ("no_such_framework",))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    lines = said(capsys)
    assert lines["group recordings"].startswith("missing h5py, ")
    assert "lz4: pip install 'estl[recordings]'" in lines["group recordings"]
    assert lines["compiler"].startswith("none: training of layers above ")
    assert lines["GPU"] == "none that torch sees"
    assert lines["other frameworks"] == "missing (optional): no_such_framework"
