"""The pytest plugin, as the suites of others see it: pytest is run inside pytest."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# What the runs inside import must be there before: what they import is forgotten afterwards.

pytest_plugins = ["pytester"]

MODELS = """
    import copy
    import pytest
    import torch
    from torch import nn

    X = torch.linspace(-1.0, 1.0, 24).reshape(3, 8)

    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(8, 8)
            self.down = nn.Linear(8, 4)

        def forward(self, x):
            return self.down(torch.relu(self.up(x)))

    def models():
        torch.manual_seed(0)
        original = Mlp()
        port = copy.deepcopy(original)
        with torch.no_grad():
            port.down.bias[1] += 1.0
        return original, port
"""

# Without the plugins of this suite that take time to import; our own comes by its entry point.
SLIM = ("-p", "no:hypothesispytest", "-p", "no:anyio")


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Runs pytest on a file of tests; nothing of this suite's settings holds for it."""
    # Other plugins would be imported anew by each run.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(tests: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile(test_port=f"{MODELS}\n{tests}")
        return pytester.runpytest_inprocess("-q", "-p", "tracer.testing.plugin", *arguments)

    return run


FAILING = """
    @pytest.mark.parametrize("name", ["a/b", "a:b", "x" * 300])
    def test_port(assert_equivalent, name):
        original, port = models()
        comparison = assert_equivalent(original, original, X)
        assert comparison.verdict.agrees
        assert_equivalent(original, port, X)
"""


class TestFixture:
    def test_models_that_agree(self, suite) -> None:
        result = suite(
            """
    def test_port(assert_equivalent):
        original, _ = models()
        assert assert_equivalent(original, copy.deepcopy(original), X, peir=1e-6).verdict.agrees
"""
        )
        result.assert_outcomes(passed=1)

    def test_a_failure_shows_what_a_reader_needs(self, suite) -> None:
        result = suite(FAILING, "-k", "a/b")
        result.assert_outcomes(failed=1, deselected=2)
        result.stdout.fnmatch_lines(
            [
                ">       assert_equivalent(original, port, X)",
                "E       tracer.errors.NotEquivalentError: diverges: `bias` of `down` differs",
                "E       The inputs of `down` agree, its `bias` differs *",
                "E         module *PEIR*",
                "E       ▶ down *",
                "E       `down` has wrong parameters",
                "E       reference: test_port.py:*",
                "E       * > *return self.down(torch.relu(self.up(x)))",
                "E       candidate: test_port.py:*",
                "E       * > *return self.down(torch.relu(self.up(x)))",
                "test_port.py:*: NotEquivalentError",
                "FAILED test_port.py::test_port[[]a/b[]] - *NotEquivalentError: *",
            ]
        )
        # The traceback ends in the test.
        assert not any("equivalence.py" in line for line in result.outlines)
        assert not any("report: " in line for line in result.outlines)
        assert max(map(len, result.outlines)) <= 100


