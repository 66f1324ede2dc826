"""Pairs the modules of two models by name, and where names differ, by what the modules hold.

>>> pairing = pair(reference, torch.compile(copy_of_reference))
>>> pairing.pairs["_orig_mod.model.norm"]
'model.norm'

Each way is for what the one before has left over: the name itself, with the user's rename rules
applied, the names of known wrappers seen through, and then all segments left out that the other
side does not have; equal parameter values, which finds a module under any name, transposed or not;
equal rows of parameters, which finds what is fused on one side; what modules contain; and class and
shape in order of appearance, between modules whose parents are paired. A module that the reference
has under several names is the counterpart of all in a graph that bear them. After a run, those that
were called come before those that were not.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tracer.errors import UsageError
from tracer.execution.fusions import Fusion, Part, whole_name
from tracer.execution.matching import Called, Search
from tracer.execution.renaming import rules_of
from tracer.execution.stepping import stages_of
from tracer.execution.weights import Weights


@dataclass(frozen=True)
class Pairing:
    """Which modules belong together.

    Attributes:
        pairs: the reference's name by the candidate's, in the candidate's order.
        reference, candidate: every visible module of each side by name, and the parts of those that
            hold several modules of the other side.
        by_value: candidate names that were paired by what they hold, not by name.
        fusions: the modules that hold several of the other side's.
    """

    pairs: Mapping[str, str]
    reference: Mapping[str, nn.Module]
    candidate: Mapping[str, nn.Module]
    by_value: frozenset[str]
    fusions: tuple[Fusion, ...] = ()

    def under(self, reference: str, candidate: str) -> "Pairing":
        """The same with names that begin with a prefix on each side."""
        if not (reference or candidate):
            return self
        return Pairing(
            {
                _joined(candidate, name): _joined(reference, target)
                for name, target in self.pairs.items()
            },
            {_joined(reference, name): module for name, module in self.reference.items()},
            {_joined(candidate, name): module for name, module in self.candidate.items()},
            frozenset(_joined(candidate, name) for name in self.by_value),
            tuple(
                fusion.under(*(candidate, reference)[:: 1 if fusion.is_candidate else -1])
                for fusion in self.fusions
            ),
        )

    def merge(self, other: "Pairing") -> "Pairing":
        """Both together."""
        return Pairing(
            {**self.pairs, **other.pairs},
            {**self.reference, **other.reference},
            {**self.candidate, **other.candidate},
            self.by_value | other.by_value,
            self.fusions + other.fusions,
        )

    def met(self, called: Called) -> set[str]:
        """What the reference has called of what has a counterpart that was called."""
        return {
            name
            for own, name in self.pairs.items()
            if whole_name(own) in called.candidate and whole_name(name) in called.reference
        }

    def parts(self, *, is_candidate: bool) -> dict[str, dict[str, Part]]:
        """The parts that calls of one side's modules are split into, by name, by the module's."""
        return {
            fusion.holder: {own: fusion.parts[name] for name, own in fusion.names().items()}
            for fusion in self.fusions
            if fusion.is_candidate == is_candidate and fusion.has_outputs
        }

    def held(self, *, is_candidate: bool) -> frozenset[str]:
        """The modules of one side that are paired by the rows of what they hold."""
        return frozenset(
            name
            for fusion in self.fusions
            for name in ([fusion.holder] if fusion.is_candidate == is_candidate else fusion.parts)
        )


def pair(
    reference: nn.Module,
    candidate: nn.Module,
    rename: Mapping[str, str] | None = None,
    called: Called | None = None,
    *,
    dtypes: Sequence[torch.dtype] | None = None,
) -> Pairing:
    """Pairs the modules of two models; the roots always belong together.

    The two models of a candidate that is `Stepping` are each paired with the reference's one, or
    with its own counterpart where the reference has two as well.

    Args:
        rename: regular expressions and their replacements, applied to the candidate's names in
            order; the result is looked up among the reference's names.
        called: what was called in a run. Those modules are paired among each other first: a copy
            that is registered and never run is no counterpart where there is another.

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
    if dtypes is None:
        found = (Weights.of(model).dtype for model in (reference, candidate))
        dtypes = [dtype for dtype in found if dtype is not None]
    # Of the less exact side.
    dtype = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=None)
    merged = Pairing({}, {}, {}, frozenset())
    for stage, model in candidates.items():
        origin = stage if stage in references else ""
        among = None
        if called is not None:
            among = Called(_inside(called.reference, origin), _inside(called.candidate, stage))
        search = Search(references[origin], model, rename or {}, dtype)
        search.run(among)
        merged = merged.merge(_pairing_of(search).under(origin, stage))
    return merged


def _pairing_of(search: Search) -> Pairing:
    """What a search has found, with the parts of what is fused."""
    references, candidates = dict(search.references), dict(search.candidates)
    other_names = search.other_names()
    pairs = other_names | search.pairs
    for fusion in search.fusions:
        if fusion.has_outputs:
            for name, part in fusion.names().items():
                (candidates if fusion.is_candidate else references)[part] = fusion.parts[name]
                pairs |= {part: name} if fusion.is_candidate else {name: part}
    return Pairing(
        pairs={name: pairs[name] for name in candidates if name in pairs},
        reference=references,
        candidate=candidates,
        by_value=frozenset(pairs) - search.by_name - other_names.keys(),
        fusions=tuple(search.fusions),
    )


def _inside(names: Collection[str], stage: str) -> frozenset[str]:
    if not stage:
        return frozenset(names)
    prefix = f"{stage}."
    return frozenset(n.removeprefix(prefix) for n in names if n == stage or n.startswith(prefix))


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}".strip(".")


def proposed_rules(pairing: Pairing) -> dict[str, str]:
    """Rename rules that pair by name what was paired by what it holds, if that was most of it."""
    found = {
        name: target
        for name, target in pairing.pairs.items()
        if name in pairing.by_value and whole_name(name) == name and whole_name(target) == target
    }
    return rules_of(found) if 2 * len(found) > len(pairing.pairs) else {}
