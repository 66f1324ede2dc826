"""What two paired modules hold: parameters, buffers and plain attributes that differ."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn

from tracer.difference import Difference, Tolerance
from tracer.phrases import figure

# A folded scale is rounded once in every weight.
_FOLDED_LIMIT = 1e-5


@dataclass(frozen=True)
class Change:
    """How a parameter or buffer differs.

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
    """Parameters and buffers of a pair of modules that differ, by name.

    Those of one dtype must be equal; others may differ by the tolerance of their dtypes. For a
    module that declares another form of its output, a constant factor is no difference.

    Args:
        called: names of modules inside that were called. What they hold is their own affair; what
            others hold, a list of parameters or a layer whose weight is read, is used right here.
    """
    if reference is candidate:
        return {}
    references, candidates = _held(reference, called), _held(candidate, called)
    declared = hasattr(candidate, "to_reference_output")
    changed: dict[str, Change] = {}
    for name, r in references.items():
        c = candidates.get(name)
        if c is None:
            changed[name] = Change("the candidate has none", exchangeable=False)
        elif r.shape != c.shape:
            text = f"shape {list(r.shape)} against {list(c.shape)}"
            changed[name] = Change(text, exchangeable=False)
        elif (text_of_values := _values_apart(r, c.to(r.device), tolerance, declared)) is not None:
            changed[name] = Change(text_of_values, exchangeable=True)
    for name in candidates:
        if name not in references:
            changed[name] = Change("the reference has none", exchangeable=False)
    return changed


def changed_settings(reference: nn.Module, candidate: nn.Module) -> list[str]:
    """A sentence for each plain attribute that differs, such as an epsilon or a scale."""
    theirs = vars(candidate)
    return [
        f"Its `{name}` is {value!r} in the reference and {theirs[name]!r} in the candidate."
        for name, value in vars(reference).items()
        if isinstance(value, bool | int | float | str)
        and isinstance(theirs.get(name), bool | int | float | str)
        and value != theirs[name]
    ]


def as_written(module: nn.Module) -> nn.Module:
    """The module that was compiled, for what `torch.compile` returns; else the module itself."""
    original = module._modules.get("_orig_mod")
    return module if original is None else original


def _held(module: nn.Module, called: Collection[str]) -> dict[str, torch.Tensor]:
    module = as_written(module)
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: value for name, value in held.items() if not _is_inside(name, called)}


def _is_inside(name: str, modules: Collection[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:count]) in modules for count in range(1, len(parts)))


def _values_apart(
    r: torch.Tensor, c: torch.Tensor, tolerance: Tolerance, declared: bool
) -> str | None:
    limit = 0.0 if r.dtype == c.dtype else tolerance.limit(r.dtype, c.dtype)
    if declared and (square := (r.double() ** 2).sum().item()):
        factor = (r.double() * c.double()).sum().item() / square
        if factor:
            r, c, limit = r.double(), c.double() / factor, _FOLDED_LIMIT
    difference = Difference.of(r, c)
    if difference.mismatched == 0 and difference.relative_peak <= limit:
        return None
    peak = torch.unravel_index(torch.tensor(difference.peak_index), r.shape)
    index = tuple(int(i) for i in peak)
    return (
        f"PEIR {figure(difference.peir)}, most at {list(index)}: {figure(r[index].item())} "
        f"against {figure(c[index].item())}"
    )
