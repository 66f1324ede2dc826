"""`trace_model check`: runs the comparisons that a configuration names.

    $ trace_model check
    ...
    check         result     seconds  what was found
    port.short    passes         1.9  agrees
    port.padded   fails          2.3  diverges at blocks.0.attn, PEIR 3.32e-01

A check is the command line that `--print-command` shows, run in the folder of the configuration.
"""

import io
import logging
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import chdir, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tracer.choices import VARIABLES
from tracer.cli.checks import check as check_request
from tracer.cli.configuration import Check, Configuration, find
from tracer.cli.exit_codes import ExitCode, worst
from tracer.cli.keys import Keys
from tracer.cli.parser import make_parser, parse
from tracer.cli.parser.common import StrictParser
from tracer.cli.requests import CheckRequest, CompareRequest
from tracer.cli.streams import say
from tracer.errors import TracerError, UsageError
from tracer.models.hub_cache import hub_cache

if TYPE_CHECKING:
    from tracer.cli.compare import Compared
    from tracer.reports.checked import Checked

_logger = logging.getLogger(__name__)


def check(request: CheckRequest, out: TextIO) -> ExitCode:
    """Does what is asked for with the checks of the configuration.

    Returns:
        The exit code of the worst check: 3 before 2, 2 before 1, 1 before 0.

    Raises:
        UsageError: there is no configuration, something in it makes no sense, or it has no check
            of a name.
    """
    suite = Suite.open(request)
    _logger.info("the configuration is %s", suite.configuration.file)
    chosen = suite.configuration.select(request.names)
    if request.listing:
        for line in _listed(chosen):
            print(line, file=out)
        return ExitCode.AGREES
    if request.print_command:
        for each in chosen:
            comment = f"  # {each.name}" if len(chosen) > 1 else ""
            print(f"{suite.place}{suite.command(each)}{comment}", file=out)
        return ExitCode.AGREES
    with chdir(suite.configuration.file.parent):
        if request.update_baseline:
            from tracer.cli.baselines import update

            return update(suite, chosen, request)
        _check_reports(chosen)
        return _run(suite, chosen, request, out)


@dataclass(frozen=True)
class Suite:
    """The checks, and what all of them are given.

    Attributes:
        keys: of `compare`.
        given: what counts before what a check says: options of `check`, and the environment.
    """

    configuration: Configuration
    keys: Keys
    given: Mapping[str, str]

    @classmethod
    def open(cls, request: CheckRequest) -> "Suite":
        """Reads the configuration that a request means."""
        keys = Keys(make_parser()[1]["compare"])
        file = request.file or find(Path.cwd())
        if file is None:
            raise UsageError(
                f"no configuration in {Path.cwd()} or above it: expected a pyproject.toml with "
                "[tool.trace_model.checks.NAME], or a trace_model.toml with [checks.NAME]"
            )
        given = {
            name: str(value) for name in VARIABLES if (value := getattr(request, name)) is not None
        }
        return cls(Configuration.read(file, keys), keys, given)

    @property
    def place(self) -> str:
        """What leads to the folder in which the commands are run, where that is another one."""
        folder = self.configuration.file.parent
        return "" if folder == Path.cwd() else f"cd {shlex.quote(os.path.relpath(folder))} && "

    def arguments(self, check: Check) -> list[str]:
        """The arguments of the command that a check is."""
        return ["compare", *self.keys.arguments({**check.options, **self.given})]

    def command(self, check: Check) -> str:
        """The command that a check is."""
        return shlex.join(["trace_model", *self.arguments(check)])

    def run(self, check: Check, request: CheckRequest) -> "tuple[Checked, Compared | None]":
        """Runs a check; whatever it raises becomes its outcome."""
        from tracer.cli import exit_code
        from tracer.cli.compare import examine
        from tracer.reports.checked import Checked

        begin = time.perf_counter()
        asked: CompareRequest | None = None
        try:
            asked = self.request(check, request)
            with hub_cache(asked.cache):
                done = examine(asked, self.command(check))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            said = io.StringIO()
            with redirect_stderr(said):
                code = exit_code(error, asked or request)
            traceback, _, message = f"\n{said.getvalue()}".rpartition("\ntrace_model: ")
            if traceback:
                print(traceback.strip(), file=sys.stderr)
            return Checked(check.name, code, _since(begin), message=message.strip()), None
        seconds = _since(begin)
        return Checked(check.name, done.code, seconds, done.comparison, done.run), done

    def request(self, check: Check, request: CheckRequest) -> CompareRequest:
        """What a check asks for, checked before anything is loaded.

        Raises:
            UsageError: options that do not go together, or that name what is not there.
        """
        file = self.configuration.file.name
        try:
            asked = parse(self.arguments(check), StrictParser)
            assert isinstance(asked, CompareRequest)
            with hub_cache(asked.cache):
                check_request(asked)
        except TracerError as error:
            baseline = check.options.get("baseline")
            hint = ""
            if baseline is not None and not Path(baseline).exists():
                hint = f"; make it: trace_model check {check.name} --update-baseline"
            raise UsageError(f"{file}: {check.place}: {error}{hint}") from error
        return replace(asked, output=request.output)


def _run(suite: Suite, chosen: Sequence[Check], request: CheckRequest, out: TextIO) -> ExitCode:
    """Runs checks one after the other, and reports all of them."""
    from tracer.cli.compare import show
    from tracer.reports import checked

    ended: list[Checked] = []
    for number, each in enumerate(chosen, 1):
        outcome, done = suite.run(each, request)
        ended.append(outcome)
        if not request.output.quiet:
            took = f"{outcome.seconds:.1f} s"
            say(f"{number} of {len(chosen)}: {each.name}: {outcome.outcome} ({took})")
        if done is not None and request.output.verbose:
            print(each.name, file=out)
            show(done, suite.request(each, request), out)
    for path in request.report:
        checked.save(ended, path)
    if request.output.quiet:
        print(checked.summary(ended), file=out)
    else:
        checked.show(ended, reasons=not request.output.verbose)
    return worst(outcome.code for outcome in ended)


def _since(begin: float) -> float:
    return time.perf_counter() - begin


def _listed(chosen: Sequence[Check]) -> list[str]:
    """The checks, one in each line."""
    width = max(len(each.name) for each in chosen)
    lines = []
    for each in chosen:
        model, candidate = each.options["model"], each.options.get("candidate", "its default")
        baseline = each.options.get("baseline")
        against = "" if baseline is None else f", baseline {baseline}"
        lines.append(f"{each.name:{width}}  {model} against {candidate}{against}")
    return lines


def _check_reports(chosen: Sequence[Check]) -> None:
    """Checks that no check writes over the report of another.

    Raises:
        UsageError: one does.
    """
    writers: dict[Path, str] = {}
    for each in chosen:
        given = each.options.get("report", [])
        for report in [given] if isinstance(given, str) else given:
            other = writers.setdefault(Path(report).resolve(), each.name)
            if other != each.name:
                raise UsageError(
                    f"the report {report} is written by both {other} and {each.name}: put {{name}} "
                    'into it, as in report = ["{name}.html"]'
                )
