"""The time-first layout, and stateless layers applied at every step."""

import copy

import pytest
import torch
from torch import Tensor, nn

from estl.neurons import LIF
from estl.students.layers import PerStep, conv_norm, time_first
from estl.students.pooling import AvgPool, MaxPool
from estl.types import direct_code, is_static


def channels_last(x: Tensor) -> bool:
    """Whether memory is (T,B,H,W,C)."""
    return x.permute(1, 0, 3, 4, 2).is_contiguous()


def test_per_step_equals_a_loop_over_steps() -> None:
    conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
    x = torch.rand(2, 4, 3, 7, 6)
    expected = torch.stack([conv(x[:, t]) for t in range(4)], dim=1)
    torch.testing.assert_close(PerStep(conv)(x), expected)


def test_per_step_accepts_a_single_step_and_other_shapes() -> None:
    assert PerStep(nn.Linear(3, 5))(torch.rand(2, 1, 3)).shape == (2, 1, 5)


def test_per_step_on_time_first_memory_copies_nothing() -> None:
    x = time_first(torch.rand(2, 4, 3, 6, 6), 3)
    y = PerStep(nn.Identity())(x)
    assert y.data_ptr() == x.data_ptr()
    assert y.stride() == x.stride()
    pools = PerStep(AvgPool(2)), PerStep(MaxPool(3, 2, 1))
    for layer in (PerStep(nn.Conv2d(3, 5, 3)), conv_norm(3, 5), LIF(), *pools):
        assert channels_last(layer(x))


def test_batch_norm_of_conv_norm_takes_its_statistics_over_samples_steps_and_places() -> None:
    layer = conv_norm(3, 5, weight=2.0).double()
    conv = layer[0]
    x = torch.rand(2, 4, 3, 6, 6, dtype=torch.float64)
    current = torch.stack([conv(x[:, t]) for t in range(4)], dim=1)
    mean = current.mean((0, 1, 3, 4), keepdim=True)
    var = ((current - mean) ** 2).mean((0, 1, 3, 4), keepdim=True)
    torch.testing.assert_close(layer(x), 2 * (current - mean) / (var + 1e-5).sqrt())


@pytest.mark.parametrize(("kernel", "stride", "size"), [(1, 2, 4), (3, 1, 7), (3, 2, 4), (7, 2, 4)])
def test_conv_norm_keeps_the_size_or_halves_it_rounded_up(
    kernel: int, stride: int, size: int
) -> None:
    y = conv_norm(2, 4, kernel, stride=stride)(torch.rand(1, 2, 2, 7, 7))
    assert y.shape == (1, 2, 4, size, size)


def test_time_first_keeps_the_values_and_turns_the_memory() -> None:
    x = torch.rand(2, 4, 3, 6, 5)
    y = time_first(x, 3)
    assert torch.equal(x, y)
    assert channels_last(y)
    again = time_first(y, 3)
    assert again.data_ptr() == y.data_ptr()


def test_time_first_keeps_one_image_of_direct_coded_ones() -> None:
    x = direct_code(torch.rand(2, 3, 6, 5), 4)
    y = time_first(x, 3)
    assert torch.equal(x, y)
    assert is_static(y)
    assert y[:, 0].is_contiguous(memory_format=torch.channels_last)


def test_time_first_names_what_is_wrong_with_the_events() -> None:
    with pytest.raises(ValueError, match=r"five dimensions.*\(2, 3, 6, 6\).*direct_code") as error:
        time_first(torch.rand(2, 3, 6, 6), 3)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"2 channels.*\(1, 4, 2, 6, 6\).*in_channels=3") as error:
        time_first(torch.rand(1, 4, 2, 6, 6), 3)
    assert "\n" not in str(error.value)


def _run(layer: nn.Module, x: Tensor, weight: Tensor) -> tuple[Tensor, list[Tensor]]:
    y = layer(x)
    return y, list(torch.autograd.grad((y * weight).sum(), list(layer.parameters())))


def test_a_direct_coded_image_is_computed_once_with_the_same_output_and_gradients() -> None:
    image = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    events = direct_code(image, 4)
    weight = torch.rand(2, 4, 5, 6, 6, dtype=torch.float64)  # other gradients at each step
    once = conv_norm(3, 5).double()
    ordinary = copy.deepcopy(once)
    rows: list[int] = []
    once[0].register_forward_hook(lambda _, x, y: rows.append(len(x[0])))

    y, gradients = _run(once, events, weight)
    y_ordinary, gradients_ordinary = _run(ordinary, events.contiguous(), weight)

    assert rows == [2]
    assert y.stride(1) == 0
    torch.testing.assert_close(y, y_ordinary)
    torch.testing.assert_close(gradients, gradients_ordinary)
    assert all(g.abs().sum() > 0 for g in gradients)

    torch.testing.assert_close(once[1].running_mean, ordinary[1].running_mean)
    n, T = 2 * 6 * 6, 4
    batch_var = (once[1].running_var - 0.9) / 0.1
    batch_var_ordinary = (ordinary[1].running_var - 0.9) / 0.1
    factor = n / (n - 1) * (T * n - 1) / (T * n)
    torch.testing.assert_close(batch_var, factor * batch_var_ordinary)
    assert not torch.allclose(batch_var, batch_var_ordinary, rtol=1e-3)
