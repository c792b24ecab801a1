"""The plain scan against hand-computed traces, two scalar oracles and SpikingJelly."""

import copy
import itertools
import math
import pickle

import pytest
import torch

from estl.neurons import LIF, Sigmoid, Triangle, lif

TET = {
    "decay": 0.5,
    "gain": 1.0,
    "threshold": 1.0,
    "reset": "hard",
    "detach_reset": False,
    "surrogate": Triangle(),
    "inclusive": False,
}
SPIKFORMER = {
    "decay": 0.5,
    "gain": 0.5,
    "threshold": 1.0,
    "reset": "hard",
    "detach_reset": True,
    "surrogate": Sigmoid(alpha=4.0),
    "inclusive": True,
}
ALL_OPTIONS = [
    {"reset": reset, "detach_reset": detach, "surrogate": surrogate, "inclusive": inclusive}
    for reset, detach, surrogate, inclusive in itertools.product(
        ("hard", "soft"),
        (False, True),
        (Triangle(), Triangle(0.6), Sigmoid(), Sigmoid(2.5)),
        (False, True),
    )
]


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the tests' type checker, which objects first and cannot be traced."""
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)


def spikes_of(x: list[float], **options: object) -> list[float]:
    return lif(torch.tensor(x).unsqueeze(1), **options).squeeze(1).tolist()


# --- traces by hand ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reset", "inclusive", "expected"),
    [  # v in the comments; 1.0 is a tie
        ("hard", False, [0, 0, 1, 0]),  # 0.5  1.0  2.0  0.75
        ("hard", True, [0, 1, 1, 0]),  # 0.5  1.0  1.5  0.75
        ("soft", False, [0, 0, 1, 1]),  # 0.5  1.0  2.0  1.25
        ("soft", True, [0, 1, 1, 1]),  # 0.5  1.0  1.5  1.0
    ],
)
def test_spikes_are_those_computed_by_hand(
    reset: str, inclusive: bool, expected: list[int]
) -> None:
    assert spikes_of([0.5, 0.75, 1.5, 0.75], reset=reset, inclusive=inclusive) == expected


def test_presets_are_the_neurons_of_their_papers() -> None:
    x = torch.tensor([[0.5, 0.75, 1.5, 0.75]])
    assert LIF.tet()(x).tolist() == [[0, 0, 1, 0]]  # a tie does not fire
    assert LIF.spikformer()(2 * x).tolist() == [[0, 1, 1, 0]]  # a tie fires; the input is halved
    assert LIF.tet().options == TET
    assert LIF.spikformer().options == SPIKFORMER


def test_preset_takes_changes() -> None:
    assert LIF.spikformer(threshold=0.5).options == SPIKFORMER | {"threshold": 0.5}


def test_threshold_decay_and_gain_are_used() -> None:
    # v: 0.25 * 2 = 0.5; 0.75 * 0.5 + 0.25 * 2 = 0.875
    x = [2.0, 2.0]
    assert spikes_of(x, decay=0.75, gain=0.25, threshold=0.874) == [0, 1]
    assert spikes_of(x, decay=0.75, gain=0.25, threshold=0.876) == [0, 0]


def test_gradient_is_that_computed_by_hand() -> None:
    # v = 0.75, 1.125;  surrogate 0.75, 0.875
    # dv_2 = 0.875;  dr_1 = 0.4375;  ds_1 = 1 - 0.4375 * 0.75 = 0.671875 (detached: 1)
    # dv_1 = ds_1 * 0.75 + dr_1
    for detach, first in ((False, 0.94140625), (True, 1.1875)):
        x = torch.tensor([[0.75], [0.75]], requires_grad=True)
        lif(x, **(TET | {"detach_reset": detach})).sum().backward()
        assert x.grad.squeeze(1).tolist() == [first, 0.875]


