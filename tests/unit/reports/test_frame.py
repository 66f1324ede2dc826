"""The frame as CSV and Parquet: read back, it is the frame."""

import math
from pathlib import Path

import pandas
import pytest

from tracer import reports
from tracer.comparison.result import ROW_COLUMNS
from tracer.errors import UsageError
from tracer.reports import check_path, save

NAME = 'layers.0, "odd"\nname'


@pytest.fixture
def comparison(make_row, make_comparison):
    rows = [make_row(NAME, 0.25), make_row("b", None, note="shape [1]"), make_row("c", floor=1e-7)]
    return make_comparison(rows)


def test_csv(tmp_path: Path, comparison):
    save(comparison, tmp_path / "out.csv")
    frame = pandas.read_csv(tmp_path / "out.csv")
    assert list(frame.columns) == list(ROW_COLUMNS)
    assert frame["module"].tolist() == [NAME, "b", "c"]
    assert frame["shape"].tolist() == ["1x3"] * 3
    assert frame["peir"].tolist() == [0.25, math.inf, 0.0]
    assert frame["mean"].isna().tolist() == [False, True, False]
    assert frame["agrees"].tolist() == [False, False, True]


def test_parquet(tmp_path: Path, comparison):
    pytest.importorskip("pyarrow")
    save(comparison, tmp_path / "out.parquet")
    frame = pandas.read_parquet(tmp_path / "out.parquet")
    expected = comparison.to_frame()
    assert list(frame.columns) == list(ROW_COLUMNS)
    assert [list(shape) for shape in frame["shape"]] == [[1, 3]] * 3
    for column in ("module", "call", "value", "peir", "agrees", "dtype", "note"):
        assert frame[column].tolist() == expected[column].tolist()
    assert frame["floor"].tolist()[2] == 1e-7
    assert pandas.isna(frame["mean"][1])


def test_parquet_without_its_package_and_no_rows(tmp_path: Path, monkeypatch, make_comparison):
    monkeypatch.setattr(reports, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pyarrow.*pip install 'pyarrow>="):
        check_path(tmp_path / "out.parquet")
    check_path(tmp_path / "out.csv")
    save(make_comparison([]), tmp_path / "out.csv")
    assert pandas.read_csv(tmp_path / "out.csv").empty
