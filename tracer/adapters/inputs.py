"""The arguments of a model fitted to the inputs of the program that was exported from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tracer.adapters.calls import Shared
from tracer.errors import InputError
from tracer.execution.inputs import hides_nothing
from tracer.execution.torch_internals import TreeSpec as TreeSpec
from tracer.execution.torch_internals import tree_flatten
from tracer.tensors.leaves import describe, dtype_name
from tracer.tensors.roles import DEFAULT_ROLES
from tracer.text import listed


@dataclass(frozen=True)
class Argument:
    """An argument of the forward that was exported.

    Attributes:
        name: the parameter's.
        spec: how its tensors are nested.
        nodes: the graph's inputs that they become.
        example: what it was exported with; None where that is not known.
    """

    name: str
    spec: TreeSpec
    nodes: tuple[fx.Node, ...]
    example: object = None


@dataclass(frozen=True)
class Expected(Shared):
    """All that a program takes.

    Attributes:
        ranges: the least and the largest size by the symbol of a dimension.
        example: what it was exported with by name, if it says.
    """

    arguments: tuple[Argument, ...]
    ranges: Mapping[str, tuple[int, int]]
    example: dict[str, object] | None = None

    @classmethod
    def of(
        cls,
        nodes: Sequence[fx.Node],
        spec: TreeSpec | None,
        names: Sequence[str] | None,
        ranges: Mapping[Any, Any],
        example: Any,
    ) -> "Expected":
        """What is read of a program.

        Args:
            nodes: its inputs, in order.
            spec: how they are nested in positional and keyword arguments; None for one argument
                each.
            names: of its parameters; those of the nodes by default.
            ranges: of the sizes that are not fixed.
            example: what it was exported with.
        """
        specs, by_name = _split(spec, len(nodes))
        own = [*(names or ())][: len(specs)] or [f"args_{index}" for index in range(len(specs))]
        if spec is None:
            own = [node.name for node in nodes]
        given = None
        if example is not None:
            given = dict(zip(own, example[0], strict=False)) | example[1]
        left, arguments = list(nodes), []
        for name, inner in [*zip(own, specs, strict=True), *by_name.items()]:
            count = inner.num_leaves
            taken, left = tuple(left[:count]), left[count:]
            arguments.append(Argument(name, inner, taken, (given or {}).get(name)))
        limits = {str(symbol): _limits(found) for symbol, found in ranges.items()}
        return cls(tuple(arguments), limits, given)

    @property
    def inputs(self) -> tuple[fx.Node, ...]:
        """The graph's inputs, in order."""
        return tuple(node for argument in self.arguments for node in argument.nodes)

    @property
    def names(self) -> list[str]:
        """The names of the arguments."""
        return [argument.name for argument in self.arguments]


def flat_inputs(given: Mapping[str, object], expected: Expected) -> list[object]:
    """The values of a program's inputs.

    A mask that hides nothing is left out where the program was exported without one, and what is no
    tensor may be left out.

    Raises:
        InputError: something is missing, or nested otherwise, or of another shape or dtype, or
            another value than the one that was exported.
    """
    sizes: dict[str, int] = {}
    found: list[object] = []
    for argument in expected.arguments:
        if argument.name not in given:
            found += _left_out(argument, given)
            continue
        leaves = _leaves(argument, given[argument.name])
        for node, leaf in zip(argument.nodes, leaves, strict=True):
            _check(argument.name, node, leaf, sizes, expected.ranges)
        found += leaves
    return found


def _left_out(argument: Argument, given: Mapping[str, object]) -> list[object]:
    values = [_constant(node) for node in argument.nodes]
    if any(value is _TENSOR for value in values):
        example = "" if argument.example is None else f": give it, as {describe(argument.example)}"
        raise InputError(
            f"the program takes {argument.name!r}, which is none of the inputs "
            f"({listed([*given]) or 'there are none'}){example}"
        )
    return values


def _leaves(argument: Argument, value: object) -> list[object]:
    leaves, spec = tree_flatten(value)
    if spec == argument.spec or len(leaves) == len(argument.nodes):
        return leaves
    if not argument.nodes and DEFAULT_ROLES.is_mask(argument.name) and hides_nothing(value):
        return []
    raise InputError(
        f"the program takes {argument.name!r} with {len(argument.nodes)} values in it "
        f"({argument.spec}), and is given {len(leaves)}"
    )


def _check(
    name: str,
    node: fx.Node,
    leaf: object,
    sizes: dict[str, int],
    ranges: Mapping[str, tuple[int, int]],
) -> None:
    constant = _constant(node)
    if constant is not _TENSOR:
        if leaf is not constant and leaf != constant:
            raise InputError(
                f"the program was exported with {name}={constant!r}, and is given "
                f"{describe(leaf)}: export it with that, or leave it out"
            )
        return
    wanted = node.meta.get("val")
    if not isinstance(wanted, torch.Tensor):  # a number that is not fixed, or a graph of fx alone
        return
    shape = f"{dtype_name(wanted.dtype)} {[_size(size) for size in wanted.shape]}"
    if not isinstance(leaf, torch.Tensor):
        raise InputError(f"the program takes {name!r} as {shape}, and is given {describe(leaf)}")
    fits = leaf.dim() == wanted.dim() and leaf.dtype == wanted.dtype
    for size, own in zip(wanted.shape, leaf.shape, strict=False):
        if isinstance(size, int):
            fits &= size == own
            continue
        low, high = ranges.get(str(size), (0, own))
        fits &= low <= own <= high and sizes.setdefault(str(size), own) == own
    if not fits:
        raise InputError(
            f"the program takes {name!r} as {shape}, and is given {dtype_name(leaf.dtype)} "
            f"{list(leaf.shape)}: give inputs of the sizes that it was exported for"
        )


def _size(size: object) -> object:
    return size if isinstance(size, int) else str(size)


_TENSOR = object()


def _constant(node: fx.Node) -> object:
    """What is no tensor among a program's inputs, and so is fixed; `_TENSOR` for others."""
    if "val" not in node.meta:
        return _TENSOR
    value = node.meta["val"]
    is_fixed = value is None or isinstance(value, bool | int | float | str)
    return value if is_fixed else _TENSOR


def _split(spec: TreeSpec | None, count: int) -> tuple[list[TreeSpec], dict[str, TreeSpec]]:
    """How each positional and each keyword argument is nested."""
    if spec is None:
        return [tree_flatten(None)[1]] * count, {}
    parts = spec.children()
    if len(parts) == 2 and spec.type is tuple and parts[1].type is dict:
        names = parts[1].context
        return parts[0].children(), dict(zip(names, parts[1].children(), strict=True))
    return parts, {}


def _limits(found: Any) -> tuple[int, int]:
    return tuple(  # type: ignore[return-value]
        int(bound) if bound.is_Integer else _LARGEST for bound in (found.lower, found.upper)
    )


_LARGEST = 2**63 - 1
