"""Origins in words, and the source around a line."""

from pathlib import Path

import pytest

from tracer.diagnosis.finding import Origin, OriginKind
from tracer.diagnosis.verdict import Ended, Verdict
from tracer.reports.parts.excerpt import excerpt, origin_in_words, origins


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.py"
    path.write_text("".join(f"    line {i}\n" for i in range(1, 31)), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("line", "numbers"),
    [(10, range(6, 15)), (1, range(1, 6)), (2, range(1, 7)), (30, range(26, 31))],
)
def test_the_lines_around(file: Path, line: int, numbers: range):
    found = excerpt(f"{file}:{line}")
    assert found.lines == tuple((number, f"line {number}") for number in numbers)
    assert found.marked == line
    assert found.place.endswith(f"model.py:{line}")


def test_indentation_and_files_that_were_edited(tmp_path: Path, file: Path):
    path = tmp_path / "a.py"
    path.write_text("    if x:\n\n        y\f = 1\n    z\n")
    assert excerpt(f"{path}:1").lines == ((1, "if x:"), (2, ""), (3, "    y\f = 1"), (4, "z"))
    assert excerpt(f"{file}:1").lines[0] == (1, "line 1")
    file.write_text("other and longer\n")
    assert excerpt(f"{file}:1").lines == ((1, "other and longer"),)


@pytest.mark.parametrize("location", ["/nowhere/model.py:3", "{file}:31", "{file}:99"])
def test_what_cannot_be_read(file: Path, location: str):
    found = excerpt(location.format(file=file))
    assert (found.lines, found.marked) == ((), int(location.rpartition(":")[2]))


@pytest.mark.parametrize("location", [None, "built-in"])
def test_no_source(location: str | None):
    assert excerpt(location).marked is None


@pytest.mark.parametrize(("kind", "argument", "words"), [
    (OriginKind.ARGUMENT, "mask", "`a.b` passes a wrong `mask`"),
    (OriginKind.PARAMETER, None, "`a.b` has wrong parameters"),
    (OriginKind.COMPUTATION, None, "`a.b` computes a wrong result"),
])  # fmt: skip
def test_origins_in_words(kind: OriginKind, argument: str | None, words: str):
    assert origin_in_words(Origin("a.b", argument, kind, None, None)) == words


NOTHING = Ended(None)


def test_every_origin():
    first, second = (Origin(name, None, OriginKind.COMPUTATION, None, None) for name in "ab")
    assert origins(Verdict(False, None, first, False, NOTHING)) == (first,)
    both = Verdict(False, None, first, False, NOTHING, origins=(first, second))
    assert origins(both) == (first, second)
    assert origins(Verdict(True, None, None, False, NOTHING)) == ()
