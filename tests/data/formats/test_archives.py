"""Archives are unpacked inside of their folder, or refused in one line."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estl.data.formats.archives import unpack


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def tarred(members: dict[str, bytes], *others: tarfile.TarInfo, mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        for info in others:
            file.addfile(info)
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


NAMES = ["../out", "a/../../out", "/out", "C:/out", "a\\..\\..\\out", "\\\\host\\out"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_outside_are_refused(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / "a"
    if kind == "zip":
        zipped(path, {"fine": b"", name: b"x"})
    else:
        path.write_bytes(tarred({"fine": b"", name: b"x"}))
    with pytest.raises(ValueError, match=r"a: member .*out' would be written outside") as error:
        unpack(path, tmp_path / "in" / "side")
    assert "\n" not in str(error.value)
    assert files(tmp_path).keys() <= {"a", "in/side/fine"}


@pytest.mark.parametrize(
    "member",
    [
        special("link", tarfile.SYMTYPE, "/etc/passwd"),
        special("link", tarfile.SYMTYPE, "../../out"),
        special("link", tarfile.LNKTYPE, "../out"),
        special("device", tarfile.CHRTYPE),
        special("device", tarfile.BLKTYPE),
        special("pipe", tarfile.FIFOTYPE),
    ],
)
def test_links_outside_and_devices_are_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tarred({}, member))
    with pytest.raises(ValueError, match=rf"a\.tar: member '{member.name}' is refused") as error:
        unpack(path, tmp_path / "in")
    assert "\n" not in str(error.value)


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match=r"a\.zip: member 'link' is a link or a device"):
        unpack(tmp_path / "a.zip", tmp_path / "in")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    content = {"a": bytes(600), "b": bytes(500)}
    if kind == "zip":
        zipped(path, content)
    else:
        path.write_bytes(tarred(content))
    with pytest.raises(ValueError, match="a unpacks to 1100 bytes or more, the limit is 1000"):
        unpack(path, tmp_path / "in", largest=1000)
    assert not (tmp_path / "in" / "b").exists()
    unpack(path, tmp_path / "in", largest=1100)
    assert files(tmp_path / "in") == content


def test_broken_archives_are_one_line(tmp_path: Path) -> None:
    whole = tarred({"a": np.random.default_rng(0).bytes(20000)})
    zipped(tmp_path / "z", {"a": np.random.default_rng(0).bytes(20000)})
    broken = bytearray((tmp_path / "z").read_bytes())
    broken[10000] ^= 1
    for content in (b"", b"not an archive", whole[:10000], bytes(broken)):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(ValueError, match="a is not a whole zip or tar archive") as error:
            unpack(tmp_path / "a", tmp_path / "in")
        assert "\n" not in str(error.value)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 700), st.sampled_from(["zip", "tar", "gz", "noise"]))
def test_any_bytes_are_unpacked_or_refused(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: int, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / "archive"
    if kind == "zip":
        whole = zipped(path, {"a/b": b"b" * 30, "c": b"c"}).read_bytes()
    else:
        whole = tarred({"a/b": b"b" * 30, "c": b"c"}, mode="w" if kind == "tar" else "w:gz")
    if kind == "noise":
        path.write_bytes(noise)
    else:
        path.write_bytes(whole[:place] + noise + whole[place + len(noise) :])
    told = ""
    try:
        unpack(path, folder / "in" / "side")
    except ValueError as error:
        told = str(error)
    assert not told or (told.startswith(str(path)) and "\n" not in told)
    assert all(name == "archive" or name.startswith("in/side") for name in files(folder))
