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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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


@contextmanager
def bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar in the output of a notebook's cell, which comes up once the run has taken a while.

    Its last state stays.

    Yields:
        A function to call with what is being done, how much of it is, and of about how much.
    """
    from IPython.display import display

    begin = time.monotonic()
    handle: Any = None
    shown, state = 0.0, ("", 0, 0)

    def show(text: str, done: int, total: int) -> None:
        nonlocal handle, shown
        shown = time.monotonic()
        said = f"{text}: {done} of {max(total, done)}, {shown - begin:.1f} s"
        drawn = Markup('<progress value="{}" max="{}"></progress> {}')
        bundle = {"text/plain": said, "text/html": drawn.format(done, max(total, done, 1), said)}
        if handle is None:
            handle = display(bundle, raw=True, display_id=True)
        else:
            handle.update(bundle, raw=True)

    def tell(text: str, done: int, total: int) -> None:
        nonlocal state
        state = text, done, total
        now = time.monotonic()
        if now - begin > _PATIENCE and now - shown > _INTERVAL:
            show(*state)

    try:
        yield tell
    finally:
        if handle is not None:
            show(*state)
