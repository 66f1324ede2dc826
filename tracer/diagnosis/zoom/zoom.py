"""The exact line: which operation inside one module makes the first value that is wrong.

>>> comparison = tracer.compare(reference, candidate, inputs)
>>> comparison.zoomed.culprit.text, comparison.zoomed.expected.text
('return logits.softmax(-1)', 'attn_weights = attn_weights + attention_mask')

In one more run the operations inside one call of the module are recorded on both sides, and each
value of the candidate is looked for among the reference's. A candidate may work in its own way and
form many values that the reference never has; they are innocent as long as what they lead to is
found again. The culprit is the first operation from which no value that is found again follows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from tracer.diagnosis.finding import Origin
from tracer.diagnosis.zoom.case import Case, Culprit, SideLog, ZoomKind, case_of, wrong_values
from tracer.diagnosis.zoom.culprit import ALIGNED, RULES, Rule, culprit_of
from tracer.diagnosis.zoom.matching import Match, match
from tracer.diagnosis.zoom.naming import named_operations, own_line
from tracer.diagnosis.zoom.operations import MOST_BYTES, Operation, OperationLog, at_line
from tracer.errors import RecordingTooLargeError, UsageError, near_names
from tracer.execution.hooks import Answer, Call, NewArguments, hides_children
from tracer.interventions.experiment import Experiment
from tracer.interventions.forcing import Forcing, Replaced
from tracer.interventions.substitution import give_argument
from tracer.measurement.arguments import CallPair
from tracer.measurement.comparer import Comparer
from tracer.measurement.intervention import Intervention
from tracer.measurement.rows import CallKey, CallRecord, Row
from tracer.tensors.leaves import is_stateful
from tracer.tensors.tolerance import Tolerance
from tracer.tensors.value_path import OUTPUT, ValuePath
from tracer.text import short_line

_SIDES = ("reference", "candidate")


@dataclass(frozen=True)
class Zoomed:
    """What was found inside one call of a module.

    Attributes:
        module, call: the reference's name and the call index.
        kind: what was found.
        culprit: the candidate's operation; for a missing one that which goes on without it, or
            "no operation" at the line of the call where the module makes none. None if what was
            made is returned as it is, and for "none".
        expected: the reference's operation that makes the value that the candidate does not.
        made: for a missing operation, the candidate's that made the value it would have changed.
        given: arguments that differed, and in whose place the candidate was given the reference's.
        operations: how many each side made, the reference first; a call of a module counts as one.
        matched: of the candidate's, how many made a value that the reference has.
        leading_to_match: how many did not, and led to one.
        unmatched: how many did not and led to a wrong result only; the first of them is the
            culprit, unless one of `tracer.diagnosis.zoom.culprit.RULES` explains it.
        is_backward: the operations are those of the call's backward.
        candidate_module: the candidate's name of the module; None where it is the reference's.
    """

    module: str
    call: int
    kind: ZoomKind
    culprit: Operation | None
    expected: Operation | None
    made: Operation | None
    given: tuple[str, ...]
    operations: tuple[int, int]
    matched: int
    leading_to_match: int
    unmatched: int
    is_backward: bool = False
    candidate_module: str | None = None

    def __repr__(self) -> str:
        place = "" if self.culprit is None else f" at {short_line(self.culprit.location)}"
        return f"<Zoomed: {self.kind} in {self.module or 'the root'}{place}>"

    @property
    def guilty(self) -> Operation | None:
        """The culprit, under the name that it had before; kept for scripts that read it."""
        return self.culprit

    @property
    def explanation(self) -> str:
        """The finding in words, several lines."""
        import tracer

        return tracer.explain(self)


def zoom(
    module: str,
    free: Comparer,
    experiment: Experiment,
    *,
    inward: bool = True,
    rules: Sequence[Rule] = RULES,
    argument: str | None = None,
) -> Zoomed | None:
    """Looks for the culprit inside a module, in one more run of both models.

    Args:
        module: the reference's name.
        free: the finished run in which the candidate inherits its errors.
        experiment: runs both models again.
        inward: where the culprit is the call of another module whose inputs are right, go
            on in that one.
        rules: what may name the culprit.
        argument: what the module passes on wrongly; by default its results are what is wrong.

    Returns:
        What was found; None where the operations cannot be seen: inside compiled code, in a call
        that only one side makes, or where a model raises.
    """
    record = _call_of(module, free)
    if record is None or _is_opaque(record, experiment):
        return None
    closer = ZoomVisitor(record.key, rules, argument)
    try:
        failure = experiment.rerun(closer).failure
    except RecordingTooLargeError:
        return None
    if failure is not None or closer.zoomed is None:
        return None
    found = replace(closer.zoomed, candidate_module=record.other_name)
    if inward and closer.leads_into is not None:
        deeper = zoom(closer.leads_into, free, experiment)
        return deeper if deeper is not None and deeper.kind is not ZoomKind.NONE else found
    return found


def named_by_user(module: str, pairs: Mapping[str, str]) -> str:
    """The reference's name of a module that the user has named as either side does.

    Args:
        pairs: the modules that the models have in common, the reference's names by the
            candidate's.

    Raises:
        UsageError: it is none of these.
    """
    known = dict.fromkeys(pairs.values())
    if module in known:
        return module
    if module not in pairs:
        raise UsageError(
            f"zoom {module!r}: expected one of the {len(known)} modules that the models have in "
            f"common{near_names(module, [*known, *pairs])}"
        )
    return pairs[module]


def zoom_at(
    module: str,
    free: Comparer,
    experiment: Experiment,
) -> Zoomed:
    """Zooms into a module that the user has named.

    Raises:
        UsageError: its operations cannot be seen.
    """
    found = zoom(module, free, experiment)
    if found is None:
        raise UsageError(
            f"zoom {module!r}: its operations cannot be recorded: it is not called by both models, "
            "a part of it is compiled, scripted or fused, the reference runs over all positions at "
            f"once, or they make more than {MOST_BYTES / 2**30:.3g} GiB of values (give shorter "
            "inputs)"
        )
    return found


def zoom_of(
    origin: Origin | None,
    free: Comparer,
    experiment: Experiment,
) -> Zoomed | None:
    """Zooms into the module of an origin that lies in that module's own forward.

    A wrong argument that the module passes on is looked for where both sides run the same
    operations, and else by what it is made of.
    """
    if origin is None or origin.kind not in ("computation", "argument"):
        return None
    rules = RULES if origin.kind == "computation" else ALIGNED
    try:
        found = zoom(origin.module, free, experiment, inward=False, rules=rules)
        if origin.argument is not None and (found is None or found.kind is ZoomKind.NONE):
            found = zoom(origin.module, free, experiment, inward=False, argument=origin.argument)
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        # Kinds of tensors that lack the operators which values are matched by (nested, masked,
        # parts of a byte): the module stays named without its line.
        return None
    return None if found is None or found.kind is ZoomKind.NONE else found


class ZoomVisitor(Intervention):
    """The intervention of that run.

    The module starts from the reference's arguments, so that what differs inside is its own. It is
    a `SideObserver` of lockstep's: recordings are in force on each side for the time of the call.

    Attributes:
        zoomed: what was found; None until the call has ended on both sides.
        leads_into: the module whose call is the culprit, if that is what it is and its
            inputs are right.
    """

    def __init__(self, key: CallKey, rules: Sequence[Rule], argument: str | None = None) -> None:
        self.zoomed: Zoomed | None = None
        self.leads_into: str | None = None
        self._key = key
        self._rules = rules
        self._argument = argument
        # What is not compared, at padded positions, is a value inside all the same.
        self._forcing = Forcing(replaced=Replaced.ALL)
        self._recordings: dict[str, OperationLog] = {}
        self._replaced: list[str] = []
        self._returned: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._passed: tuple[list[torch.Tensor], list[torch.Tensor]] = [], []

    def begins(self, side: str, name: str, call: Call) -> None:
        """Starts to record, or notes the call of another module."""
        recording = self._recordings.get(side)
        if recording is not None and not recording.finished:
            recording.begin_call(call)
        elif recording is None and (name, call.index) == self._key:
            self._recordings[side] = OperationLog()
            self._recordings[side].begin()

    def ends(self, side: str, name: str, call: Call) -> None:
        """Stops recording, or notes the end of another module's call."""
        recording = self._recordings.get(side)
        if recording is None or recording.finished:
            return
        if (name, call.index) == self._key:
            recording.end()
        else:
            recording.end_call(name, call)

    def on_start(self, calls: CallPair, record: CallRecord, run: Comparer) -> Answer:
        """Gives the candidate the reference's arguments."""
        if record.key != self._key:
            self._note_passed(calls, record)
            return None
        return self._masks_given(calls, record, self._forcing.on_start(calls, record, run))

    def on_end(self, calls: CallPair, record: CallRecord, run: Comparer) -> Answer:
        """Judges."""
        if record.key != self._key:
            self._note_returned(calls, record)
            return None
        sides = [self._recordings.get(side) for side in _SIDES]
        if sides[0] is not None and sides[1] is not None:
            self._judge(calls, record, run, (sides[0], sides[1]))
        self._recordings.clear()
        self._returned.clear()
        self._passed = [], []
        return None

    def _note_passed(self, calls: CallPair, record: CallRecord) -> None:
        """What the module passes on and is wrong, which may be lost in what it returns."""
        if self._argument is not None:
            forms = {form.value.argument for form in record.form_differences}
            forms |= {path.argument for path, row in record.arguments.items() if not row.agrees}
            if record.parent == self._key and self._argument in forms and not any(self._passed):
                name = self._argument
                both = next(values for own, *values in calls.arguments() if own == name)
                for passed, value in zip(self._passed, both, strict=True):
                    passed += ValuePath.of_argument(name).tensors(value).values()
            return
        is_mask = calls.roles.is_mask
        rows = record.arguments.items()
        wrong = {path for path, row in rows if not row.agrees and not is_mask(path)}
        if record.parent != self._key or not wrong:
            return
        for name, *values in calls.arguments():
            leaves = [ValuePath.of_argument(name).tensors(value) for value in values]
            for path in sorted(wrong & leaves[0].keys() & leaves[1].keys()):
                self._passed[0].append(leaves[0][path])
                self._passed[1].append(leaves[1][path])

    def _note_returned(self, calls: CallPair, record: CallRecord) -> None:
        is_recorded = any(not recording.finished for recording in self._recordings.values())
        if not is_recorded or not all(row.agrees for row in record.outputs):
            return
        both = calls.reference, calls.candidate
        pair = [list(OUTPUT.tensors(call.output).values()) for call in both]
        if len(pair[0]) == len(pair[1]) == 1:
            self._returned.append((pair[0][0], pair[1][0]))

    def _masks_given(self, calls: CallPair, record: CallRecord, answer: Answer) -> Answer:
        """Gives the candidate masks that mean something else, too, and notes what was given."""
        values = dict(answer.values) if isinstance(answer, NewArguments) else {}
        wrong = {path.argument or "" for path, row in record.arguments.items() if not row.agrees}
        for name in sorted(wrong):
            is_mask = calls.roles.is_mask(name)
            if is_mask and not is_stateful(calls.reference.arguments.get(name)):
                given = give_argument(calls, name)
                values.update({} if given is None else given.values)
        self._replaced = sorted(wrong)
        return NewArguments(values) if values else None

    def _judge(
        self,
        calls: CallPair,
        record: CallRecord,
        run: Comparer,
        recordings: tuple[OperationLog, OperationLog],
    ) -> None:
        tolerance = run.tolerance
        limit = max(tolerance.limit(dtype, dtype) for dtype in _working(tolerance))
        paddings = list(run.paddings(record))
        reference, candidate = recordings
        wrong = self._wrong_results(calls, record, run, limit)
        found = match(candidate.values, reference.values, limit, paddings)
        for own, other in self._declared(recordings):
            found[own] = found[own] or [Match(other, 1.0, True, False)]
        both = calls.reference, calls.candidate
        results = [wrong_values(*side, wrong) for side in zip(both, recordings, strict=True)]
        if self._argument is not None:
            results = [
                [known for leaf in handed if (known := each.known(leaf)) is not None]
                for each, handed in zip(recordings, self._passed, strict=True)
            ]
            if not results[1]:  # it is not made here
                return
        elif not wrong:
            results = [
                [each.known(leaf) for leaf in handed] or result
                for each, handed, result in zip(recordings, self._passed, results, strict=True)
            ]
        is_wrong = bool(wrong) or any(self._passed)
        sides = SideLog(reference, results[0]), SideLog(candidate, results[1])
        case = case_of(sides, found, limit, is_wrong=is_wrong)
        culprit = culprit_of(case, self._rules, edits=bool(record.edited))
        zoomed = zoomed_at(self._key, case, culprit, tuple(self._replaced))
        if zoomed.kind is ZoomKind.MISSING and zoomed.culprit is None and zoomed.made is None:
            zoomed = replace(zoomed, culprit=at_line("no operation", record.candidate_caller))
        self.zoomed = zoomed
        if culprit.step is not None and culprit.kind is ZoomKind.WRONG:
            step = candidate.steps[culprit.step]
            if step.is_call and case.takes_right_values(culprit.step):
                self.leads_into = step.name

    def _declared(self, recordings: tuple[OperationLog, OperationLog]) -> Iterator[tuple[int, int]]:
        """What modules have returned in a form of their own, and agrees when it is read back."""
        for r, c in self._returned:
            values = recordings[0].known(r), recordings[1].known(c)
            if values[0] is not None and values[1] is not None:
                yield values[1], values[0]

    def _wrong_results(
        self, calls: CallPair, record: CallRecord, run: Comparer, limit: float
    ) -> list[Row]:
        """The rows of what the calls return and leave in their arguments, as far as it is wrong.

        What one of the modules inside has returned has a row there.
        """
        rows = {row.value: row for row in record.outputs}
        reference, candidate = map(OUTPUT.tensors, calls.outputs())
        for path in reference.keys() & candidate.keys() - rows.keys():
            known = run.known(reference[path], candidate[path])
            if known is not None:
                rows[path] = replace(known, value=path)
        wrong = [row for row in rows.values() if not row.agrees]
        # Of another dtype, a row's own limit is coarser than what the module works in.
        return wrong or [
            row for row in rows.values() if row.candidate_dtype != row.dtype and row.peir > limit
        ]


