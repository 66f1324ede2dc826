"""Fixtures of the command line: a plain terminal of 100 columns, and a broken checkpoint."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tracer.models.loading import load


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture
def broken(tmp_path: Path, capsys) -> Path:
    """The built-in Llama with one row of one weight enlarged."""
    load("tiny-llama").model.save_pretrained(tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][3] *= 1.5
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()  # transformers shows how far it has written
    return tmp_path / "broken"
