"""Turns pairs of calls into rows: one per compared leaf, in execution order.

A `Comparer` is the visitor of a lockstep run. It pairs arguments by name and outputs by path,
compares each pair of tensors at once and keeps numbers only, so that no activation lives longer
than its comparison. A pair that has been compared is not compared again while both tensors live
unchanged: a hidden state is an output here and an input there, and a mask goes to every layer.
"""

import math
import weakref
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from typing import TypeGuard

import torch

from tracer.execution.hooks import Answer, Call, Phase, definition
from tracer.execution.lockstep import EventKey
from tracer.measurement.arguments import argument_names, paired_arguments, read_output
from tracer.measurement.padding import Paddings, padding_of, part_name, visible_part
from tracer.measurement.remarks import Remark, RemarkKind
from tracer.measurement.rows import (
    WRITTEN,
    CallKey,
    CallRecord,
    FormDifference,
    Row,
    argument_of,
    is_result,
)
from tracer.tensors.difference import Difference
from tracer.tensors.fingerprints import Fingerprint
from tracer.tensors.leaves import LeftOut, describe, is_plain, is_stateful, leaves, version_of
from tracer.tensors.masks import describe_mask, is_mask_name, visible_pair
from tracer.tensors.samples import Sample, Sampler
from tracer.tensors.tolerance import Tolerance

# A tensor, or what a trace holds in its place.
_Tensor = torch.Tensor | Fingerprint