class TestReports:
    @pytest.mark.covers
    def test_each_failure_has_its_own(self, suite, pytester: pytest.Pytester) -> None:
        result = suite(FAILING, "--trace-report", "new/reports")
        result.assert_outcomes(failed=3)
        names = written(pytester.path / "new" / "reports")
        assert len(names) == 6
        assert [name for name in names if name.startswith("test_port.py-test_port-a-b-")] != []
        named = [line.partition("report: ")[2] for line in result.outlines if "report: " in line]
        assert [Path(file).name for file in sorted(named)] == [n for n in names if "html" in n]
        assert all(Path(file).is_file() for file in named)

    def test_they_hold_the_comparison(self, suite, pytester: pytest.Pytester) -> None:
        suite(FAILING, "-k", "a/b", "--trace-report", "out")
        html, report = (
            next((pytester.path / "out").glob(f"*.{kind}")) for kind in ("html", "json")
        )
        written = json.loads(report.read_text())
        assert written["verdict"]["agrees"] is False
        assert "test: test_port.py::test_port[a/b]" in json.dumps(written)
        assert "test_port.py::test_port[a/b]" in html.read_text()
        assert '"counts"' in html.read_text()  # of the histograms, which compare was asked for

    @pytest.mark.covers
    def test_several_calls_in_a_test(self, suite, pytester: pytest.Pytester) -> None:
        result = suite(
            """
    def test_port(assert_equivalent, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for _ in range(2):
            with pytest.raises(AssertionError, match="`bias` of `down` differs") as caught:
                assert_equivalent(*models(), X)
            assert "report: " in caught.value.__notes__[0]
""",
            "--trace-report=out",
        )
        result.assert_outcomes(passed=1)
        names = written(pytester.path / "out")
        assert len(names) == 4
        assert sum(name.endswith(("-2.html", "-2.json")) for name in names) == 2

    def test_models_that_agree_have_none(self, suite, pytester: pytest.Pytester) -> None:
        tests = """
    def test_port(assert_equivalent):
        assert_equivalent(*models()[:1] * 2, X)
"""
        suite(tests, "--trace-report", "out").assert_outcomes(passed=1)
        assert written(pytester.path / "out") == []

    @pytest.mark.covers
    def test_across_processes(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(test_port=f"{MODELS}\n{FAILING}")
        result = pytester.runpytest_subprocess(*SLIM, "-q", "-n2", "--trace-report", "out")
        result.assert_outcomes(failed=3)
        assert len(written(pytester.path / "out")) == 6


class TestWrongUse:
    def test_folders_that_cannot_be_written_to(
        self, suite, pytester: pytest.Pytester, monkeypatch
    ) -> None:
        pytester.makefile(".txt", out="")
        result = suite(FAILING, "--trace-report", "out.txt")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["*--trace-report out.txt: the directory cannot be created: *"])
        monkeypatch.setattr("os.access", lambda path, mode: False)
        result = suite(FAILING, "--trace-report", "out")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["*--trace-report out: the directory is not writable"])


def test_suites_that_do_not_use_it_import_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_nothing_else():
            assert "tracer.testing.plugin" in sys.modules
            ours = {name for name in sys.modules if name.partition(".")[0] == "tracer"}
            assert ours == {"tracer", "tracer.testing", "tracer.testing.plugin"}
            assert "torch" not in sys.modules
        """
    )
    pytester.runpytest_subprocess(*SLIM, "-q", "-W", "error").assert_outcomes(passed=1)


def test_the_plugin_alone_imports_no_torch() -> None:
    program = "import sys; import tracer.testing.plugin; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_an_error_of_its_own_says_so(suite, tmp_path):
    """It is no verdict; with and without reports."""
    tests = """
    def test_a(assert_equivalent, monkeypatch):
        def compare(*args, **kwargs):
            raise ZeroDivisionError("a bug")

        import inspect

        names = inspect.unwrap(assert_equivalent).__globals__
        monkeypatch.setitem(names, "compare", compare)
        assert_equivalent(*models(), X)
    """
    for options in ((), ("--trace-report", str(tmp_path / "reports"))):
        result = suite(tests, *options)
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(
            ["*ZeroDivisionError: a bug", "*an error of trace_model's own*"]
        )
    wrong_use = """
    def test_b(assert_equivalent):
        assert_equivalent(*models(), X, include="no")
    """
    result = suite(wrong_use)
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*an error of trace_model's own*")


def test_a_report_that_cannot_be_written_hides_no_failure(suite, tmp_path):
    folder = tmp_path / "reports"
    tests = f"""
    import shutil

    def test_a(assert_equivalent):
        shutil.rmtree({str(folder)!r})
        assert_equivalent(*models(), X)
    """
    result = suite(tests, "--trace-report", str(folder))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*NotEquivalentError*", "*does not exist; create it first*"])
