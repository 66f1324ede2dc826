"""Studies: which settings of the quantisation are better, and how sure that is.

    study = studies.MaskFill(pairs=[("uint8", "uint8")])
    workload = studies.Workload("path/of/a/model", text="stories.txt")
    results = studies.Results("mask-fill.jsonl", studies.head_of(study, workload))
    studies.run(study, workload, results)
    studies.show(studies.report_of(study, results))

The command line has them as `trace_model ablate`.
"""

from wrappers.studies.execute.runner import Study, Where, check_succeeded, head_of, run, run_trial
from wrappers.studies.judge.judgement import Choice, Difference, Outcome, Spread, choose
from wrappers.studies.plan.decode_calibration import DecodeCalibration
from wrappers.studies.plan.grid import File, Grid
from wrappers.studies.plan.mask_fill import MaskFill
from wrappers.studies.plan.trials import Result, Results, Trial
from wrappers.studies.plan.workload import Loaded, LoadedWorkload, Workload, load
from wrappers.studies.report.contents import Judgement, Report, report_of
from wrappers.studies.report.render import save, show

__all__ = [
    "Choice", "DecodeCalibration", "Difference", "File", "Grid", "Judgement", "Loaded",
    "LoadedWorkload", "MaskFill", "Outcome", "Report", "Result", "Results", "Spread", "Study",
    "Trial", "Where", "Workload", "check_succeeded", "choose", "head_of", "load", "report_of",
    "run", "run_trial", "save", "show",
]  # fmt: skip
