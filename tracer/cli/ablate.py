"""`trace_model ablate`: studies of the quantiser on the command line.

    trace_model ablate mask-fill MODEL --text stories.txt --separator '<|endoftext|>' --refine
    trace_model ablate decode-calibration MODEL --text stories.txt --workers 2 --report study.html
    trace_model ablate --config FILE.toml MODEL

What a study is and does is in `wrappers.studies`; here are its options.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracer.cli.types import count, file
from tracer.errors import UsageError
from tracer.models.locate import locate

if TYPE_CHECKING:
    from wrappers import studies

STUDIES = {
    "mask-fill": "the finite number that stands for minus infinity in attention masks",
    "decode-calibration": "the past that a decode model is calibrated on: float or quantised",
}
# Options that belong to one study, and those of the workload by their names there.
_ONLY = {"mask-fill": ("fills", "refine", "calibration"), "decode-calibration": ("sizes", "steps")}
_OF_A_STUDY = (*(name for names in _ONLY.values() for name in names), "pairs", "seeds")
_WORKLOAD = (
    *("model", "text", "calibration_text", "separator", "tokens", "window"),
    *("calibration_length", "prompts", "new_tokens", "tasks", "task_data", "task_limit"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `ablate`; the defaults of most are those of the studies."""
    named = "; ".join(f"{name}: {what}" for name, what in STUDIES.items())
    parser.add_argument("study", nargs="?", metavar="STUDY", help=f"{named}; not with --config")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="as for compare")
    parser.add_argument(
        "--config", type=file, metavar="FILE.toml", help="a study of your own: a grid of settings"
    )
    group = parser.add_argument_group("what is tried")
    group.add_argument(
        "--pairs",
        type=_pairs,
        metavar="A/W,A/W",
        help="dtypes of activations and weights (default: uint8/uint8,int16/uint8,int16/uint4)",
    )
    group.add_argument(
        "--seeds", type=count(1), metavar="N", help="calibration sets, for the spread (default: 3)"
    )
    group.add_argument(
        "--fills",
        type=_numbers(float),
        metavar="=-X,-X",
        help="mask-fill: the values of the search, as in --fills=-40,-80 (default: seven of them)",
    )
    group.add_argument(
        "--refine",
        action="store_const",
        const=True,
        help="mask-fill: look between the best value and its neighbours, twice",
    )
    group.add_argument(
        "--calibration",
        type=count(1),
        metavar="N",
        help="mask-fill: sequences of a calibration set (default: 8)",
    )
    group.add_argument(
        "--sizes",
        type=_numbers(int),
        metavar="N,N",
        help="decode-calibration: sequences of a calibration set (default: 4,16)",
    )
    group.add_argument(
        "--steps",
        type=count(1),
        metavar="N",
        help="decode-calibration: tokens of each that are decoded (default: 16)",
    )

    group = parser.add_argument_group("what it is measured on")
    group.add_argument(
        "--text",
        type=file,
        metavar="FILE",
        help="a text to score (default: texts that the float model writes, with a fixed seed)",
    )
    group.add_argument(
        "--calibration-text",
        type=file,
        metavar="FILE",
        help="a text to calibrate on (default: what comes after the scored tokens)",
    )
    group.add_argument("--separator", metavar="TEXT", help="stands between documents of a text")
    group.add_argument(
        "--tokens", type=count(1), metavar="N", help="how many are scored (default: 4096)"
    )
    group.add_argument(
        "--window", type=count(2), metavar="N", help="tokens of a window (default: the model's)"
    )
    group.add_argument(
        "--calibration-length",
        type=count(2),
        metavar="N",
        help="tokens of a calibration sequence (default: 128)",
    )
    group.add_argument(
        "--prompts", type=count(0), metavar="N", help="of the generation check (default: 4)"
    )
    group.add_argument(
        "--new-tokens", type=count(0), metavar="N", help="of each prompt (default: 32)"
    )
    group.add_argument(
        "--tasks",
        action="append",
        metavar="NAME|FILE.yaml",
        help="of lm-eval (extra eval; repeatable)",
    )
    group.add_argument(
        "--task-data", metavar="FOLDER", help="where the data paths of task files start from"
    )
    group.add_argument("--task-limit", type=count(1), metavar="N", help="examples of each task")

    group = parser.add_argument_group("how it is run")
    group.add_argument(
        "--results",
        metavar="FILE.jsonl",
        help=(
            "one line for each trial that has ended; a study that was killed goes on there "
            "(default: STUDY.jsonl)"
        ),
    )
    group.add_argument(
        "--retry-failed",
        action="store_true",
        help="try those trials again that failed in earlier runs",
    )
    group.add_argument(
        "--workers", type=count(1), default=1, metavar="N", help="processes (default: %(default)s)"
    )
    group.add_argument(
        "--ray", metavar="ADDRESS", help="of a Ray cluster: auto, local, HOST:PORT (extra ray)"
    )
    group.add_argument(
        "--report",
        action="append",
        default=[],
        metavar="FILE",
        help="write a report as well: .html, .md or .csv (repeatable)",
    )


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    pairs = [tuple(part.split("/")) for part in text.split(",")]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected dtypes of activations and weights, such as int16/uint8,uint8/uint8"
        )
    return tuple((pair[0], pair[1]) for pair in pairs)


