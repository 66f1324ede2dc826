"""The search for pairs of modules, one way after the other, each for what is left over."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from tracer.execution.forms import is_formless, may_have_forms
from tracer.execution.fusions import Fusion, find_fusions, rounded
from tracer.execution.hooks import visible_modules
from tracer.execution.offload import own_parameters
from tracer.execution.renaming import applied, renamed, rules_of, unchanged, without_wrappers

# What share of their contents two modules must have in common.
_MOST = 0.5


@dataclass(frozen=True)
class Called:
    """The names of the modules that a run has called on each side."""

    reference: Collection[str]
    candidate: Collection[str]


class Search:
    """Finds the pairs of two models, one way after the other.

    Attributes:
        references, candidates: the modules of each side that can be seen.
        pairs: the reference's name by the candidate's.
        by_name: the candidate's names of those that were paired by their names.
        fusions: the modules that hold several of the other side's.
    """

    def __init__(
        self,
        reference: nn.Module,
        candidate: nn.Module,
        rename: Mapping[str, str],
        dtype: torch.dtype | None,
    ) -> None:
        self._reference = reference
        self.references = visible_modules(reference)
        self.candidates = visible_modules(candidate)
        self.pairs: dict[str, str] = {"": ""}
        self.by_name = {""}
        self.fusions: list[Fusion] = []
        self._dtype = dtype
        self._renamed = renamed(self.candidates, self.references, rename)
        self._prints: dict[int, tuple[object, ...] | None] = {}
        self._free: set[str] = set()
        self._own: set[str] = set()

    def run(self, called: Called | None) -> None:
        """Pairs what was called, and then the rest."""
        groups = [(set(self.references), set(self.candidates))]
        if called is not None:
            groups.insert(0, (set(called.reference), set(called.candidate)))
        for free, own in groups:
            taken = self._taken()
            self._free = (free & self.references.keys()) - taken[0]
            self._own = (own & self.candidates.keys()) - taken[1]
            for way in (unchanged, without_wrappers):
                self.by_name |= self._enter(self._named(way))
            self._enter(self._unique_values())
            self._enter(self._rows())
            self.by_name |= self._enter(self._named(self._known_segments))
            self._enter(self._patterns())
            self._enter(self._contents())
            self._enter(self._tied_values())
            self._enter(self._contents())
            self._enter(self._places())

    def other_names(self) -> dict[str, str]:
        """The reference's name by the candidate's, of what in a graph bears another name that the
        reference has for the same module; its calls are counted together."""
        if not any(map(may_have_forms, {type(module) for module in self.candidates.values()})):
            return {}
        names = {id(module): name for name, module in self.references.items()}
        every = self._reference.named_modules(remove_duplicate=False)
        return {
            name: names[id(module)]
            for name, module in every
            if names.get(id(module), name) != name
            and name in self.candidates
            and is_formless(self.candidates[name])
        }

    def _taken(self) -> tuple[set[str], set[str]]:
        """What is paired or held already on each side."""
        taken = set(self.pairs.values()), set(self.pairs)
        for fusion in self.fusions:
            taken[fusion.is_candidate].add(fusion.holder)
            taken[not fusion.is_candidate].update(fusion.parts)
        return taken

    def _enter(self, found: Iterable[tuple[str, str]]) -> set[str]:
        """Keeps pairs of modules that are free; the candidate's names of those."""
        entered = set()
        for name, target in found:
            if name in self._own and target in self._free:
                self.pairs[name] = target
                self._own.discard(name)
                self._free.discard(target)
                entered.add(name)
        return entered

    def _named(self, canonical: Callable[[str], str]) -> Iterator[tuple[str, str]]:
        targets = {canonical(name): name for name in sorted(self._free, reverse=True)}
        for name, new_name in self._renamed.items():
            if name in self._own and (target := targets.get(canonical(new_name))):
                yield name, target

    @cached_property
    def _segments(self) -> set[str]:
        """What the reference's names are made of."""
        return {part for name in self.references for part in name.split(".")}

    def _known_segments(self, name: str) -> str:
        """A name without the segments that the reference's names do not have."""
        parts = name.split(".")
        return ".".join(part for part in parts if part in self._segments or part.isdigit())

    def _unique_values(self) -> Iterator[tuple[str, str]]:
        """Modules with parameter values that no other has."""
        sides = self._by_values()
        for key, names in sides[1].items():
            if len(names) == len(sides[0].get(key, ())) == 1:
                yield names[0], sides[0][key][0]

    def _tied_values(self) -> Iterator[tuple[str, str]]:
        """Those of several: of one class and parent if there is one, else in order."""
        sides = self._by_values()
        for key, names in sides[1].items():
            left = list(sides[0].get(key, ()))
            for name in names:
                if left:
                    best = max(left, key=lambda target: self._nearness(name, target))
                    left.remove(best)
                    yield name, best

    def _nearness(self, name: str, target: str) -> tuple[bool, bool]:
        classes = {type(self.candidates[name]), type(self.references[target])}
        return len(classes) == 1, self.pairs.get(_parent(name)) == _parent(target)

    def _by_values(self) -> tuple[dict[object, list[str]], dict[object, list[str]]]:
        """The free modules of both sides by what they hold."""
        found: tuple[dict[object, list[str]], dict[object, list[str]]] = ({}, {})
        if self._free and self._own:
            sides = (self.references, self._free), (self.candidates, self._own)
            for by_value, (modules, names) in zip(found, sides, strict=True):
                for name, module in modules.items():
                    if name in names and (key := self._fingerprint(module)):
                        by_value.setdefault(key, []).append(name)
        return found

    def _fingerprint(self, module: nn.Module) -> tuple[object, ...] | None:
        if id(module) not in self._prints:
            self._prints[id(module)] = _fingerprint(module, self._dtype)
        return self._prints[id(module)]

    def _rows(self) -> Iterable[tuple[str, str]]:
        """Modules with most rows in common; and, aside, what is fused on one side."""
        if not self._free or not self._own:
            return ()
        fusions, pairs = find_fusions(
            {name: m for name, m in self.references.items() if name in self._free},
            {name: m for name, m in self.candidates.items() if name in self._own},
            self._dtype,
        )
        self.fusions += fusions
        taken = self._taken()
        self._free -= taken[0]
        self._own -= taken[1]
        return pairs

    def _patterns(self) -> Iterator[tuple[str, str]]:
        """What the pairs of other layers say of a name."""
        if not self._free or not self._own:
            return
        rules = rules_of({name: self.pairs[name] for name in self.pairs if name})
        for name in [name for name in self.candidates if name in self._own]:
            target = applied(rules, name)
            if target in self._free and _sizes(self.candidates[name]) == _sizes(
                self.references[target]
            ):
                yield name, target

    def _contents(self) -> Iterator[tuple[str, str]]:
        """Modules around the same paired ones, or most of them, from the outermost in."""
        if not self._free or not self._own:
            return
        holds = list(self.pairs.items())
        for fusion in self.fusions:
            for name in fusion.parts:
                is_candidate = fusion.is_candidate
                holds.append((fusion.holder, name) if is_candidate else (name, fusion.holder))
        sizes = Counter(around for _, target in holds for around in _around(target))
        common: dict[str, Counter[str]] = defaultdict(Counter)
        for name, target in holds:
            targets = [t for t in _around(target) if t in self._free]
            for own in _around(name):
                if own in self._own:
                    common[own].update(targets)
                    common[own][""] += 1  # all that it has
        found = []
        for number, (name, counts) in enumerate(common.items()):
            for target in self._free & counts.keys():
                share = counts[target] / (counts[""] + sizes[target] - counts[target])
                is_alike = _is_list(self.candidates[name]) == _is_list(self.references[target])
                if is_alike and share > _MOST:
                    depths = name.count("."), target.count(".")
                    found.append((-share, *depths, number, name, target))
        for *_, name, target in sorted(found):
            yield name, target

    def _places(self) -> Iterator[tuple[str, str]]:
        """The rest by parent, class and shapes, in order."""
        found = dict(self.pairs)
        waiting: dict[tuple[object, ...], list[str]] = defaultdict(list)
        for name, module in self.references.items():
            if name in self._free:
                waiting[(_parent(name), *_form(module))].append(name)
        for name, module in self.candidates.items():
            if name in self._own and _parent(name) in found:
                key = (found[_parent(name)], *_form(module))
                if waiting[key]:
                    found[name] = waiting[key].pop(0)
                    yield name, found[name]


def _around(name: str) -> list[str]:
    """The names of what a module is in, but for the root."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _form(module: nn.Module) -> tuple[object, ...]:
    shapes = tuple(tuple(p.shape) for p in module.parameters(recurse=False))
    return type(module).__name__, shapes


def _sizes(module: nn.Module) -> list[int]:
    return sorted(parameter.numel() for parameter in module.parameters(recurse=False))


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.ModuleDict)


def _fingerprint(module: nn.Module, dtype: torch.dtype | None = None) -> tuple[object, ...] | None:
    """Size, sum of magnitudes and norm of each own parameter; the same when it is transposed.

    Six digits, so that the order of summation does not matter. None for a module that has no
    parameters of its own.

    Args:
        dtype: what parameters of finer dtypes are rounded to first.
    """
    key: list[object] = []
    for _, parameter in own_parameters(module):
        values = rounded(parameter.detach(), dtype)
        if values.is_meta:
            return None
        values = values.to(torch.complex128 if values.is_complex() else torch.float64)
        magnitude = values.abs().sum().item()
        norm = torch.linalg.vector_norm(values).item()
        key.append((values.numel(), f"{magnitude:.5e}", f"{norm:.5e}"))
    return tuple(key) or None
