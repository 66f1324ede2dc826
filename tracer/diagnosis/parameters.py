"""What two paired modules hold: parameters, buffers, other tensors and settings that differ.

Beside parameters and buffers a module may hold tensors in plain attributes: a table of rotations, a
mask, or an object with a scale and a zero point in it. These count as parameters, but for those in
attributes whose name begins with an underscore, which are the module's own business.
"""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from tracer.execution.offload import value_of
from tracer.execution.torch_internals import as_written
from tracer.interventions.exchange import attribute_at, plain_attributes
from tracer.measurement.arguments import scale_between
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
# An attribute may hold a dict of objects, which hold others.
_MAX_DEPTH = 4
# An object may have any number of settings that differ; so many sentences are read.
_MOST_SETTINGS = 6


@dataclass(frozen=True)
class Change:
    """How something that both modules hold differs.

    Attributes:
        text: in words.
        exchangeable: whether the reference's would fit in its place.
    """

    text: str
    exchangeable: bool


def changed_parameters(
    reference: nn.Module,
    candidate: nn.Module,
    tolerance: Tolerance,
    called: Collection[str] = frozenset(),
) -> dict[str, Change]:
    """Parameters, buffers and other held tensors of a pair of modules that differ, by name.

    Those of one dtype must be equal; others may differ by the tolerance of their dtypes. Where the
    candidate declares a factor on its output, its parameters may carry it. Where it declares
    another form, its own parameters cannot be compared; the coverage names the module.

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
    changed: dict[str, Change] = {}
    # A module of another make may need less, or more.
    one_sided = _are_related(reference, candidate)
    for name, r in references.items():
        c = candidates.get(name)
        if c is None and not one_sided:
            continue
        if c is None:
            changed[name] = Change("the candidate has none", exchangeable=False)
        elif r.shape != c.shape:
            text = f"shape {list(r.shape)} against {list(c.shape)}"
            changed[name] = Change(text, exchangeable=False)
        elif factor is not None or "." in name:
            r, c = value_of(reference, name, r), value_of(candidate, name, c)
            apart = _values_apart(r, c.to(r.device), tolerance, factor)
            if apart is not None:
                changed[name] = Change(apart, exchangeable=True)
    for name in candidates.keys() - references.keys() if one_sided else ():
        changed[name] = Change("the reference has none", exchangeable=False)
    for name, value in _tensors_beside(reference):
        if text := _objects_apart(value, attribute_at(candidate, name), tolerance):
            changed[name] = Change(text, exchangeable=True)
    return changed


def _changed_checksums(reference: nn.Module, candidate: nn.Module) -> dict[str, Change]:
    """The own parameters of one dtype and shape whose checksums differ."""
    references, candidates = checksums_of(reference), checksums_of(candidate)
    return {
        name: Change("its checksum is not the recorded one", exchangeable=False)
        for name, r in references.items()
        if (c := candidates.get(name)) is not None
        and (r.dtype, r.shape) == (c.dtype, c.shape)
        and r.digest != c.digest
    }


def changed_dtypes(reference: nn.Module, candidate: nn.Module) -> list[str]:
    """A sentence for each parameter and buffer that is of another dtype."""
    references, candidates = _held(reference, ()), _held(candidate, ())
    return [
        _apart(f"`{name}`", dtype_name(r.dtype), dtype_name(candidates[name].dtype))
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


def changed_settings(reference: nn.Module, candidate: nn.Module) -> list[str]:
    """A sentence for each setting that differs, such as an epsilon or a scale, or the class."""
    sentences = _unequal(_settings(plain_attributes(reference), plain_attributes(candidate), "", 0))
    if not _are_related(reference, candidate):
        names = (type(module).__name__ for module in (reference, candidate))
        sentences.insert(0, _apart("class", *names))
    more = len(sentences) - _MOST_SETTINGS
    return sentences[:_MOST_SETTINGS] + ([f"{more} more settings differ."] if more > 0 else [])


def own_settings(reference: nn.Module, candidate: nn.Module) -> list[str]:
    """A sentence for each plain attribute that differs, but for the training mode."""
    settings = _settings(plain_attributes(reference), plain_attributes(candidate), "", _MAX_DEPTH)
    return _unequal(setting for setting in settings if setting[0] != "training")


def _are_related(reference: nn.Module, candidate: nn.Module) -> bool:
    """Whether one is of the other's class, or of one of the same name (as on reloaded code)."""
    kinds = type(as_written(reference)), type(as_written(candidate))
    related = issubclass(*kinds) or issubclass(kinds[1], kinds[0])
    return related or kinds[0].__name__ == kinds[1].__name__


def _apart(what: str, reference: str, candidate: str) -> str:
    return f"Its {what} is {reference} in the reference and {candidate} in the candidate."


def _held(module: nn.Module, called: Collection[str]) -> dict[str, torch.Tensor]:
    module = as_written(module)
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: value for name, value in held.items() if not _is_inside(name, called)}


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


def _objects_apart(r: object, c: object, tolerance: Tolerance) -> str:
    """How two tensors, or dataclasses with tensors in them, differ in words; "" if they do not."""
    if c is None:
        return ""  # of another make altogether: the candidate may not need it
    if isinstance(r, torch.Tensor) and isinstance(c, torch.Tensor):
        if r.shape != c.shape:
            return f"{describe(r)} against {describe(c)}"
        return _values_apart(r, c.to(r.device), tolerance) or ""
    if not dataclasses.is_dataclass(r) or isinstance(r, type):
        return f"{type(r).__name__} against {type(c).__name__}"
    apart = []
    for name in (f.name for f in dataclasses.fields(r) if not f.name.startswith("_")):
        if not hasattr(c, name):
            return f"{type(r).__name__} against {type(c).__name__}"
        left, right = getattr(r, name), getattr(c, name)
        if isinstance(left, torch.Tensor):
            if text := _objects_apart(left, right, tolerance):
                apart.append(f"`{name}` {text}")
        elif left != right:
            apart.append(f"`{name}` {left} against {right}")
    return ", ".join(apart)


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


def _unequal(settings: Iterable[tuple[str, object, object]]) -> list[str]:
    return [_apart(f"`{name}`", repr(r), repr(c)) for name, r, c in settings if r != c]


def _equal(r: torch.Tensor, c: torch.Tensor) -> bool:
    return r.shape == c.shape and torch.equal(r, c.to(r.device, r.dtype))


def _fitted_factor(r: torch.Tensor, c: torch.Tensor) -> float:
    square = (r * r).sum().item()
    return (r * c).sum().item() / square or 1.0 if square else 1.0


def _values_apart(
    r: torch.Tensor, c: torch.Tensor, tolerance: Tolerance, factor: float | None = 1.0
) -> str | None:
    limit = 0.0 if r.dtype == c.dtype else tolerance.limit(r.dtype, c.dtype)
    if factor is None:
        factor = _fitted_factor(r.double(), c.double())
    if factor != 1.0:
        r, c, limit = r.double(), c.double() / factor, max(limit, _FOLDED_LIMIT)
    difference = Difference.of(r, c)
    if difference.mismatched == 0 and difference.relative_peak <= limit:
        return None
    if r.dim() == 0:
        return f"{figure(r.item())} against {figure(c.item())}"
    peak = torch.unravel_index(torch.tensor(difference.peak_index), r.shape)
    index = tuple(int(i) for i in peak)
    return (
        f"PEIR {figure(difference.peir)}, most at {list(index)}: {figure(r[index].item())} "
        f"against {figure(c[index].item())}"
    )
