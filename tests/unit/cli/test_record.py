"""`trace_model record`: what it writes and prints."""

from dataclasses import replace
from pathlib import Path

import pytest

import tracer
from tracer.cli.record import record
from tracer.cli.requests import RecordRequest
from tracer.errors import StorageError, UsageError


def test_written_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.trace"
    request = RecordRequest(
        model="random-llama", out=str(out), values="outputs", include=("lm_head",), batch=2
    )
    assert record(request, "trace_model record") == 0
    assert capsys.readouterr().out.startswith(f"{out}: 1 calls, ")
    assert tracer.open_trace(out).header["command"] == "trace_model record"


@pytest.mark.covers
def test_replacing_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.trace"
    request = RecordRequest(model="random-llama", out=str(out), include=("lm_head",))
    record(request, "first")
    with pytest.raises(StorageError, match=r"a.trace exists already: .*--force"):
        record(request, "second")
    again = replace(request, force=True)
    record(again, "second")
    assert tracer.open_trace(out).header["command"] == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["a.trace"]
    with pytest.raises(UsageError, match="nothing"):
        record(replace(again, include=("nothing",)), "third")
    assert tracer.open_trace(out).header["command"] == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["a.trace"]


def test_nothing_but_a_trace_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "mine.txt").write_text("mine")
    request = RecordRequest(model="random-llama", out=str(tmp_path / "work"), force=True)
    with pytest.raises(StorageError, match="is no trace: --force replaces nothing else"):
        record(request, "")
    folder = tmp_path / "mine.trace"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="is no trace: --force replaces nothing else"):
        record(replace(request, out=str(folder)), "")
    assert (folder / "mine.txt").exists()
