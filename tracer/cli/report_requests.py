"""What a command line asks for that reads reports alone."""

from dataclasses import dataclass
from pathlib import Path

from tracer import choices
from tracer.cli.streams import DEFAULT, Output


@dataclass(frozen=True, kw_only=True)
class DiffRequest:
    """`trace_model diff`: two reports.

    Attributes:
        all: every change, none left out.
    """

    former: Path
    now: Path
    fail_on: str = choices.FAIL_ON[1]
    baseline_any: bool = False
    exit_skip: int | None = None
    all: bool = False
    cache: Path | None = None
    output: Output = DEFAULT


@dataclass(frozen=True, kw_only=True)
class HistoryRequest:
    """`trace_model history`: a folder of reports.

    Attributes:
        module: a glob of the outputs that the figures are of; None for the last.
    """

    folder: Path
    module: str | None = None
    cache: Path | None = None
    output: Output = DEFAULT
