"""What a former comparison measured, to hold a new one against.

>>> baseline = tracer.Baseline.read("main.json")
>>> baseline.figures["model.layers.0.mlp", 0, "output", (1, 18, 64)].relative_l2
0.0213

It is read from the `.json` report of that time, or made of a comparison with a trace of the former
candidate (`Baseline.of`).
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tracer.comparison.identity import Identity
from tracer.comparison.result import Comparison, row_fields
from tracer.errors import UsageError
from tracer.execution.limits import read_json, user_path
from tracer.measurement.remarks import Remark, RemarkKind
from tracer.models.locate import is_trace
from tracer.regression.related import of_older
from tracer.reports.json import SCHEMA
from tracer.tensors.fingerprints import LEAST_OVER_ESTIMATE, MOST_OVER_ESTIMATE
from tracer.tensors.value_path import ValuePath
from tracer.text import brief, with_class
from tracer.traces.recorded import Recorded, open_trace

# A value: module, call, path and shape. One of another shape is another value.
ValueKey = tuple[str, int, str, tuple[int, ...]]


@dataclass(frozen=True)
class Figures:
    """How far one output was off.

    Attributes:
        relative_l2, peir: infinite where nothing could be computed, or one side is not finite.
        unmatched: floats that are not finite, and without an equal on the other side.
        limit: the PEIR up to which it was to agree.
        agrees: it did.
        estimated: from fingerprints: `relative_l2` within known bounds, `peir` roughly.
    """

    relative_l2: float
    peir: float
    unmatched: int
    limit: float
    agrees: bool
    estimated: bool = False

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> "Figures":
        """Reads the columns of a row, in which a report writes infinite figures as text."""
        sqnr = columns["sqnr"]
        is_inexact = str(columns["dtype"]).startswith(("float", "bfloat", "complex"))
        unmatched = columns["mismatched"] if is_inexact and columns["mismatched"] else 0
        is_measured = sqnr is not None and not unmatched
        return cls(
            relative_l2=_relative_l2(float(sqnr)) if is_measured else math.inf,
            peir=float(columns["peir"]),
            unmatched=unmatched,
            limit=float(columns["limit"]),
            agrees=bool(columns["agrees"]),
            estimated=any(r["kind"] == RemarkKind.ESTIMATED for r in columns["remarks"]),
        )

    @property
    def bounds(self) -> tuple[float, float]:
        """What the relative L2 error lies between; in 99.9 % of cases for an estimate."""
        if not self.estimated:
            return self.relative_l2, self.relative_l2
        return self.relative_l2 * LEAST_OVER_ESTIMATE, self.relative_l2 * MOST_OVER_ESTIMATE


@dataclass(frozen=True)
class Baseline:
    """The figures of a comparison, and how much it covered.

    Attributes:
        source: where it is from, in words.
        agrees: the verdict.
        figures: of each output, in execution order.
        modules: the reference's names of those compared.
        calls, elements: how many were compared.
        identity: what it is of, as far as that is known.
        differences_expected: a difference was no failure: the candidate was quantised.
    """

    source: str
    agrees: bool
    figures: Mapping[ValueKey, Figures]
    modules: tuple[str, ...]
    calls: int
    elements: int
    identity: Identity | None = None
    differences_expected: bool = False

    def __repr__(self) -> str:
        outcome = "agrees" if self.agrees else "diverges"
        outputs = f"{len(self.figures)} outputs of {len(self.modules)} modules"
        return f"<Baseline: {self.source}, {outcome}, {outputs}>"

    @classmethod
    def of(cls, comparison: Comparison, source: str = "the baseline") -> "Baseline":
        """Makes a baseline of a comparison, such as one with a trace of the former candidate.

        Raises:
            UsageError: the comparison did not come to its end.
        """
        coverage = comparison.coverage
        if coverage.ended or coverage.recordings:
            raise _unfinished(source)
        rows = [row_fields(row) for row in comparison.rows]
        return replace(
            cls._of(source, comparison.verdict.agrees, rows, vars(coverage)),
            identity=comparison.identity,
        )

    @classmethod
    def read(cls, path: str | Path) -> "Baseline":
        """Reads the JSON report of a former comparison.

        Raises:
            UsageError: there is no such file, it is no report or one of a newer schema, or it is
                that of a run which did not come to its end.
        """
        report = read_report(Path(path))
        try:
            coverage = report["coverage"]
            if coverage["ended"] or coverage.get("recordings"):
                raise _unfinished(f"the baseline {path}")
            of_what, run = report.get("identity"), report.get("run")
            return replace(
                cls._of(str(path), report["verdict"]["agrees"], _rows(report), coverage),
                identity=of_older(run) if of_what is None else Identity.read(of_what),
                differences_expected=run is not None and bool(run["differences_expected"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UsageError(
                f"the baseline {path} is no report of trace_model, or a damaged one "
                f"({with_class(error)}); write one with --report FILE.json"
            ) from error

    @classmethod
    def _of(
        cls, source: str, agrees: bool, rows: list[dict[str, Any]], coverage: Mapping[str, Any]
    ) -> "Baseline":
        figures = {
            (row["module"], row["call"], row["value"], tuple(row["shape"])): Figures.of(row)
            for row in rows
            if ValuePath.parse(row["value"]).is_result
        }
        return cls(
            source=source,
            agrees=agrees,
            figures=figures,
            modules=tuple(coverage["paired_modules"]),
            calls=coverage["compared_calls"],
            elements=coverage["compared_elements"],
        )


def _relative_l2(sqnr: float) -> float:
    """The relative L2 error that a ratio of signal to noise in dB stands for."""
    exponent = -sqnr / 20.0
    return math.inf if exponent > sys.float_info.max_10_exp else 10.0**exponent


def open_baseline(path: str | Path) -> Baseline | Recorded:
    """Reads a report, or opens a trace of a former candidate, to be compared with the reference.

    Raises:
        UsageError: as for `Baseline.read`, or the recording was ended early.
        StorageError: the trace is damaged, or of a newer format.
    """
    if not is_trace(str(path)):
        return Baseline.read(path)
    recorded = open_trace(path)
    if not recorded.file.is_complete:
        raise _unfinished(str(path))
    return recorded


def read_report(path: Path) -> dict[str, Any]:
    """A JSON report of a schema that is known here.

    Raises:
        UsageError: there is no such file, or it is no report or one of a newer schema.
    """
    try:
        report = read_json(user_path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"the report {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(
            f"the report {path} is no JSON, or it is cut off ({brief(error)}): expected a report "
            "that --report FILE.json has written"
        ) from error
    schema = report.get("schema") if isinstance(report, dict) else None
    if not isinstance(schema, int):
        raise UsageError(
            f"the report {path} is no report of trace_model: it names no schema; write one with "
            "--report FILE.json"
        )
    if schema > SCHEMA:
        raise UsageError(
            f"the report {path} is of schema {schema}, and this version reads up to {SCHEMA}: "
            "install a newer one, or write the report again"
        )
    return dict(report)


def _rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a report; schema 1 had the remarks as text alone, and what counts comes last."""
    rows: list[dict[str, Any]] = report["rows"]
    if report["schema"] > 1:
        return rows
    estimate = {"kind": RemarkKind.ESTIMATED}
    text = str(Remark(RemarkKind.ESTIMATED))
    return [
        row | {"remarks": [estimate] if row["note"].split("; ")[-1] == text else []} for row in rows
    ]


def _unfinished(source: str) -> UsageError:
    return UsageError(
        f"{source} is of a run that did not come to its end, so that nothing can be said of what "
        "it lacks: make it of a whole run"
    )
