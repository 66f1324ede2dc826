"""`trace_model check --update-baseline`: writes the baselines of checks, and says what changed."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tracer.choices import NO_ISOLATION
from tracer.cli.check import Suite
from tracer.cli.compare import Compared
from tracer.cli.configuration import Check
from tracer.cli.exit_codes import ExitCode, worst
from tracer.cli.requests import CheckRequest
from tracer.cli.streams import say
from tracer.errors import UsageError
from tracer.models.locate import is_trace
from tracer.regression.baseline import Baseline
from tracer.regression.gating import gate
from tracer.reports import check_path, json, write
from tracer.reports.narrator.gate import counts
from tracer.text import visible

# What a run that makes a baseline is not given: it is what later runs are checked against.
_NOT_GIVEN = ("baseline", "baseline-any", "fail-on", "report", "what-if")


def update(suite: Suite, chosen: Sequence[Check], request: CheckRequest) -> ExitCode:
    """Writes what checks give now as their baselines, unless one of them comes to no result.

    Returns:
        2 or 3 where one did, and nothing was written.

    Raises:
        UsageError: a check that was named has no baseline, or one that is no report of its own.
    """
    targets = _targets([each for each in chosen if _has_baseline(each, request)])
    if not targets:
        raise UsageError(f'{suite.configuration.file.name}: no check has a baseline = "FILE.json"')
    found: dict[Path, Compared] = {}
    codes = []
    for target, each in targets.items():
        outcome, done = suite.run(_bare(each), request)
        if done is not None and done.code in (ExitCode.AGREES, ExitCode.DIVERGES):
            found[target] = done
            continue
        codes.append(outcome.code)
        say(f"{each.name}: {outcome.message or outcome.line}")
    if codes:
        say("no baseline was written, as not all checks came to a result")
        return worst(codes)
    said = {target: _changes(target, done) for target, done in found.items()}
    reports = {target: json.render(done.comparison, done.run) for target, done in found.items()}
    for target, report in reports.items():
        write(report, target)
        print(visible("\n".join(said[target])))
    return ExitCode.AGREES


def _bare(check: Check) -> Check:
    """A check without what a baseline is not made by."""
    options = {key: value for key, value in check.options.items() if key not in _NOT_GIVEN}
    return replace(check, options={**options, "isolate": NO_ISOLATION})


def _has_baseline(check: Check, request: CheckRequest) -> bool:
    if "baseline" in check.options:
        return True
    if {check.name, check.name.partition(".")[0]} & set(request.names):
        raise UsageError(f'{check.place} has no baseline to update: add baseline = "FILE.json"')
    return False


def _targets(checks: Sequence[Check]) -> dict[Path, Check]:
    """The checks by the files of their baselines, which are to be written.

    Raises:
        UsageError: one cannot be, or is that of two checks.
    """
    targets: dict[Path, Check] = {}
    for check in checks:
        name = check.options["baseline"]
        if is_trace(name):
            raise UsageError(
                f"{check.place}: the baseline {name} is a trace: record it again with "
                "`trace_model record`, or make it a report, FILE.json"
            )
        if Path(name).suffix.lower() != ".json":
            raise UsageError(f"{check.place}: the baseline {name}: expected FILE.json")
        target = check_path(name)
        if target in targets:
            raise UsageError(
                f"{name} is the baseline of both {targets[target].name} and {check.name}: put "
                '{name} into it, as in baseline = "{name}.json"'
            )
        targets[target] = check
    return targets


def _changes(target: Path, done: Compared) -> list[str]:
    """What a new baseline changes, in words."""
    place = os.path.relpath(target)
    comparison = done.comparison
    outputs = len(Baseline.of(comparison).figures)
    lines = [f"{place}: new, {outputs} outputs"]
    if target.exists():
        try:
            decided = gate(
                replace(comparison, gate=None),
                Baseline.read(place),
                fail_on="never",
                differences_expected=done.run.differences_expected,
            )
        except UsageError as error:
            lines = [
                f"{place}: {outputs} outputs, and the former one was of something else",
                f"  {error}",
            ]
        else:
            lines = [f"{place}: {counts(decided.changes)}, of {decided.outputs} outputs"]
            lines += [f"  {reason}" for reason in decided.let_pass if reason.kind != "diverges"]
    if comparison.gate is not None:
        beyond = [reason for reason in comparison.gate.reasons if reason.kind == "limit"]
        lines += [f"  the check will fail: {reason}" for reason in beyond]
    return lines
