"""Reports: each a pure function of a Comparison. `save` picks the writer by the file's suffix."""

import os
import pkgutil
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tracer.errors import UsageError
from tracer.execution.limits import user_path, what_it_is
from tracer.text import visible

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
_PACKAGES = {".parquet": ("pyarrow", "pip install 'pyarrow>=18.0'")}


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
        exit_code: that of the command; None from Python.
    """

    reference: str
    candidate: str
    notes: tuple[str, ...] = ()
    command: str | None = None
    quantized: bool = False
    differences_expected: bool = False
    exit_code: int | None = None


def save(comparison: "Comparison", path: str | Path, *, run: Run | None = None) -> None:
    """Writes a report in the format of the path's suffix.

    The file is written beside its place and moved there whole, so that a failure leaves what was
    there before.

    Raises:
        UsageError: as for `check_path`, or the file cannot be written.
    """
    target = check_path(path)
    render: Callable[[Comparison, Run | None], str | bytes] = pkgutil.resolve_name(
        WRITERS[_suffix(path)]
    )
    write(render(comparison, run), target)


def write(report: str | bytes, path: Path) -> None:
    """Writes what a report holds, as `save` does.

    Raises:
        UsageError: the file cannot be written.
    """
    target = path.resolve()
    partial = _partial(target)
    try:
        partial.write_bytes(visible(report).encode() if isinstance(report, str) else report)
        if target.exists():
            shutil.copymode(target, partial)
        partial.replace(target)
    except OSError as error:
        raise UsageError(f"the report {path} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)  # an interruption leaves nothing, either


def wants_samples(paths: Iterable[str | Path]) -> bool:
    """Whether one of these reports draws samples; see `compare`."""
    return any(_suffix(path) in _DRAWN for path in paths)


def known_suffixes() -> str:
    """The suffixes of reports, in words."""
    *first, last = WRITERS
    return f"{', '.join(first)} or {last}"


def check_path(path: str | Path) -> Path:
    """Checks that a report can be written to a path, before the work for it is done.

    Returns:
        The path from the root, wherever the working directory moves to.

    Raises:
        UsageError: an unknown suffix, a package that is not installed, a directory that is
            missing or closed to us, something else than a file that can be written, or a name that
            no file can have.
    """
    file = user_path(path).absolute()
    if _suffix(path) not in WRITERS:
        raise UsageError(
            f"the report {path} has the suffix {file.suffix!r}: expected {known_suffixes()}"
        )
    package, install = _PACKAGES.get(_suffix(path), ("", ""))
    if package and find_spec(package) is None:
        raise UsageError(f"the report {path} needs {package}, which is not installed: {install}")
    if file.is_dir():
        raise UsageError(f"the report {path} is a directory: expected the name of a file")
    directory = file.parent
    if not directory.is_dir():
        raise UsageError(
            f"directory {directory} for the report {path} does not exist; create it first"
        )
    found = what_it_is(file.resolve())
    if found and (found != "nothing" or file.is_symlink()):
        raise UsageError(f"the report {path} is {found}: expected the name of a regular file")
    # Asked of its bits, as root may write to all.
    if not found and not (os.access(file, os.W_OK) and file.stat().st_mode & 0o222):
        raise UsageError(f"the report {path} is read-only: choose another name, or chmod u+w")
    if not os.access(directory, os.W_OK):
        raise UsageError(f"directory {directory} of the report {path} is not writable")
    try:
        _partial(file.resolve()).touch(exist_ok=True)
        _partial(file.resolve()).unlink()
    except OSError as error:
        raise UsageError(
            f"directory {directory} of the report {path} cannot be written to: {error.strerror}"
        ) from error
    return file


def _partial(target: Path) -> Path:
    """Where a report is written before it is moved to its place."""
    return target.with_name(f".trace_model-{os.getpid()}.partial")


def _suffix(path: str | Path) -> str:
    return Path(path).suffix.lower()
