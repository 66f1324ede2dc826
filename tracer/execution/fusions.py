"""Projections that one side has in one module and the other in several: qkv, gate and up, experts.

Which rows of the one weight are which module's follows from the values of the rows, in whatever
order they lie: one after the other, head by head, or group by group. A `Part` then stands for each
of the several modules on the side that has one, and its calls are those of the whole with the rows
of the output that are its own.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tracer.execution.hooks import Call, Phase
from tracer.execution.offload import own_parameters, value_of
from tracer.execution.torch_internals import parameters_of
from tracer.tensors.leaves import leaves
from tracer.tensors.rebuilding import replace_leaves

# A row is recognised by its product with a random vector.
_SAME_ROW = 1e-9
_ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class Fusion:
    """One module of a side that holds several of the other's.

    Attributes:
        holder: its name.
        parts: what stands for each of the others there, by their names.
        is_candidate: whether the candidate has the one.
        has_outputs: whether the outputs of the several are rows of the output of the one.
    """

    holder: str
    parts: Mapping[str, "Part"]
    is_candidate: bool
    has_outputs: bool

    def names(self) -> dict[str, str]:
        """A name for each part by that of the other side's module."""
        last = {name: name.rpartition(".")[2] for name in self.parts}
        if len(set(last.values())) < len(last):
            last = {name: name.replace(".", "_") for name in self.parts}
        return {name: f"{self.holder}[{short}]" for name, short in last.items()}

    def under(self, holder: str, parts: str) -> "Fusion":
        """The same with names that begin with a prefix on each side."""
        return replace(
            self,
            holder=f"{holder}.{self.holder}".strip("."),
            parts={f"{parts}.{name}".strip("."): part for name, part in self.parts.items()},
        )


def whole_name(name: str) -> str:
    """The name of the module that a part is of; of others, their own."""
    return name.partition("[")[0]


class Part(nn.Module):
    """Some rows of a module's parameters and outputs, as if they were a module of their own."""

    def __init__(self, whole: nn.Module, rows: torch.Tensor, held: Mapping[str, "_Held"]) -> None:
        """Stands for rows of a module.

        Args:
            whole: the module.
            rows: their indices.
            held: the parameters by the names that the other side's module has for them.
        """
        super().__init__()
        self._whole = (whole,)  # its modules are no children of this one
        self._rows = rows
        self._held = held

    @property
    def whole(self) -> nn.Module:
        """The module that it is a part of."""
        return self._whole[0]

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.take(self.whole(*args, **kwargs))

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The rows of the whole's parameters, copied."""
        for name, held in self._held.items():
            whole = parameters_of(self.whole)[held.name]
            assert whole is not None
            values = held.matrix(value_of(self.whole, held.name, whole).detach())
            rows = held.back(values[self._rows.to(values.device)])
            yield name, nn.Parameter(rows, requires_grad=False)

    def give(self, name: str, value: torch.Tensor) -> Callable[[], None] | None:
        """Puts values into the rows of a parameter; returns what puts the former back."""
        held, place = self._held.get(name), parameters_of(self.whole)
        found = None if held is None else place[held.name]
        if held is None or found is None or found.is_meta or (held.is_turned and found.dim() > 2):
            return None
        values = found.detach().clone()
        held.matrix(values)[self._rows.to(values.device)] = held.matrix_of_part(value).to(values)
        place[held.name] = nn.Parameter(values, requires_grad=False)

        def undo() -> None:
            place[held.name] = found

        return undo

    def take(self, output: object) -> object:
        """The part of an output of the whole."""
        path, tensor = self._place(output)
        return (
            output if tensor is None else replace_leaves(output, "", {path: self._rows_of(tensor)})
        )

    def put(self, output: object, value: object) -> object:
        """An output of the whole with another value of this part."""
        (path, tensor), (_, given) = self._place(output), self._place(value, is_part=True)
        if tensor is None or given is None:
            return output
        changed = tensor.clone()
        changed[..., self._rows.to(tensor.device)] = given.to(tensor)
        return replace_leaves(output, "", {path: changed})

    def seen(self, call: Call, name: str, phase: Phase) -> Call:
        """A call of the whole as one of this part, under a name of its own."""
        output = self.take(call.output) if phase is Phase.END else None
        arguments = call.arguments if phase is Phase.END else dict(call.arguments)
        return replace(call, name=name, module=self, arguments=arguments, output=output)

    def _rows_of(self, tensor: torch.Tensor) -> torch.Tensor:
        first, count = int(self._rows[0]), len(self._rows)
        if torch.equal(self._rows, torch.arange(first, first + count)):
            return tensor.narrow(-1, first, count)
        return tensor[..., self._rows.to(tensor.device)]

    def _place(self, value: object, *, is_part: bool = False) -> tuple[str, torch.Tensor | None]:
        """The first tensor whose last dimension is that of the rows, and its path."""
        count = len(self._rows)
        size = next(iter(self._held.values())).count
        for path, leaf in leaves(value, ""):
            if isinstance(leaf, torch.Tensor) and leaf.dim():
                if leaf.shape[-1] == (count if is_part else size):
                    return path, leaf
                break
        return "", None