class Comparer:
    """The visitor that compares: see the module's docstring.

    Attributes:
        rows: one per compared leaf, in execution order.
        records: every pair of calls, in the order in which they began.
        edited: events whose values were edited in place before they could be compared; their rows
            are wrong until a run in which lockstep clones them.
        left_out: how many of the reference's values were not to be compared.
        compared_elements: how many elements were compared, each pair of tensors counted once.
    """

    def __init__(
        self,
        tolerance: Tolerance,
        progress: Callable[[int], None] | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self.rows: list[Row] = []
        self.records: dict[CallKey, CallRecord] = {}
        self.edited: set[EventKey] = set()
        self._tolerance = tolerance
        self._progress = progress
        self._sampler = sampler
        self.left_out = 0
        self.compared_elements = 0
        self._order = 0
        self._finished = 0
        self._paddings = Paddings()
        self._compared: dict[tuple[int, int], _Compared] = {}
        self._given: dict[CallKey, tuple[_Marks, _Marks]] = {}

    def visit(self, reference: Call, candidate: Call, phase: Phase) -> Answer:
        """Compares the arguments of two calls that have started, or the outputs of two ended."""
        if phase is Phase.START:
            self._start(reference, candidate)
        else:
            self._end(reference, candidate)
        return None

    def stale(self, key: EventKey, paths: frozenset[str]) -> None:
        """Notes an event that must be cloned in another run."""
        self.edited.add(key)

    def _start(self, reference: Call, candidate: Call) -> None:
        key = reference.name, reference.index
        parent = _enclosing(reference, self.records)
        if parent is not None:
            self.records[parent].children.append(key)
        record = self.records[key] = CallRecord(
            module=reference.name,
            call=reference.index,
            candidate_module=candidate.name,
            parent=parent,
            reference_caller=reference.caller,
            candidate_caller=candidate.caller,
            reference_definition=definition(reference.module),
            candidate_definition=definition(candidate.module),
            main_argument=next(iter(reference.arguments), None),
            arguments={},
            outputs=[],
            described={},
            edited=(),
            form_differences=[],
            children=[],
            start=self._next(),
        )
        self._paddings.note(self._around(record), padding_of(reference))
        for name, r, c in paired_arguments(reference, candidate):
            self._compare_values(record, f"kwargs.{name}", r, c)
        self._given[key] = _marks(reference.arguments), _marks(candidate.arguments)

    def _end(self, reference: Call, candidate: Call) -> None:
        record = self.records.get((reference.name, reference.index))
        if record is None:
            return  # its start was given up as unmatched
        outputs = read_output("reference", reference), read_output("candidate", candidate)
        self._compare_values(record, "output", *outputs)
        self._compare_written(record, reference, candidate)
        record.end = self._next()
        self._finished += 1
        if self._progress is not None:
            self._progress(self._finished)

    def _compare_written(self, record: CallRecord, reference: Call, candidate: Call) -> None:
        """Compares what the calls have changed in caches, lists and dicts that they were given.

        Plain tensors that were edited in place are noted, not compared: most such edits save memory
        and do nothing else.
        """
        given = self._given.pop(record.key)
        left = _marks(reference.arguments), _marks(candidate.arguments)
        if given == left:
            return
        changed = [_changed(before, now) for before, now in zip(given, left, strict=True)]
        names = {own: name for name, own in argument_names(reference, candidate).items()}
        changed[1] = {_renamed(path, names) for path in changed[1]}
        edited = []
        for name, r, c in paired_arguments(reference, candidate):
            if is_stateful(r) or is_stateful(c):
                paths = {f"{WRITTEN}.{path}" for path in changed[0] | changed[1]}
                self._compare_values(record, f"{WRITTEN}.{name}", r, c, only=paths)
            elif name in {argument_of(path) for path in changed[1] - changed[0]}:
                edited.append(name)
        record.edited = tuple(edited)

    def _compare_values(
        self,
        record: CallRecord,
        path: str,
        r: object,
        c: object,
        only: Set[str] | None = None,
    ) -> None:
        reference, candidate = (
            {p: leaf for p, leaf in leaves(value, path) if only is None or p in only}
            for value in (r, c)
        )
        common = False
        if only is None and ((r is None and not candidate) or (c is None and not reference)):
            self._differ_in_form(record, path, r, c)  # None for a cache that is empty yet
        for leaf_path, left in reference.items():
            right = candidate.get(leaf_path)
            if _is_left_out(left) or _is_left_out(right):
                self.left_out += 1
                common = True
            elif isinstance(left, _Tensor) and isinstance(right, _Tensor):
                common = True
                self._compare_tensors(record, leaf_path, left, right)
            elif _is_tensor(left, right) or (leaf_path in candidate and not _equal(left, right)):
                if path == "output" and _is_number(left) and _is_number(right):
                    common = True
                    self._compare_tensors(record, leaf_path, *map(_as_tensor, (left, right)))
                else:
                    self._differ_in_form(record, leaf_path, left, right)
        for leaf_path, right in candidate.items():
            if leaf_path not in reference and isinstance(right, _Tensor):
                self._differ_in_form(record, leaf_path, None, right)
        is_left_otherwise = path != "output" and only is not None and reference and candidate
        if not common and (path == "output" or is_left_otherwise):
            self._judge_form(record, path, reference, candidate)

    def _compare_tensors(self, record: CallRecord, path: str, r: _Tensor, c: _Tensor) -> None:
        is_output = is_result(path)
        earlier = self._known(r, c)
        if earlier is not None:
            if is_output and not record.outputs:
                self._add(
                    record,
                    replace(
                        earlier,
                        order=self._next(),
                        module=record.module,
                        call=record.call,
                        value=path,
                        sample=earlier.sample or self._sampled(path, r, c),
                    ),
                )
            elif not is_output:
                record.arguments[path] = earlier
                self._describe(record, earlier, path, r, c)
            return
        if isinstance(r, Fingerprint) or isinstance(c, Fingerprint):
            self._estimate(record, path, r, c)
            return
        is_mask = not is_output and is_mask_name(path)
        visible = visible_pair(r, c) if is_mask else None
        difference: Difference | None
        remarks: tuple[Remark, ...]
        whole: Difference | None = None
        unpadded: Difference | None = None
        if visible is not None:
            difference, limit = Difference.of(*visible), 0.0
            agrees = difference.mismatched == 0
            remarks = () if agrees and _same(r, c) else (Remark(RemarkKind.BY_MEANING),)
            if not agrees:
                remarks = (Remark(RemarkKind.MASKS, describe_mask(r), describe_mask(c)),)
        elif r.shape != c.shape:
            if is_mask:
                self._differ_in_form(record, path, r, c)
                return
            difference, limit, agrees = None, 0.0, False
            remarks = (_shapes(r, c),)
        else:
            difference = whole = Difference.of(r, c)
            limit = self._tolerance.limit(r.dtype, c.dtype)
            agrees = self._tolerance.agrees(difference, r.dtype, c.dtype)
            remarks = _remarks(difference, limit)
            if not agrees and not remarks and r.dim() == 0:
                scalars = f"{r.item():.6g}", f"{c.item():.6g}"
                remarks = (Remark(RemarkKind.SCALARS, *scalars),)
            if not agrees:
                unpadded = self._at_visible_positions(record, r, c)
                if unpadded is not None and self._tolerance.agrees(unpadded, r.dtype, c.dtype):
                    remarks = (_padded(difference),)
                    difference, agrees = unpadded, True
        row = Row(
            order=self._next(),
            module=record.module,
            call=record.call,
            value=path,
            shape=tuple(r.shape),
            dtype=r.dtype,
            candidate_dtype=c.dtype,
            difference=difference,
            limit=limit,
            agrees=agrees,
            remarks=remarks,
            unpadded=unpadded,
            sample=self._sampled(path, r, c, whole),
        )
        self._enter(record, row, r, c)

    def _sampled(
        self, path: str, r: _Tensor, c: _Tensor, difference: Difference | None = None
    ) -> Sample | None:
        if self._sampler is None or not is_result(path) or r.shape != c.shape:
            return None
        if isinstance(r, Fingerprint) or isinstance(c, Fingerprint):
            return None
        return self._sampler.sample(r, c, difference)

    def _estimate(self, record: CallRecord, path: str, r: _Tensor, c: _Tensor) -> None:
        """Compares a pair of which one or both are fingerprints.

        What a mask lets through is known only if both are equal.
        """
        left, right = (Fingerprint.of(v) if isinstance(v, torch.Tensor) else v for v in (r, c))
        if not is_result(path) and is_mask_name(path) and not left.equals(right):
            self.left_out += 1
            return
        difference, agrees = None, False
        remarks: tuple[Remark, ...] = (_shapes(r, c),)
        unpadded: Difference | None = None
        if left.shape == right.shape:
            difference, remarks = left.difference(right), (Remark(RemarkKind.ESTIMATED),)
            agrees = self._tolerance.agrees(difference, r.dtype, c.dtype)
            if not agrees:
                unpadded = self._at_visible_positions(record, r, c)
                if unpadded is not None and self._tolerance.agrees(unpadded, r.dtype, c.dtype):
                    remarks = (_padded(difference), *remarks)
                    difference, agrees = unpadded, True
        row = Row(
            order=self._next(),
            module=record.module,
            call=record.call,
            value=path,
            shape=tuple(r.shape),
            dtype=r.dtype,
            candidate_dtype=c.dtype,
            difference=difference,
            limit=self._tolerance.limit(r.dtype, c.dtype),
            agrees=agrees,
            remarks=remarks,
            unpadded=unpadded,
        )
        self._enter(record, row, r, c)

    def _enter(self, record: CallRecord, row: Row, r: _Tensor, c: _Tensor) -> None:
        """Keeps the row of a pair that was compared."""
        self.compared_elements += row.difference.elements if row.difference is not None else 0
        self._remember(r, c, row)
        self._add(record, row)
        if not row.is_output:
            self._describe(record, row, row.value, r, c)

    def _around(self, record: CallRecord) -> list[CallKey]:
        """A call and those around it."""
        keys = [record.key]
        while (parent := self.records[keys[-1]].parent) is not None:
            keys.append(parent)
        return keys

    def _at_visible_positions(
        self, record: CallRecord, r: _Tensor, c: _Tensor
    ) -> Difference | None:
        """The difference without padded positions; None where none are known.

        What a model computes at a padded position depends on the attention implementation (a row
        of the mask that hides everything has no defined result), and nothing else may depend on
        it. Where several dimensions may be those of positions, it is the one along which least is
        left.
        """
        found = []
        for place in self._paddings.parts(self._around(record), tuple(r.shape)):
            found.append(_difference_at(place, r, c))
            if found[-1] is not None and self._tolerance.agrees(found[-1], r.dtype, c.dtype):
                return found[-1]
        known = [difference for difference in found if difference is not None]
        return min(known, key=lambda difference: difference.relative_peak, default=None)

    def _describe(self, record: CallRecord, row: Row, path: str, r: _Tensor, c: _Tensor) -> None:
        if not row.agrees or row.has(RemarkKind.BY_MEANING):
            words = describe_mask if is_mask_name(path) else describe
            record.described[path] = words(r), words(c)

    def _next(self) -> int:
        self._order += 1
        return self._order

    def _add(self, record: CallRecord, row: Row) -> None:
        if row.is_output:
            inputs = [
                argument.peir for argument in record.arguments.values() if not argument.is_mask
            ]
            row = replace(row, input_peir=max(inputs, default=None))
        self.rows.append(row)
        if row.is_output:
            record.outputs.append(row)
        else:
            record.arguments[row.value] = row

    def _differ_in_form(self, record: CallRecord, path: str, r: object, c: object) -> None:
        words = describe_mask if is_mask_name(path) else describe
        record.form_differences.append(
            FormDifference(
                *(self._next(), record.module, record.call, path, words(r), words(c)),
                one_is_none=r is None or c is None,
            )
        )

    def _judge_form(
        self,
        record: CallRecord,
        path: str,
        reference: Mapping[str, object],
        candidate: Mapping[str, object],
    ) -> None:
        """A row for results without any tensor in common, unless they are equal plain values."""
        if not _is_tensor(*reference.values(), *candidate.values()) and (
            reference.keys() == candidate.keys()
            and all(_equal(value, candidate[name]) for name, value in reference.items())
        ):
            return
        kind = RemarkKind.RETURNED if path == "output" else RemarkKind.LEFT
        self._add(
            record,
            Row(
                order=self._next(),
                module=record.module,
                call=record.call,
                value=path,
                shape=(),
                dtype=None,
                candidate_dtype=None,
                difference=None,
                limit=0.0,
                agrees=False,
                remarks=(Remark(kind, _summary(reference), _summary(candidate)),),
            ),
        )

    def _known(self, r: _Tensor, c: _Tensor) -> Row | None:
        known = self._compared.get((id(r), id(c)))
        if known is None or known.reference() is not r or known.candidate() is not c:
            return None
        return known.row if known.versions == (_version(r), _version(c)) else None

    def _remember(self, r: _Tensor, c: _Tensor, row: Row) -> None:
        versions = _version(r), _version(c)
        if None in versions:
            return
        key = id(r), id(c)
        forget = lambda _: self._compared.pop(key, None)  # noqa: E731
        self._compared[key] = _Compared(weakref.ref(r, forget), weakref.ref(c), versions, row)


def _padded(difference: Difference) -> Remark:
    return Remark(RemarkKind.PADDED, figure=difference.peir)


def _shapes(r: _Tensor, c: _Tensor) -> Remark:
    return Remark(RemarkKind.SHAPES, str(list(r.shape)), str(list(c.shape)))


def _difference_at(place: tuple[int, torch.Tensor], r: _Tensor, c: _Tensor) -> Difference | None:
    """The difference at the visible positions along a dimension; None if a fingerprint lacks it."""
    if isinstance(r, torch.Tensor) and isinstance(c, torch.Tensor):
        return Difference.of(visible_part(r, *place), visible_part(c, *place))
    parts = [
        Fingerprint.of(visible_part(value, *place))
        if isinstance(value, torch.Tensor)
        else value.at(part_name(*place))
        for value in (r, c)
    ]
    if parts[0] is None or parts[1] is None:
        return None
    return parts[0].difference(parts[1])


# Tensors by path: which it is, and how often it was edited.
_Marks = Mapping[str, tuple[int, int | None]]


def _marks(arguments: Mapping[str, object]) -> _Marks:
    marks = {}
    for name, value in arguments.items():
        if not is_plain(value):
            for path, leaf in leaves(value, name):
                if isinstance(leaf, _Tensor):
                    marks[path] = id(leaf), _version(leaf)
    return marks


def _changed(before: _Marks, now: _Marks) -> set[str]:
    """Paths of what is another tensor now, or was edited, or is new."""
    return {path for path, mark in now.items() if before.get(path) != mark}


def _renamed(path: str, names: Mapping[str, str]) -> str:
    own, dot, rest = path.partition(".")
    return f"{names.get(own, own)}{dot}{rest}"


def _same(r: torch.Tensor, c: torch.Tensor) -> bool:
    return r.dtype == c.dtype and r.device == c.device and torch.equal(r, c)


@dataclass(frozen=True, slots=True)
class _Compared:
    reference: "weakref.ref[_Tensor]"
    candidate: "weakref.ref[_Tensor]"
    versions: tuple[int | None, int | None]
    row: Row


def _enclosing(call: Call, records: Mapping[CallKey, CallRecord]) -> CallKey | None:
    """The nearest call around this one that was compared."""
    parent = call.parent
    while parent is not None and (parent.name, parent.index) not in records:
        parent = parent.parent
    return None if parent is None else (parent.name, parent.index)


def _is_tensor(*values: object) -> bool:
    """Whether any of the values is a tensor."""
    return any(isinstance(value, _Tensor) for value in values)


def _is_left_out(value: object) -> bool:
    return isinstance(value, LeftOut) and not isinstance(value, Fingerprint)


def _version(value: _Tensor) -> int | None:
    return 0 if isinstance(value, Fingerprint) else version_of(value)


def _is_number(value: object) -> TypeGuard[complex]:
    """Whether it is a number that a tensor can hold."""
    if isinstance(value, int):
        return abs(value) < 2**63
    return isinstance(value, float | complex)


def _as_tensor(number: complex) -> torch.Tensor:
    is_integer = isinstance(number, int)
    wide = torch.complex128 if isinstance(number, complex) else torch.float64
    return torch.tensor(number, dtype=None if is_integer else wide)


def _equal(left: object, right: object) -> bool:
    if isinstance(left, float) and isinstance(right, float | int):
        both_nan = math.isnan(left) and math.isnan(right)
        return both_nan or math.isclose(left, right, rel_tol=1e-6)
    return bool(left == right)


def _summary(parts: Mapping[str, object]) -> str:
    unpadded = [f"{path} ({describe(value)})" for path, value in list(parts.items())[:3]]
    return ", ".join(unpadded) + (", ..." if len(parts) > 3 else "") if unpadded else "nothing"


def _remarks(difference: Difference, limit: float) -> tuple[Remark, ...]:
    counts = difference.reference_nonfinite, difference.candidate_nonfinite
    if any(counts):
        return (Remark(RemarkKind.NONFINITE, *counts),)
    if difference.mismatched == 0 and limit < difference.relative_peak <= 4 * limit:
        return (Remark(RemarkKind.RELATIVE_L2, figure=difference.relative_l2),)
    return ()
