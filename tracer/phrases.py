"""How modules, values, source lines and figures are put in explanations."""

from collections.abc import Sequence
from pathlib import Path

from tracer.calls import Location
from tracer.rows import WRITTEN, Row

# How many names of a kind an explanation lists.
FEW = 3


def short_line(location: Location | str | None) -> str:
    """A "file:line" without the folders above the package, for reading."""
    if location is None:
        return "(no source)"
    parts = Path(str(location)).parts
    for root in ("site-packages", "dist-packages"):
        if root in parts:
            return "/".join(parts[parts.index(root) + 1 :])
    path, _, line = str(location).rpartition(":")
    try:
        return f"{Path(path).relative_to(Path.cwd())}:{line}"
    except ValueError:
        return "/".join(parts[-3:]) if len(parts) > 3 else str(location)


def module_in_words(name: str) -> str:
    """A module's name in backquotes; the root has none."""
    return f"`{name}`" if name else "the root module"


def place(row: Row) -> str:
    """Where a row's value belongs: "argument `input` of `model.norm` (call 1)"."""
    module = module_in_words(row.module) + (f" (call {row.call})" if row.call else "")
    if row.is_written:
        return f"`{row.value.removeprefix(f'{WRITTEN}.')}` as left by {module}"
    what = row.value if row.is_output else f"argument `{row.value.removeprefix('kwargs.')}`"
    return f"{what} of {module}"


def size(row: Row) -> str:
    """How far a row's pair is apart, and how far it may be."""
    if row.difference is None:
        return f": {row.note}"
    note = f"; {row.note}" if row.note else ""
    limit = f"limit {figure(row.limit)}" if row.limit else "must be equal"
    return f", PEIR {figure(row.peir)} ({limit}){note}"


def figure(value: float) -> str:
    """A number in three significant digits."""
    return f"{value:.3g}"


def few(items: Sequence[str], separator: str) -> str:
    """The first few items, and how many more there are."""
    more = f"{separator}{len(items) - FEW} more" if len(items) > FEW else ""
    return separator.join(items[:FEW]) + more
