"""The result of a comparison, as attributes, as a table, and in reports."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tracer.comparison.identity import Identity
from tracer.diagnosis.verdict import Verdict
from tracer.diagnosis.zoom.zoom import Zoomed
from tracer.errors import no_truth_value
from tracer.isolation.compiled.result import CompiledInside
from tracer.isolation.result import Isolation
from tracer.measurement.coverage import Coverage
from tracer.measurement.rows import FormDifference, Row
from tracer.tensors.leaves import dtype_name
from tracer.text import visible

if TYPE_CHECKING:
    import pandas

    from tracer.regression.result import Gate


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two models on one set of inputs.

    It is neither true nor false, as an array is neither: `assert compare(a, b, x)` raises a
    UsageError that says what to write. That the verdict agrees, that it is no divergence under
    `strict` and that a gate passes are three answers, `if comparison` also asks whether there is
    one, and a plain assert would show nothing of where the models diverge.

    Attributes:
        verdict: whether they agree, and if not, where and why they diverge.
        coverage: how much was compared.
        rows: one per compared leaf, in execution order.
        form_differences: arguments and outputs that the two sides pass in forms that do not
            compare; harmless unless the verdict names them.
        isolation: what each module adds to the error, where that was asked for.
        zoomed: the operation that is the culprit, where that was asked for or the origin lies in
            the forward of a module itself.
        inside: what was found inside of what is compiled in the candidate, where that was asked
            for or the origin lies there.
        gate: whether it passes, checked against a baseline and limits; see `judged`.
        identity: which models and inputs it is of; None for one that was made by hand.
    """

    verdict: Verdict
    coverage: Coverage
    rows: tuple[Row, ...]
    form_differences: tuple[FormDifference, ...]
    isolation: Isolation | None = None
    zoomed: Zoomed | None = None
    inside: CompiledInside | None = None
    gate: "Gate | None" = None
    identity: Identity | None = None

    def __bool__(self) -> bool:
        raise no_truth_value(
            self, "`.verdict.agrees`, `.gate.passes` with a gate, or tracer.assert_equivalent(...)"
        )

    def __repr__(self) -> str:
        from tracer.reports.notebook import in_one_line

        return f"<Comparison: {in_one_line(self)}; {self.coverage}>"

    def _repr_html_(self) -> str:
        """The report to explore, for notebooks."""
        from tracer.reports.notebook import html

        return html(self)

    def judged(self, gate: "Gate") -> "Comparison":
        """The comparison with what `tracer.gate` has decided of it, which its reports then say."""
        return replace(self, gate=gate)

    def to_frame(self) -> "pandas.DataFrame":
        """One row per compared leaf, in execution order.

        Columns: module, call, value, shape, dtype, mean, min, max, stddev, peir (a ratio), sqnr
        (dB), cosine, agrees; then candidate_dtype, limit, elements, mismatched,
        reference_nonfinite, candidate_nonfinite, peak_index, note; floor (a PEIR) and multiple (of
        it), where the noise floor was measured; candidate_module, the candidate's name of it.
        """
        import pandas

        records = [
            {k: visible(v) if isinstance(v, str) else v for k, v in row_values(row).items()}
            for row in self.rows
        ]
        return pandas.DataFrame.from_records(records, columns=list(ROW_COLUMNS))

    def show(self, *, all_rows: bool = False) -> None:
        """Prints the table, the curve of PEIR and the verdict to the terminal."""
        from tracer.reports.console import show

        show(self, all_rows=all_rows)

    def save(self, path: str | Path) -> None:
        """Writes a report in the format of the suffix.

        `.html` (interactive; with drawings of the values where `compare` was asked for `samples`),
        `.json`, `.xml` (JUnit), `.md`, `.csv`, or `.parquet` (with the extra `parquet`).

        Raises:
            UsageError: another suffix, a package that is not installed, or a directory that does
                not exist or is not writable.
        """
        from tracer.reports import save

        save(self, Path(path))


ROW_COLUMNS = (
    "module",
    "call",
    "value",
    "shape",
    "dtype",
    "mean",
    "min",
    "max",
    "stddev",
    "peir",
    "sqnr",
    "cosine",
    "agrees",
    "candidate_dtype",
    "limit",
    "elements",
    "mismatched",
    "reference_nonfinite",
    "candidate_nonfinite",
    "peak_index",
    "note",
    "floor",
    "multiple",
    "candidate_module",
)


def row_fields(row: Row) -> dict[str, object]:
    """A row's values by column, and its remarks as data."""
    return row_values(row) | {"remarks": [asdict(remark) for remark in row.remarks]}


def row_values(row: Row) -> dict[str, object]:
    """A row's values by column; see `Comparison.to_frame`."""
    difference = row.difference
    statistics = {
        name: None if difference is None else getattr(difference, name)
        for name in (
            "mean",
            "min",
            "max",
            "stddev",
            "sqnr",
            "cosine",
            "elements",
            "mismatched",
            "reference_nonfinite",
            "candidate_nonfinite",
            "peak_index",
        )
    }
    return {
        "module": row.module,
        "call": row.call,
        "value": str(row.value),
        "shape": row.shape,
        "dtype": dtype_name(row.dtype),
        "candidate_dtype": dtype_name(row.candidate_dtype),
        "peir": row.peir,
        "agrees": row.agrees,
        "limit": row.limit,
        "note": row.note,
        "floor": row.floor,
        "multiple": row.multiple,
        "candidate_module": row.module if row.candidate_module is None else row.candidate_module,
        **statistics,
    }
