"""Findings in words: the only place that makes sentences of them."""

from functools import singledispatch

from tracer.diagnosis.zoom.zoom import Zoomed
from tracer.reports.narrator import zoom


@singledispatch
def explain(finding: object) -> str:
    """A finding in words, in one or several lines.

    Raises:
        TypeError: it is none.
    """
    raise TypeError(f"expected a finding of the tracer's, found a {type(finding).__name__}")


@explain.register
def _(finding: Zoomed) -> str:
    return "\n".join(zoom.lines(finding))
