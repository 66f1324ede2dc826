"""What two paired modules hold: parameters, buffers, other tensors and settings that differ.

Beside parameters and buffers a module may hold tensors in plain attributes: a table of rotations, a
mask, or an object with a scale and a zero point in it. These count as parameters, but for those in
attributes whose name begins with an underscore, which are the module's own business.
"""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

import torch
from torch import nn

from tracer.adapters.quantised.lookup import adapters
from tracer.execution.fusions import Part
from tracer.execution.offload import value_of
from tracer.execution.pairing import Pairing
from tracer.execution.torch_internals import as_written
from tracer.interventions.exchange import attribute_at, plain_attributes
from tracer.measurement.arguments import declared_rows, scale_between
from tracer.tensors.difference import Difference
from tracer.tensors.leaves import (
    children,
    describe,
    dtype_name,
    is_plain,
    tensor_leaves,
)
from tracer.tensors.tolerance import Tolerance
from tracer.text import figure
from tracer.traces.recorded import RecordedModule, checksums_of

# A folded scale is rounded once in every weight.
_FOLDED_LIMIT = 1e-5
# The training mode, and what PyTorch keeps in attributes of modules.
_OF_ALL_MODULES = frozenset(vars(nn.Module()))
# An attribute may hold a dict of objects, which hold others.
_MAX_DEPTH = 4


class ParameterKind(StrEnum):
    """How something that modules hold differs."""

    REFERENCE_ONLY = "reference_only"
    CANDIDATE_ONLY = "candidate_only"
    SHAPES = "shapes"
    VALUES = "values"
    FORMS = "forms"  # a scalar, another kind of object, or a plain value
    CHECKSUMS = "checksums"  # that of a recording, and another
    PARTS = "parts"  # in some of its fields
    TRANSPOSED = "transposed"  # the candidate's is the reference's, transposed
    UNTRANSPOSED = "untransposed"  # equal, and the candidate's class takes it transposed


@dataclass(frozen=True)
class ParameterDifference:
    """How something that both modules hold differs.

    Attributes:
        kind: in what.
        exchangeable: whether the reference's would fit there.
        reference, candidate: what each side has; of values, those at the peak.
        peir, index: of values, how far they are apart, and where most.
        parts: the fields that differ, by name.
    """

    kind: ParameterKind
    exchangeable: bool = True
    reference: str | float = ""
    candidate: str | float = ""
    peir: float | None = None
    index: tuple[int, ...] = ()
    parts: Mapping[str, "ParameterDifference"] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """A setting, or the dtype of a parameter, that differs.

    Attributes:
        name: the attribute's; None stands for the module's class.
        reference, candidate: what each side has.
    """

    name: str | None
    reference: str
    candidate: str


def changed_parameters(
    reference: nn.Module,
    candidate: nn.Module,
    tolerance: Tolerance,
    called: Collection[str] = frozenset(),
) -> dict[str, ParameterDifference]:
    """Parameters, buffers and other held tensors of a pair of modules that differ, by name.

    Those of one dtype must be equal; others may differ by the tolerance of their dtypes. Where the
    candidate declares a factor on its output, its parameters may carry it. Where it declares
    another order of channels, the rows of a linear layer are read in it; what declares any other
    form cannot be compared, and the coverage names the module.

    Args:
        called: names of modules inside that were called. What they hold is their own affair; what
            others hold, a list of parameters or a layer whose weight is read, is used right here.
    """
    if reference is candidate:
        return {}
    if isinstance(reference, RecordedModule) or isinstance(candidate, RecordedModule):
        return _changed_checksums(reference, candidate)
    references, candidates = _held(reference, called), _held(candidate, called)
    factor = scale_between(reference, candidate)
    is_as_it_was = all(
        n in candidates and _equal(value_of(reference, n, r), value_of(candidate, n, candidates[n]))
        for n, r in references.items()
    )
    if factor is not None and is_as_it_was:
        factor = 1.0  # the candidate applies it elsewhere
    rows = declared_rows(reference, candidate)
    changed: dict[str, ParameterDifference] = {}
    # A different implementation may need less, or more.
    one_sided = _are_related(reference, candidate)
    for name, r in references.items():
        c = candidates.get(name)
        if c is None and not one_sided:
            continue
        if c is None:
            changed[name] = ParameterDifference(ParameterKind.REFERENCE_ONLY, exchangeable=False)
        elif _is_transposed(value_of(reference, name, r), value_of(candidate, name, c)):
            if one_sided:  # else it is what another class needs
                changed[name] = ParameterDifference(ParameterKind.TRANSPOSED, r.shape == c.shape)
        elif r.shape != c.shape:
            shapes = str(list(r.shape)), str(list(c.shape))
            changed[name] = ParameterDifference(ParameterKind.SHAPES, False, *shapes)
        elif factor is not None or "." in name or rows is not None:
            r = value_of(reference, name, r)
            c = value_of(candidate, name, c).to(r.device)
            if rows is not None and "." not in name:
                apart = _values_apart(r, c[rows.to(r.device)], tolerance)
            else:
                apart = _values_apart(r, c, tolerance, factor)
            if apart is not None:
                changed[name] = apart
    for name in candidates.keys() - references.keys() if one_sided else ():
        changed[name] = ParameterDifference(ParameterKind.CANDIDATE_ONLY, exchangeable=False)
    for name, value in _tensors_beside(reference):
        if apart := _objects_apart(value, attribute_at(candidate, name), tolerance):
            changed[name] = apart
    return changed


