"""`trace_model record`: what it writes and prints."""

from pathlib import Path

import pytest

import tracer
from tracer.cli.record import record
from tracer.cli.requests import RecordRequest


def test_written_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.trace"
    request = RecordRequest(
        model="random-llama", out=str(out), values="outputs", include=("lm_head",), batch=2
    )
    assert record(request, "trace_model record") == 0
    assert capsys.readouterr().out.startswith(f"{out}: 1 calls, ")
    assert tracer.open_trace(out).header["command"] == "trace_model record"
