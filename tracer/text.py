"""How errors, lists of names, modules, source lines, values and figures are put in messages."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracer.execution.hooks import Location
    from tracer.measurement.rows import Row

_LONGEST = 300


def brief(error: BaseException) -> str:
    """An error's first paragraph in one line, after its class where that is needed: 'x' alone says
    nothing."""
    line, kind = first_line(str(error)), type(error).__name__
    if not line:
        return kind
    return line if " " in line and not isinstance(error, LookupError) else f"{kind}: {line}"


def with_class(error: BaseException) -> str:
    """An error's first paragraph in one line, always after its class."""
    line, kind = first_line(str(error)), type(error).__name__
    return f"{kind}: {line}" if line else kind


def first_line(text: str) -> str:
    """The first paragraph of a text in one line of bounded length, without a full stop."""
    paragraph = text.strip().split("\n\n")[0]
    line = " ".join(paragraph.split())
    return line.removesuffix(".") if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names with commas; beyond `most` of them, how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def cut(text: str, longest: int) -> str:
    """A text without its end, where it is longer than `longest` characters."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def visible(text: str) -> str:
    """A text with its control characters as signs: a terminal obeys them, XML and HTML lack them.

    Line breaks and tabs stay.
    """
    return text if text.isprintable() else text.translate(_SIGNS)


# Of one character for one, so that columns stay aligned; half of a surrogate pair is no character,
# and marks of direction would show text in another order than it has.
_SIGNS = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},
    **dict.fromkeys([*range(0x7F, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF], "\ufffd"),
    **dict.fromkeys([0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd"),
}

# How many names of a kind an explanation lists.
FEW = 3


def short_line(location: "Location | str | None") -> str:
    """A "file:line" without the directories above the package, for reading."""
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


def place(row: "Row", module: str | None = None) -> str:
    """Where a row's value belongs: "argument `input` of `model.norm` (call 1)".

    Args:
        module: the module in words; by default the reference's name.
    """
    module = module or module_in_words(row.module)
    module += f" (call {row.call})" if row.call else ""
    if row.is_written:
        return f"`{row.value.in_argument}` as left by {module}"
    if row.value.is_gradient:
        return f"the gradient of `{row.value.in_argument}` of {module}"
    what = row.value if row.is_output else f"argument `{row.value.label}`"
    return f"{what} of {module}"


def size(row: "Row") -> str:
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
