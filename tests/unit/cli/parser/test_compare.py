"""Which name is the reference, the model and the candidate."""

from pathlib import Path
from typing import Any

import pytest

from tracer.cli.parser.compare import request
from tracer.errors import UsageError

SIDES = ("model", "reference", "candidate")


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two directories that are taken for traces."""
    folders = [tmp_path_factory.mktemp(name) for name in "ab"]
    for folder in folders:
        Path(folder, "header.json").write_text("{}")
    return str(folders[0]), str(folders[1])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("tiny", None, None), ("tiny", None, "wrapped")),
        (("tiny", None, "sdpa"), ("tiny", None, "sdpa")),
        (("tiny", "A", None), ("tiny", "A", "itself")),
        (("A", None, "port"), ("port", "A", "itself")),
        (("A", None, "B"), (None, "A", "B")),
    ],
)
def test_sides(given: Any, expected: Any, traces: tuple[str, str]) -> None:
    names = dict(zip("AB", traces, strict=True))
    options = {side: names.get(name, name) for side, name in zip(SIDES, given, strict=True) if name}
    made = request(options)
    found = tuple(getattr(made, side) for side in SIDES)
    assert found == tuple(names.get(name, name) for name in expected)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model": "A", "reference": "B"}, "give one of them"),
        ({"model": "A"}, "is a trace, which is compared with"),
        ({"model": "tiny", "reference": "tiny"}, "is no trace"),
    ],
)
def test_refusals(given: dict[str, str], says: str, traces: tuple[str, str]) -> None:
    names = dict(zip("AB", traces, strict=True))
    with pytest.raises(UsageError, match=says):
        request({side: names.get(name, name) for side, name in given.items()})
