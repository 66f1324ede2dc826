"""How much of two models a comparison has seen, and why not the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from tracer.execution.hooks import hides_children
from tracer.execution.lockstep import Outcome
from tracer.execution.pairing import Pairing, proposed_rules
from tracer.execution.torch_internals import declared, may_be_fused, takes_fused_path
from tracer.execution.walks import parameters_in
from tracer.measurement.arguments import scale_between
from tracer.measurement.comparer import Comparer
from tracer.measurement.leaf_pairs import LeafKind
from tracer.tensors.value_path import ValuePath

_READ_BACK = "to_reference_output"
_DROPPED = "the graph has no operation of it that is used"
_FUSED = (
    "hidden: PyTorch computes the module around it in one piece, and with hooks inside otherwise; "
    "--inside (inside=True) opens it"
)


@dataclass(frozen=True)
class Coverage:
    """How much a comparison has seen. A verdict is worth no more than this.

    Attributes:
        paired_modules: the candidate's names of modules that were seen on both sides, by the
            reference's. Where two of the candidate's models share one of the reference's, those of
            the first; where one side holds in one module what the other has in several, the
            module that holds it.
        reference_only, candidate_only: names of modules on one side only, or called on one only.
        reasons: why, by name, for both of them.
        compared_calls: pairs of calls of which at least one leaf was compared.
        compared_elements: elements of all compared leaves, each pair of tensors counted once.
        unmatched_calls: (side, module, call index) of calls of paired modules that the other side
            did not make.
        held_bytes_peak: the most memory held back for calls in another order, in bytes.
        left_out: values of a reference told step by step that could not be told apart.
        unused: values that a graph does not have, since export has dropped what nothing uses.
        not_comparable: values of outputs of a kind that cannot be compared: generators, functions,
            tensors on the meta device.
        missing_outputs: the values of the reference's own output that the candidate does not have.
        ended: the user has ended the run before the models came to their end.
        recordings: what recordings lack, in words.
        unread_parameters: the reference's names of modules whose own parameters cannot be compared:
            one side reads its output back, and declares no `reference_output_scale`.
        fused: the modules of one side that hold several of the other's, with those.
        rename_rules: rules for the candidate's names that say what was found by what modules hold,
            where that was most of them.
        opened: the reference's names of modules that PyTorch computes in one piece unless that is
            switched off, as it was: their numbers are those of the other path.
    """

    paired_modules: Mapping[str, str]
    reference_only: tuple[str, ...]
    candidate_only: tuple[str, ...]
    reasons: Mapping[str, str]
    compared_calls: int
    compared_elements: int
    unmatched_calls: tuple[tuple[str, str, int], ...]
    held_bytes_peak: int
    left_out: int = 0
    unused: int = 0
    not_comparable: int = 0
    missing_outputs: tuple[ValuePath, ...] = ()
    ended: bool = False
    recordings: tuple[str, ...] = ()
    unread_parameters: tuple[str, ...] = ()
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rename_rules: Mapping[str, str] = field(default_factory=dict)
    opened: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Coverage: {self}>"

    def __str__(self) -> str:
        total = len(self.paired_modules) + len(self.reference_only)
        text = (
            f"{len(self.paired_modules)} of {total} modules, {self.compared_calls} calls, "
            f"{self.compared_elements:,} elements compared"
        )
        if self.candidate_only:
            text += f"; {len(self.candidate_only)} modules in the candidate only"
        if self.left_out:
            text += f"; {self.left_out} values left out"
        if self.unused:
            text += f"; {self.unused} values that the graph does not have, since nothing uses them"
        if self.not_comparable:
            text += f"; {self.not_comparable} values not comparable"
        if self.missing_outputs:
            text += f"; the candidate does not return {', '.join(self.missing_outputs[:3])}"
            text += ", ..." if len(self.missing_outputs) > 3 else ""
        if self.unread_parameters:
            text += f"; own parameters not read back in {len(self.unread_parameters)} modules"
        if self.opened:
            text += f"; the fused path of {len(self.opened)} modules is off, and the numbers are "
            text += "those of the other path"
        if self.ended:
            text += "; ended by the user"
        return "; ".join((text, *self.recordings))


def make_coverage(pairing: Pairing, comparer: Comparer, outcome: Outcome) -> Coverage:
    reasons: dict[str, str] = {}
    paired, one_sided = set(), set()
    for own, target in pairing.pairs.items():
        called = target in outcome.reference_calls, own in outcome.candidate_calls
        if called == (True, False):
            reasons[target] = "called by the reference, not by the candidate"
        elif called == (False, True):
            reasons[own] = reasons[target] = "called by the candidate, not by the reference"
            one_sided.add(own)
        else:
            paired.add(target)
    if outcome.ended:
        for target in paired - outcome.reference_calls.keys():
            reasons[target] = "the run was ended before it was called"
        paired &= outcome.reference_calls.keys()
    hidden = [
        (own, target)
        for own, target in pairing.pairs.items()
        if hides_children(pairing.candidate[own]) or hides_children(pairing.reference[target])
    ]
    wholes = pairing.held(is_candidate=False), pairing.held(is_candidate=True)
    references = [
        name for name in pairing.reference if name not in pairing.parts(is_candidate=False)
    ]
    paired |= wholes[0] & set(references)
    for name in references:
        if name not in paired:
            around = [(target, own) for own, target in hidden]
            reasons.setdefault(
                name, _why_unseen(name, around, "candidate", pairing.candidate.get(""))
            )
    for name in pairing.candidate:
        if name not in pairing.pairs and name not in wholes[1]:
            one_sided.add(name)
            reasons.setdefault(
                name, _why_unseen(name, hidden, "reference", pairing.reference.get(""))
            )
    inside = [
        f"{target}.{name}".strip(".")
        for own, target in hidden
        for module in (pairing.reference[target], pairing.candidate[own])
        if takes_fused_path(module)
        for name, _ in module.named_modules()
    ]
    unseen = [name for name in dict.fromkeys(inside) if name not in pairing.reference]
    reasons.update(dict.fromkeys(unseen, _FUSED))
    measured = [row for row in comparer.rows if row.difference is not None]
    own_names = {name: name for name in references} | _holders(pairing)
    own_names |= {target: name for name, target in reversed(list(pairing.pairs.items()))}
    return Coverage(
        paired_modules={name: own_names[name] for name in references if name in paired},
        reference_only=tuple(n for n in (*references, *unseen) if n not in paired),
        candidate_only=tuple(name for name in pairing.candidate if name in one_sided),
        reasons=reasons,
        compared_calls=len({(row.module, row.call) for row in measured}),
        compared_elements=comparer.compared_elements,
        unmatched_calls=unmatched_calls(outcome),
        held_bytes_peak=outcome.held_bytes_peak,
        left_out=comparer.skipped[LeafKind.LEFT_OUT],
        unused=comparer.skipped[LeafKind.UNUSED],
        not_comparable=comparer.skipped[LeafKind.NOT_COMPARABLE],
        missing_outputs=tuple(comparer.final.missing),
        ended=outcome.ended,
        opened=tuple(
            name
            for name, module in pairing.reference.items()
            if may_be_fused(module) and not takes_fused_path(module)
        ),
        unread_parameters=tuple(
            target
            for own, target in pairing.pairs.items()
            if target in paired and _is_unread(pairing.reference[target], pairing.candidate[own])
        ),
        fused={fusion.holder: tuple(fusion.parts) for fusion in pairing.fusions},
        rename_rules=proposed_rules(pairing),
    )


def _holders(pairing: Pairing) -> dict[str, str]:
    """The candidate's names of what is paired by the rows of what it holds."""
    names: dict[str, str] = {}
    for fusion in pairing.fusions:
        if fusion.is_candidate:
            names |= dict.fromkeys(fusion.parts, fusion.holder)
        else:
            names[fusion.holder] = ", ".join(fusion.parts)
    return names


def _is_unread(reference: nn.Module, candidate: nn.Module) -> bool:
    if declared(reference, _READ_BACK) is None and declared(candidate, _READ_BACK) is None:
        return False
    holds = all(parameters_in([module]) for module in (reference, candidate))
    return holds and scale_between(reference, candidate) is None


def _why_unseen(
    name: str, hidden: Sequence[tuple[str, str]], other_side: str, other: nn.Module | None
) -> str:
    """Why a module has no counterpart.

    Args:
        hidden: its side's names of modules that hide those inside, with the other side's.
        other: the other side's root; None where it has two.
    """
    if name in getattr(other, "left_nothing", ()):
        return _DROPPED
    for outer, counterpart in hidden:
        if not outer or name.startswith(f"{outer}."):
            place = f"`{counterpart}`" if counterpart else "the root"
            return f"hidden: {place} of the {other_side} is compiled, scripted or fused"
    return f"the {other_side} has no such module"


def unmatched_calls(outcome: Outcome) -> tuple[tuple[str, str, int], ...]:
    sides = (
        ("reference", outcome.unmatched_reference),
        ("candidate", outcome.unmatched_candidate),
    )
    return tuple((side, name, call) for side, calls in sides for name, call in calls)
