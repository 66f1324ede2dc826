"""`trace_model ablate`: what is refused before a model is loaded."""

from pathlib import Path

import pytest

from tracer.cli.ablate import _places, ablate
from tracer.cli.requests import AblateRequest
from tracer.errors import UsageError


def test_no_model_is_named(tmp_path: Path) -> None:
    config = tmp_path / "grid.toml"
    config.write_text('[grid]\nweight = ["uint8"]\n')
    with pytest.raises(UsageError, match="no model is named"):
        ablate(AblateRequest(config=config), "trace_model ablate")


def test_where_it_writes(tmp_path: Path) -> None:
    assert _places(AblateRequest(report=("a.csv",)), "grid") == ("grid.jsonl", ("a.csv",))
    out = tmp_path / "a" / "b"
    request = AblateRequest(out=str(out), report=("a.csv", str(out / "grid.md")))
    kept, reports = _places(request, "grid")
    assert out.is_dir()
    assert kept == str(out / "grid.jsonl")
    assert reports == (str(out / "grid.html"), str(out / "grid.md"), "a.csv")
    assert _places(AblateRequest(out=str(out), results="r.jsonl"), "grid")[0] == "r.jsonl"
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--out .*file cannot be made: File exists"):
        _places(AblateRequest(out=str(tmp_path / "file")), "grid")
