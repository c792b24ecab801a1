"""A student whose training steps run through `torch.compile`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from estl.types import Output


def compiled(student: nn.Module) -> Callable[[Tensor], Output]:
    """`student.forward` as one graph, which fuses batch norms, neurons and poolings.

    It is compiled at the first call. `student` itself stays as it is, so that validation, which has
    other sizes and no gradient, need not compile too.

    Returns:
        A function of events (B,T,C,H,W). It raises ValueError where the student cannot be compiled
        whole, rather than run parts of it as they are.
    """
    run = torch.compile(student.forward, fullgraph=True)

    def outputs(events: Tensor) -> Output:
        # One compilation serves the smaller last batch of an epoch too.
        torch._dynamo.maybe_mark_dynamic(events, 0)
        try:
            output: Output = run(events)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), "")
            raise ValueError(
                f"learner.compile: {type(student).__name__} cannot be compiled ({reason}): leave "
                "it out"
            ) from error
        return output

    return outputs
