"""Rows inside a call that differ by padding, where they no longer show which positions they are.

Tokens that are gathered for an expert, say, are more or fewer as padding is routed: where the call
is given, and gives, wrong values at padded positions only, so are these.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from tracer.measurement.padding import Padding
from tracer.measurement.remarks import Remark, RemarkKind
from tracer.measurement.rows import CallKey, CallRecord, Row
from tracer.tensors.difference import Difference


def leave_gathered_out(
    record: CallRecord,
    records: Mapping[CallKey, CallRecord],
    rows: list[Row],
    paddings: Sequence[Padding],
) -> int:
    """Leaves them out of what was compared, once the call has ended.

    Args:
        record: of the call.
        records, rows: what is known of the run; the rows are changed in their places.
        paddings: what the call and those around it say of padding.

    Returns:
        How many elements were left out.
    """
    given = record.arguments.values()
    if not record.outputs or not any(row.has(RemarkKind.PADDED) for row in given):
        return 0
    if not all(row.agrees for row in (*given, *record.outputs)):
        return 0
    left: dict[int, Row] = {}
    elements = 0
    for row in _inside(record, records):
        if row.agrees or row.order < record.start or row.order in left:
            continue
        if any(padding.places(row.shape) for padding in paddings):
            continue  # it is judged by the positions that it shows
        remarks = (*row.remarks, Remark(RemarkKind.PADDED, figure=row.peir))
        left[row.order] = replace(row, agrees=True, difference=Difference(), remarks=remarks)
        elements += 0 if row.difference is None else row.difference.elements
    if left:
        rows[:] = [left.get(row.order, row) for row in rows]
        for each in records.values():
            each.outputs[:] = [left.get(row.order, row) for row in each.outputs]
            each.arguments |= {
                path: left[row.order] for path, row in each.arguments.items() if row.order in left
            }
    return elements


def _inside(record: CallRecord, records: Mapping[CallKey, CallRecord]) -> Iterator[Row]:
    for key in record.children:
        yield from (*records[key].arguments.values(), *records[key].outputs)
        yield from _inside(records[key], records)
