"""One call of one module, forward and backward: the gradients of what it was given and holds.

Autograd runs each side for itself, so that no side waits for the other in the middle of a backward
pass. The module, its random state and the parameters' own `.grad` are left as they were.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from tracer.execution.hooks import Answer, Call, NewOutput, Phase, Recorder, hooked
from tracer.execution.module_state import module_states_kept
from tracer.execution.state import RandomNumbers, ThreadState, random_state_kept
from tracer.execution.torch_internals import call_replaced
from tracer.tensors.leaves import deep_copy, map_tensors

Tensor = torch.Tensor


@dataclass(frozen=True)
class Trained:
    """A module, the names of what is inside it, and what it is called with.

    Attributes:
        side: "reference" or "candidate".
        module: what is called.
        names: the names of the side's modules by `id(module)`.
        streams: the reference's name by the side's own of modules that draw random numbers alike.
        arguments: what it is given, by parameter name.
        positional: names of those that are passed by position, in order.
        instead: modules to call in the place of others inside it; `names` has those inside them.
    """

    side: str
    module: nn.Module
    names: Mapping[int, str]
    streams: Mapping[str, str]
    arguments: Mapping[str, object]
    positional: Sequence[str]
    instead: tuple[tuple[nn.Module, nn.Module], ...] = ()


class Forward:
    """A forward pass that has been run, from which gradients can be taken.

    Attributes:
        call: the module's own call, ended.
        given: the leaf of the graph for each float that the module was given, by `id`.
        unused: whether the outputs do not depend on a tensor, as gradients were last taken.
    """

    def __init__(self, call: Call, given: dict[int, Tensor], follow: Callable[[], None]) -> None:
        self.call = call
        self.given = given
        self.unused: list[bool] = []
        self._follow = follow

    def gradients(
        self, outputs: Sequence[Tensor], weights: Sequence[Tensor], of: Sequence[Tensor]
    ) -> list[Tensor]:
        """The gradients of a weighted sum of outputs; zeros where it does not depend on a tensor.

        Raises:
            Exception: what the backward of a model raises.
        """
        self._follow()
        self.unused = [True] * len(of)
        total: Tensor | None = None
        for output, weight in zip(outputs, weights, strict=True):
            if output.requires_grad:
                part = (output * weight.to(output.device, output.dtype)).sum().float()
                total = part if total is None else total + part.to(total.device)
        found: Sequence[Tensor | None] = [None] * len(of)
        if total is not None and of:
            found = torch.autograd.grad(total, list(of), allow_unused=True)
        self.unused = [gradient is None for gradient in found]
        return [
            torch.zeros_like(tensor) if gradient is None else gradient
            for tensor, gradient in zip(of, found, strict=True)
        ]


def _always(other: nn.Module) -> Callable[[Callable[..., object]], Callable[..., object]]:
    return lambda _: other.__call__


@contextmanager
def run_forward(
    trained: Trained, perturb: Callable[[Tensor], Tensor] | None = None
) -> Iterator[Forward]:
    """Calls a module with gradients, on a copy of its arguments; they can be taken in the block.

    Args:
        perturb: changes what each module inside returns.

    Raises:
        Exception: what the module raises.
    """
    given: dict[int, Tensor] = {}
    held: list[Tensor] = []  # their ids stand in `given`

    def leaf(tensor: Tensor) -> Tensor:
        copy = tensor.detach().clone()
        if not copy.is_floating_point():
            return copy
        given_now = copy.requires_grad_().clone()  # a leaf cannot be edited in place
        given[id(given_now)] = copy
        held.append(given_now)
        return given_now

    with ExitStack() as stack:
        stack.enter_context(ThreadState.capture().kept())
        stack.enter_context(random_state_kept())
        others = [other for _, other in trained.instead]
        stack.enter_context(module_states_kept((trained.module, *others)))
        stack.enter_context(torch.enable_grad())
        for module, other in trained.instead:
            stack.enter_context(call_replaced(module, _always(other)))
        # What is computed again in the backward draws what it drew in the forward.
        randoms = [RandomNumbers(True, trained.streams) for _ in range(2)]
        calls: list[Call] = []

        def recorder(random: RandomNumbers) -> Recorder:
            def listen(call: Call, phase: Phase) -> Answer:
                random.follow(call, phase)
                if phase is Phase.START:
                    calls.append(call)
                elif perturb is not None:
                    return NewOutput(map_tensors(call.output, perturb))
                return None

            return Recorder(trained.names, listen)

        current = [recorder(randoms[0])]
        stack.enter_context(hooked((trained.module, *others), lambda: current[0]))

        def follow() -> None:
            current[0] = recorder(randoms[1])

        arguments = deep_copy(dict(trained.arguments), leaf)
        positional = [arguments.pop(name) for name in trained.positional]
        trained.module(*positional, **arguments)
        yield Forward(calls[0], given, follow)
