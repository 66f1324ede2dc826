"""Two tensors that are compared, with all that their row needs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tracer.execution.side import EventKey
from tracer.measurement.layout import in_shape_of
from tracer.measurement.padding import Padding
from tracer.measurement.pairs import Measured, Tensor, estimated, measured, unpadded_difference
from tracer.measurement.remarks import Remark, RemarkKind
from tracer.measurement.rows import CallRecord, Row
from tracer.tensors.difference import Difference
from tracer.tensors.fingerprints import Fingerprint
from tracer.tensors.roles import Roles, is_any
from tracer.tensors.samples import Sample
from tracer.tensors.tolerance import Tolerance
from tracer.tensors.value_path import ValueKind, ValuePath


@dataclass(eq=False, slots=True)
class TensorPair:
    """Two tensors under one path of a pair of calls.

    Attributes:
        record, path, event: where and when they are compared.
        r, c: the reference's, and the candidate's in the reference's shape.
        own: the candidate's as it is.
        form: what is said of its shape.
        is_mask: it is read as an attention mask.
        roles, tolerance, paddings: what they are compared by; `paddings` gives what is known.
        relates: known mistakes are looked for in what differs.
    """

    record: CallRecord
    path: ValuePath
    event: EventKey
    r: Tensor
    c: Tensor
    own: Tensor
    form: tuple[Remark, ...]
    is_mask: bool
    roles: Roles
    tolerance: Tolerance
    paddings: Callable[[], Iterable[Padding]]
    relates: bool

    @classmethod
    def of(
        cls,
        record: CallRecord,
        path: ValuePath,
        event: EventKey,
        r: Tensor,
        c: Tensor,
        by: tuple[Roles, Tolerance, Callable[[], Iterable[Padding]], bool],
    ) -> "TensorPair":
        """Brings the candidate's to the reference's shape, but for masks."""
        own = c
        form: tuple[Remark, ...] = ()
        is_mask = not path.is_result and by[0].is_mask(path.in_argument)
        if r.shape != c.shape and not (
            is_mask or isinstance(r, Fingerprint) or isinstance(c, Fingerprint)
        ):
            shaped = in_shape_of(r, c)
            if shaped is not None:
                c, form = shaped[0], (Remark(RemarkKind.FORM, candidate=shaped[1].value),)
        return cls(record, path, event, r, c, own, form, is_mask, *by)

    @property
    def is_estimated(self) -> bool:
        """Whether one of them is only a fingerprint."""
        return isinstance(self.r, Fingerprint) or isinstance(self.c, Fingerprint)

    @property
    def _is_kept(self) -> bool:
        return self.path.kind is ValueKind.WRITTEN or is_any(self.path, self.roles.caches)

    def measured(self) -> Measured | None:
        """What is found of it at once; None for masks of which the forms do not compare."""
        r, c, is_mask = self.r, self.c, self.is_mask
        if isinstance(r, Fingerprint) or isinstance(c, Fingerprint):
            return estimated(r, c, self.tolerance, self.unpadded, is_mask=is_mask)
        # What is kept from call to call is wrong where it is longer.
        may_be_longer = (
            r.shape != c.shape
            and not self._is_kept
            and (self.path.is_result or self.path.inside is None)
        )
        return measured(
            *(r, c, self.tolerance, self.unpadded),
            is_mask=is_mask,
            may_be_longer=may_be_longer,
            relates=self.relates,
        )

    def unpadded(self) -> Difference | None:
        """The difference without padded positions."""
        return unpadded_difference(
            self.paddings(), self.r, self.c, self.tolerance, is_kept=self._is_kept
        )

    def row(self, order: int, found: Measured, sample: Sample | None) -> Row:
        """Its row."""
        return Row(
            order=order,
            module=self.record.module,
            call=self.record.call,
            value=self.path,
            shape=tuple(self.r.shape),
            dtype=self.r.dtype,
            candidate_dtype=self.c.dtype,
            difference=found.difference,
            limit=found.limit,
            agrees=found.agrees,
            remarks=(*self.form, *found.remarks),
            unpadded=found.unpadded,
            sample=sample,
            is_mask=not self.path.is_result and self.roles.is_mask(self.path.argument),
            relation=found.relation,
            candidate_module=self.record.other_name,
            input_peir=self.record.input_peir if self.path.is_result else None,
        )
