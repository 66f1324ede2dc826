"""What if these modules were the reference's? A run in which they compute in the candidate's place.

At the start of such a call the candidate's inputs are taken down in the reference's form, and at
its end the reference's module computes from them what the candidate goes on with, in a cache that
it was given too. A module is swapped with all that it calls.
"""

from collections.abc import Collection
from dataclasses import replace

import torch

from tracer.execution.hooks import Answer, Call, Phase
from tracer.interventions.repeat_call import Recall
from tracer.interventions.substitution import device_of, give_output, in_place_of
from tracer.measurement.arguments import paired_arguments
from tracer.measurement.comparer import Comparer
from tracer.measurement.rows import CallKey
from tracer.tensors.leaves import deep_copy
from tracer.tensors.masks import is_mask_name
from tracer.tensors.tolerance import Tolerance


class Swapping(Comparer):
    """The visitor of such a run; its rows compare what the candidate goes on with.

    Attributes:
        unswapped: modules whose output has a form of the candidate's own that could not be made.
    """

    def __init__(self, tolerance: Tolerance, modules: Collection[str]) -> None:
        """Chooses the modules by the reference's names."""
        super().__init__(tolerance)
        self.unswapped: set[str] = set()
        self._modules = modules
        self._recalls: dict[CallKey, Recall] = {}

    def visit(self, reference: Call, candidate: Call, phase: Phase) -> Answer:
        """Swaps, then compares."""
        answer: Answer = None
        key = reference.name, reference.index
        if reference.name in self._modules:
            if phase is Phase.START:
                inputs = _candidates_inputs(reference, candidate)
                self._recalls[key] = Recall(reference, inputs)
            elif key in self._recalls:
                answer = self._swap(reference, candidate, self._recalls.pop(key))
        super().visit(reference, candidate, phase)
        return answer

    def _swap(self, reference: Call, candidate: Call, recall: Recall) -> Answer:
        output, left = recall()
        answer = give_output(replace(reference, arguments=left, output=output), candidate)
        if answer is None:
            self.unswapped.add(reference.name)
        return answer


def _candidates_inputs(reference: Call, candidate: Call) -> dict[str, object]:
    """The candidate's inputs as the reference's module takes them.

    A mask in a form of the candidate's own is the reference's here; where it means something else,
    the module that made it is to blame, and no swap of one that takes it would help.
    """
    kept: dict[str, object] = deep_copy(reference.arguments)
    for name, _, own in paired_arguments(reference, candidate):
        if (
            name not in kept
            or own is None
            or (is_mask_name(name) and not _is_like(own, kept[name]))
        ):
            continue
        kept[name] = in_place_of(kept[name], own, set(), device_of(reference.arguments))
    return kept


def _is_like(own: object, theirs: object) -> bool:
    """Whether two masks are of one form."""
    return (
        isinstance(own, torch.Tensor)
        and isinstance(theirs, torch.Tensor)
        and (own.shape, own.dtype) == (theirs.shape, theirs.dtype)
    )
