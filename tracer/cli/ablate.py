"""`trace_model ablate`: runs a study of the quantiser.

    trace_model ablate mask-fill MODEL --text stories.txt --separator '<|endoftext|>' --refine
    trace_model ablate decode-calibration MODEL --text stories.txt --workers 2 --report study.html
    trace_model ablate --config FILE.toml MODEL --out study

What a study is and does is in `wrappers.studies`.
"""

from typing import TYPE_CHECKING

from tracer.cli.exit_codes import ExitCode
from tracer.cli.parser.ablate import check_workload
from tracer.cli.requests import AblateRequest
from tracer.errors import UsageError
from tracer.execution.limits import user_path

if TYPE_CHECKING:
    from wrappers import studies

# What --out FOLDER has a report of.
_REPORTS = (".html", ".md")


def ablate(request: AblateRequest, command: str) -> ExitCode:
    """Runs a study, prints its report and writes those asked for.

    Raises:
        StudyError: among others, no trial has succeeded; the report has been written all the same.
    """
    from tracer.reports.progress import trial_counter
    from wrappers import studies
    from wrappers.studies.report.render import check_path

    made = studies.File.read(request.config) if request.config is not None else None
    workload = _workload(request, made)
    if made is not None:
        study: studies.Study = made.on(studies.load(workload).model)
    else:
        kind = studies.MaskFill if request.study == "mask-fill" else studies.DecodeCalibration
        study = kind(**request.settings)
    kept, reports = _places(request, study.name)
    for path in reports:
        check_path(path)
    head = studies.head_of(study, workload, command)
    results = studies.Results(kept, head)
    written = [f"{kept} (a line for each trial; the same command goes on there)", *reports]
    print(f"writes {', '.join(written)}", flush=True)
    where = studies.Where(request.workers, request.ray)
    with trial_counter(study.name) as tell:

        def told(result: "studies.Result", ended: int, wanted: int) -> None:
            what = f"seed {result.trial.seed}, {result.seconds:.1f} s"
            tell(f"{what}, failed: {result.error}" if result.error else what, ended, wanted)

        studies.run(
            study, workload, results, where=where, told=told, retry_failed=request.retry_failed
        )
    report = studies.report_of(study, results)
    for path in reports:
        studies.save(report, path)
    studies.show(report)
    studies.check_succeeded(study, results)
    return ExitCode.AGREES


def _places(request: AblateRequest, study: str) -> tuple[str, tuple[str, ...]]:
    """Where results and reports are written; a folder for them is made.

    Raises:
        UsageError: it cannot be made.
    """
    if request.out is None:
        return request.results or f"{study}.jsonl", request.report
    folder = user_path(request.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {request.out} cannot be made: {error.strerror}") from error
    own = [str(folder / f"{study}{suffix}") for suffix in _REPORTS]
    kept = request.results or str(folder / f"{study}.jsonl")
    return kept, tuple(dict.fromkeys((*own, *request.report)))


def _workload(request: AblateRequest, made: "studies.File | None") -> "studies.Workload":
    """What is given of the workload: by options, else in the file."""
    from wrappers import studies

    given = {**({} if made is None else made.workload), **request.workload}
    check_workload(given)
    if "model" not in given:
        raise UsageError("no model is named: give MODEL, or `model` in [workload] of the file")
    workload: studies.Workload = studies.Workload(**given)
    return workload