def changed_rows(
    pairing: Pairing, module: str, called: Collection[str], tolerance: Tolerance
) -> dict[str, ParameterDifference]:
    """What differs of parameters that one side has in one module and the other in several, where
    the outputs of these cannot be compared, by name.

    Args:
        module: the reference's name of the module that they are in.
        called: names of modules inside that were called, as for `changed_parameters`.
    """
    inside = f"{module}." if module else ""
    changed = {}
    for fusion in (each for each in pairing.fusions if not each.has_outputs):
        others = pairing.reference if fusion.is_candidate else pairing.candidate
        for name, part in fusion.parts.items():
            place = name if fusion.is_candidate else fusion.holder
            own = place.removeprefix(inside)
            if not place.startswith(inside) or _is_inside(own, called):
                continue
            r, c = (others[name], part) if fusion.is_candidate else (part, others[name])
            for key, difference in changed_parameters(r, c, tolerance).items():
                label = f"{own}.{key}" if fusion.is_candidate else f"{own}[{name}].{key}"
                changed[label] = replace(difference, exchangeable=False)
    return changed


def untransposed_parameters(
    reference: nn.Module, candidate: nn.Module
) -> dict[str, ParameterDifference]:
    """Square parameters that are equal in modules of unrelated classes, by name: one of these may
    take them transposed."""
    if _are_related(reference, candidate):
        return {}
    candidates = _held(candidate, ())
    return {
        name: ParameterDifference(ParameterKind.UNTRANSPOSED)
        for name, r in _held(reference, ()).items()
        if r.dim() == 2
        and name in candidates
        and _equal(value_of(reference, name, r), value_of(candidate, name, candidates[name]))
    }


def _changed_checksums(
    reference: nn.Module, candidate: nn.Module
) -> dict[str, ParameterDifference]:
    """The own parameters of one dtype and shape whose checksums differ."""
    references, candidates = checksums_of(reference), checksums_of(candidate)
    return {
        name: ParameterDifference(ParameterKind.CHECKSUMS, False, r.digest, c.digest)
        for name, r in references.items()
        if (c := candidates.get(name)) is not None
        and (r.dtype, r.shape) == (c.dtype, c.shape)
        and r.digest != c.digest
    }


def changed_dtypes(reference: nn.Module, candidate: nn.Module) -> list[Setting]:
    """The parameters and buffers that are of another dtype."""
    references, candidates = _held(reference, ()), _held(candidate, ())
    return [
        Setting(name, dtype_name(r.dtype), dtype_name(candidates[name].dtype))
        for name, r in references.items()
        if name in candidates and candidates[name].dtype != r.dtype
    ]


def equal_parameter(tensor: torch.Tensor, modules: Mapping[str, nn.Module]) -> str | None:
    """The full name of another parameter with just these values."""
    for path, module in modules.items():
        for name, other in module.named_parameters(recurse=False):
            if (other.dtype, other.shape) == (tensor.dtype, tensor.shape) and _equal(
                value_of(module, name, other), tensor
            ):
                return f"{path}.{name}" if path else name
    return None


def changed_settings(reference: nn.Module, candidate: nn.Module) -> list[Setting]:
    """The settings that differ, such as an epsilon or a scale, and the class."""
    found = _unequal(_settings(plain_attributes(reference), plain_attributes(candidate), "", 0))
    if not _are_related(reference, candidate):
        found.insert(0, Setting(None, type(reference).__name__, type(candidate).__name__))
    return found


def own_settings(reference: nn.Module, candidate: nn.Module) -> list[Setting]:
    """The plain attributes that differ, but for the training mode."""
    attributes = vars(as_written(reference)).items()
    own = {name: value for name, value in attributes if name not in _OF_ALL_MODULES}
    return _unequal(_settings(own, vars(as_written(candidate)), "", _MAX_DEPTH))


def _are_related(reference: nn.Module, candidate: nn.Module) -> bool:
    """Whether one is of the other's class, or of one of the same name (as on reloaded code)."""
    both = (as_written(reference), as_written(candidate))
    kinds = [type(m.whole if isinstance(m, Part) else m) for m in both]
    related = issubclass(kinds[0], kinds[1]) or issubclass(kinds[1], kinds[0])
    return related or kinds[0].__name__ == kinds[1].__name__


