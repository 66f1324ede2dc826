"""What the README and the guides show to be run is run as it is printed.

Python blocks of a page run one after the other, in one namespace. Commands run in a folder in which
stands what their page takes for granted: a small model for MODEL, a port of it, and so on.
"""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import tracer
import wrappers
from tests.system.test_docs import _BLOCK, GUIDES, README, ROOT, commands, name_of
from tracer.cli import main

PORT = """
import tracer
from torch import nn

class Port(nn.Module):
    def __init__(self, llama):
        super().__init__()
        self.model, self.lm_head, self.config = llama.model, llama.lm_head, llama.config

    def forward(self, input_ids=None, attention_mask=None, tokens=None):
        ids = input_ids if tokens is None else tokens
        made = self.model(input_ids=ids, attention_mask=attention_mask)
        return {"logits": self.lm_head(made.last_hidden_state)}

def build():
    return Port(tracer.models.load("random-llama").model)
"""
# What stands for names that a page leaves to its reader.
NAMES = {"MODEL": "random-llama", "FILE": "text.txt", "OTHER_FOLDER": "other"}
# What cannot be run here, by a word of the command, and why.
NOT_RUN = {
    "cuda": "needs a second device",
    "--processor": "needs a processor",
    "--break": "opens a debugger, which tests/system/cli/test_debugging.py does",
    "--post-mortem": "as --break",
    "--map": "needs a checkpoint under other names",
    "compile": "takes minutes; tests/unit/isolation/compiled compiles small models",
    "model.onnx": "takes long to export; tests/system/cli/test_through.py compares one",
    "attention.circle": "as model.onnx; tests/unit/adapters/test_circle_model.py has one",
    "quantize": "takes long; tests/unit/cli/test_quantize.py runs the example",
    "ablate": "takes minutes; tests/system/cli/test_ablate.py runs small ones",
    "folder": "is what an hour of training makes",
    "check": "needs checks; tests/system/test_ci_guide.py runs it",
    "--help": "prints what is in docs/reference/cli.md",
}


def snippets(page: Path) -> list[str]:
    """The Python of a page that is there to be run."""
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [block for skipped, language, block in found if language == "python" and not skipped]


def run(page: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, object]:
    """Runs the snippets of a page one after the other, and returns what they have named.

    Tests that they define are called, and no debugger opens.
    """
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONBREAKPOINT", "0")
    names: dict[str, object] = {"__name__": "snippets"}
    for snippet in snippets(page):
        exec(compile(snippet, name_of(page), "exec"), names)
    for name, value in names.items():
        if name.startswith("test_") and callable(value):
            value(tracer.assert_equivalent)
    return names


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:PYTHONBREAKPOINT is 0")
@pytest.mark.parametrize("page", [page for page in GUIDES if snippets(page)], ids=name_of)
def test_snippets_run(page, monkeypatch, capsys, tmp_path) -> None:
    run(page, monkeypatch, tmp_path)


def test_snippets_of_the_readme_run(monkeypatch, capsys, tmp_path) -> None:
    assert run(README, monkeypatch, tmp_path)["comparison"].verdict.agrees
    assert (tmp_path / "report.json").is_file()


def test_what_is_not_run_says_why() -> None:
    skipped = [
        (page.name, why)
        for page in (README, *GUIDES)
        for why, language, _ in _BLOCK.findall(page.read_text(encoding="utf-8"))
        if language == "python" and why
    ]
    assert skipped == [
        ("recipes.md", "<!-- not run: it needs a model with images and its processor -->\n"),
        ("studies.md", "<!-- not run: downloads lm-eval's tasks -->\n"),
    ]


# The guide of checks is walked by tests/system/test_ci_guide.py.
PAGES = [page for page in (README, *GUIDES) if page.name != "checks.md"]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_run(page, monkeypatch, capsys, tmp_path) -> None:
    """Each ends with the exit code of the output that its page shows, or 0."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "port.py").write_text(PORT)
    text = page.read_text(encoding="utf-8")
    shown = dict(outputs(text))
    for arguments in commands(text):
        if NOT_RUN.keys() & set(arguments):
            continue
        given = [NAMES.get(argument, argument) for argument in arguments]
        for name in given:
            if name in MAKERS and name not in written_by(given) and not Path(name).exists():
                MAKERS[name]()
                capsys.readouterr()
        assert main(given) == code_of(shown.get(tuple(arguments), "")), (
            given,
            capsys.readouterr().err,
        )


def outputs(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """The commands of a page's sessions, and what is shown to be printed."""
    for _, _, block in _BLOCK.findall(text):
        for part in re.split(r"^\$ ", block.replace("\\\n", " "), flags=re.M)[1:]:
            command, _, output = part.partition("\n")
            yield tuple(shlex.split(command, comments=True)[1:]), output


def code_of(output: str) -> int:
    if re.search(r"^trace_model( \w+)?: ", output, re.M):
        return 2
    return 1 if re.search(r"^(diverges|worse|fails)\b", output, re.M) else 0


def written_by(arguments: list[str]) -> set[str]:
    """The files that a command is to write."""
    pairs = pairwise(arguments)
    return {value for option, value in pairs if option in ("--out", "--report")}


def record(*arguments: str) -> None:
    assert main(["record", "random-llama", *arguments]) == 0


def save_model(folder: str, *, broken: bool = False) -> None:
    model = tracer.models.load("random-llama").model
    if broken:
        with torch.no_grad():
            model.model.layers[2].mlp.up_proj.weight[3] *= 2
    model.save_pretrained(folder)


def save_graph(file: str) -> None:
    loaded = tracer.models.load("random-llama")
    with torch.no_grad():
        program = torch.export.export(loaded.model, (), {**loaded.inputs, "use_cache": False})
    torch.export.save(program, file)


def reports(folder: str) -> None:
    Path(folder).mkdir()
    for name in ("first", "second"):
        assert main(["compare", "random-llama", "--report", f"{folder}/{name}.json"]) == 0


QUANTIZED = ["compare", "random-llama", "--candidate", "quantized"]


# What pages take for granted.
def save_quantized(folder: str) -> None:
    loaded = tracer.models.load("random-llama")
    wrappers.save(tracer.models.candidate(loaded, "quantized"), folder, loaded.model)


MAKERS: Mapping[str, Callable[[], object]] = {
    "text.txt": lambda: Path("text.txt").write_text("Once upon a time. " * 200),
    "main.json": lambda: main([*QUANTIZED, "--report", "main.json"]),
    "new.json": lambda: main([*QUANTIZED, "--report", "new.json"]),
    "reports": lambda: reports("reports"),
    "config.json": lambda: Path("config.json").write_text(wrappers.PTQConfig().to_json()),
    "run.trace": lambda: record("--out", "run.trace"),
    "a.trace": lambda: record("--out", "a.trace"),
    "b.trace": lambda: record("--candidate", "sdpa", "--out", "b.trace"),
    "model.pt2": lambda: save_graph("model.pt2"),
    "other": lambda: save_model("other"),
    "broken": lambda: save_model("broken", broken=True),
    "FOLDER": lambda: save_quantized("FOLDER"),
}
