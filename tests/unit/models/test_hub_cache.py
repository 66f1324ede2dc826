"""Where models of the hub are kept."""

import os
from pathlib import Path

import pytest
from huggingface_hub import constants, try_to_load_from_cache

from tracer.models.hub_cache import hub_cache


def snapshot(folder: Path) -> Path:
    """A repository in a cache, as the hub's own client lays it out."""
    place = folder / "models--org--name"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    (place / "snapshots" / "abc").mkdir(parents=True)
    (place / "snapshots" / "abc" / "config.json").write_text("{}")
    return place / "snapshots" / "abc" / "config.json"


def test_models_are_taken_from_there_meanwhile(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", "/before")
    before = constants.HF_HUB_CACHE
    file = snapshot(tmp_path)
    with pytest.raises(KeyError), hub_cache(tmp_path):
        assert try_to_load_from_cache("org/name", "config.json") == str(file)
        assert os.environ["HF_HUB_CACHE"] == str(tmp_path)  # for worker processes
        raise KeyError
    assert before == constants.HF_HUB_CACHE
    assert os.environ["HF_HUB_CACHE"] == "/before"


def test_nothing_changes_without_a_folder(monkeypatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with hub_cache(None):
        assert "HF_HUB_CACHE" not in os.environ
    with hub_cache(Path("x")):
        assert os.environ["HF_HUB_CACHE"] == "x"
    assert "HF_HUB_CACHE" not in os.environ
