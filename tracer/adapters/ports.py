"""Graphs whose inputs and outputs are tensors in a row, however the model's own were nested.

The inputs bear the names of the eager model's arguments, and what is nested in one of them has
names that begin with it: `past_key_values_0_key`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature

import torch

from tracer.adapters.graph import Engine, Graph, GraphModel
from tracer.errors import InputError
from tracer.execution.inputs import hides_nothing
from tracer.tensors.leaves import describe, dtype_name, tensor_leaves
from tracer.tensors.roles import DEFAULT_ROLES
from tracer.text import listed

_OTHERS = "others"


@dataclass(frozen=True)
class Port:
    """An input or output of a graph.

    Attributes:
        dtype: None where PyTorch has none like it.
        shape: sizes, and names of those that are not fixed; None where it is not known.
    """

    name: str
    dtype: torch.dtype | None
    shape: tuple[int | str, ...] | None


class PortedModel(GraphModel):
    """See the module's docstring."""

    # Its outputs come one after the other, however they were nested.
    is_formless = True

    def __init__(self, graph: Graph, engine: Engine, ports: Sequence[Port]) -> None:
        self._ports = ports
        super().__init__(graph, engine)

    @property
    def signature(self) -> Signature:
        """The graph's inputs, and whatever else the eager model takes."""
        kind = Parameter.POSITIONAL_OR_KEYWORD
        own = [Parameter(port.name, kind) for port in self._ports]
        return Signature([*own, Parameter(_OTHERS, Parameter.VAR_KEYWORD)])

    def example_inputs(self) -> dict[str, object] | None:
        """Random inputs of a seed, since the file has none: whole numbers 0, and nothing hidden;
        None where sizes are not fixed."""
        generator = torch.Generator().manual_seed(0)
        made: dict[str, object] = {}
        for port in self._ports:
            sizes = [size for size in port.shape or ("?",) if isinstance(size, int)]
            if port.dtype is None or port.shape is None or len(sizes) < len(port.shape):
                return None
            made[port.name] = torch.zeros(sizes, dtype=port.dtype)
            if port.dtype.is_floating_point:
                made[port.name] = torch.randn(sizes, generator=generator).to(port.dtype)
            elif port.dtype == torch.bool:
                made[port.name] = torch.ones(sizes, dtype=port.dtype)
        return made

    def read_inputs(self, arguments: Mapping[str, object]) -> Sequence[object]:
        """The graph's inputs from arguments by name.

        Raises:
            InputError: they do not fit.
        """
        given = dict(arguments)
        others = given.pop(_OTHERS, {})
        assert isinstance(others, Mapping)
        found = _fitted(self._ports, {**given, **others})
        sizes: dict[str, int] = {}
        for port, tensor in zip(self._ports, found, strict=True):
            _check(port, tensor, sizes)
        return found

    def write_output(self, outputs: Sequence[object]) -> object:
        """The outputs in their order; one alone as it is."""
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _fitted(ports: Sequence[Port], given: Mapping[str, object]) -> list[torch.Tensor]:
    """A tensor for each input: those of its name, those nested in an argument of a name that its
    own begins with, or else all there are in their order."""
    leaves = {name: [t for _, t in tensor_leaves(value, "")] for name, value in given.items()}
    left = {name: list(tensors) for name, tensors in leaves.items() if tensors}
    found: dict[str, torch.Tensor] = {}
    for port in ports:
        names = [name for name in left if port.name == name or port.name.startswith(f"{name}_")]
        name = max(names, key=len, default=None)
        if name is not None and left[name]:
            found[port.name] = left[name].pop(0)
    unused = [n for n, rest in left.items() if rest and not _is_needless(n, given[n])]
    if len(found) == len(ports) and not unused:
        return [found[port.name] for port in ports]
    every = [tensor for tensors in leaves.values() for tensor in tensors]
    if len(every) == len(ports):
        return every
    expected = listed([port.name for port in ports])
    if unused:
        raise InputError(
            f"the graph has no input for {listed(unused)}: it takes {expected}; leave it out, or "
            "export the graph with it"
        )
    missing = listed([port.name for port in ports if port.name not in found])
    raise InputError(
        f"the graph takes {missing}, which is none of the inputs ({listed([*given]) or 'none'})"
    )


def _is_needless(name: str, value: object) -> bool:
    return DEFAULT_ROLES.is_mask(name) and hides_nothing(value)


def _check(port: Port, tensor: torch.Tensor, sizes: dict[str, int]) -> None:
    fits = port.dtype is None or tensor.dtype == port.dtype
    if port.shape is not None:
        fits &= len(port.shape) == tensor.dim()
        for size, own in zip(port.shape, tensor.shape, strict=False):
            if isinstance(size, int):
                fits &= size == own
            elif size != "?":
                fits &= sizes.setdefault(size, own) == own
    if not fits:
        expected = "" if port.dtype is None else f"{dtype_name(port.dtype)} "
        raise InputError(
            f"the graph takes {port.name!r} as {expected}{[*(port.shape or ())]}, and is given "
            f"{describe(tensor)}: give inputs of the sizes that it was exported for"
        )
