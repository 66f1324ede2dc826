"""What takes part in a run beside the comparison: it changes what the candidate goes on with, or
takes something down.

A `Comparer` asks its interventions one after the other at each pair of calls. They are composed,
never inherited: what one of them has changed in a call, the next one sees.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tracer.execution.hooks import Answer, NewArguments
from tracer.measurement.arguments import CallPair
from tracer.measurement.rows import CallRecord

if TYPE_CHECKING:
    from tracer.measurement.comparer import Comparer


class Intervention:
    """One that does nothing; a subclass states at which moments it does something."""

    def before_start(self, calls: CallPair) -> Answer:
        """Both calls have started; what the candidate is given is compared in its place."""

    def on_start(self, calls: CallPair, record: CallRecord, run: "Comparer") -> Answer:
        """Their arguments have been compared."""

    def before_end(self, calls: CallPair) -> Answer:
        """Both calls have ended; what the candidate is to return is compared in its place."""

    def on_end(self, calls: CallPair, record: CallRecord, run: "Comparer") -> Answer:
        """Their outputs have been compared."""


def merged(answers: Iterable[Answer]) -> Answer:
    """One answer: all new arguments, the last of each name, or the last new output."""
    values: dict[str, object] = {}
    last: Answer = None
    for answer in answers:
        if isinstance(answer, NewArguments):
            values.update(answer.values)
            last = NewArguments(values)
        elif answer is not None:
            last = answer
    return last
