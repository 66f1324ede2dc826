"""`trace_model record`: writes what goes through a model to disk."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tracer
from tracer.choices import TRACE_HEADER
from tracer.cli.exit_codes import ExitCode
from tracer.cli.requests import RecordRequest
from tracer.cli.resolve import resolve_model
from tracer.errors import ModelRunError, StorageError
from tracer.execution.limits import user_path
from tracer.models.locate import is_trace
from tracer.traces.files import check_new


def record(request: RecordRequest, command: str) -> ExitCode:
    """Records a model and says what has been written."""
    with _place(request) as out:
        subject = resolve_model(request)
        made = tracer.record(
            subject.model,
            subject.inputs,
            out,
            inside=request.inside,
            name=request.model,
            seed=request.seed,
            command=command,
            notes=subject.notes,
            **request.given("include", "values"),
        )
    size = f"{made.size / 2**20:.2f} MiB of values"
    if not request.output.quiet:
        print(f"{request.out}: {made.calls} calls, {made.tensors} tensors, {size}")
    return ExitCode.AGREES


@contextmanager
def _place(request: RecordRequest) -> Iterator[str | Path]:
    """Where the trace is written: at its place, or beside one that it is to replace.

    That one stays until the new one is complete. Of a model that raises, what it did before stays
    where the error says.

    Raises:
        StorageError: something is there that is not to be replaced.
    """
    target = user_path(request.out)
    if not (request.force and target.exists()):
        if target.exists() and is_trace(request.out):
            raise StorageError(
                f"{request.out} exists already: choose another name, or replace it with --force"
            )
        check_new(request.out)
        yield request.out
        return
    if target.is_symlink() or not (target / TRACE_HEADER).is_file():
        raise StorageError(
            f"{request.out} exists already and is no trace: --force replaces nothing else"
        )
    beside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    check_new(beside)
    try:
        yield beside
        former = target.with_name(f".{target.name}.{os.getpid()}.former")
        target.rename(former)
        beside.rename(target)
        shutil.rmtree(former)
    except ModelRunError:
        raise
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