def _numbers(kind: type[int] | type[float]) -> Callable[[str], tuple[float, ...]]:
    def convert(text: str) -> tuple[float, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"{text!r}: expected numbers with commas between them"
            ) from error

    return convert


def check(options: argparse.Namespace) -> None:
    """Checks what can be checked before PyTorch is loaded.

    Raises:
        UsageError: options that do not go together, or no known study.
        ModelLoadError: a model that is nowhere.
    """
    if options.config is not None:
        if options.model is None:  # the only name is the model's
            options.study, options.model = None, options.study
        if options.study is not None:
            raise UsageError(f"--config is a study, and {options.study} another: give one of them")
        given = [name for name in _OF_A_STUDY if getattr(options, name) is not None]
        if given:
            raise UsageError(f"--{given[0]} belongs into {options.config}, under [study] or [grid]")
    elif options.study not in STUDIES:
        found = "no study" if options.study is None else f"the study {options.study!r}"
        raise UsageError(f"found {found}; expected {' or '.join(STUDIES)}, or --config FILE.toml")
    elif options.model is None:
        raise UsageError(f"{options.study} of which model? expected MODEL after it")
    for study, names in _ONLY.items():
        given = [name for name in names if getattr(options, name) is not None]
        if given and options.study not in (study, None):
            raise UsageError(f"--{given[0]} belongs to {study}, and the study is {options.study}")
    if options.config is None:  # else there may be more in [workload]
        _check_together(_given(options, {}))
    if options.model is not None:
        locate(options.model)


def _check_together(given: Mapping[str, Any]) -> None:
    """Checks that nothing of a workload is given in vain."""
    if given.get("separator") is not None and not {"text", "calibration_text"} & given.keys():
        raise UsageError(
            "found a separator of documents and no text: give --text or --calibration-text too"
        )
    for name in ("task_data", "task_limit"):
        if name in given and not given.get("tasks"):
            option = name.replace("_", "-")
            raise UsageError(f"found --{option} and no task: give --tasks too")


def run(options: argparse.Namespace, command: str) -> None:
    """Runs a study, prints its report and writes those asked for.

    Raises:
        StudyError: among others, no trial has succeeded; the report has been written all the same.
    """
    check(options)
    from tracer.reports.progress import trial_counter
    from wrappers import studies
    from wrappers.studies.report.render import check_path

    for path in options.report:
        check_path(path)
    made = studies.File.read(options.config) if options.config is not None else None
    workload = _workload(options, made)
    if made is not None:
        study: studies.Study = made.on(studies.load(workload).model)
    else:
        kind = studies.MaskFill if options.study == "mask-fill" else studies.DecodeCalibration
        study = kind(**_of_the_study(options))
    head = studies.head_of(study, workload, command)
    results = studies.Results(options.results or f"{study.name}.jsonl", head)
    where = studies.Where(options.workers, options.ray)
    with trial_counter(study.name) as tell:

        def told(result: "studies.Result", ended: int, wanted: int) -> None:
            what = f"seed {result.trial.seed}, {result.seconds:.1f} s"
            tell(f"{what}, failed: {result.error}" if result.error else what, ended, wanted)

        studies.run(
            study, workload, results, where=where, told=told, retry_failed=options.retry_failed
        )
    report = studies.report_of(study, results)
    studies.show(report)
    for path in options.report:
        studies.save(report, path)
    studies.check_succeeded(study, results)


def _of_the_study(options: argparse.Namespace) -> dict[str, Any]:
    given = {name: value for name in _OF_A_STUDY if (value := getattr(options, name)) is not None}
    if "seeds" in given:
        given["seeds"] = tuple(range(given["seeds"]))
    return given


def _workload(options: argparse.Namespace, made: "studies.File | None") -> "studies.Workload":
    from wrappers import studies

    given = _given(options, {} if made is None else made.workload)
    _check_together(given)
    if "model" not in given:
        raise UsageError("no model is named: give MODEL, or `model` in [workload] of the file")
    workload: studies.Workload = studies.Workload(**given)
    return workload


def _given(options: argparse.Namespace, of_the_file: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of the workload: by options, else in the file."""
    given = dict(of_the_file)
    for name in _WORKLOAD:
        value = getattr(options, name)
        if value is not None:
            given[name] = str(value) if isinstance(value, Path) else value
    return given
