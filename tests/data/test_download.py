import gzip
import hashlib
import shutil
import struct
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estl.data import download
from estl.data.catalog import Archive
from estl.data.download import SETS, prepare, read_idx
from estl.data.formats.images import read_rgb


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder that a server on this machine gives out, and its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    folder = tmp_path / "home"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def put(monkeypatch: pytest.MonkeyPatch, *archives: Archive) -> None:
    monkeypatch.setitem(download.SETS, "test", archives)


def test_every_set_has_addresses_and_checksums() -> None:
    for archives in SETS.values():
        for archive in archives:
            for one in (archive, archive.labels):
                if one is not None:
                    assert one.url.startswith("https://")
                    assert one.md5 is not None
                    assert len(bytes.fromhex(one.md5)) == 16
    sums = [archive.md5 for archives in SETS.values() for archive in archives]
    assert len(set(sums)) == len(sums)


def test_an_archive_is_fetched_verified_and_unpacked_once(
    tmp_path: Path, home: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = home
    photograph = tmp_path / "in" / "101" / "cat" / "1.jpg"
    photograph.parent.mkdir(parents=True)
    photograph.write_bytes(b"cat")
    inner = Path(shutil.make_archive(str(tmp_path / "101"), "gztar", tmp_path / "in")).read_bytes()
    source = zipped(folder / "a.zip", {"a/101.tar.gz": inner, "a/readme": b"", "101x/b": b"b"})
    put(monkeypatch, Archive("a.zip", f"{url}/a.zip", md5(source), "101", inner="101.tar.gz"))
    root = tmp_path / "root"
    prepare("test", root)
    assert files(root) == {"a.zip": source.read_bytes(), "101/cat/1.jpg": b"cat"}
    assert not list(root.glob(".unpacking*"))

    (root / "101" / "cat" / "1.jpg").write_bytes(b"dog")  # would be undone by unpacking again
    (root / "a.zip").unlink()
    source.unlink()  # and nothing can be fetched any more
    prepare("test", root)
    assert (root / "101" / "cat" / "1.jpg").read_bytes() == b"dog"


def test_an_archive_in_the_folder_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = zipped(tmp_path / "Train.zip", {"Train/5/1.bin": b"5", "__MACOSX/Train/x": b""})
    put(monkeypatch, Archive("Train.zip", "http://127.0.0.1:1/", md5(source), "N-MNIST/Train"))
    prepare("test", tmp_path, download=False)
    assert (tmp_path / "N-MNIST" / "Train" / "5" / "1.bin").read_bytes() == b"5"
    assert not (tmp_path / "N-MNIST" / "Train" / "Train").exists()


def test_an_archive_without_the_folder_becomes_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = zipped(tmp_path / "cat.zip", {"cifar10_cat_0.aedat": b"0"})
    put(monkeypatch, Archive("cat.zip", "http://127.0.0.1:1/", md5(source), "CIFAR10-DVS/cat"))
    prepare("test", tmp_path)
    assert (tmp_path / "CIFAR10-DVS" / "cat" / "cifar10_cat_0.aedat").read_bytes() == b"0"


def test_what_lies_elsewhere_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, Archive("a.zip", "http://127.0.0.1:1/", None, "N/Train", also=("Train",)))
    (tmp_path / "Train").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no .*a\.zip: get it from http"):
        prepare("test", tmp_path, download=False)  # an empty folder is not the set
    (tmp_path / "Train" / "1").write_bytes(b"")
    prepare("test", tmp_path, download=False)


def test_a_wrong_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = zipped(tmp_path / "a.zip", {"a/b": b"b"})
    put(monkeypatch, Archive("a.zip", "http://127.0.0.1:1/", "0" * 32, "a"))
    with pytest.raises(ValueError, match=rf"a\.zip has the MD5 sum {md5(source)}, not 0{{32}}"):
        prepare("test", tmp_path)
    assert not (tmp_path / "a").exists()


