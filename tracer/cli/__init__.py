# PYTHON_ARGCOMPLETE_OK
"""The command line: parse, check, call what the request asks for, return the exit code.

    trace_model compare tiny-llama
    trace_model compare PATH --candidate quantized --report out.json

What the exit codes mean is in `exit_codes`; wrong use and bad input are said in one sentence.
Whatever takes time to import is imported after the options have been checked.
"""

import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import TextIO

from tracer.cli.checks import check as check_request
from tracer.cli.exit_codes import ExitCode
from tracer.cli.garbage import collected_rarely, leave_the_last
from tracer.cli.parser import parse
from tracer.cli.parser.export import ExportRequest
from tracer.cli.parser.quantize import QuantizeRequest
from tracer.cli.report_requests import DiffRequest, HistoryRequest
from tracer.cli.requests import (
    AblateRequest,
    CheckRequest,
    CompareRequest,
    RecordRequest,
    Request,
    ShowRequest,
    given,
)
from tracer.cli.skipping import skipping
from tracer.cli.streams import alone, check_open, let_go, say
from tracer.errors import ModelRunError, TracerError
from tracer.models.hub_cache import hub_cache
from tracer.text import brief, cut, with_class

_logger = logging.getLogger(__name__)


@skipping
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
        argv: the arguments; those of the process by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    request = None
    leave_the_last()
    try:
        check_open()
        request = parse(arguments)
        with request.output.in_force(), hub_cache(request.cache):
            _logger.info("%s", given(request))
            check_request(request)
            with alone(getattr(request, "json", False)) as out:
                code = _run(request, shlex.join(["trace_model", *arguments]), out)
        sys.stdout.flush()  # here, where a reader that has gone is taken for what it is
        return code
    except BaseException as error:
        if os.environ.get("TRACE_MODEL_DEBUG") == "1" and not isinstance(error, SystemExit):
            traceback.print_exc()
        return exit_code(error, request)


def exit_code(
    error: BaseException, request: Request | ExportRequest | QuantizeRequest | None
) -> int:
    """Says what has ended the work, and returns the exit code for it."""
    match error:
        case SystemExit() if request is None:
            return error.code if isinstance(error.code, int) else 0  # argparse has said why
        case SystemExit():
            say(f"code of the model's has ended the program (exit code {error.code})")
        case KeyboardInterrupt():
            return ExitCode.INTERRUPTED
        case BrokenPipeError():  # the reader has gone: `| head`
            let_go()
        case ModelRunError() if isinstance(request, CompareRequest):
            _show_compared(error, request)
            say(str(error))
        case _ if _is_known(error):
            say(str(error))
        case OSError():
            place = error.filename or "standard output"
            say(f"{cut(str(place), 80)}: {error.strerror or brief(error)}")
            let_go()  # it may have been standard output, which is full
        case _ if _is_out_of_memory(error):
            say(f"out of memory: {brief(error)}; give a smaller model or inputs, or --offload")
        case _:
            if request is not None and request.output.verbose:
                traceback.print_exception(error)
            say(
                f"an error of its own, {with_class(error)}; please report it in "
                "the issues of trace_model, with what it prints under --verbose"
            )
            return ExitCode.INTERNAL_ERROR
    return ExitCode.WRONG_USE


def _run(request: Request | ExportRequest | QuantizeRequest, command: str, out: TextIO) -> ExitCode:
    """Does what is asked for."""
    with collected_rarely():
        work = _work(request, command, out)
    return work()


def _work(
    request: Request | ExportRequest | QuantizeRequest, command: str, out: TextIO
) -> Callable[[], ExitCode]:
    """What does what is asked for; the work of each command is imported when it is."""
    match request:
        case CompareRequest():
            from tracer.cli.compare import compare

            return partial(compare, request, command, out)
        case RecordRequest():
            from tracer.cli.record import record

            return partial(record, request, command)
        case ShowRequest():
            from tracer.cli.show import show

            return partial(show, request, out)
        case CheckRequest():
            from tracer.cli.check import check

            return partial(check, request, out)
        case DiffRequest():
            from tracer.cli.diff import diff

            return partial(diff, request)
        case HistoryRequest():
            from tracer.cli.history import history

            return partial(history, request)
        case ExportRequest():
            from tracer.cli.export import export

            return partial(export, request)
        case QuantizeRequest():
            from tracer.cli.quantize import quantize

            return partial(quantize, request)
        case AblateRequest():
            from tracer.cli.ablate import ablate

            return partial(ablate, request, command)


def _show_compared(error: ModelRunError, request: CompareRequest) -> None:
    """Prints what had been compared when a model raised."""
    if error.comparison is not None and not request.json:
        from tracer.reports.console import show_rows

        try:
            show_rows(error.comparison, all_rows=request.all)
            sys.stdout.flush()
        except OSError:  # what has ended the work is said all the same
            let_go()


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory could not be had, on the CPU (where PyTorch has no class for it) or a GPU."""
    is_torchs = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return is_torchs or type(error).__name__ in ("MemoryError", "OutOfMemoryError")


def _is_known(error: BaseException) -> bool:
    """Whether an error says in one sentence what the user can do about it."""
    # Another module of that name may be the user's own.
    wrappers = getattr(sys.modules.get("wrappers.errors"), "WrappersError", TracerError)
    return isinstance(error, TracerError | wrappers)
