"""Turns pairs of calls into rows: one per compared leaf, in execution order.

A `Comparer` is the visitor of a lockstep run. It pairs arguments by name and outputs by path,
compares each pair of tensors at once and keeps numbers only, so that no activation lives longer
than its comparison. What an accelerator holds it measures while both models go on; see `Underway`.
A pair that has been compared is not compared again while both tensors live
unchanged: a hidden state is an output here and an input there, and a mask goes to every layer.
What else a run does, its interventions do.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import ParamSpec

import torch

from tracer.execution.hooks import Answer, Call, Phase
from tracer.execution.side import EventKey, SideObserver
from tracer.measurement.arguments import CallPair
from tracer.measurement.compared_pairs import Compared, ComparedPairs, Remembered
from tracer.measurement.final_output import FinalOutput
from tracer.measurement.gathered import leave_gathered_out
from tracer.measurement.intervention import Intervention, merged
from tracer.measurement.layout import nested_otherwise
from tracer.measurement.leaf_pairs import LeafKind, have_tensors_alike, is_any_tensor, leaf_pairs
from tracer.measurement.padding import Padding, Paddings, padding_of, visible_on_host
from tracer.measurement.pairs import Measured, Tensor, unpadded_difference
from tracer.measurement.plain_values import equal, is_comparable, is_form, summary
from tracer.measurement.remarks import Remark, RemarkKind
from tracer.measurement.rows import CallKey, CallRecord, FormDifference, Row, enclosing
from tracer.measurement.tensor_pair import TensorPair
from tracer.measurement.underway import Begun, Underway
from tracer.measurement.written import Marks, changes, marks
from tracer.tensors.difference import Difference
from tracer.tensors.fingerprints import Fingerprint
from tracer.tensors.leaves import LeftOut, describe, is_stateful
from tracer.tensors.masks import describe_mask
from tracer.tensors.roles import DEFAULT_ROLES, Roles, is_any
from tracer.tensors.samples import Sample, Sampler
from tracer.tensors.tolerance import Tolerance
from tracer.tensors.value_path import OUTPUT, ValuePath, Walk

P = ParamSpec("P")


class Comparer:
    """The visitor that compares: see the module's docstring.

    Attributes:
        rows: one per compared leaf, in execution order.
        records: every pair of calls, in the order in which they began.
        edited: events whose values were edited in place before they could be compared; their rows
            are wrong until a run in which lockstep clones them, and nothing of them is underway.
        skipped: how many values were not compared, by what they are.
        final: what was compared of the models' own outputs.
        compared_elements: how many elements were compared, each pair of tensors counted once.
        tolerance: how far pairs may lie apart, from where it stands on; autocast rounds further.
        roles: what arguments are, as their names say.
        rounding: the noise floor of values, by module, call and path, where it was measured.
        observer: the one of the interventions that is also told of each side's events.
    """

    def __init__(
        self,
        tolerance: Tolerance,
        interventions: Sequence[Intervention] = (),
        *,
        roles: Roles = DEFAULT_ROLES,
        progress: Callable[[int], None] | None = None,
        sampler: Sampler | None = None,
        at_once: Set[EventKey] = frozenset(),
        relates: bool = True,
        is_on_host: bool = False,
    ) -> None:
        """Makes one for one run.

        Args:
            at_once: events of which nothing stays underway.
            relates: known mistakes are looked for in what differs.
            is_on_host: no values are expected on an accelerator, and none stays underway.
        """
        self.records: dict[CallKey, CallRecord] = {}
        self.edited: set[EventKey] = set()
        self.tolerance = tolerance
        self.roles = roles
        self.observer = next((i for i in interventions if isinstance(i, SideObserver)), None)
        self._interventions = interventions
        self._progress = progress
        self._sampler = sampler
        self.final = FinalOutput()
        self.skipped = Counter[LeafKind]()
        self.compared_elements = 0
        self.rounding: Mapping[tuple[str, int, str], float] = {}
        self._next = itertools.count(1).__next__  # places in execution order
        self._finished = 0
        self._paddings = Paddings()
        self._compared = ComparedPairs()
        self._rows: list[Row] = []
        self._underway = Underway()
        self._at_once = at_once
        self._relates = relates
        self._is_on_host = is_on_host
        # What happens, and what is done later about what has happened.
        self._event: EventKey = "", 0, Phase.START
        self._walk = Walk()  # nothing changes while both models stand at an event
        self._visible = Remembered(visible_on_host)
        self._words = Remembered(describe), Remembered(describe_mask)
        self._given: dict[CallKey, tuple[Marks, Marks]] = {}

    def visit(self, reference: Call, candidate: Call, phase: Phase) -> Answer:
        """Compares the arguments of two calls that have started, or the outputs of two ended."""
        calls = CallPair(reference, candidate, self.roles)
        key = reference.name, reference.index
        self._event = *key, phase
        self._walk.forget()
        if self._event in self._at_once:
            self._underway.settle()
        if reference.autocast is not candidate.autocast:
            self.tolerance = self.tolerance.working_in(*calls.autocast_on_one_side())
        if phase is Phase.START:
            if not self._interventions:
                self._start(calls)
                return None
            answers = [each.before_start(calls) for each in self._interventions]
            record = self._start(calls)
            answers += [each.on_start(calls, record, self) for each in self._interventions]
            return merged(answers)
        ended = self.records.get(key)
        if not self._interventions:
            if ended is not None:
                self._end(calls, ended)
            return None
        answers = [each.before_end(calls) for each in self._interventions]
        if ended is not None:  # else its start was given up as unmatched
            self._end(calls, ended)
            answers += [each.on_end(calls, ended, self) for each in self._interventions]
        return merged(answers)

    def stale(self, key: EventKey, paths: frozenset[str]) -> None:
        """Notes an event that must be cloned in another run."""
        self.edited.add(key)

    def end(self) -> None:
        """Waits for what is underway."""
        self._underway.settle()

    @property
    def rows(self) -> list[Row]:
        self._underway.settle()
        return self._rows

    def paddings(self, record: CallRecord) -> Iterator[Padding]:
        """What a call and those around it say of padding."""
        return self._paddings.known(self._around(record))

    def known(self, r: Tensor, c: Tensor) -> Row | None:
        """The row of a pair of tensors that was compared, and that has not changed since."""
        self._underway.settle()
        known = self._compared.find(r, c)
        return None if known is None else known.row

    def unpadded(
        self, record: CallRecord, r: Tensor, c: Tensor, *, is_kept: bool = False
    ) -> Difference | None:
        """The difference without padded positions that a call and those around it say; see
        `unpadded_difference`."""
        return unpadded_difference(self.paddings(record), r, c, self.tolerance, is_kept=is_kept)

    def _start(self, calls: CallPair) -> CallRecord:
        reference, candidate = calls.reference, calls.candidate
        key = calls.key
        parent = enclosing(reference, self.records)
        if parent is not None:
            self.records[parent].children.append(key)
        made = CallRecord.of if self._is_on_host else self._underway.record
        record = made(reference, candidate, parent, start=self._next())
        self.records[key] = record
        padding = padding_of(reference, self.roles, self._visible)
        if padding is not None:
            self._paddings.note(self._around(record), padding)
        for name, r, c in calls.arguments():
            if r is not None or c is not None:
                self._compare_values(record, ValuePath.of_argument(name), r, c)
        sides = reference.arguments, candidate.arguments
        self._given[key] = marks(sides[0], self._walk), marks(sides[1], self._walk)
        return record

    def _end(self, calls: CallPair, record: CallRecord) -> None:
        self._compare_values(record, OUTPUT, *calls.outputs())
        self._compare_written(record, calls)
        if self._paddings and (paddings := list(self.paddings(record))):
            self._then(self._leave_gathered_out, record, paddings)
        record.end = self._next()
        self._finished += 1
        if self._progress is not None:
            self._progress(self._finished)

    def _leave_gathered_out(self, record: CallRecord, paddings: Sequence[Padding]) -> None:
        self.compared_elements -= leave_gathered_out(record, self.records, self._rows, paddings)

    def _compare_written(self, record: CallRecord, calls: CallPair) -> None:
        """Compares what the calls have changed in caches, lists and dicts that they were given.

        Plain tensors that were edited in place are noted, not compared: most such edits save memory
        and do nothing else.
        """
        given = self._given.pop(record.key)
        sides = calls.reference.arguments, calls.candidate.arguments
        left = marks(sides[0], self._walk), marks(sides[1], self._walk)
        if given == left:
            return
        changed = [changes(before, now) for before, now in zip(given, left, strict=True)]
        names = {own: name for name, own in calls.names().items()}
        changed[1] = {
            ValuePath(path.kind, names.get(path.argument or "", path.argument), path.inside)
            for path in changed[1]
        }
        edited = []
        for name, r, c in calls.arguments():
            if is_stateful(r) or is_stateful(c):
                paths = changed[0] | changed[1]
                self._compare_values(record, ValuePath.of_written(name), r, c, only=paths)
            elif name in {path.argument for path in changed[1] - changed[0]}:
                edited.append(name)
        record.edited = tuple(edited)

    def _compare_values(
        self,
        record: CallRecord,
        path: ValuePath,
        r: object,
        c: object,
        only: Set[ValuePath] | None = None,
    ) -> None:
        if only is None and type(r) is type(c) is torch.Tensor and not (r.is_nested or c.is_nested):
            # What most values are: a tensor on either side.
            if (r.is_meta or c.is_meta) and not is_comparable(r, path, {path: c}):
                self.skipped[LeafKind.NOT_COMPARABLE] += 1
            else:
                self._compare_tensors(record, path, r, c)
            return
        reference, candidate = (
            {p: leaf for p, leaf in self._leaves(path, value) if only is None or p in only}
            for value in (r, c)
        )
        if only is None and not have_tensors_alike(reference, candidate):
            names = nested_otherwise(r, c)
            taken = {
                path.inner(own): candidate.pop(path.inner(other)) for own, other in names.items()
            }
            candidate |= taken
        is_final = path == OUTPUT and not record.module
        wrong: dict[ValuePath, object] = {}
        common = False
        if only is None and ((r is None and not candidate) or (c is None and not reference)):
            self._differ_in_form(record, path, r, c)  # None for a cache that is empty yet
        for pair in leaf_pairs(reference, candidate, reads_numbers=path == OUTPUT):
            kind, leaf_path, left, right = pair.kind, pair.path, pair.left, pair.right
            if kind is LeafKind.TENSORS:
                assert isinstance(left, Tensor)
                assert isinstance(right, Tensor)
                common = True
                self._compare_tensors(record, leaf_path, left, right)
            elif kind is LeafKind.EQUAL:
                if is_final and left is not None:
                    common = True
                    self.final.note_plain()
            elif kind is LeafKind.MISSING:
                wrong[leaf_path] = left
            elif kind is LeafKind.APART:
                self._differ_in_form(record, leaf_path, left, right)
                if not is_form(left, right):
                    wrong[leaf_path] = left
            else:
                common = True
                self.skipped[kind] += 1
        for leaf_path, right in candidate.items():
            is_said = isinstance(right, Tensor) or (is_final and right is not None)
            if leaf_path not in reference and is_said:
                self._differ_in_form(record, leaf_path, None, right)
        is_left_otherwise = path != OUTPUT and only is not None and reference and candidate
        if not common and (path == OUTPUT or is_left_otherwise):
            self._judge_form(record, path, reference, candidate)
        elif is_final:
            wrong = self.final.wrong(wrong, candidate, self.roles)
            found = {p: right for p, right in candidate.items() if p in wrong}
            if wrong:
                self._add_form(record, next(iter(wrong)), RemarkKind.RETURNED, wrong, found)

    def _leaves(self, path: ValuePath, value: object) -> Iterator[tuple[ValuePath, object]]:
        """The leaves of a value, of an output everything but the counters of a cache."""
        for inner, leaf in path.leaves(value, everything=path == OUTPUT, walk=self._walk):
            is_part = isinstance(leaf, torch.Tensor | LeftOut) or path != OUTPUT
            if is_part or not is_any(inner, self.roles.caches):
                yield inner, leaf

    def _compare_tensors(self, record: CallRecord, path: ValuePath, r: Tensor, c: Tensor) -> None:
        known = self._compared.find(r, c)
        if known is not None:
            words = None if known.row is None else self._described(known.row, path, r, c)
            again = record, known, path, r, c, words
            if self._underway.waiting:
                order = self._next() if path.is_result else 0
                self._underway.add(partial(self._enter_again, *again, order), r, c)
            else:
                self._enter_again(*again)
            return
        by = self.roles, self.tolerance, partial(self.paddings, record), self._relates
        pair = TensorPair.of(record, path, self._event, r, c, by)
        is_later = not (self._is_on_host or self._sampler or self._event in self._at_once)
        begun = Begun.of(pair) if is_later else None
        if begun is not None:
            pair.paddings = partial(iter, tuple(pair.paddings()))  # as they are known by now
            later = partial(self._enter_begun, begun, self._next(), self._compared.enter(r, c))
            self._underway.add(later, r, c, begun)
        elif not self._compare_at_once(pair):
            return
        if r.dtype == record.autocast:
            self.tolerance = self.tolerance.working_in(r.dtype)

    def _compare_at_once(self, pair: TensorPair) -> bool:
        """Says whether there is anything to compare."""
        found = pair.measured()
        if found is None and pair.is_estimated:
            # What a mask lets through is known only if both are equal.
            self.skipped[LeafKind.LEFT_OUT] += 1
        elif found is None:
            self._differ_in_form(pair.record, pair.path, pair.r, pair.c)
        else:
            compared = self._compared.enter(pair.r, pair.own)
            is_usual = found.agrees and not found.remarks
            words = None if is_usual else self._described(found, pair.path, pair.r, pair.own)
            self._then(self._enter, pair, self._next(), found, compared, words)
        return found is not None

    def _enter_begun(self, begun: Begun, order: int, compared: Compared) -> None:
        """Enters a pair of which the numbers are there."""
        pair, (found, are_needed) = begun.pair, begun.measured()
        if are_needed and not compared.is_unchanged():
            self.edited.add(pair.event)
        words = self._described(found, pair.path, pair.r, pair.own)
        self._enter(pair, order, found, compared, words)

    def _enter_again(
        self,
        record: CallRecord,
        compared: Compared,
        path: ValuePath,
        r: Tensor,
        c: Tensor,
        words: tuple[str, str] | None,
        order: int = 0,
    ) -> None:
        """Enters a pair that was compared before: an output once, an argument by its name."""
        earlier = compared.row
        assert earlier is not None  # it was entered before
        if path.is_result and not record.module:
            self.final.note(earlier)
        if not path.is_result:
            record.arguments[path] = earlier
            if (words := words or self._described(earlier, path, r, c)) is not None:
                record.described[path] = words
        elif not record.outputs:
            again = replace(
                earlier,
                order=order or self._next(),
                module=record.module,
                call=record.call,
                candidate_module=record.other_name,
                value=path,
                sample=earlier.sample or self._sampled(path, r, c),
                input_peir=record.input_peir,
            )
            self._add(record, again)
        else:
            record.passed_on.append(earlier)

    def _sampled(
        self, path: ValuePath, r: Tensor, c: Tensor, found: Measured | None = None
    ) -> Sample | None:
        if self._sampler is None or not path.is_result or r.shape != c.shape:
            return None
        if isinstance(r, Fingerprint) or isinstance(c, Fingerprint):
            return None
        return self._sampler.sample(r, c, None if found is None else found.whole)

    def _enter(
        self,
        pair: TensorPair,
        order: int,
        found: Measured,
        compared: Compared,
        words: tuple[str, str] | None,
    ) -> None:
        """Keeps the row of a pair that was compared."""
        row = pair.row(order, found, self._sampled(pair.path, pair.r, pair.c, found))
        if self.rounding:
            row = row.allowing(self.rounding.get((row.module, row.call, row.value)))
        self.compared_elements += row.difference.elements if row.difference is not None else 0
        if not row.module and row.is_output:
            self.final.note(row)
        compared.row = row
        self._add(pair.record, row)
        if words is not None and row.agrees == found.agrees:  # else it is rounding
            pair.record.described[row.value] = words

    def _around(self, record: CallRecord) -> list[CallKey]:
        """A call and those around it."""
        keys, parent = [record.key], record.parent
        while parent is not None:
            keys.append(parent)
            parent = self.records[parent].parent
        return keys

    def _described(
        self, found: Row | Measured, path: ValuePath, r: Tensor, c: Tensor
    ) -> tuple[str, str] | None:
        """What each side passed, where that is of interest."""
        if path.is_result:
            return None
        is_other = any(remark.kind is RemarkKind.BY_MEANING for remark in found.remarks)
        if found.agrees and not is_other:
            return None
        words = self._words[self.roles.is_mask(path)]
        return words(r), words(c)

    def _then(self, action: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Does something once all that is underway has come to its end."""
        if self._underway.waiting:
            self._underway.then(partial(action, *args, **kwargs))
        else:
            action(*args, **kwargs)

    def _add(self, record: CallRecord, row: Row) -> None:
        self._rows.append(row)
        if row.value.is_result:
            record.outputs.append(row)
        else:
            record.arguments[row.value] = row

    def _differ_in_form(self, record: CallRecord, path: ValuePath, r: object, c: object) -> None:
        words = self._words[self.roles.is_mask(path)]
        record.form_differences.append(
            FormDifference(
                *(self._next(), record.module, record.call, path, words(r), words(c)),
                is_mask=self.roles.is_mask(path),
                one_is_none=r is None or c is None,
                missing_on="reference" if r is None else "candidate" if c is None else "",
                is_cache=is_any(path, self.roles.caches),
            )
        )

    def _judge_form(
        self,
        record: CallRecord,
        path: ValuePath,
        reference: Mapping[ValuePath, object],
        candidate: Mapping[ValuePath, object],
    ) -> None:
        """A row for results without any tensor in common, unless they are equal plain values."""
        if not is_any_tensor(*reference.values(), *candidate.values()) and (
            reference.keys() == candidate.keys()
            and all(equal(value, candidate[name]) for name, value in reference.items())
        ):
            return
        kind = RemarkKind.RETURNED if path == OUTPUT else RemarkKind.LEFT
        self._add_form(record, path, kind, reference, candidate)

    def _add_form(
        self,
        record: CallRecord,
        path: ValuePath,
        kind: RemarkKind,
        reference: Mapping[ValuePath, object],
        candidate: Mapping[ValuePath, object],
    ) -> None:
        remark = Remark(kind, summary(reference), summary(candidate))
        form = Row.of_form(self._next(), record.key, path, remark, record.other_name)
        self._then(lambda: self._add(record, replace(form, input_peir=record.input_peir)))
