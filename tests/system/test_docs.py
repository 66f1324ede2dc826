"""The README and the pages of docs/ say what is so: commands parse, snippets run, links resolve."""

import json
import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tracer
import wrappers
from tracer import models
from tracer.cli.parser import parse
from wrappers import evaluate, recipes, studies

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
GUIDES = sorted((DOCS / "guides").glob("*.md"))
PAGES = [README, *sorted(DOCS.rglob("*.md")), ROOT / "examples" / "ci" / "README.md"]

_OWN_LINE = re.compile(r"\bwrappers/[\w/]+\.py:\d+")

# Files and traces that commands name; the parser looks whether they exist.
FILES = (
    *("FILE", "photo.png", "main.json", "new.json", "quantized.json", "config.json"),
    "examples/studies/sensitivity.toml",
    *("recipe.toml", "examples/recipes/tiny-llama.toml"),
)

_BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(trace_model\s[^`]+)`")
_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of each `trace_model` command of a page: in blocks, and in lines of prose."""
    for _, language, block in _BLOCK.findall(text):
        if language not in ("", "console"):
            continue
        lines = block.replace("\\\n", " ").splitlines()
        typed = [line[2:] for line in lines if line.startswith("$ ")]
        for line in typed or lines:
            if line.startswith("trace_model ") and not line.startswith("trace_model compare:"):
                yield shlex.split(line, comments=True)[1:]
    for command in _INLINE.findall(_BLOCK.sub("", text)):
        arguments = shlex.split(command)[1:]
        if len(arguments) > 1:  # else a command is named, not given
            yield arguments


def parses(arguments: list[str]) -> bool:
    """Whether the command line accepts them."""
    try:
        parse(arguments)
    except SystemExit as stop:
        return not stop.code
    return True


@pytest.mark.parametrize("page", [README, *GUIDES], ids=name_of)
def test_commands_parse(page, monkeypatch, capsys, tmp_path) -> None:
    for file in FILES:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}")
    monkeypatch.chdir(tmp_path)
    for arguments in commands(page.read_text(encoding="utf-8")):
        refusal = "--report" in arguments and "out/run.html" in arguments  # shown to be refused
        assert parses(arguments) is not refusal, (arguments, capsys.readouterr().err)


def test_every_guide_shows_a_command() -> None:
    without = {"notebooks.md"}  # by Python alone
    for page in GUIDES:
        found = list(commands(page.read_text(encoding="utf-8")))
        assert bool(found) is (page.name not in without), page.name


@pytest.mark.slow
def test_the_mask_bug_is_found_as_it_is_shown(monkeypatch, capsys) -> None:
    """With these modules, figures and lines of our own; those of transformers move."""
    monkeypatch.setattr("sys.argv", ["find_the_mask_bug.py"])
    runpy.run_path(str(ROOT / "examples" / "find_the_mask_bug.py"), run_name="__main__")
    output = capsys.readouterr().out
    printed, places = names_and_figures(output), set(_OWN_LINE.findall(output))
    assert len(places) > 1
    report = DOCS / "guides" / "reports.md"
    assert set(_OWN_LINE.findall(report.read_text(encoding="utf-8"))) <= places
    for page in (README, DOCS / "guides" / "verdict-and-zoom.md"):
        [shown] = [
            block
            for _, _, block in _BLOCK.findall(page.read_text(encoding="utf-8"))
            if block.startswith("`model.language_model` passes a wrong")
        ]
        assert names_and_figures(shown) <= printed, page.name
        assert set(_OWN_LINE.findall(shown)) <= places, page.name


@pytest.mark.slow
def test_the_picture_shows_what_the_example_prints() -> None:
    """In its words; if not: run python docs/make_picture.py."""
    made = runpy.run_path(str(DOCS / "make_picture.py"))
    drawn, now = (
        re.findall(r"[a-z_]{3,}", " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg)))
        for svg in (made["PICTURE"].read_text(encoding="utf-8"), made["picture"]())
    )
    assert drawn == now


def names_and_figures(text: str) -> set[str]:
    text = " ".join(re.sub(r"\.py:\d+", ".py", text).split())
    return set(re.findall(r"`[^`]+`|\b\d[\d.e+-]*\d\b|[\w/]+\.py", text))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and mkdocs give to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page) -> None:
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    for link in (first or second for first, second in _LINK.findall(text)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(DOCS) or not page.is_relative_to(DOCS), f"{link}: no page"
        assert not anchor or anchor in anchors(target), link


def test_pages_and_the_readme() -> None:
    pages = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert sorted(pages) == sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))
    assert README.stat().st_size < 10_000


def test_the_command_line_reference_is_what_the_parser_says(monkeypatch) -> None:
    """If not: run python docs/make_cli_reference.py."""
    monkeypatch.setenv("NO_COLOR", "1")
    made = runpy.run_path(str(DOCS / "make_cli_reference.py"))
    page = made["PAGE"].read_text(encoding="utf-8")
    # Versions of Python wrap lines differently.
    assert page.split() == made["page"]().split()


def test_the_api_reference_has_every_public_package() -> None:
    page = (DOCS / "reference" / "python-api.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: (\S+)$", page, re.M)
    rooms = (tracer, models, wrappers, evaluate, recipes, studies)
    # A function and its module of one name: the page has to name the function.
    homonym = "wrappers.evaluate.perplexity.perplexity"
    assert [name for name in named if name != homonym] == [room.__name__ for room in rooms]
    assert homonym in named
    for room in rooms:
        for name in room.__all__:
            assert getattr(room, name).__doc__, f"{room.__name__}.{name} has no docstring"


def test_rooms_and_figures_of_the_pages() -> None:
    page = (DOCS / "explanation" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`(?:tracer|wrappers)\..+?`) \|", page, re.M)
    shown = [re.findall(r"`([\w.]+)`", row) for row in rows]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = [c["layers"] for c in contracts["contracts"] if c["type"] == "layers"]
    assert shown == [layer.split(" | ") for contract in layers for layer in contract]
    page = (DOCS / "reference" / "report-schema.md").read_text(encoding="utf-8")
    schema = json.loads((ROOT / "tracer" / "reports" / "report.schema.json").read_text())
    assert re.findall(r"^\| `(\w+)` \|", page, re.M) == list(schema["properties"])
    page = (DOCS / "explanation" / "tolerances.md").read_text(encoding="utf-8")
    limits = tracer.Tolerance()
    for names, limit in re.findall(r"^\| ([a-z0-9, ]+) \| ([\d.e-]+) \|$", page, re.M):
        for name in names.split(", "):
            dtype = getattr(torch, name)
            assert limits.limit(dtype, dtype) == float(limit), name
