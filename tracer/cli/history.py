"""`trace_model history`: the reports of many commits as a table and a curve."""

from tracer.cli.exit_codes import ExitCode
from tracer.cli.report_requests import HistoryRequest
from tracer.execution.limits import user_path
from tracer.regression.history import read_history
from tracer.reports.console import make_console, show_parts
from tracer.reports.parts.history import section


def history(request: HistoryRequest) -> ExitCode:
    """Prints what the reports of a folder say, in the order of their commits."""
    found = read_history(request.folder, request.module)
    console = make_console()
    parts = section(
        found,
        user_path(request.folder),
        console.width,
        what="the model's output" if request.module is None else f"outputs of {request.module}",
        colour=console.color_system is not None and not console.no_color,
    )
    show_parts(parts, console)
    return ExitCode.AGREES
