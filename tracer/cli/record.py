"""`trace_model record`: writes what goes through a model to disk."""

import tracer
from tracer.cli.exit_codes import ExitCode
from tracer.cli.requests import RecordRequest
from tracer.cli.resolve import resolve_model
from tracer.traces.files import check_new


def record(request: RecordRequest, command: str) -> ExitCode:
    """Records a model and says what has been written."""
    check_new(request.out)
    subject = resolve_model(request)
    made = tracer.record(
        subject.model,
        subject.inputs,
        request.out,
        inside=request.inside,
        name=request.model,
        seed=request.seed,
        command=command,
        notes=subject.notes,
        **request.given("include", "values"),
    )
    size = f"{made.size / 2**20:.2f} MiB of values"
    if not request.output.quiet:
        print(f"{made.path}: {made.calls} calls, {made.tensors} tensors, {size}")
    return ExitCode.AGREES
