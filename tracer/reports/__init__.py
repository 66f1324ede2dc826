"""Reports: each a pure function of a Comparison. `save` picks the writer by the file's suffix."""

import os
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tracer.errors import UsageError

if TYPE_CHECKING:
    from tracer.comparison.result import Comparison

# The function that makes a report of a comparison and a Run, by suffix. Imported when needed.
WRITERS = {
    ".html": "tracer.reports.html:render", ".json": "tracer.reports.json:render",
    ".xml": "tracer.reports.junit:render", ".md": "tracer.reports.markdown:render",
    ".csv": "tracer.reports.frame:csv", ".parquet": "tracer.reports.frame:parquet",
}  # fmt: skip
# Those that draw samples of the values, and those for which a package is needed.
_DRAWN = (".html",)
_PACKAGES = {".parquet": "pyarrow"}


@dataclass(frozen=True)
class Run:
    """How a comparison came about, for the head of a report.

    Attributes:
        reference, candidate: the two models, in words.
        notes: what was chosen on the way, in words.
        command: the command line that runs it again; None from Python.
        quantized: the candidate is quantised.
        differences_expected: a difference is no failure: the candidate is quantised, and no limit
            was given.
    """

    reference: str
    candidate: str
    notes: tuple[str, ...] = ()
    command: str | None = None
    quantized: bool = False
    differences_expected: bool = False


def save(comparison: "Comparison", path: str | Path, *, run: Run | None = None) -> None:
    """Writes a report in the format of the path's suffix.

    The file is written beside its place and moved there whole, so that a failure leaves what was
    there before.

    Raises:
        UsageError: as for `check_path`, or the file cannot be written.
    """
    check_path(path)
    render: Callable[[Comparison, Run | None], str | bytes] = pkgutil.resolve_name(
        WRITERS[_suffix(path)]
    )
    target = Path(path).expanduser().resolve()
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    report = render(comparison, run)
    try:
        partial.write_bytes(report.encode(errors="replace") if isinstance(report, str) else report)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UsageError(f"the report {path} cannot be written: {error.strerror}") from error


def wants_samples(paths: Iterable[str | Path]) -> bool:
    """Whether one of these reports draws samples; see `compare`."""
    return any(_suffix(path) in _DRAWN for path in paths)


def known_suffixes() -> str:
    """The suffixes of reports, in words."""
    *first, last = WRITERS
    return f"{', '.join(first)} or {last}"


def check_path(path: str | Path) -> None:
    """Checks that a report can be written to a path, before the work for it is done.

    Raises:
        UsageError: an unknown suffix, a package that is not installed, or a directory that is
            missing or closed to us.
    """
    file = Path(path).expanduser()
    if _suffix(path) not in WRITERS:
        raise UsageError(
            f"the report {path} has the suffix {file.suffix!r}: expected {known_suffixes()}"
        )
    package = _PACKAGES.get(_suffix(path))
    if package is not None and find_spec(package) is None:
        raise UsageError(
            f"the report {path} needs {package}, which is not installed: "
            f"pip install 'trace-model[{_suffix(path)[1:]}]'"
        )
    if file.is_dir():
        raise UsageError(f"the report {path} is a directory: expected the name of a file")
    directory = file.parent
    if not directory.is_dir():
        raise UsageError(
            f"directory {directory} for the report {path} does not exist; create it first"
        )
    if not os.access(directory, os.W_OK):
        raise UsageError(f"directory {directory} of the report {path} is not writable")


def _suffix(path: str | Path) -> str:
    return Path(path).suffix.lower()
