"""What if these modules were the reference's? A run in which those compute instead.

At the start of such a call the candidate's inputs are taken down in the reference's form, and at
its end the reference's module computes from them what the candidate goes on with, in a cache that
it was given too. A module is swapped with all that it calls.
"""

from collections.abc import Collection
from dataclasses import replace

import torch

from tracer.execution.hooks import Answer
from tracer.interventions.repeat_call import Recall
from tracer.interventions.substitution import device_of, give_output, in_form_of
from tracer.measurement.arguments import CallPair
from tracer.measurement.intervention import Intervention
from tracer.measurement.rows import CallKey
from tracer.tensors.rebuilding import deep_copy


class Swapping(Intervention):
    """The intervention of such a run, whose rows compare what the candidate goes on with.

    Attributes:
        unswapped: modules whose output has a form of the candidate's own that could not be made.
    """

    def __init__(self, modules: Collection[str]) -> None:
        """Chooses the modules by the reference's names."""
        self.unswapped: set[str] = set()
        self._modules = modules
        self._recalls: dict[CallKey, Recall] = {}

    def before_start(self, calls: CallPair) -> Answer:
        """Takes the candidate's inputs down."""
        if calls.reference.name in self._modules:
            self._recalls[calls.key] = Recall(calls.reference, _candidates_inputs(calls))
        return None

    def before_end(self, calls: CallPair) -> Answer:
        """Swaps."""
        recall = self._recalls.pop(calls.key, None)
        if recall is None:
            return None
        output, left = recall()
        swapped = replace(calls.reference, arguments=left, output=output)
        answer = give_output(replace(calls, reference=swapped))
        if answer is None:
            self.unswapped.add(calls.reference.name)
        return answer


def _candidates_inputs(calls: CallPair) -> dict[str, object]:
    """The candidate's inputs as the reference's module takes them.

    A mask in a form of the candidate's own is the reference's here; where it means something else,
    the module that made it is to blame, and no swap of one that takes it would help.
    """
    given = calls.reference.arguments
    kept: dict[str, object] = deep_copy(given)
    for name, _, own in calls.arguments():
        is_other_mask = calls.roles.is_mask(name) and not _is_like(own, kept.get(name))
        if name in kept and own is not None and not is_other_mask:
            kept[name] = in_form_of(kept[name], own, set(), device_of(given))
    return kept


def _is_like(own: object, theirs: object) -> bool:
    """Whether two masks are of one form."""
    return (
        isinstance(own, torch.Tensor)
        and isinstance(theirs, torch.Tensor)
        and (own.shape, own.dtype) == (theirs.shape, theirs.dtype)
    )
