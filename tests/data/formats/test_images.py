"""An image file is read, or refused in one line that names it."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from estl.data.formats.images import read_rgb, read_size

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(name + content).to_bytes(4, "big")
    return len(content).to_bytes(4, "big") + name + content + crc


def test_pixels_come_back_exactly_and_a_box_is_cut_out_before_resizing(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded("PNG"))
    assert read_size(path) == (6, 8)
    image = read_rgb(path)
    assert torch.equal(image * 255, torch.from_numpy(PIXELS).movedim(-1, 0).float())
    half = read_rgb(path, 3, (0.5, 0.5, 0.875, 1.0))
    assert torch.equal(half, image[:, 3:6, 4:7])


def tiff(offset_type: int, offset: bytes) -> bytes:
    """Four gray pixels; of which type of number and where they are said to begin."""
    tags = [(256, 3, 2), (257, 3, 2), (258, 3, 8), (259, 3, 1), (262, 3, 1)]
    tags += [(273, offset_type, int.from_bytes(offset, "little")), (277, 3, 1), (278, 3, 2)]
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I4sH", 12, b"\1\2\3\4", len(tags)) + table + bytes(4)


def test_a_tiff_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(4, struct.pack("<I", 8)))
    found = 255 * read_rgb(tmp_path / "a.tif")
    assert found[0].tolist() == [[1, 2], [3, 4]]


def test_gray_values_of_16_bits_are_a_share_of_65535(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (9, 7), dtype=np.uint16)
    values[0, :2] = 0, 65535
    Image.fromarray(values).save(tmp_path / "a.png")
    found = read_rgb(tmp_path / "a.png").numpy()
    assert np.abs(found - values / 65535).max() <= 0.5 / 255 + 1e-6  # rounded to 8 bits
    assert (found[:, 0, 0] == 0).all()
    assert (found[:, 0, 1] == 1).all()
    Image.fromarray(values // 16).save(tmp_path / "a.png")  # of 12 bits: as dark as they are
    assert read_rgb(tmp_path / "a.png").max() < 0.07


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_image_is_upright_as_its_exif_says(tmp_path: Path, kind: str, orientation: int) -> None:
    path, exif = tmp_path / "a", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(path, kind, exif=exif)
    with Image.open(path) as file:
        expected = np.asarray(ImageOps.exif_transpose(file))
    found = read_rgb(path)
    assert torch.equal(found * 255, torch.from_numpy(expected.copy()).movedim(-1, 0).float())
    assert read_size(path) == expected.shape[:2]


@pytest.mark.parametrize("tail", [b"x", b"MM\0*\0\0\0\x08\0\x03\x01\x12\0\x03"])
def test_broken_exif_turns_nothing(tmp_path: Path, tail: bytes) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=b"Exif\0\0" + tail)
    assert read_size(tmp_path / "a.png") == (6, 8)
    assert torch.equal(read_rgb(tmp_path / "a.png").movedim(0, -1) * 255, torch.tensor(PIXELS))


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_what_is_transparent_is_laid_on_what_it_is_seen_on(tmp_path: Path, kind: str) -> None:
    """White behind dark colors and black behind bright ones, blended as opacity says."""
    path = tmp_path / "a"
    for value, ground in ((255, 0), (20, 255)):
        logo = np.full((4, 5, 4), 255, np.uint8)  # of hidden white
        logo[..., 3] = 0
        logo[1:3, 1:3] = value, value, value, 255
        Image.fromarray(logo).save(path, kind)
        seen = np.full((4, 5), ground)
        seen[1:3, 1:3] = value
        assert (read_rgb(path) * 255).round().numpy().tolist() == [seen.tolist()] * 3
    soft = np.random.default_rng(0).integers(0, 256, (4, 5, 4), dtype=np.uint8)
    soft[..., :3] //= 2
    Image.fromarray(soft).save(tmp_path / "soft.png")
    color, opacity = soft[..., :3].astype(float), soft[..., 3:] / 255
    expected = opacity * color + (1 - opacity) * 255
    found = 255 * read_rgb(tmp_path / "soft.png").movedim(0, -1).numpy()
    assert np.abs(found - expected).max() <= 0.51
    gray = Image.fromarray(soft).convert("LA")
    gray.save(tmp_path / "gray.png")
    assert read_rgb(tmp_path / "gray.png").unique().numel() > 2


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_opaque_images_of_8_bits_are_as_pillow_converts_them(tmp_path: Path, mode: str) -> None:
    Image.fromarray(PIXELS).convert(mode).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as file:
        expected = torch.tensor(np.asarray(file.convert("RGB")))
    assert torch.equal((read_rgb(tmp_path / "a.png").movedim(0, -1) * 255).byte(), expected)


BROKEN = {
    "pixels at a fraction": tiff(11, struct.pack("<f", 8.0)),  # a TypeError of Pillow
    "no image": b"x",
    "nothing": b"",
    "truncated": encoded("PNG")[:60],
    # A SyntaxError of Pillow: the pixels' chunk ends early, and no other follows.
    "no chunk where one is due": encoded("PNG")[:33] + chunk(b"IDAT", b"x\x01") + b"\xff" * 40,
    "a short head": encoded("PNG")[:8] + chunk(b"IHDR", b"\0" * 5),  # a ValueError of Pillow
    "forty million pixels": encoded("BMP")[:18] + b"\x40\x9c\0\0\xe8\x03\0\0" + encoded("BMP")[26:],
    "two billion pixels": encoded("BMP")[:18] + b"\xff\xff\0\0" * 2 + encoded("BMP")[26:],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(BROKEN[name])
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image \(.+\): ") as error:
        read_rgb(path)
    assert "\n" not in str(error.value)


@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@given(
    kind=st.sampled_from(["PNG", "JPEG", "BMP"]),
    places=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 30),
)
def test_an_image_with_changed_bytes_is_read_or_refused(
    kind: str, places: list[tuple[int, int]], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz"
    data = bytearray(encoded(kind))
    for place, value in places:
        data[place % len(data)] = value
    path.write_bytes(data[: len(data) - cut])
    try:
        H, W = read_size(path)
        assert read_rgb(path).shape == (3, H, W)
    except ValueError as error:
        assert str(error).startswith(f"{path} cannot be read as an image (")  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
