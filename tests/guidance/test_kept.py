import struct
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from estl.guidance.kept import Kept, image_keys
from estl.guidance.teacher import TeacherOutput

MASK = 2**64 - 1


class Teacher:
    """Outputs that tell every pixel, and the images that it was shown."""

    def __init__(self) -> None:
        self.shown: list[Tensor] = []

    def __call__(self, image: Tensor) -> TeacherOutput:
        self.shown += list(image)
        return TeacherOutput(image.flatten(1), image.flatten(1).unsqueeze(1) + 1, image[:, 2])


def test_keys_are_those_of_a_loop_over_places() -> None:
    image = torch.rand(2, 3, 4, 5) - 0.3  # below 0 the first of the bits is set

    for one, key in zip(image, image_keys(image).tolist(), strict=True):
        total = 0
        for place, value in enumerate(one.flatten().tolist()):
            x = place << 32 | struct.unpack("<I", struct.pack("<f", value))[0]
            for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
                x = (x ^ x >> shift) * factor & MASK
            total += x ^ x >> 31
        assert key & MASK == total + 5 & MASK  # the width


def test_images_that_differ_anywhere_have_other_keys() -> None:
    black_and_white = torch.tensor(list(product((0.0, 1.0), repeat=12))).view(-1, 3, 2, 2)
    assert len(set(image_keys(black_and_white).tolist())) == 2**12
    image = torch.rand(1, 3, 8, 8)
    changed = image.clone()
    changed[0, 1, 3, 4] = torch.nextafter(changed[0, 1, 3, 4], torch.tensor(1.0))
    others = [changed, image.flip(-1), image.flip(1), image.mT, torch.zeros(1, 3, 8, 8)]
    assert len(set(image_keys(torch.cat([image, *others])).tolist())) == 6
    assert image_keys(image) != image_keys(image.view(1, 3, 4, 16))


def test_keys_hang_on_content_alone() -> None:
    image = torch.rand(3, 3, 6, 4)
    keys = image_keys(image)
    assert torch.equal(image_keys(image.contiguous(memory_format=torch.channels_last)), keys)
    assert torch.equal(image_keys(image.double()), keys)
    assert torch.equal(image_keys(image[[2, 0, 1]]), keys[[2, 0, 1]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_image_has_the_teachers_outputs_and_is_shown_once(dtype: torch.dtype) -> None:
    teacher, image = Teacher(), torch.rand(6, 3, 4, 4).to(dtype)
    kept = Kept()
    for rows in ([0, 1], [1, 2, 2, 0], [5, 4, 3, 2], [0, 5], [3]):
        found, wanted = kept(teacher, image[rows]), Teacher()(image[rows])
        for a, b, name in zip(found, wanted, wanted._fields, strict=True):
            assert a.dtype == dtype
            assert torch.equal(a, b), name
    assert len(teacher.shown) == 6


def test_what_a_module_saw_is_forgotten_once_it_is_written_to_or_is_another() -> None:
    kept, teacher, image = Kept(), Teacher(), torch.rand(2, 3, 4, 4)
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    for module, written, shown in (
        (one, False, 2), (one, False, 0), (one, True, 2), (one, False, 0), (other, True, 2),
    ):  # fmt: skip
        if written:
            module.load_state_dict(one.state_dict())  # the same values, but written
        teacher.shown.clear()
        kept.of(module)(teacher, image)
        assert len(teacher.shown) == shown
