"""What an adapter knows of one module that others quantised.

It makes a module `Switchable` as our own wrappers are: `ablatable_points()` are the tensors that it
quantises, and `disabled(name)` leaves one of them unquantised for a while. A weight of which only
the quantised values are left is the reference's meanwhile.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from tracer.execution.offload import value_of
from tracer.execution.torch_internals import parameters_of, set_parameters


@dataclass(frozen=True)
class QuantizedTensor:
    """A tensor that a module quantises.

    Attributes:
        kind: what it is in words: "int8 weight".
        scales: those that are kept, by name; none where each call makes its own.
        zero_point, zero_points: that which is kept, and the lowest and highest that there can be.
        channels: how many scales there are where each channel or group is to have its own; else 0.
        may_be_one: a scale of exactly 1.0 is as likely as any other.
        is_seen: whether data was seen before the scale was made.
    """

    kind: str
    scales: Mapping[str, torch.Tensor] = field(default_factory=dict)
    zero_point: torch.Tensor | None = None
    zero_points: tuple[float, float] | None = None
    channels: int = 0
    may_be_one: bool = False
    is_seen: bool = True


_MEANINGS = {"input": "what the module is given", "output": "what the module returns"}


class Adapter(ABC):
    """A module that others quantised.

    Attributes:
        module: whose tensors they are.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, QuantizedTensor]:
        """The tensors that are quantised, by name: "weight", "input", "output"."""

    @abstractmethod
    def disabled(
        self, name: str, reference: nn.Module | None = None
    ) -> AbstractContextManager[None]:
        """Leaves a tensor unquantised for a while.

        Args:
            name: of `tensors`.
            reference: the module's counterpart, which has the weight as it was.
        """

    @property
    def own(self) -> frozenset[str]:
        """The names of parameters and buffers that the reference has not: scales and the like."""
        return frozenset()

    def ablatable_points(self) -> Mapping[str, str]:
        """The tensors by name, each in a few words."""
        return {name: tensor.kind for name, tensor in self.tensors.items()}

    def point_meanings(self) -> Mapping[str, str]:
        """What these are, where the name does not say it."""
        return {name: words for name, words in _MEANINGS.items() if name in self.tensors}


@contextmanager
def given_weight(module: nn.Module, weight: torch.Tensor | None) -> Iterator[None]:
    """Lets a module compute with a weight for a while; with its own if there is none."""
    if weight is None:
        yield
        return
    # The whole place is exchanged: one that loads would copy values into its own.
    before = parameters_of(module)
    set_parameters(module, {**before, "weight": nn.Parameter(weight, requires_grad=False)})
    try:
        yield
    finally:
        set_parameters(module, before)


def float_weight(module: nn.Module, reference: nn.Module | None) -> torch.Tensor | None:
    """The reference's weight in place of a module's; None where it has none of that shape."""
    own = parameters_of(module).get("weight")
    theirs = None if reference is None else parameters_of(reference).get("weight")
    if own is None or theirs is None or reference is None or own.shape != theirs.shape:
        return None
    weight = value_of(reference, "weight", theirs).detach()
    return weight.to(own.device, own.dtype if own.is_floating_point() else weight.dtype)
