"""Reports of many commits, in the order in which they came about.

>>> history = read_history("reports")
>>> [(entry.commit[:7], entry.outcome, entry.figures.peir) for entry in history.entries]
[('76ab408', 'diverges', 0.0548), ('0783d96', 'diverges', 0.0551)]
"""

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from tracer.comparison.identity import Identity
from tracer.errors import UsageError, near_names
from tracer.execution.limits import user_path
from tracer.regression.baseline import read_report
from tracer.regression.related import Mismatch, mismatches, of_older
from tracer.tensors.value_path import ValuePath
from tracer.text import with_class


@dataclass(frozen=True)
class Worst:
    """The worst figures of some outputs.

    Attributes:
        peir: the largest; infinite where nothing could be computed.
        sqnr: in dB, and `cosine`: the smallest; None where nothing could be computed.
    """

    peir: float
    sqnr: float | None
    cosine: float | None


@dataclass(frozen=True)
class Entry:
    """What a report says of its comparison.

    Attributes:
        path: the report.
        date: when it was written, or the file where it does not say.
        commit: of the working directory, with "-dirty" for changes; empty where there was none.
        commit_date: when that was made.
        exit_code, command: of the command line; None from Python and in older reports.
        outcome: "agrees", "equivalent" or "diverges".
        passes: what a gate decided; None without one.
        title: both sides in words.
        identity: what it is of, as far as that is known.
        figures: of the outputs that were asked for; None where it has none of them.
    """

    path: Path
    date: datetime
    commit: str
    commit_date: datetime | None
    exit_code: int | None
    command: str | None
    outcome: str
    passes: bool | None
    title: str
    identity: Identity | None
    figures: Worst | None


@dataclass(frozen=True)
class History:
    """The reports of a folder.

    Attributes:
        entries: by the dates of their commits where all have one, else by their own.
        left_out: JSON files that are no reports, with why.
    """

    entries: tuple[Entry, ...]
    left_out: tuple[tuple[Path, str], ...]

    @property
    def by_title(self) -> dict[str, list[Entry]]:
        """The entries of each pair of models."""
        groups: dict[str, list[Entry]] = {}
        for entry in self.entries:
            groups.setdefault(entry.title, []).append(entry)
        return groups

    @staticmethod
    def others(entries: Sequence[Entry]) -> Iterator[tuple[Entry, tuple[Mismatch, ...]]]:
        """Those of consecutive entries that are of another comparison than the one before."""
        for before, entry in pairwise(entries):
            if found := mismatches(before.identity, entry.identity):
                yield entry, found


def read_entry(path: str | Path, module: str | None = None) -> Entry:
    """Reads a report.

    Args:
        module: a glob of the outputs that the figures are of; by default the model's own.

    Raises:
        UsageError: there is no such file, or it is no report, or a damaged one.
    """
    report = read_report(Path(path))
    try:
        return _entry(Path(path), report, module)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"the report {path} is none of trace_model, or a damaged one ({with_class(error)})"
        ) from error


def read_history(folder: str | Path, module: str | None = None) -> History:
    """Reads the JSON reports in a folder and in those inside it.

    Args:
        module: as for `read_entry`.

    Raises:
        UsageError: there is no such folder, no report in it, or none with such an output.
    """
    place = user_path(folder)
    if not place.is_dir():
        raise UsageError(f"there is no folder {folder}: expected one with .json reports")
    entries: list[Entry] = []
    left_out: list[tuple[Path, str]] = []
    for path in sorted(place.rglob("*.json")):
        try:
            entries.append(read_entry(path, module))
        except UsageError as error:
            left_out.append((path, str(error)))
    if not entries:
        found = f"{len(left_out)} other .json files" if left_out else "no .json file"
        raise UsageError(
            f"found no report in {folder}, and {found}: write them with --report FILE.json"
        )
    if module is not None and all(entry.figures is None for entry in entries):
        names = read_report(entries[-1].path)["coverage"]["paired_modules"]
        raise UsageError(
            f"no report in {folder} has an output of a module {module!r}{near_names(module, names)}"
        )
    return History(tuple(_in_order(entries)), tuple(left_out))


def _in_order(entries: Sequence[Entry]) -> list[Entry]:
    if all(entry.commit_date is not None for entry in entries):
        return sorted(entries, key=lambda entry: (entry.commit_date, entry.date))
    return sorted(entries, key=lambda entry: entry.date)


def _entry(path: Path, report: Mapping[str, Any], module: str | None) -> Entry:
    run, made, gate = report.get("run"), report["environment"], report.get("gate")
    verdict, of_what = report["verdict"], report.get("identity")
    written = made.get("date")
    identity = of_older(run) if of_what is None else Identity.read(of_what)
    outcome = verdict.get("outcome") or ("agrees" if verdict["agrees"] else "diverges")
    return Entry(
        path=path,
        date=_date(written)
        if written
        else datetime.fromtimestamp(user_path(path).stat().st_mtime, UTC),
        commit=made.get("commit", ""),
        commit_date=_date(made["commit_date"]) if "commit_date" in made else None,
        exit_code=None if run is None else run.get("exit_code"),
        command=None if run is None else run["command"],
        outcome=outcome if not report["coverage"]["ended"] else "ended",
        passes=None if gate is None else gate["passes"],
        title=_title(run, identity),
        identity=identity,
        figures=_figures(report["rows"], module),
    )


def _date(text: str) -> datetime:
    """A date with its zone; one without is taken for UTC."""
    found = datetime.fromisoformat(text)
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def _title(run: Mapping[str, Any] | None, identity: Identity | None) -> str:
    if run is not None:
        return f"{run['reference']} against {run['candidate']}"
    if identity is not None:
        return f"{identity.reference.model} against {identity.candidate.model}"
    return "a comparison made in Python"


def _figures(rows: Sequence[Mapping[str, Any]], module: str | None) -> Worst | None:
    """The worst of the chosen outputs; of the model's own by default, or what came last."""
    outputs = [row for row in rows if ValuePath.parse(row["value"]).is_result]
    if module is not None:
        chosen = [row for row in outputs if fnmatch.fnmatchcase(row["module"], module)]
    else:
        measured = [row for row in outputs if row["sqnr"] is not None]
        chosen = [row for row in measured if not row["module"]][:1] or measured[-1:]
    if not chosen:
        return None
    peirs = [float(row["peir"]) for row in chosen]
    known = [row for row in chosen if row["sqnr"] is not None]
    return Worst(
        peir=math.inf if any(map(math.isnan, peirs)) else max(peirs),
        sqnr=min((float(row["sqnr"]) for row in known), default=None),
        cosine=min((float(row["cosine"]) for row in known), default=None),
    )
