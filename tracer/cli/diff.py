"""`trace_model diff`: what has changed between two reports; no model is loaded."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from tracer.cli.exit_codes import ExitCode
from tracer.cli.report_requests import DiffRequest
from tracer.regression.baseline import Baseline
from tracer.regression.gating import gate_between
from tracer.regression.history import read_entry
from tracer.regression.result import Gate
from tracer.reports.console import make_console, show_parts
from tracer.reports.parts.gate import section
from tracer.reports.parts.history import in_a_line


def diff(request: DiffRequest) -> ExitCode:
    """Prints the gate's table of the two, and returns what the gate would."""
    former, now = Baseline.read(request.former), Baseline.read(request.now)
    decided = gate_between(former, now, fail_on=request.fail_on, baseline_any=request.baseline_any)
    console = make_console()
    show_parts(_parts(request, decided, console.width), console)
    return ExitCode.AGREES if decided.passes else ExitCode.DIVERGES


def _parts(request: DiffRequest, decided: Gate, width: int) -> Iterator[RenderableType]:
    for path in (request.former, request.now):
        yield Text(in_a_line(read_entry(path)), style="dim")
    yield from section(decided, width, all_changes=request.all)
