"""`trace_model show`: prints the data flow of a model or a trace."""

from typing import TextIO

import torch

import tracer
from tracer.cli.exit_codes import ExitCode
from tracer.cli.requests import ShowRequest
from tracer.cli.resolve import resolve_model
from tracer.models.locate import is_trace
from tracer.reports import dataflow
from tracer.reports.console import make_console


def show(request: ShowRequest, out: TextIO) -> ExitCode:
    """Prints each call with its values; `out` is where JSON goes."""
    globs = request.given("include", "focus")
    if is_trace(request.model):
        flow = tracer.flow(tracer.open_trace(request.model, salvage=request.salvage), **globs)
    else:
        subject = resolve_model(request)
        flow = tracer.flow(subject.model, subject.inputs, inside=request.inside, **globs)
    if request.json:
        out.write(dataflow.render(flow))
        return ExitCode.AGREES
    torch.set_printoptions(**dict(request.print_options))
    dataflow.show(flow, width=make_console().width, tree=request.tree)
    return ExitCode.AGREES