def _held(module: nn.Module, called: Collection[str]) -> dict[str, torch.Tensor]:
    """Parameters and buffers, without what quantising has added."""
    module = as_written(module)
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    added = {f"{p}.{n}".lstrip(".") for p, adapter in adapters(module) for n in adapter.own}
    return {
        name: value
        for name, value in held.items()
        if name not in added and not _is_inside(name, called)
    }


def _is_inside(name: str, modules: Collection[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:count]) in modules for count in range(1, len(parts)))


def _tensors_beside(module: nn.Module) -> Iterator[tuple[str, object]]:
    """Tensors in plain attributes, or the innermost dataclass around them, each with its path."""
    for name, value in plain_attributes(module).items():
        yield from _holders(value, name, 0)


def _holders(value: object, path: str, depth: int) -> Iterator[tuple[str, object]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif dataclasses.is_dataclass(value):
        if any(tensor_leaves(value, "")):
            yield path, value
    elif depth < _MAX_DEPTH:
        for key, part in children(value):
            if not key.startswith("_"):
                yield from _holders(part, f"{path}.{key}", depth + 1)


def _objects_apart(r: object, c: object, tolerance: Tolerance) -> ParameterDifference | None:
    """How two tensors, or dataclasses with tensors in them, differ; None if they do not."""
    if c is None:
        return None  # a different implementation altogether: the candidate may not need it
    if isinstance(r, torch.Tensor) and isinstance(c, torch.Tensor):
        if r.shape != c.shape:
            return _forms(describe(r), describe(c))
        return _values_apart(r, c.to(r.device), tolerance)
    others = _forms(type(r).__name__, type(c).__name__)
    if not dataclasses.is_dataclass(r) or isinstance(r, type):
        return others
    parts = {}
    for name in (f.name for f in dataclasses.fields(r) if not f.name.startswith("_")):
        if not hasattr(c, name):
            return others
        left, right = getattr(r, name), getattr(c, name)
        if isinstance(left, torch.Tensor):
            if apart := _objects_apart(left, right, tolerance):
                parts[name] = apart
        elif left != right:
            parts[name] = _forms(left, right)
    return ParameterDifference(ParameterKind.PARTS, parts=parts) if parts else None


def _forms(r: object, c: object) -> ParameterDifference:
    return ParameterDifference(ParameterKind.FORMS, True, str(r), str(c))


def _settings(
    reference: Mapping[str, object], candidate: Mapping[str, object], path: str, depth: int
) -> Iterator[tuple[str, object, object]]:
    """Pairs of plain values, and of lists of them, at the same path of both."""
    for name, r in reference.items():
        c = candidate.get(name)
        if name.startswith("_") or c is None or r is c:
            continue
        if is_plain(r) and is_plain(c):
            yield f"{path}{name}", r, c
        elif isinstance(r, list | tuple) and all(map(is_plain, r)):
            yield f"{path}{name}", list(r), list(c) if isinstance(c, list | tuple) else c
        elif depth < _MAX_DEPTH:
            if type(r) is not type(c) and dataclasses.is_dataclass(r):
                yield f"{path}{name}", type(r).__name__, type(c).__name__
            parts = dict(children(r)), dict(children(c))
            yield from _settings(*parts, f"{path}{name}.", depth + 1)


def _unequal(settings: Iterable[tuple[str, object, object]]) -> list[Setting]:
    return [Setting(name, repr(r), repr(c)) for name, r, c in settings if r != c]


def _equal(r: torch.Tensor, c: torch.Tensor) -> bool:
    return r.shape == c.shape and torch.equal(r, c.to(r.device, r.dtype))


def _is_transposed(r: torch.Tensor, c: torch.Tensor) -> bool:
    return r.dim() == 2 and r.mT.shape == c.shape and _equal(r.mT, c) and not _equal(r, c)


def _fitted_factor(r: torch.Tensor, c: torch.Tensor) -> float:
    square = (r * r).sum().item()
    return (r * c).sum().item() / square or 1.0 if square else 1.0


def _values_apart(
    r: torch.Tensor, c: torch.Tensor, tolerance: Tolerance, factor: float | None = 1.0
) -> ParameterDifference | None:
    limit = 0.0 if r.dtype == c.dtype else tolerance.limit(r.dtype, c.dtype)
    if factor is None:
        factor = _fitted_factor(r.double(), c.double())
    if factor != 1.0:
        r, c, limit = r.double(), c.double() / factor, max(limit, _FOLDED_LIMIT)
    difference = Difference.of(r, c)
    if difference.mismatched == 0 and difference.relative_peak <= limit:
        return None
    if r.dim() == 0:
        return _forms(figure(r.item()), figure(c.item()))
    peak = torch.unravel_index(torch.tensor(difference.peak_index), r.shape)
    index = tuple(int(i) for i in peak)
    left, right = _number(r[index].item()), _number(c[index].item())
    return ParameterDifference(ParameterKind.VALUES, True, left, right, difference.peir, index)


def _number(value: complex) -> float | str:
    return str(value) if isinstance(value, complex) else float(value)