def test_an_unknown_checksum_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zipped(tmp_path / "a.zip", {"a/b": b"b"})
    put(monkeypatch, Archive("a.zip", "http://127.0.0.1:1/", None, "a"))
    with pytest.warns(UserWarning, match=r"a\.zip is not verified"):
        prepare("test", tmp_path)


@pytest.mark.parametrize("page", ["http://127.0.0.1:1/a.zip", "/missing.zip"])
def test_no_network_and_no_page_are_one_line(
    tmp_path: Path, home: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    url = page if page.startswith("http") else home[1] + page
    put(monkeypatch, Archive("a.zip", url, None, "a"))
    with pytest.raises(ConnectionError, match=rf"{url} could not be fetched .* as a\.zip") as error:
        prepare("test", tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a.zip").exists()


def test_a_set_behind_a_click_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cannot be fetched .* open https://ibm.* put it"):
        prepare("dvsgesture", tmp_path)
    with pytest.raises(ValueError, match="no data set 'x': choose from nmnist, ncaltech101"):
        prepare("x", tmp_path)


def test_an_interrupted_unpacking_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = zipped(tmp_path / "a.zip", {"a/b": b"b", "a/c": b"c"})
    put(monkeypatch, Archive("a.zip", "http://127.0.0.1:1/", md5(source), "a"))

    def interrupt(self: zipfile.ZipFile, folder: Path) -> None:
        self.extract("a/b", folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare("test", tmp_path)
    assert files(tmp_path).keys() == {"a.zip"}
    prepare("test", tmp_path)
    assert files(tmp_path / "a") == {"b": b"b", "c": b"c"}


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(head + array.tobytes())


@pytest.mark.parametrize(("recordings", "first"), [("00003", 1), ("60003", 60001), (None, 1)])
def test_mnist_becomes_images_with_the_numbers_of_the_recordings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recordings: str | None, first: int
) -> None:
    digits = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    (tmp_path / "images.gz").write_bytes(idx(digits))
    (tmp_path / "labels.gz").write_bytes(idx(np.array([7, 2, 1, 0, 7], np.uint8)))
    if recordings is not None:
        (tmp_path / "N-MNIST" / "Test" / "1").mkdir(parents=True)
        (tmp_path / "N-MNIST" / "Test" / "1" / f"{recordings}.bin").write_bytes(b"")
    put(
        monkeypatch,
        Archive(
            *("images.gz", "http://127.0.0.1:1/", md5(tmp_path / "images.gz"), "MNIST/Test"),
            labels=Archive("labels.gz", "", md5(tmp_path / "labels.gz"), ""),
        ),
    )
    prepare("test", tmp_path)
    written = sorted(str(path) for path in files(tmp_path / "MNIST" / "Test"))
    labels = [7, 2, 1, 0, 7]
    assert written == sorted(f"{label}/{first + i:05d}.png" for i, label in enumerate(labels))
    image = read_rgb(tmp_path / "MNIST" / "Test" / "7" / f"{first + 4:05d}.png")
    assert np.array_equal((image[1] * 255).round().numpy(), digits[4])


def test_the_numbers_of_real_pairs_are_places_in_mnist(shared: Path) -> None:
    """The first digits of MNIST, as its own labels list them."""
    train = [5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5, 3, 6, 1, 7, 2, 8, 6, 9]
    test = [7, 2, 1, 0, 4, 1, 4, 9, 5, 9, 0, 6, 9, 0, 1, 5, 9, 7, 3, 4]
    for part, labels, first in (("Train", train, 1), ("Test", test, 60001)):
        found = 0
        for path in (shared / "data" / "nmnist-pairs" / "N-MNIST" / part).glob("*/*.bin"):
            place = int(path.stem) - first
            if place < len(labels):
                assert labels[place] == int(path.parent.name)
                found += 1
        assert found >= 3


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.booleans())
def test_any_idx_file_is_an_array_or_refused(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, packed: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "idx.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x01" + noise) if packed else noise)
    told = ""
    try:
        assert read_idx(path, 1).shape == (int.from_bytes(noise[:4], "big"),)
    except ValueError as error:
        told = str(error)
    assert not told or (told.startswith(str(path)) and "\n" not in told)
