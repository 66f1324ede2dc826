"""Names that are shortened to fit, so that they can still be told apart."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile

_ENDS = "._ ()"


def apart(full: Sequence[str], short: Sequence[str], width: int) -> list[str]:
    """Shortened names, where different ones came to look alike with what tells them apart.

    >>> apart(["out.layers.0.keys", "out.layers.0.values"], ["out.lay…", "out.lay…"], 8)
    ['….0.keys', '….values']

    Args:
        full: the names.
        short: what they were shortened to.
        width: in characters.
    """
    alike: dict[str, set[str]] = defaultdict(set)
    for name, cut in zip(full, short, strict=True):
        alike[cut].add(name)
    chosen: dict[str, str] = {}
    for cut, names in alike.items():
        chosen |= dict.fromkeys(names, cut) if len(names) == 1 else _told_apart(names, width)
    return [chosen[name] for name in full]


def _told_apart(names: set[str], width: int) -> dict[str, str]:
    """Names that differ, each with the part in which they do, and with its end."""
    start = _in_common(list(names))
    end = _in_common([name[start:][::-1] for name in names])
    first = next(iter(names))
    while start and first[start - 1] not in _ENDS:
        start -= 1
    while end and first[len(first) - end] not in _ENDS:
        end -= 1
    cut = {name: _around(name, start, len(name) - end, width) for name in names}
    if len(set(cut.values())) == len(names):
        return cut
    return {name: _tail(name, width) for name in names}


def _in_common(texts: Sequence[str]) -> int:
    """How many characters texts begin with alike."""
    columns = zip(*texts, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def _around(name: str, start: int, end: int, width: int) -> str:
    """A part of a name, with as much of what comes after and before it as there is room for."""
    middle = name[start:end]
    room = width - len(middle) - min(start, 1)
    if room < 1:
        return _tail(middle, width)
    after = _tail(name[end:], room)
    return _tail(name[:start], width - len(middle) - len(after)) + middle + after


def _tail(text: str, width: int) -> str:
    return text if len(text) <= width else f"…{text[len(text) - width + 1 :]}"
