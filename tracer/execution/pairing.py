"""Pairs the modules of two models by name, and where names differ, by what the modules hold.

>>> pairing = pair(reference, torch.compile(copy_of_reference))
>>> pairing.pairs["_orig_mod.model.norm"]
'model.norm'

Three ways, each for what the one before has left over: the name itself, with the names of known
wrappers seen through and the user's rename rules applied; equal parameter values, which finds a
module under any name, transposed or not; and then class and shape in order of appearance, between
modules whose parents are paired.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from tracer.errors import UsageError, near_names
from tracer.execution.hooks import visible_modules
from tracer.execution.offload import own_parameters
from tracer.execution.stepping import stages_of
from tracer.limits import LONGEST_NAME, check_rule, time_limit

# Segments that wrappers put into module names: torch.compile, DataParallel and DDP, FSDP,
# activation checkpointing, and wrappers that keep what they wrap in an attribute.
_WRAPPER_SEGMENTS = frozenset(
    {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "wrapped"}
)
_WRAPPER_PREFIXES = ("base_model.model.",)  # parameter-efficient fine-tuning adapters


@dataclass(frozen=True)
class Pairing:
    """Which modules belong together.

    Attributes:
        pairs: the reference's name by the candidate's, in the candidate's order.
        reference, candidate: every visible module of each side by name.
        by_value: candidate names that were paired by what they hold, not by name.
    """

    pairs: Mapping[str, str]
    reference: Mapping[str, nn.Module]
    candidate: Mapping[str, nn.Module]
    by_value: frozenset[str]

    def under(self, reference: str, candidate: str) -> "Pairing":
        """The same with names that begin with a prefix on each side."""
        return Pairing(
            {
                _joined(candidate, name): _joined(reference, target)
                for name, target in self.pairs.items()
            },
            {_joined(reference, name): module for name, module in self.reference.items()},
            {_joined(candidate, name): module for name, module in self.candidate.items()},
            frozenset(_joined(candidate, name) for name in self.by_value),
        )

    def merge(self, other: "Pairing") -> "Pairing":
        """Both together."""
        return Pairing(
            {**self.pairs, **other.pairs},
            {**self.reference, **other.reference},
            {**self.candidate, **other.candidate},
            self.by_value | other.by_value,
        )


def pair(
    reference: nn.Module, candidate: nn.Module, rename: Mapping[str, str] | None = None
) -> Pairing:
    """Pairs the modules of two models; the roots always belong together.

    The two models of a candidate that is `Stepping` are each paired with the reference's one, or
    with its own counterpart where the reference has two as well.

    Args:
        rename: regular expressions and their replacements, applied to the candidate's names in
            order; the result is looked up among the reference's names.

    Raises:
        UsageError: a rule is no regular expression, changes no name, or leads to no module; or the
            reference has two models and the candidate one.
    """
    references, candidates = stages_of(reference), stages_of(candidate)
    if len(references) > len(candidates):
        raise UsageError(
            "the reference is a prefill and a decode model, and the candidate one model for both: "
            "give the one model as the reference"
        )
    merged = Pairing({}, {}, {}, frozenset())
    for stage, model in candidates.items():
        origin = stage if stage in references else ""
        found = _pair_models(references[origin], model, rename)
        merged = merged.merge(found.under(origin, stage))
    return merged


def _pair_models(
    reference: nn.Module, candidate: nn.Module, rename: Mapping[str, str] | None
) -> Pairing:
    references, candidates = visible_modules(reference), visible_modules(candidate)
    renamed = _renamed(candidates, references, rename or {})
    pairs: dict[str, str] = {"": ""}
    free = set(references) - {""}
    for canonical in (_unchanged, _without_wrappers):
        targets = {canonical(name): name for name in sorted(free, reverse=True)}
        for name, new_name in renamed.items():
            target = targets.get(canonical(new_name))
            if name not in pairs and target in free:
                pairs[name] = target
                free.discard(target)
    by_name = set(pairs)
    for match in (_match_values, _match_places):
        for name, target in match(references, candidates, pairs):
            if name not in pairs and target in free:
                pairs[name] = target
                free.discard(target)
    return Pairing(
        pairs={name: pairs[name] for name in candidates if name in pairs},
        reference=references,
        candidate=candidates,
        by_value=frozenset(set(pairs) - by_name),
    )


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}".strip(".")


def _unchanged(name: str) -> str:
    return name


def _without_wrappers(name: str) -> str:
    for prefix in _WRAPPER_PREFIXES:
        name = name.removeprefix(prefix)
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_SEGMENTS)


def _renamed(
    candidates: Mapping[str, nn.Module],
    references: Mapping[str, nn.Module],
    rename: Mapping[str, str],
) -> dict[str, str]:
    names = {name: name for name in candidates if name}
    for pattern, replacement in rename.items():
        check_rule(pattern, replacement)
        rule = re.compile(pattern)
        with time_limit(f"the rename rule {pattern!r}"):
            changed = {
                n: rule.sub(replacement, new) for n, new in names.items() if rule.search(new)
            }
        if any(len(new) > LONGEST_NAME for new in changed.values()):
            raise UsageError(
                f"rename rule {pattern!r} makes names of more than {LONGEST_NAME:,} characters"
            )
        if not changed:
            raise UsageError(
                f"rename rule {pattern!r} matches none of the candidate's {len(names)} module "
                f"names, such as {', '.join(list(names)[:3])}; the rules apply to the candidate's "
                f"names{near_names(pattern, names)}"
            )
        known = {*references, *(_without_wrappers(name) for name in references)}
        if not any(new in known or _without_wrappers(new) in known for new in changed.values()):
            example, result = next(iter(changed.items()))
            raise UsageError(
                f"rename rule {pattern!r} turns {example!r} into {result!r}, and no name it makes "
                f"is a module of the reference{near_names(result, references)}"
            )
        names.update(changed)
    return names


def _match_values(
    references: Mapping[str, nn.Module],
    candidates: Mapping[str, nn.Module],
    pairs: Mapping[str, str],
) -> Iterator[tuple[str, str]]:
    """Modules with the same parameter values, in order where several hold the same."""
    taken = set(pairs.values())
    left = [name for name in references if name not in taken]
    by_value: dict[tuple[object, ...], list[str]] = defaultdict(list)
    if not left:
        return
    for name in left:
        if key := _fingerprint(references[name]):
            by_value[key].append(name)
    for name, module in candidates.items():
        if name not in pairs and (key := _fingerprint(module)) and by_value[key]:
            yield name, by_value[key].pop(0)


def _match_places(
    references: Mapping[str, nn.Module],
    candidates: Mapping[str, nn.Module],
    pairs: Mapping[str, str],
) -> Iterator[tuple[str, str]]:
    """Parents of paired modules, then the rest by parent, class and parameter shapes, in order."""
    found = dict(pairs)
    # A parent follows from its paired children, from the deepest up.
    for name in sorted(pairs, key=lambda n: n.count("."), reverse=True):
        parent, target = name, pairs[name]
        while parent and target:
            parent, target = _parent(parent), _parent(target)
            if not parent or not target or parent in found or target in found.values():
                break
            found[parent] = target
            yield parent, target
    waiting: dict[tuple[object, ...], list[str]] = defaultdict(list)
    taken = set(found.values())
    for name, module in references.items():
        if name not in taken:
            waiting[(_parent(name), *_form(module))].append(name)
    for name, module in candidates.items():
        if name not in found and _parent(name) in found:
            key = (found[_parent(name)], *_form(module))
            if waiting[key]:
                found[name] = waiting[key].pop(0)
                yield name, found[name]


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _form(module: nn.Module) -> tuple[object, ...]:
    shapes = tuple(tuple(p.shape) for p in module.parameters(recurse=False))
    return type(module).__name__, shapes


def _fingerprint(module: nn.Module) -> tuple[object, ...] | None:
    """Size, sum of magnitudes and norm of each own parameter; the same when it is transposed.

    Six digits, so that the order of summation does not matter. None for a module that has no
    parameters of its own.
    """
    key: list[object] = []
    for _, parameter in own_parameters(module):
        values = parameter.detach()
        if values.is_meta:
            return None
        values = values.to(torch.complex128 if values.is_complex() else torch.float64)
        magnitude = values.abs().sum().item()
        norm = torch.linalg.vector_norm(values).item()
        key.append((values.numel(), f"{magnitude:.5e}", f"{norm:.5e}"))
    return tuple(key) or None