def test_surrogates_are_the_derivatives_they_name() -> None:
    u = torch.linspace(-3, 3, 601, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(torch.sigmoid(2.5 * u).sum(), u)
    torch.testing.assert_close(Sigmoid(2.5)(u), slope)
    for surrogate in (Triangle(), Triangle(0.6), Sigmoid(), Sigmoid(20.0)):
        area = torch.trapezoid(surrogate(u), u)  # a step rises by one
        assert area.item() == pytest.approx(1.0, abs=1e-3)
    assert Triangle(0.5)(torch.tensor([-0.5, -0.25, 0.0])).tolist() == [0, 1, 2]


@pytest.mark.parametrize("alpha", [0.1, 1.0, 4.0, 25.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sigmoid_is_that_of_double_precision(alpha: float, dtype: torch.dtype) -> None:
    u = torch.linspace(-40 / alpha, 40 / alpha, 100_001, dtype=torch.float64).to(dtype)
    e = torch.exp(-alpha * u.double().abs())
    exact = alpha * e / (1 + e) ** 2
    error = (Sigmoid(alpha)(u) - exact).abs()
    bound, relative = (4e-8, 2e-6) if dtype == torch.float32 else (1e-15, 1e-11)
    assert error.max() <= bound * alpha
    near = (alpha * u).abs() <= 10
    assert (error[near] <= relative * exact[near]).all()


def test_sigmoid_of_what_is_no_potential() -> None:
    u = torch.tensor([1e30, -1e30, torch.inf, -torch.inf, torch.nan, 0.0, 1e-30])
    slopes = Sigmoid()(u).tolist()
    assert slopes[:4] == [0.0] * 4
    assert math.isnan(slopes[4])
    assert slopes[5:] == [1.0, 1.0]


def test_sigmoid_has_a_derivative() -> None:
    u = torch.linspace(-2, 2, 101, requires_grad=True)
    (found,) = torch.autograd.grad(Sigmoid()(u).sum(), u)
    p = torch.sigmoid(4 * u.detach().double())
    torch.testing.assert_close(found.double(), 16 * p * (1 - p) * (1 - 2 * p), atol=5e-6, rtol=0)


# --- scalar oracles ---------------------------------------------------------------------------


def smooth(u: torch.Tensor, surrogate: Triangle | Sigmoid) -> torch.Tensor:
    """The antiderivative of the surrogate."""
    if isinstance(surrogate, Sigmoid):
        return 1 / (1 + torch.exp(-surrogate.alpha * u))
    w = surrogate.width
    inside = u / w - u * abs(u) / (2 * w * w)
    return inside if abs(u) < w else 0 * u


def scalar_autograd(
    x: torch.Tensor, decay: float, gain: float, threshold: float, **options: object
) -> torch.Tensor:
    """The equations of `lif` neuron by neuron; the step is the antiderivative with its value
    replaced, so that autograd finds the surrogate by itself."""
    steps, neurons = x.shape
    spikes = [[torch.zeros(())] * neurons for _ in range(steps)]
    for n in range(neurons):
        r = torch.zeros((), dtype=x.dtype)
        for t in range(steps):
            v = decay * r + gain * x[t, n]
            fires = v >= threshold if options["inclusive"] else v > threshold
            f = smooth(v - threshold, options["surrogate"])
            s = spikes[t][n] = f - f.detach() + float(fires)
            if options["detach_reset"]:
                s = s.detach()
            r = (1 - s) * v if options["reset"] == "hard" else v - s * threshold
    return torch.stack([torch.stack(row) for row in spikes])


def slope(u: float, surrogate: Triangle | Sigmoid) -> float:
    if isinstance(surrogate, Sigmoid):
        return surrogate.alpha / (2 + 2 * math.cosh(surrogate.alpha * u))
    return max(0.0, surrogate.width - abs(u)) / surrogate.width**2


def scalar_adjoint(
    x: list[float],
    grad: list[float],
    decay: float,
    gain: float,
    threshold: float,
    **options: object,
) -> tuple[list[float], list[float]]:
    """Spikes and gradient of one neuron, by the chain rule on paper.

    With v_{t+1} = decay r_t + gain x_{t+1} and r_t = v_t (1 - s_t) or v_t - threshold s_t:
    dL/dv_t = (dL/ds_t) s'(v_t) + (dL/dv_{t+1}) decay (dr_t/dv_t), where the total dr_t/dv_t holds
    the way through s_t unless the reset is detached.
    """
    v, s, r = [], [], 0.0
    for x_t in x:
        v.append(decay * r + gain * x_t)
        s.append(float(v[-1] >= threshold if options["inclusive"] else v[-1] > threshold))
        r = v[-1] * (1 - s[-1]) if options["reset"] == "hard" else v[-1] - threshold * s[-1]
    grad_x, dv = [0.0] * len(x), 0.0
    for t in range(len(x) - 1, -1, -1):
        slope_t = slope(v[t] - threshold, options["surrogate"])
        through_s = 0.0 if options["detach_reset"] else slope_t
        if options["reset"] == "hard":
            dr_dv = 1 - s[t] - v[t] * through_s
        else:
            dr_dv = 1 - threshold * through_s
        dv = grad[t] * slope_t + dv * decay * dr_dv
        grad_x[t] = gain * dv
    return s, grad_x


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=str)
def test_scan_equals_scalar_autograd_and_the_adjoint_on_paper(options: dict[str, object]) -> None:
    leak = {"decay": 0.9, "gain": 0.6, "threshold": 0.7}
    x = torch.randn(6, 5, dtype=torch.float64).add(0.6).requires_grad_()
    grad = torch.randn(6, 5, dtype=torch.float64)
    spikes = lif(x, **leak, **options)
    (found,) = torch.autograd.grad(spikes, x, grad)

    expected = scalar_autograd(x, **leak, **options)
    torch.testing.assert_close(spikes, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, x, grad)[0])

    assert 0 < spikes.mean() < 1
    for n in range(5):
        s, grad_x = scalar_adjoint(x[:, n].tolist(), grad[:, n].tolist(), **leak, **options)
        assert spikes[:, n].tolist() == s
        assert found[:, n].tolist() == pytest.approx(grad_x, rel=1e-12, abs=1e-14)


def test_one_step_has_the_second_derivative_of_its_surrogate() -> None:
    x = torch.randn(1, 7, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(lif(x, **SPIKFORMER).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    p = torch.sigmoid(4 * (0.5 * x.detach() - 1))
    torch.testing.assert_close(second, 0.5**2 * 4**2 * p * (1 - p) * (1 - 2 * p))


# --- the module -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4), (3, 1, 5), (2, 4, 3, 5, 6)], ids=str)
def test_module_is_the_scan_over_dimension_one(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape) * 2
    expected = lif(x.transpose(0, 1)).transpose(0, 1)
    assert torch.equal(LIF()(x), expected)
    assert LIF()(x).shape == x.shape


def test_neurons_do_not_see_each_other() -> None:
    x = torch.randn(2, 4, 3) * 2
    alone = torch.stack([LIF()(x[b : b + 1, :, n]) for b in range(2) for n in range(3)])
    assert torch.equal(LIF()(x).transpose(1, 2).reshape(6, 1, 4), alone)


def test_no_state_outlives_a_call() -> None:
    neuron = LIF.spikformer()
    x = torch.full((3, 4, 5), 1.5)  # fires by what it has gathered, so a remainder would show
    first = neuron.train()(x)
    assert 0 < first.mean() < 1
    assert torch.equal(neuron(x), first)
    assert torch.equal(neuron.eval()(x), first)
    assert torch.equal(neuron(x[:2]), first[:2])
    assert torch.equal(neuron(x), first)
    assert neuron.state_dict() == {}


def test_spikes_keep_the_dtype() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.randn(2, 4, 5).to(dtype).requires_grad_()
        spikes = LIF()(x)
        spikes.sum().backward()
        assert spikes.dtype == x.grad.dtype == dtype
        assert set(spikes.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("neuron", [LIF.tet(), LIF.spikformer()], ids=["tet", "spikformer"])
def test_the_potential_of_low_precision_is_that_of_float32(neuron: LIF, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, grad = (torch.randn(2, 20, 500).to(dtype) for _ in range(2))
    low, full = x.clone().requires_grad_(), x.float().requires_grad_()
    spikes = neuron(low)
    reference = neuron(full)
    assert torch.equal(spikes.float(), reference)
    spikes.backward(grad)
    reference.backward(grad.float())
    assert low.grad is not None
    assert full.grad is not None
    assert torch.equal(low.grad, full.grad.to(dtype))


def test_copies_and_pickles_compute_the_same() -> None:
    neuron = LIF.spikformer(threshold=0.6)
    x = torch.randn(2, 4, 5) * 2
    for twin in (copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron))):
        assert twin.options == neuron.options
        assert torch.equal(twin(x), neuron(x))


def test_any_callable_is_a_surrogate() -> None:
    x = torch.randn(2, 4, 5, requires_grad=True)
    LIF(surrogate=lambda u: torch.zeros_like(u))(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_a_compiled_model_takes_the_scan_whole() -> None:
    neuron = LIF.tet()
    compiled = torch.compile(neuron, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 4, 5, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    spikes, expected = compiled(x), neuron(twin)
    spikes.sum().backward()
    expected.sum().backward()
    assert torch.equal(spikes, expected)
    torch.testing.assert_close(x.grad, twin.grad)


def test_print_shows_the_options() -> None:
    assert "decay=0.5, gain=1.0, threshold=1.0, reset=hard" in repr(LIF())


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("decay", 2.0),
        ("decay", -0.1),
        ("decay", math.nan),
        ("gain", 0.0),
        ("gain", math.inf),
        ("threshold", 0.0),
        ("threshold", -1.0),
        ("threshold", math.nan),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name}={value}: [^\n]*$"):
        LIF(**{name: value})
    with pytest.raises(ValueError, match=f"^{name}={value}: [^\n]*$"):
        lif(torch.zeros(4, 2), **{name: value})


@pytest.mark.usefixtures("unchecked")
def test_unknown_reset_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"^reset='sideways': choose one of hard, soft$"):
        LIF(reset="sideways")


def test_surrogates_without_a_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^width=0\.0: "):
        Triangle(0.0)
    with pytest.raises(ValueError, match=r"^alpha=-1\.0: "):
        Sigmoid(-1.0)


def test_input_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="no time steps"):
        lif(torch.zeros(0, 3))


# --- other frameworks -------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["tet", "spikformer", "soft"])
def test_spikingjelly_has_the_same_spikes_and_gradients(preset: str) -> None:
    reason = "SpikingJelly is not installed: see requirements-peers.txt"
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason=reason)
    surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate", reason=reason)
    ours, theirs = {
        "tet": (
            LIF.tet(),
            {"decay_input": False, "surrogate_function": surrogate.PiecewiseQuadratic(alpha=1.0)},
        ),
        "spikformer": (
            LIF.spikformer(),
            {
                "decay_input": True,
                "detach_reset": True,
                "surrogate_function": surrogate.Sigmoid(alpha=4.0),
            },
        ),
        "soft": (
            LIF.tet(reset="soft", threshold=0.8),
            {
                "decay_input": False,
                "surrogate_function": surrogate.PiecewiseQuadratic(alpha=1.0),
                "v_reset": None,
                "v_threshold": 0.8,
            },
        ),
    }[preset]
    node = neuron.LIFNode(tau=2.0, step_mode="m", **theirs)
    x = torch.randn(3, 8, 50, dtype=torch.float64).mul(2).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    grad = torch.randn_like(x)
    spikes = ours(x)
    expected = node(twin.transpose(0, 1)).transpose(0, 1)
    spikes.backward(grad)
    expected.backward(grad)
    assert 0 < spikes.mean() < 1
    assert torch.equal(spikes, expected)
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-12, atol=1e-12)


def test_snntorch_has_the_same_spikes_and_gradients() -> None:
    # Hard reset only: what a soft one leaves above the threshold, snnTorch first subtracts again.
    reason = "snnTorch is not installed: see requirements-peers.txt"
    snn = pytest.importorskip("snntorch", reason=reason)
    node = snn.Leaky(
        beta=0.9,
        threshold=0.7,
        spike_grad=snn.surrogate.sigmoid(slope=4),
        reset_mechanism="zero",
        reset_delay=False,  # True, its default, resets a step late
    ).double()
    x = torch.randn(8, 50, dtype=torch.float64).mul(2).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    grad = torch.randn_like(x)
    spikes = lif(x, decay=0.9, threshold=0.7, surrogate=Sigmoid(4.0))
    potential, rows = torch.zeros_like(x[0]), []
    for x_t in twin:
        row, potential = node(x_t, potential)
        rows.append(row)
    expected = torch.stack(rows)
    spikes.backward(grad)
    expected.backward(grad)
    assert 0 < spikes.mean() < 1
    assert torch.equal(spikes, expected)
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-6, atol=1e-7)
