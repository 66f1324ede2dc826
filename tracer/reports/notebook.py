"""What results show of themselves in a notebook, and the bar for what takes long there.

A result is shown as a page of its own in an iframe. A comparison's is the report to explore; that
of a verdict, an isolation, a gate or a flow is what a terminal would show of it. The iframe is
sandboxed: the report's script has an origin of its own, from which it can reach neither the
notebook nor what the browser keeps for it, and the page's policy lets it load nothing. What is not
a comparison has no script at all. Pages follow the reader's scheme, light or dark.

Nothing but IPython is needed, which every notebook has; the bar is no widget.
"""

import io
import sys
import time
from collections.abc import Iterable
from functools import singledispatch
from typing import Any

from markupsafe import Markup, escape
from rich.console import Console, RenderableType
from rich.style import Style
from rich.text import Text

from tracer.comparison.result import Comparison
from tracer.diagnosis.verdict import Verdict
from tracer.isolation.result import Isolation
from tracer.reports import dataflow
from tracer.reports.parts.headline import headline
from tracer.reports.parts.isolation import section
from tracer.text import cut, visible
from tracer.traces.dataflow import Flow

# Of a page of text, and of what is printed in a notebook, in characters.
WIDTH = 100
_LONGEST = 160
# In pixels: an iframe with a report, one with text at most, a line of text, and what is around it.
_REPORT, _MOST, _LINE, _AROUND = 620, 520, 18, 44
# A run that is over before then needs no bar, and a bar moves no more often.
_PATIENCE, _INTERVAL = 1.0, 0.2  # seconds

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
:root { --ground: #fff; --ink: #16191d; --dim: #5c6672; --red: #c0262d; --green: #157347;
  --yellow: #9a6200; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ground: #181c22; --ink: #e5e9ee; --dim: #96a1ae;
  --red: #ff7b7f; --green: #55c58a; --yellow: #e6b450; } }
body { margin: 0; background: var(--ground); color: var(--ink); }
pre { margin: 12px; font: 12.5px/%dpx ui-monospace, Menlo, Consolas, monospace; }
.bold { font-weight: 600; } .italic { font-style: italic; } .dim { color: var(--dim); }
.red { color: var(--red); } .green { color: var(--green); } .yellow { color: var(--yellow); }
</style></head><body><pre>%s</pre></body></html>"""


def in_one_line(comparison: Comparison) -> str:
    """How the report of a comparison begins, in one short line."""
    return visible(cut(" ".join(headline(comparison).line.split()), _LONGEST))


@singledispatch
def html(found: object) -> str:
    """A result as an HTML element.

    Raises:
        TypeError: it is none that is shown so.
    """
    raise TypeError(f"expected a result of the tracer's, found a {type(found).__name__}")


@html.register
def _(found: Comparison) -> str:
    from tracer.reports.html import render

    return _framed(render(found), _REPORT, allowed="allow-scripts")


@html.register
def _(found: Verdict) -> str:
    return page([Text(str(found.outcome), "bold"), Text(found.explanation)])


@html.register
def _(found: Isolation) -> str:
    return page([*section(found, WIDTH), Text(found.explanation)])


@html.register
def _(found: Flow) -> str:
    lines = dataflow.lines(found, width=WIDTH, tree=True)
    return page([Text("\n".join(lines), no_wrap=True)])


def page(parts: Iterable[RenderableType]) -> str:
    """What a terminal would show, as an HTML element."""
    console = Console(file=io.StringIO(), width=WIDTH, force_jupyter=False)
    text = Markup("").join(
        _marked(segment.text, segment.style)
        for part in parts
        for segment in console.render(part)
        if not segment.control
    )
    lines = text.count("\n") + 1
    return _framed(_PAGE % (_LINE, text), min(lines * _LINE + _AROUND, _MOST))


def _marked(text: str, style: Style | None) -> Markup:
    if style is None:
        return escape(text)
    named = {"bold": style.bold, "italic": style.italic, "dim": style.dim}
    classes = [name for name, given in named.items() if given]
    if style.color is not None:
        classes.append(style.color.name)
    if not classes:
        return escape(text)
    return Markup('<span class="{}">{}</span>').format(" ".join(classes), text)


def _framed(document: str, height: int, *, allowed: str = "") -> str:
    """A document in an iframe that may do only what is allowed (HTML's attribute `sandbox`)."""
    return (
        f'<iframe sandbox="{allowed}" title="trace_model" srcdoc="{escape(visible(document))}" '
        f'style="width: 100%; height: {height}px; border: 0; resize: vertical; overflow: auto">'
        "</iframe>"
    )


def is_shown_in() -> bool:
    """Whether there is a notebook that shows what is displayed."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class Bar:
    """A bar in the output of a notebook's cell, which comes up once the run has taken a while.

    It is what `compare` takes as `progress`. Its last state stays.
    """

    def __init__(self, text: str, expected: int) -> None:
        """Begins to wait.

        Args:
            text: what goes on, until a phase is told.
            expected: about how many calls there will be in each run.
        """
        self._text, self._expected, self._finished = text, expected, 0
        self._begin, self._shown = time.monotonic(), 0.0
        self._handle: Any = None

    def __call__(self, finished: int) -> None:
        """A pair of calls has ended."""
        self._finished = finished
        self._expected = max(self._expected, finished)
        self._show_again()

    def phase(self, name: str, run: int, runs: int | None) -> None:
        """A run begins: which it is of a phase, and of how many where that is known."""
        numbers = f" {run} of {runs}" if runs else f", run {run}"
        self._text = name if run == 1 and runs in (None, 1) else f"{name}{numbers}"
        self._finished = 0
        self._show_again()

    def close(self) -> None:
        """Shows the last state, of a bar that has come up."""
        if self._handle is not None:
            self._show()

    def _show_again(self) -> None:
        now = time.monotonic()
        if now - self._begin > _PATIENCE and now - self._shown > _INTERVAL:
            self._show()

    def _show(self) -> None:
        from IPython.display import display

        self._shown = time.monotonic()
        seconds = f"{self._shown - self._begin:.1f} s"
        said = f"{self._text}: {self._finished} of {self._expected} calls, {seconds}"
        drawn = Markup('<progress value="{}" max="{}"></progress> {}')
        page = drawn.format(self._finished, max(self._expected, 1), said)
        bundle = {"text/plain": said, "text/html": page}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)
