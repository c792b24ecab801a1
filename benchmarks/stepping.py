"""One step of the demo's student on one core: ours, folded, and SpikingJelly's step mode.

    python benchmarks/stepping.py [--repeats 2000] [--batch 1]

The same network (16-AP-32-AP-64-AP-128 on 2x16x16) with the same weights. The candidates take turns
in one process; a figure is the median, with the best beside it. On a machine with other work only
the ratios mean something. SpikingJelly is left out where it is not installed.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from estl.neurons import LIF
from estl.students import VGGSNN, fold, step
from estl.students.layers import PerStep

Answer = Callable[[Tensor], Tensor]


def stepping(student: nn.Module) -> Answer:
    state = None

    def answer(frame: Tensor) -> Tensor:
        nonlocal state
        logits, state = step(student, frame, state)
        return logits

    return answer


def spikingjelly(student: VGGSNN) -> Answer:
    from spikingjelly.activation_based import functional, neuron

    parts: list[nn.Module] = []
    for module in student.layers:
        if isinstance(module, PerStep):
            parts += list(module)
        elif isinstance(module, LIF):
            parts.append(neuron.LIFNode(tau=2.0, decay_input=False, step_mode="s"))
    net = nn.Sequential(*parts).eval()
    functional.reset_net(net)
    total, steps = torch.zeros(()), 0

    @torch.no_grad()
    def answer(frame: Tensor) -> Tensor:
        nonlocal total, steps
        logits = nn.functional.linear(
            net(frame).mean((-2, -1)), student.head.weight, student.head.bias
        )
        total, steps = total + logits, steps + 1
        return total / steps

    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    layers = (16, "AP", 32, "AP", 64, "AP", 128)
    student = VGGSNN(10, 2, (16, 16), layers=layers, pooled=True)
    frames = torch.poisson(torch.rand(args.repeats, args.batch, 2, 16, 16))
    student(frames[:100].transpose(0, 1))  # running statistics
    student.eval()
    found = {"estl": stepping(student), "estl, folded": stepping(fold(student))}
    try:
        found["SpikingJelly"] = spikingjelly(student)
    except ImportError:
        print("SpikingJelly is not installed")
    times: dict[str, list[float]] = {name: [] for name in found}
    for frame in frames:
        answers = {}
        for name, answer in found.items():
            start = time.perf_counter()
            answers[name] = answer(frame)
            times[name].append(time.perf_counter() - start)
        if len(times["estl"]) == 20:
            for name, logits in answers.items():
                torch.testing.assert_close(logits, answers["estl"], rtol=1e-3, atol=1e-3, msg=name)
    base = statistics.median(times["estl"])
    print(f"torch {torch.__version__}, one thread, batch {args.batch}, {args.repeats} steps")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:14}{1e3 * median:8.3f} ms{1e3 * min(seconds):8.3f} ms{median / base:7.2f}")


if __name__ == "__main__":
    main()