def zoomed_at(
    key: CallKey, case: Case, culprit: Culprit, given: tuple[str, ...], *, is_backward: bool = False
) -> Zoomed:
    """What was found in a call, as it is reported."""
    reference, candidate = case.reference.recording, case.candidate.recording
    named, expected = named_operations(reference, candidate, culprit)
    return Zoomed(
        module=key[0],
        call=key[1],
        kind=culprit.kind,
        culprit=named,
        expected=expected,
        made=own_line(candidate, culprit.made, reference),
        given=given,
        operations=(len(reference.steps), len(candidate.steps)),
        matched=case.matched,
        leading_to_match=case.leading_to_match,
        unmatched=len(case.unmatched),
        is_backward=is_backward,
    )


def _call_of(module: str, free: Comparer) -> CallRecord | None:
    """The first call of a module in which something is wrong; its first call if nothing is."""
    calls = [record for (name, _), record in free.records.items() if name == module]
    ended = [record for record in calls if record.end >= 0]
    wrong = [row.order for row in free.rows if not row.agrees and not row.is_mask]
    for record in ended:
        if record.edited or any(record.start <= order <= record.end for order in wrong):
            return record
    return next(iter(ended), None)


def _is_opaque(record: CallRecord, experiment: Experiment) -> bool:
    modules = experiment.modules
    both = modules[0][record.module], modules[1][record.candidate_module]
    return any(hides_children(inner) for module in both for inner in module.modules())


def _working(tolerance: Tolerance) -> Sequence[torch.dtype]:
    """The dtypes that count: a coarser value in a module of these is a mistake itself."""
    return tolerance.working or (torch.float32,)
