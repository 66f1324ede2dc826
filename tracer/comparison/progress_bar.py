"""`compare(..., progress=True)`: a bar on a terminal, and in a notebook."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import wraps
from typing import ParamSpec, TypeVar

from torch import nn

P = ParamSpec("P")
R = TypeVar("R")


def can_show_progress(function: Callable[P, R]) -> Callable[P, R]:
    """Passes a bar's own function on where `progress=True` is given; its first argument is a model.

    The bar comes up once the run has taken a while.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if kwargs.get("progress") is not True:
            return function(*args, **kwargs)
        from tracer.reports import notebook
        from tracer.reports.progress import call_counter

        reference = args[0] if args else kwargs.get("reference")
        calls = len(list(reference.modules())) if isinstance(reference, nn.Module) else 0
        with ExitStack() as stack:
            if notebook.is_shown_in():
                kwargs["progress"] = stack.enter_context(closing(notebook.Bar("comparing", calls)))
            else:
                kwargs["progress"] = stack.enter_context(call_counter("comparing", calls))
            return function(*args, **kwargs)

    return call
