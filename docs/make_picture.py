"""Draws the README's picture: what examples/find_a_wrong_mask.py prints on a terminal.

python docs/make_picture.py
"""

import contextlib
import io
import re
import runpy
from pathlib import Path

from rich.console import Console

from tracer.reports.console import show

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "find_a_wrong_mask.svg"
EXAMPLE = "examples/find_a_wrong_mask.py"


def picture() -> str:
    """The whole picture, as SVG."""
    with contextlib.redirect_stdout(io.StringIO()):
        comparison = runpy.run_path(str(ROOT / EXAMPLE))["comparison"]
    console = Console(
        record=True, width=104, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    show(comparison, console=console)
    svg = console.export_svg(title=f"$ python {EXAMPLE}")
    # Web fonts are left out: the picture needs nothing from elsewhere.
    return re.sub(r"@font-face\s*\{[^}]*\}", "", svg).replace("Fira Code", "DejaVu Sans Mono")


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
