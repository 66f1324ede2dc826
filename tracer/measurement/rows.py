"""What is kept of a run: a row for each compared leaf, a record for each pair of calls.

Numbers and words only: no activation lives longer than its comparison.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch

from tracer.execution.hooks import Call, Location, definition
from tracer.measurement.remarks import Remark, RemarkKind
from tracer.tensors.difference import Difference
from tracer.tensors.leaves import dtype_name
from tracer.tensors.relations import Relation
from tracer.tensors.samples import Sample
from tracer.tensors.value_path import ValueKind, ValuePath
from tracer.text import figure, place

# A module's identity in a run: the reference's name and the call index.
CallKey = tuple[str, int]

BEYOND_ROUNDING = 8.0
"""How many times its noise floor a value has to be off to be more than rounding."""


@dataclass(frozen=True)
class Row:
    """One compared leaf.

    Attributes:
        order: its place in execution order.
        module: the reference's name of the module; "" is the root.
        call: the module's call index.
        value: "output", "output.0", "output.logits", "kwargs.attention_mask", ...; for what the
            call has changed in an argument, "written.past_key_values.layers.0.keys", ... Its parts
            are attributes; see `ValuePath`.
        shape, dtype: the reference's.
        candidate_dtype: the candidate's.
        difference: the statistics; None where there is nothing to compute (the shapes differ).
        limit: the PEIR up to which the pair agrees.
        agrees: whether it does.
        remarks: what the figures do not say: other shapes, plain values, masks by meaning.
        input_peir: for an output, the largest PEIR among its call's compared arguments but masks;
            None for an argument, and where none was compared.
        unpadded: the statistics without padded positions, where the pair disagrees and some are
            known.
        floor: the PEIR that rounding alone makes here; None where that was not measured.
        sample: some of the elements, for an output where these were asked for.
        relation: what the candidate's value is of the reference's where they disagree: scaled,
            permuted, rotated; None where nothing of the kind was found.
        is_mask: whether the leaf is an attention mask that was passed as an argument.
        candidate_module: the candidate's name of the module; None where it is the reference's.
    """

    order: int
    module: str
    call: int
    value: ValuePath
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    candidate_dtype: torch.dtype | None
    difference: Difference | None
    limit: float
    agrees: bool
    remarks: tuple[Remark, ...] = ()
    input_peir: float | None = None
    unpadded: Difference | None = None
    floor: float | None = None
    sample: Sample | None = None
    is_mask: bool = False
    relation: Relation | None = None
    candidate_module: str | None = None

    def __post_init__(self) -> None:
        if type(self.value) is not ValuePath:
            object.__setattr__(self, "value", ValuePath.parse(self.value))

    def __repr__(self) -> str:
        form = "" if self.dtype is None else f", {dtype_name(self.dtype)} {list(self.shape)}"
        outcome = "agrees" if self.agrees else "differs"
        note = f"; {self.note}" if self.note else ""
        return f"<Row: {place(self)}{form}, PEIR {figure(self.peir)}, {outcome}{note}>"

    @classmethod
    def of_form(
        cls,
        order: int,
        call: CallKey,
        value: ValuePath,
        remark: Remark,
        candidate_module: str | None = None,
    ) -> "Row":
        """The row of a result whose forms do not compare."""
        return cls(
            order=order,
            module=call[0],
            call=call[1],
            candidate_module=candidate_module,
            value=value,
            shape=(),
            dtype=None,
            candidate_dtype=None,
            difference=None,
            limit=0.0,
            agrees=False,
            remarks=(remark,),
        )

    def allowing(self, floor: float | None) -> "Row":
        """The row with its noise floor; what is no further off than that is rounding, and agrees.

        That is up to `BEYOND_ROUNDING` times the floor, which two runs alone have shown.
        """
        if floor is None:
            return self
        limit = max(self.limit, BEYOND_ROUNDING * floor)
        is_rounding = self.is_inexact and self.difference is not None and self.error <= limit
        if self.agrees or not is_rounding:
            return replace(self, floor=floor)
        return replace(self, floor=floor, limit=limit, agrees=True)

    @property
    def note(self) -> str:
        """The remarks as text; empty without any."""
        return "; ".join(map(str, self.remarks))

    def has(self, kind: RemarkKind) -> bool:
        """Whether there is a remark of a kind."""
        return any(remark.kind is kind for remark in self.remarks)

    @property
    def is_output(self) -> bool:
        """Whether the leaf came out of the module, as opposed to an argument."""
        return self.value.is_result

    @property
    def is_written(self) -> bool:
        """Whether the call has left it in an argument."""
        return self.value.kind is ValueKind.WRITTEN

    @property
    def argument(self) -> str | None:
        """The name of the argument that the leaf is part of, None for an output."""
        return None if self.is_output else self.value.argument

    @property
    def is_inexact(self) -> bool:
        """Whether it holds numbers that are rounded; one without a dtype has another form."""
        return self.dtype is None or self.dtype.is_floating_point or self.dtype.is_complex

    @property
    def peir(self) -> float:
        """PEIR of the finite elements; infinite as `error` is."""
        return self.difference.peir if self._measured and self.difference else math.inf

    @property
    def multiple(self) -> float | None:
        """PEIR over the noise floor; None where that was not measured, or is nothing itself."""
        return self.peir / self.floor if self.floor else None

    @property
    def error(self) -> float:
        """What is checked against the limit.

        Infinite where nothing could be computed, or where one side alone is not finite.
        """
        return self.difference.relative_peak if self._measured and self.difference else math.inf

    @property
    def visible_errors(self) -> tuple[float, float]:
        """PEIR and relative L2, without padded positions where these are known.

        Infinite where nothing could be computed, or where one side alone is not finite.
        """
        difference = self.unpadded or self.difference
        if difference is None or difference.mismatched:
            return math.inf, math.inf
        return difference.peir, difference.relative_l2

    @property
    def _measured(self) -> bool:
        if self.difference is None or self.dtype is None:
            return False
        is_inexact = self.dtype.is_floating_point or self.dtype.is_complex
        # A mask is compared as booleans, where a mismatch is an ordinary difference.
        return not (is_inexact and not self.is_mask and self.difference.mismatched)


@dataclass(frozen=True)
class FormDifference:
    """An argument or part of an output that the two sides pass in forms that do not compare.

    None here and a tensor there, another rank, another flag. Often harmless; a suspect otherwise.

    Attributes:
        order, module, call, value: as for a Row.
        reference, candidate: what each side passed, in words.
        is_mask: whether it is an attention mask.
        one_is_none: one side passed nothing there.
        missing_on: the side that did; empty where both passed something.
        is_cache: whether it is part of a cache.
    """

    order: int
    module: str
    call: int
    value: ValuePath
    reference: str
    candidate: str
    is_mask: bool = False
    one_is_none: bool = False
    missing_on: str = ""
    is_cache: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", ValuePath.parse(self.value))


@dataclass(eq=False)
class CallRecord:
    """What is known of one pair of calls, after its values have been let go.

    Attributes:
        module, call: the reference's name and the call index.
        candidate_module: the candidate's name.
        parent: the pair of calls that it was made in; None for the root's.
        reference_caller, candidate_caller: the line that called it on each side.
        reference_definition, candidate_definition: where its forward begins on each side.
        main_argument: the name of the first parameter, the activation as a rule.
        arguments: the row of each compared leaf of the arguments. A pair that was compared before
            is found here with its earlier row.
        outputs: the row of each compared leaf of the output, and of what it wrote.
        passed_on: the earlier rows of what is returned besides, as it was made by another call.
        described: what each side passed, in words, for the arguments that disagree, or whose
            values do where their meaning does not.
        edited: names of the tensors among the arguments that the candidate has edited in place in
            this call, and the reference has not.
        form_differences: what could not be compared, of arguments and outputs.
        children: the paired calls that were made in it, in order.
        start, end: its place in execution order.
        autocast: the dtype that autocast computes in around the reference's call. It counts once
            the reference has made a value of that dtype: until then nothing was rounded to it.
    """

    module: str
    call: int
    candidate_module: str
    parent: CallKey | None
    reference_caller: Location | None
    candidate_caller: Location | None
    reference_definition: Location | None
    candidate_definition: Location | None
    main_argument: str | None
    arguments: dict[ValuePath, Row]
    outputs: list[Row]
    described: dict[ValuePath, tuple[str, str]]
    edited: tuple[str, ...]
    form_differences: list[FormDifference]
    children: list[CallKey]
    start: int
    end: int = -1
    autocast: torch.dtype | None = None
    passed_on: list[Row] = field(default_factory=list)

    @classmethod
    def of(cls, reference: Call, candidate: Call, parent: CallKey | None, start: int) -> Self:
        """The record of two calls that have just begun."""
        return cls(
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
            start=start,
            autocast=reference.autocast,
        )

    @property
    def returned(self) -> list[Row]:
        """The rows of all that was returned or written, whichever call it was made in."""
        return [*self.outputs, *self.passed_on]

    @property
    def input_peir(self) -> float | None:
        """The largest PEIR among its arguments but masks; None where none was compared."""
        peirs = (row.peir for row in self.arguments.values() if not row.is_mask)
        return max(peirs, default=None)

    @property
    def key(self) -> CallKey:
        """The module and the call index."""
        return self.module, self.call

    @property
    def other_name(self) -> str | None:
        """The candidate's name of the module; None where it is the reference's."""
        return None if self.candidate_module == self.module else self.candidate_module

    def row(self, value: ValuePath) -> Row | None:
        """The row of a value of this call; None if it was not compared."""
        if not value.is_result:
            return self.arguments.get(value)
        return next((row for row in self.outputs if row.value == value), None)


def first_divergence(rows: Sequence[Row]) -> Row | None:
    """The first computed value that disagrees.

    Attention masks are left out: one that differs may be without any effect, and one that has an
    effect is found as the origin of what disagrees after it.
    """
    return next((row for row in rows if not row.agrees and not row.is_mask), None)


def final_output(rows: Sequence[Row]) -> Row | None:
    """The model's own first output, or what came last where it has none that was compared."""
    outputs = [row for row in rows if row.is_output and row.difference is not None]
    return next((row for row in outputs if not row.module), outputs[-1] if outputs else None)


def inputs_of(row: Row, records: Mapping[CallKey, CallRecord]) -> Iterator[Row]:
    """The rows that a value was computed from, as far as they are known.

    For an output: the arguments of its call and the outputs of the calls made in it. For an
    argument: those of its caller, as far as they came before.
    """
    record = records[row.module, row.call]
    inside: CallRecord | None = record
    if not row.is_output:
        inside = None if record.parent is None else records[record.parent]
    if inside is None:
        return
    for earlier in inside.arguments.values():
        if earlier.order < row.order and not earlier.is_mask:
            yield earlier
    for child in inside.children:
        yield from (earlier for earlier in records[child].outputs if earlier.order < row.order)


def enclosing(call: Call, records: Mapping[CallKey, CallRecord]) -> CallKey | None:
    """The nearest call around this one that was compared."""
    parent = call.parent
    while parent is not None and (parent.name, parent.index) not in records:
        parent = parent.parent
    return None if parent is None else (parent.name, parent.index)
