"""The pytest plugin: a fixture that compares two models, and reports of failures.

    def test_port(assert_equivalent):
        assert_equivalent(original, port, {"input_ids": ids}, peir=1e-5)

    pytest --trace-report reports

pytest loads it in every suite of the environment that it is installed in: nothing is imported
before the fixture is used.
"""

import functools
import hashlib
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tracer.comparison.result import Comparison
    from tracer.errors import NotEquivalentError

_SUFFIXES = (".html", ".json")
# A name of a file may have 255 bytes.
_LONGEST_NAME = 120
# Where reports are written; None if they are not asked for.
_DIRECTORY = pytest.StashKey[Path | None]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --trace-report."""
    parser.getgroup("trace_model").addoption(
        "--trace-report",
        metavar="DIR",
        help="write an .html and a .json report of each failed assert_equivalent to this directory",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Makes the directory for reports before any test runs."""
    given = config.getoption("--trace-report")
    config.stash[_DIRECTORY] = None if given is None else _made(given)


def _made(given: str) -> Path:
    directory = Path(given).expanduser().absolute()  # a test may change the working directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise pytest.UsageError(
            f"--trace-report {given}: the directory cannot be created: {error.strerror}"
        ) from error
    if not os.access(directory, os.W_OK):
        raise pytest.UsageError(f"--trace-report {given}: the directory is not writable")
    return directory


@pytest.fixture
def assert_equivalent(request: pytest.FixtureRequest) -> "Callable[..., Comparison]":
    """`tracer.assert_equivalent`; with --trace-report DIR a failure is written to a report.

    What is no verdict and no wrong use, but an error of trace_model's own, says so in a note.
    """
    import tracer

    directory = request.config.stash[_DIRECTORY]
    given: dict[str, Any] = {}
    if directory is not None:
        from tracer.tensors.samples import SAMPLES

        given["samples"] = SAMPLES
    counted = itertools.count(1)

    @functools.wraps(tracer.assert_equivalent)
    def asserted(*args: Any, **kwargs: Any) -> "Comparison":
        __tracebackhide__ = True
        call = next(counted)
        try:
            return tracer.assert_equivalent(*args, **given | kwargs)
        except tracer.NotEquivalentError as error:
            if directory is not None:
                _write(error, directory / _name(request.node.nodeid, call), request.node.nodeid)
            raise
        except tracer.TracerError:
            raise
        except Exception as error:
            error.add_note(
                "an error of trace_model's own, and no verdict on the models; please report it in "
                "the issues of trace_model, with this traceback"
            )
            raise

    return asserted


def _write(error: "NotEquivalentError", path: Path, test: str) -> None:
    """Writes the reports and names the first of them in the error's text, or why there is none."""
    from tracer.errors import UsageError
    from tracer.reports import Run, save

    run = Run(reference="the reference", candidate="the candidate", notes=(f"test: {test}",))
    files = [path.with_name(f"{path.name}{suffix}") for suffix in _SUFFIXES]
    try:
        for file in files:
            save(error.comparison, file, run=run)
    except UsageError as why:  # the models diverge all the same
        error.add_note(str(why))
    else:
        error.add_note(f"report: {files[0]}")


def _name(test: str, call: int) -> str:
    """A file's name for a call in a test: what can be read of the test's id, and its hash.

    >>> _name("tests/test_port.py::test_port[a/b]", 2)
    'tests-test_port.py-test_port-a-b-0901ff52-2'
    """
    readable = re.sub(r"[^A-Za-z0-9_.]+", "-", test).strip("-.")
    digest = hashlib.blake2b(test.encode(errors="replace"), digest_size=4).hexdigest()
    number = f"-{call}" if call > 1 else ""
    return f"{readable[-_LONGEST_NAME:]}-{digest}{number}"
