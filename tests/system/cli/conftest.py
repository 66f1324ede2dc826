"""Fixtures of the command line: a plain terminal, commands that are run once, what they leave."""

import contextlib
import functools
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tracer.cli import main
from tracer.models.loading import load


@dataclass(frozen=True)
class Ran:
    """What a command line did.

    Attributes:
        words: what it printed on standard output, with single spaces.
        report: the JSON report that was written beside what was printed; empty if none was.
    """

    code: int
    out: str
    err: str
    report: dict[str, Any]

    @property
    def words(self) -> str:
        return " ".join(self.out.split())


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ran]:
    """Runs a command line, once for the same arguments; `compare` writes a JSON report as well."""
    folder = tmp_path_factory.mktemp("reports")

    @functools.cache
    def once(place: str, columns: str, *words: str) -> Ran:
        report = folder / f"{len(list(folder.iterdir()))}.json"
        written = ("--report", str(report)) if words[0] == "compare" else ()
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([*words, *written])
        found = json.loads(report.read_text()) if report.exists() else {}
        return Ran(code, out.getvalue(), err.getvalue(), found)

    def run(*arguments: object) -> Ran:
        return once(str(Path.cwd()), os.environ["COLUMNS"], *map(str, arguments))

    return run


@pytest.fixture(scope="session")
def compare(run: Callable[..., Ran]) -> Callable[..., Ran]:
    return functools.partial(run, "compare")


@pytest.fixture(scope="session")
def refused(run: Callable[..., Ran]) -> Callable[..., str]:
    """Runs a command line that is refused in one line; that line."""

    def refused(*arguments: object) -> str:
        ran = run(*arguments)
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1), ran
        assert ran.err.startswith("trace_model")
        return ran.err

    return refused


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The built-in Llama with one row of one weight enlarged."""
    folder = tmp_path_factory.mktemp("checkpoints") / "broken"
    with contextlib.redirect_stderr(io.StringIO()):  # transformers shows how far it has written
        load("tiny-llama").model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][3] *= 1.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def trace(tmp_path_factory: pytest.TempPathFactory, run: Callable[..., Ran]) -> Path:
    """A trace of the tiny Llama."""
    path = tmp_path_factory.mktemp("traces") / "run.trace"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "100")
        assert run("record", "tiny-llama", "--out", path, "--batch", 2).code == 0
    return path
