"""The configuration: where it is found, what it holds, and what counts before what."""

from pathlib import Path

import pytest

from tracer.cli.configuration import Configuration, find
from tracer.cli.keys import Keys
from tracer.cli.parser import make_parser, parse
from tracer.errors import UsageError

TEXT = """
model = "m"
dtype = "float64"
report = ["{name}.html"]

[checks.plain]
candidate = "sdpa"

[checks.port]
candidate = "port.py:build"
batch = 3
[checks.port.input-sets.short]
sequence_length = 4
[checks.port.input-sets.wide]
batch = 8
"""


@pytest.fixture(scope="module")
def keys() -> Keys:
    return Keys(make_parser()[1]["compare"])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(text: str, name: str = "trace_model.toml") -> Path:
    Path(name).write_text(text)
    return Path(name)


def test_checks_and_input_sets(keys) -> None:
    checks = Configuration.read(written(TEXT), keys).checks
    common = {"model": "m", "dtype": "float64"}
    port = common | {"candidate": "port.py:build"}
    assert {name: dict(check.options) for name, check in checks.items()} == {
        "plain": common | {"report": ["plain.html"], "candidate": "sdpa"},
        "port.short": port | {"report": ["port.short.html"], "batch": 3, "sequence-length": 4},
        "port.wide": port | {"report": ["port.wide.html"], "batch": 8},
    }
    assert next(iter(checks["port.wide"].options)) == "model"
    assert checks["port.wide"].place == "checks.port.input-sets.wide"


def test_selection(keys) -> None:
    configuration = Configuration.read(written(TEXT), keys)

    def selected(*names: str) -> list[str]:
        return [check.name for check in configuration.select(names)]

    assert selected() == ["plain", "port.short", "port.wide"]
    assert selected("port.wide", "plain") == ["plain", "port.wide"]
    assert selected("port") == ["port.short", "port.wide"]
    with pytest.raises(UsageError, match=r"no check 'prot'; it has plain, .*; did you mean 'port'"):
        selected("prot")


def test_where_it_is_found(folder) -> None:
    below = folder / "a" / "b"
    below.mkdir(parents=True)
    written("[project]\nname = 'x'\n", "a/pyproject.toml")
    assert find(below) is None
    written("[tool.trace_model.checks.x]\nmodel = 'm'\n", "pyproject.toml")
    assert find(below) == folder / "pyproject.toml"
    written(TEXT)
    assert find(below) == folder / "trace_model.toml"


def test_both_files_hold_the_same(keys) -> None:
    text = TEXT.replace("[checks", "[tool.trace_model.checks")
    other = written(f"[tool.trace_model]\n{text}", "pyproject.toml")
    checks = Configuration.read(other, keys).checks
    assert [check.options for check in checks.values()] == [
        check.options for check in Configuration.read(written(TEXT), keys).checks.values()
    ]
    assert checks["plain"].place == "tool.trace_model.checks.plain"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[checks.a]\nmodle = "m"', "checks.a.modle: unknown key; did you mean 'model'?"),
        ('[check.a]\nmodel = "m"', "check: unknown key; did you mean 'checks'?"),
        ('[checks.a]\nmodel="m"\nbatch="2"', "checks.a.batch: found the text '2', expected"),
        ("[checks.a]\nmodel='m'\n[checks.a.input-set.x]", "did you mean 'input-sets'?"),
        ("[checks.a]\nmodel='m'\n[checks.a.input-sets.x]\nbach=1", "a.input-sets.x.bach: unknown"),
        ("[checks.a]\nmodel='m'\nmax-peir=['a=1']\nmax_peir=['a=1']", "is given twice"),
        ("[checks.a]\ncandidate='sdpa'", 'checks.a: no model: add model = "..."'),
        ("[checks.'a.b']\nmodel='m'", "expected a name of letters, digits, - and _"),
        ("checks = 3", "checks: expected tables by name, such as [checks.NAME]"),
        ("[checks]\na = 3", "checks.a: expected a table, such as [checks.a]"),
        ("checks = [", "no valid TOML: "),
        ("dtype = 'float32'", "has no checks: expected [checks.NAME] in it"),
    ],
)
def test_mistakes(keys, text, message) -> None:
    with pytest.raises(UsageError) as refused:
        Configuration.read(written(text), keys)
    assert message in str(refused.value)
    assert str(refused.value).startswith("trace_model.toml")
    assert "\n" not in str(refused.value)


def test_a_table_that_is_none(keys) -> None:
    with pytest.raises(UsageError, match=r"tool.trace_model: expected a table"):
        Configuration.read(written("[tool]\ntrace_model = 3", "pyproject.toml"), keys)


class TestPrecedence:
    def test_option_environment_configuration_default(self, folder, monkeypatch) -> None:
        assert parse(["compare", "m"]).dtype is None
        written("dtype = 'float64'\ndevice = 'cpu'\ncache = 'hub'\n")
        (folder / "below").mkdir()
        monkeypatch.chdir(folder / "below")
        request = parse(["record", "m", "--out", "x"])
        assert (request.dtype, request.device) == ("float64", "cpu")
        assert request.cache == folder / "hub"
        assert parse(["ablate", "mask-fill", "m"]).cache == folder / "hub"
        monkeypatch.setenv("TRACE_MODEL_DTYPE", "bfloat16")
        monkeypatch.setenv("TRACE_MODEL_CACHE", "own")
        monkeypatch.setenv("TRACE_MODEL_DEVICE", "")  # is none
        request = parse(["show", "m"])
        assert (request.dtype, request.device) == ("bfloat16", "cpu")
        assert request.cache == folder / "below" / "own"
        assert parse(["compare", "m", "--dtype", "float32"]).dtype == "float32"

    def test_a_check_has_its_own(self, monkeypatch) -> None:
        written("dtype = 'float64'\n")
        assert parse(["check"]).dtype is None
        monkeypatch.setenv("TRACE_MODEL_DTYPE", "bfloat16")
        assert parse(["check"]).dtype == "bfloat16"

    def test_mistakes(self, monkeypatch) -> None:
        written("dtype = 'flaot32'\n")
        with pytest.raises(UsageError, match=r"trace_model.toml: dtype: found 'flaot32', expected"):
            parse(["compare", "m"])
        monkeypatch.setenv("TRACE_MODEL_DTYPE", "int8")
        with pytest.raises(UsageError, match="variable TRACE_MODEL_DTYPE: found 'int8', expected"):
            parse(["compare", "m"])