@dataclass(frozen=True)
class _Held:
    """How a part's parameter lies in the whole's.

    Attributes:
        name: the whole's name of the parameter.
        count: its rows.
        is_turned: whether rows of the whole are columns of it.
        is_part_turned: the same of the part's.
        shape: of the part's parameter.
    """

    name: str
    count: int
    is_turned: bool
    is_part_turned: bool
    shape: tuple[int, ...]

    def matrix(self, whole: torch.Tensor) -> torch.Tensor:
        """A view of the whole's parameter in which rows come first."""
        return whole if whole.dim() == 1 else _matrix(whole, is_turned=self.is_turned)

    def matrix_of_part(self, value: torch.Tensor) -> torch.Tensor:
        """The rows of a value that the part's parameter is given."""
        return value if value.dim() == 1 else _matrix(value, is_turned=self.is_part_turned)

    def back(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows in the form of the part's parameter."""
        return (rows.mT if self.is_part_turned else rows).reshape(self.shape)


@dataclass(frozen=True)
class _Rows:
    """The rows of one parameter, each as a number."""

    module: str
    parameter: str
    is_turned: bool
    keys: torch.Tensor
    width: int


def find_fusions(
    references: Mapping[str, nn.Module],
    candidates: Mapping[str, nn.Module],
    dtype: torch.dtype | None,
) -> tuple[list[Fusion], list[tuple[str, str]]]:
    """Modules without a counterpart that hold several of the other side's, by the values of rows.

    Args:
        references, candidates: those that have no counterpart yet.
        dtype: what parameters of finer dtypes are rounded to first.

    Returns:
        The fusions, and pairs (candidate, reference) of modules most of whose rows are the same.
    """
    sides = [list(_all_rows(side, dtype)) for side in (references, candidates)]
    fusions, pairs = [], []
    for is_candidate in (True, False):
        holders, parts = (sides[1], sides[0]) if is_candidate else (sides[0], sides[1])
        modules = (candidates, references) if is_candidate else (references, candidates)
        for holder, found in _held_by(holders, parts).items():
            if len(found) == 1:  # one for one, if some rows more
                names = holder, found[0][0].module
                pairs.append(names if is_candidate else names[::-1])
                continue
            fusions.append(_fusion(holder, found, modules, is_candidate=is_candidate))
    return fusions, pairs


def _fusion(
    holder: str,
    found: Sequence[tuple[_Rows, _Rows, torch.Tensor]],
    modules: tuple[Mapping[str, nn.Module], Mapping[str, nn.Module]],
    *,
    is_candidate: bool,
) -> Fusion:
    whole = modules[0][holder]
    parts = {}
    for part, inside, rows in found:
        shapes = {name: tuple(p.shape) for name, p in modules[1][part.module].named_parameters()}
        count = len(inside.keys)
        turned = inside.is_turned, part.is_turned
        held = {part.parameter: _Held(inside.parameter, count, *turned, shapes[part.parameter])}
        for name, parameter in whole.named_parameters(recurse=False):
            if parameter.shape == (count,) and shapes.get(name) == (len(rows),):
                held[name] = _Held(name, count, False, False, shapes[name])
        parts[part.module] = Part(whole, rows, held)
    weights = {inside.parameter for _, inside, _ in found}
    dims = [parameters_of(whole)[name] for name in weights]
    has_outputs = len(weights) == 1 and all(p is not None and p.dim() == 2 for p in dims)
    return Fusion(holder, parts, is_candidate, has_outputs)


def _held_by(
    holders: Sequence[_Rows], parts: Sequence[_Rows]
) -> dict[str, list[tuple[_Rows, _Rows, torch.Tensor]]]:
    """By the holder: each part, what holds it, and the indices of its rows there."""
    found: dict[int, list[tuple[_Rows, torch.Tensor]]] = defaultdict(list)
    taken: set[str] = set()
    for width in {rows.width for rows in holders}:
        inside = [n for n, rows in enumerate(holders) if rows.width == width]
        keys = torch.cat([holders[n].keys for n in inside])
        owner = torch.cat([torch.full((len(holders[n].keys),), n) for n in inside])
        row = torch.cat([torch.arange(len(holders[n].keys)) for n in inside])
        order = keys.argsort()
        keys, owner, row = keys[order], owner[order], row[order]
        for part in parts:
            if part.width != width or part.module in taken:
                continue
            at = _nearest(keys, part.keys)
            owners = torch.where(at >= 0, owner[at], -1)
            known = owners[owners >= 0]
            best = int(known.mode().values) if len(known) else -1
            if 2 * int((owners == best).sum()) <= len(part.keys) or best < 0:
                continue
            if len(holders[best].keys) >= len(part.keys):
                taken.add(part.module)
                found[best].append((part, torch.where(owners == best, row[at], -1)))
    result: dict[str, list[tuple[_Rows, _Rows, torch.Tensor]]] = defaultdict(list)
    for number, members in found.items():
        whole = holders[number]
        if any(rows.parameter == whole.parameter for _, rows, _ in result[whole.module]):
            continue  # found by its columns as well
        result[whole.module] += [
            (part, whole, rows) for part, rows in _completed(whole, members, parts, taken)
        ]
    return {holder: members for holder, members in result.items() if members}


def _completed(
    whole: _Rows,
    members: list[tuple[_Rows, torch.Tensor]],
    parts: Sequence[_Rows],
    taken: set[str],
) -> list[tuple[_Rows, torch.Tensor]]:
    """The parts with rows for all that they have; nothing where the whole is not covered.

    What is wrong on one side matches nothing: it takes the rows that are left, in their order.
    """
    if len({part.module for part, _ in members}) < len(members):
        return []
    used = torch.cat([rows for _, rows in members])
    is_free = torch.ones(len(whole.keys), dtype=torch.bool)
    is_free[used[used >= 0]] = False
    free = is_free.nonzero().flatten()
    filled = []
    for part, rows in members:
        missing = rows < 0
        own, free = free[: int(missing.sum())], free[int(missing.sum()) :]
        if len(own) < int(missing.sum()):
            return []
        rows[missing] = own
        filled.append((part, rows))
    if not len(free):
        return filled
    parents = {part.module.rpartition(".")[0] for part, _ in members}
    if len(members) == 1 and 2 * len(free) < len(whole.keys):
        return filled
    for other in parts:
        is_sibling = other.module.rpartition(".")[0] in parents and other.module not in taken
        if is_sibling and other.width == whole.width and len(other.keys) == len(free):
            taken.add(other.module)
            return [*filled, (other, free)]
    return []


def _nearest(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """For each value the index of the key that is the same; -1 where there is none."""
    right = torch.searchsorted(keys, values).clamp(max=len(keys) - 1)
    left = (right - 1).clamp(min=0)
    closer = (keys[left] - values).abs() < (keys[right] - values).abs()
    at = torch.where(closer, left, right)
    is_same = ((keys[at] - values).abs() <= _SAME_ROW * values.abs()) & (values != 0)
    return torch.where(is_same, at, -1)


def _all_rows(modules: Mapping[str, nn.Module], dtype: torch.dtype | None) -> Iterator[_Rows]:
    for name, module in modules.items():
        for parameter, value in own_parameters(module):
            if value.is_meta or value.dim() not in (2, 3) or not value.is_floating_point():
                continue
            for is_turned in _ways(module):
                matrix = _matrix(value.detach(), is_turned=is_turned)
                yield _Rows(name, parameter, is_turned, _keys(matrix, dtype), matrix.shape[1])


def _ways(module: nn.Module) -> tuple[bool, ...]:
    """Whether rows, one for each output, are the columns of what a module holds."""
    if isinstance(module, nn.Linear | nn.Embedding):
        return (False,)
    return (True,) if type(module).__name__ == "Conv1D" else (False, True)


def _matrix(value: torch.Tensor, *, is_turned: bool) -> torch.Tensor:
    """A view in which rows come first, where there is one; experts lie one after the other."""
    return (value.mT if is_turned else value).flatten(0, -2)


def _keys(matrix: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(matrix.shape[1])
    vector = torch.randn(matrix.shape[1], generator=generator, dtype=torch.float64)
    vector = vector.to(matrix.device)
    chunks = []
    for chunk in matrix.split(_ROWS_AT_ONCE):
        chunks.append((rounded(chunk, dtype).double() @ vector).cpu())
    return torch.cat(chunks) if chunks else torch.empty(0, dtype=torch.float64)


def rounded(value: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """A value in a coarser dtype, if its own is finer."""
    if dtype is None or not value.is_floating_point():
        return value
    return value.to(dtype) if torch.finfo(value.dtype).eps < torch.finfo(dtype).eps else value
