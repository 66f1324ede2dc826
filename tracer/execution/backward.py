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
from tracer.execution.torch_internals import call_replaced, sums_of
from tracer.tensors.leaves import tensor_leaves
from tracer.tensors.rebuilding import deep_copy, map_tensors

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
        given: the leaf of the graph for each float or complex tensor that the module was given, by
            `id`.
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
        total: Tensor | None = None
        for output, weight in zip(outputs, weights, strict=True):
            if output.requires_grad:
                real = torch.view_as_real(output) if output.is_complex() else output
                part = (real * weight.to(real.device, real.dtype)).sum().float()
                total = part if total is None else total + part.to(total.device)
        trained = [tensor for tensor in of if tensor.requires_grad]
        by_id: dict[int, Tensor | None] = {}
        if total is not None and trained:
            gradients = torch.autograd.grad(total, trained, allow_unused=True)
            by_id = dict(zip(map(id, trained), gradients, strict=True))
        found = [by_id.get(id(tensor)) for tensor in of]
        self.unused = [gradient is None for gradient in found]
        return [
            torch.zeros_like(tensor) if gradient is None else gradient
            for tensor, gradient in zip(of, found, strict=True)
        ]


class _RandomNumbers(RandomNumbers):
    """Random numbers of a forward, and of what a checkpoint computes of it again in the backward.

    A call that is computed again draws what it drew, if it begins in the same random state: a
    checkpoint that does not keep that draws others.

    Args:
        first: those of the forward, if these are the backward's.
    """

    def __init__(self, names: Mapping[str, str], first: "_RandomNumbers | None" = None) -> None:
        super().__init__(True, names)
        self._first = first
        # By name, of each call the random state in which it began, and what it was given.
        self._began: dict[str, list[tuple[Tensor, list[str]]]] = {}

    def _stream(self, name: str, call: Call, around: Tensor) -> str:
        given = sums_of([tensor for _, tensor in tensor_leaves(call.arguments, "")])
        self._began.setdefault(name, []).append((around, given))
        before = [] if self._first is None else self._first._began.get(name, [])
        if not before:
            return str(call.index)
        alike = [i for i, began in enumerate(before) if torch.equal(began[0], around)]
        if not alike:
            return f"{call.index} in another state"
        same = [i for i in alike if before[i][1] == given]
        return str(next(iter(same or alike)))


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
        if not (copy.is_floating_point() or copy.is_complex()):
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
        first = _RandomNumbers(trained.streams)
        randoms = first, _RandomNumbers(trained.streams, first)
        calls: list[Call] = []

        def recorder(random: RandomNumbers) -> Recorder:
            def listen(call: Call, phase: Phase) -> Answer:
                random.follow(call, phase)
                if phase is Phase.START:
                    calls.append(call)
                elif perturb is not None and call is not calls[0]:
                    return NewOutput(map_tensors(call.output, perturb))
                return None

            return Recorder(trained.names, listen)

        current = [recorder(randoms[0])]
        stack.enter_context(hooked((trained.module, *others), lambda: current[0]))

        def follow() -> None:
            current[0] = recorder(randoms[1])

        arguments = deep_copy(dict(trained.arguments), leaf)
        positional = [arguments.pop(name) for name in trained.positional]
        # Hooks of the module's own backward are attached to what is returned in the end.
        returned = trained.module(*positional, **arguments)
        calls[0].output = returned
        yield Forward(calls[0], given, follow)
