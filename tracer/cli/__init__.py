"""The command line: parse, check, call what the request asks for, return the exit code.

    trace_model compare tiny-llama
    trace_model compare PATH --candidate quantized --report out.json

What the exit codes mean is in `exit_codes`; wrong use and bad input are said in one sentence.
Whatever takes time to import is imported after the options have been checked.
"""

import os
import shlex
import sys
from collections.abc import Sequence

from tracer.cli.checks import check
from tracer.cli.exit_codes import ExitCode
from tracer.cli.parser import parse
from tracer.cli.requests import (
    AblateRequest,
    CompareRequest,
    RecordRequest,
    Request,
    ShowRequest,
)
from tracer.errors import ModelRunError, TracerError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
        argv: the arguments; those of the process by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    request = None
    try:
        request = parse(arguments)
        check(request)
        code = _run(request, shlex.join(["trace_model", *arguments]))
        sys.stdout.flush()  # here, where a reader that has gone is taken for what it is
        return code
    except SystemExit as stop:
        if request is not None:
            raise
        return int(stop.code or 0)  # argparse has said why
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`| head`): the interpreter must not try to flush for it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.WRONG_USE
    except Exception as error:
        if not _is_known(error):
            raise
        if isinstance(error, ModelRunError) and isinstance(request, CompareRequest):
            _show_compared(error, request)
        print(f"trace_model: {error}", file=sys.stderr)
        return ExitCode.WRONG_USE


def _run(request: Request, command: str) -> ExitCode:
    """Does what is asked for; the work of each command is imported when it is called."""
    match request:
        case CompareRequest():
            from tracer.cli.compare import compare

            return compare(request, command)
        case RecordRequest():
            from tracer.cli.record import record

            return record(request, command)
        case ShowRequest():
            from tracer.cli.show import show

            return show(request)
        case AblateRequest():
            from tracer.cli.ablate import ablate

            return ablate(request, command)


def _show_compared(error: ModelRunError, request: CompareRequest) -> None:
    """Prints what had been compared when a model raised."""
    if error.comparison is not None and not request.json:
        from tracer.reports.console import show_rows

        show_rows(error.comparison, all_rows=request.all)
        sys.stdout.flush()


def _is_known(error: Exception) -> bool:
    """Whether an error says in one sentence what the user can do about it."""
    if isinstance(error, TracerError):
        return True
    if "wrappers" not in sys.modules:
        return False
    import wrappers

    return isinstance(error, wrappers.errors.WrappersError)
