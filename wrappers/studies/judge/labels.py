"""Short names for combinations of settings: what differs between them, and nothing else.

{"activation": "uint8"}                                            uint8
{"activation": {"dtype": "uint8", "observer": "percentile",
                "options": {"percentile": 99.9}}}                  observer=percentile,
                                                                   percentile=99.9
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from wrappers.studies.plan.trials import Settings

# Parts of a path that say nothing: what follows them, or stands before them, does.
_SILENT = ("dtype", "options")
_Path = tuple[str, ...]


def differing(combinations: Sequence[Settings], varied: Sequence[str]) -> list[str]:
    """Those of the varied settings that are not the same in all combinations; the first if none."""
    names = [
        name
        for name in varied
        if len({json.dumps(each[name], sort_keys=True) for each in combinations}) > 1
    ]
    return names or list(varied[:1])


def labels(combinations: Sequence[Settings], varied: Sequence[str]) -> list[str]:
    """A label for each combination.

    Args:
        combinations: of settings.
        varied: the settings that can differ.
    """
    parts = [
        _of_values([each[name] for each in combinations])
        for name in differing(combinations, varied)
    ]
    return [", ".join(each) for each in zip(*parts, strict=True)]


def _of_values(values: Sequence[Any]) -> list[str]:
    """A label for each value of one setting."""
    if not any(isinstance(value, Mapping) for value in values):
        return [_plain(value) for value in values]
    leaves = [
        _leaves(value if isinstance(value, Mapping) else {"dtype": value}) for value in values
    ]
    common = set.intersection(*({_key(leaf) for leaf in each.items()} for each in leaves))
    return [
        _joined([leaf for leaf in each.items() if _key(leaf) not in common])
        or _joined(list(each.items()))
        or "none"
        for each in leaves
    ]


def _leaves(value: Any, path: _Path = ()) -> dict[_Path, Any]:
    if not isinstance(value, Mapping):
        return {path: value}
    found: dict[_Path, Any] = {}
    for name, item in value.items():
        found |= _leaves(item, path if name in _SILENT else (*path, name))
    return found


def _key(leaf: tuple[_Path, Any]) -> tuple[_Path, str]:
    return leaf[0], json.dumps(leaf[1], sort_keys=True)


def _joined(leaves: Sequence[tuple[_Path, Any]]) -> str:
    return ", ".join(
        f"{' '.join(path)}={_plain(value)}" if path else _plain(value) for path, value in leaves
    )


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(map(_plain, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value)
