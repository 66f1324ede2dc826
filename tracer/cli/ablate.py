"""`trace_model ablate`: runs a study of the quantiser.

    trace_model ablate mask-fill MODEL --text stories.txt --separator '<|endoftext|>' --refine
    trace_model ablate decode-calibration MODEL --text stories.txt --workers 2 --report study.html
    trace_model ablate --config FILE.toml MODEL

What a study is and does is in `wrappers.studies`.
"""

from typing import TYPE_CHECKING

from tracer.cli.exit_codes import ExitCode
from tracer.cli.parser.ablate import check_workload
from tracer.cli.requests import AblateRequest
from tracer.errors import UsageError

if TYPE_CHECKING:
    from wrappers import studies


def ablate(request: AblateRequest, command: str) -> ExitCode:
    """Runs a study, prints its report and writes those asked for.

    Raises:
        StudyError: among others, no trial has succeeded; the report has been written all the same.
    """
    from tracer.reports.progress import trial_counter
    from wrappers import studies
    from wrappers.studies.report.render import check_path

    for path in request.report:
        check_path(path)
    made = studies.File.read(request.config) if request.config is not None else None
    workload = _workload(request, made)
    if made is not None:
        study: studies.Study = made.on(studies.load(workload).model)
    else:
        kind = studies.MaskFill if request.study == "mask-fill" else studies.DecodeCalibration
        study = kind(**request.settings)
    head = studies.head_of(study, workload, command)
    results = studies.Results(request.results or f"{study.name}.jsonl", head)
    where = studies.Where(request.workers, request.ray)
    with trial_counter(study.name) as tell:

        def told(result: "studies.Result", ended: int, wanted: int) -> None:
            what = f"seed {result.trial.seed}, {result.seconds:.1f} s"
            tell(f"{what}, failed: {result.error}" if result.error else what, ended, wanted)

        studies.run(
            study, workload, results, where=where, told=told, retry_failed=request.retry_failed
        )
    report = studies.report_of(study, results)
    studies.show(report)
    for path in request.report:
        studies.save(report, path)
    studies.check_succeeded(study, results)
    return ExitCode.AGREES


def _workload(request: AblateRequest, made: "studies.File | None") -> "studies.Workload":
    """What is given of the workload: by options, else in the file."""
    from wrappers import studies

    given = {**({} if made is None else made.workload), **request.workload}
    check_workload(given)
    if "model" not in given:
        raise UsageError("no model is named: give MODEL, or `model` in [workload] of the file")
    workload: studies.Workload = studies.Workload(**given)
    return workload
