"""Where a name leads, and what is said of one that leads nowhere."""

from pathlib import Path

import pytest

from tracer.choices import CANDIDATES, SAVED_HEADER, TRACE_HEADER
from tracer.errors import ModelLoadError, UsageError
from tracer.models.locate import (
    check_offload,
    factory_of,
    is_saved,
    is_trace,
    locate,
    locate_processor,
    saved_variant,
)
from wrappers.deploy.folders import HEADER


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a checkpoint, an empty folder, a file, and a function that makes a model."""
    monkeypatch.chdir(tmp_path)
    for name in ("checkpoint", "empty"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint/config.json", "checkpoint/preprocessor_config.json", "port.py"):
        (tmp_path / name).write_text("{}")
    return tmp_path


@pytest.mark.parametrize(("name", "expected"), [
    ("random-llama", "random-llama"), ("organisation/name", "organisation/name"),
    ("port.py:build", "port.py:build"), ("port:nested.build", "port:nested.build"),
    ("checkpoint", Path("checkpoint")),
])  # fmt: skip
def test_names_that_lead_somewhere(name: str, expected: Path | str) -> None:
    assert locate(name) == expected


def test_the_trained_model_is_a_folder() -> None:
    assert (locate("tiny-llama") / "config.json").is_file()


@pytest.mark.parametrize(("name", "message"), [
    ("empty", "is a folder without config.json"),
    ("port.py", "is a file: give the folder"),
    ("none.py:build", r"none\.py:build: "),
    ("absent_package:build", "'absent_package', neither installed nor in this folder"),
    ("random-lama", "unknown model 'random-lama': .*did you mean 'random-llama'"),
])  # fmt: skip
def test_names_that_lead_nowhere(name: str, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        locate(name)


def test_a_candidate_may_be_more() -> None:
    with pytest.raises(ModelLoadError, match=r"unknown candidate 'sdap': .*mean 'sdpa'"):
        locate("sdap", CANDIDATES)


@pytest.mark.parametrize(("name", "parts"), [
    ("a/port.py:build", ("a/port.py", "build")),
    ("package.port:make.model", ("package.port", "make.model")),
    ("C:\\models", None),
    ("organisation/name", None),
])  # fmt: skip
def test_functions(name: str, parts: tuple[str, str] | None) -> None:
    assert factory_of(name) == parts


def test_traces_and_processors(folder: Path) -> None:
    (folder / "empty" / TRACE_HEADER).write_text("{}")
    assert is_trace("empty")
    assert is_trace("absent.trace")
    assert not is_trace("checkpoint")
    assert locate_processor("checkpoint") == Path("checkpoint")
    assert locate_processor("organisation/name") == "organisation/name"
    for name, message in (("empty", "without preprocessor_config.json"), ("none", "no processor")):
        with pytest.raises(ModelLoadError, match=message):
            locate_processor(name)


def test_where_weights_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_offload(True)
    check_offload(folder)
    with pytest.raises(UsageError, match="absent"):
        check_offload(folder / "absent")
    with monkeypatch.context() as patch, pytest.raises(UsageError, match="is not writable"):
        patch.setattr("tracer.models.locate.os.access", lambda *_: False)
        check_offload(folder)
    monkeypatch.setattr("tracer.models.locate.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'accelerate>="):
        check_offload(True)


def test_a_folder_named_like_a_kind_of_candidate_is_none(tmp_path, monkeypatch) -> None:
    (tmp_path / "quantized").mkdir()
    (tmp_path / "quantized" / "quantized.json").write_text('{"config": {"variant": "decode"}}')
    monkeypatch.chdir(tmp_path)
    assert not is_saved("quantized")
    assert is_saved("./quantized")
    assert saved_variant("./quantized") == "decode"
    assert HEADER == SAVED_HEADER  # each package has a name for it, as neither imports the other's
