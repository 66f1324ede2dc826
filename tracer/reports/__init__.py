"""Reports: each a pure function of a Comparison. `save` picks the writer by the file's suffix."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from tracer.errors import UsageError

if TYPE_CHECKING:
    from tracer.comparison import Comparison

# Each module has a function `render(comparison, run) -> str`. They are imported when needed.
WRITERS = {".json": "tracer.reports.json"}


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
    render: Callable[[Comparison, Run | None], str] = import_module(
        WRITERS[Path(path).suffix.lower()]
    ).render
    target = Path(path).expanduser().resolve()
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    text = render(comparison, run)
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UsageError(f"the report {path} cannot be written: {error.strerror}") from error


def check_path(path: str | Path) -> None:
    """Checks that a report can be written to a path, before the work for it is done.

    Raises:
        UsageError: an unknown suffix, or a folder that is missing or closed to us.
    """
    file = Path(path).expanduser()
    if file.suffix.lower() not in WRITERS:
        raise UsageError(
            f"the report {path} has the suffix {file.suffix!r}: expected {' or '.join(WRITERS)}"
        )
    if file.is_dir():
        raise UsageError(f"the report {path} is a folder: expected the name of a file")
    folder = file.parent
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder} for the report {path}: make it first")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"the folder {folder} of the report {path} is not writable")
