"""`trace_model ablate`: its options, and which of them go together."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tracer.cli.parser.common import Parser
from tracer.cli.requests import AblateRequest, flag
from tracer.cli.types import count, file, folder
from tracer.errors import UsageError

_STUDIES = {
    "mask-fill": "the finite number that stands for minus infinity in attention masks",
    "decode-calibration": "the past that a decode model is calibrated on: float or quantised",
}
# Options that belong to one study, to each of them, and to the workload, by their names there.
_ONLY = {"mask-fill": ("fills", "refine", "calibration"), "decode-calibration": ("sizes", "steps")}
_SETTINGS = (*(name for names in _ONLY.values() for name in names), "pairs", "seeds")
_WORKLOAD = (
    *("model", "text", "calibration_text", "separator", "tokens", "window"),
    *("images", "processor"),
    *("calibration_length", "prompts", "new_tokens", "tasks", "task_data", "task_limit"),
)


def add_options(parser: Parser) -> None:
    """Adds the options of the command; the defaults of most are those of the studies."""
    named = "; ".join(f"{name}: {what}" for name, what in _STUDIES.items())
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
        "--seeds",
        type=count(1, 10_000),
        metavar="N",
        help="calibration sets, for the spread (default: 3)",
    )
    group.add_argument(
        "--fills",
        type=_numbers(float),
        metavar="=-X,-X",
        help="mask-fill: the values of the search, as in --fills=-40,-80 (default: seven of them)",
    )
    group.add_argument(
        "--refine",
        action="store_true",
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
        "--image",
        dest="images",
        action="append",
        metavar="FILE|synthetic",
        help=(
            "what each sequence begins with, for a model that takes images (repeatable; default: "
            "text alone)"
        ),
    )
    group.add_argument(
        "--processor", metavar="FOLDER|HUB_ID", help="as for compare: what prepares the images"
    )
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
        "--out",
        metavar="FOLDER",
        help=(
            "a folder for all that is written, made if there is none: STUDY.jsonl, STUDY.html and "
            "STUDY.md (default: STUDY.jsonl in the working directory, and what --report names)"
        ),
    )
    group.add_argument(
        "--results",
        metavar="FILE.jsonl",
        help=(
            "one line for each trial that has ended; a study that was killed goes on there "
            "(default: STUDY.jsonl)"
        ),
    )
    group.add_argument("--cache", type=folder, metavar="FOLDER", help="as for compare")
    group.add_argument(
        "--retry-failed",
        action="store_true",
        help="try those trials again that failed in earlier runs",
    )
    group.add_argument(
        "--workers",
        type=count(1),
        metavar="N",
        help=f"processes (default: {AblateRequest.workers})",
    )
    group.add_argument(
        "--ray", metavar="ADDRESS", help="of a Ray cluster: auto, local, HOST:PORT (extra ray)"
    )
    group.add_argument(
        "--report",
        action="append",
        metavar="FILE",
        help="write a report as well: .html, .md, .csv or .json (repeatable)",
    )


def request(given: Mapping[str, Any]) -> AblateRequest:
    """The request of the options that were given.

    Raises:
        UsageError: options that do not go together, or no known study.
    """
    settings = {name: given[name] for name in _SETTINGS if name in given}
    workload = {name: given[name] for name in _WORKLOAD if name in given}
    others = {name: given[name] for name in given if name not in settings | workload}
    study, config = given.get("study"), given.get("config")
    if config is not None:
        if study is not None and "model" not in workload:  # the only name is the model's
            study, workload["model"] = None, study
        if study is not None:
            raise UsageError(f"--config is a study, and {study} another: give one of them")
        for name in settings:
            raise UsageError(f"{flag(name)} belongs into {config}, under [study] or [grid]")
    else:
        _check_study(study, settings, workload)
    if "seeds" in settings:
        settings["seeds"] = tuple(range(settings["seeds"]))
    texts = {
        name: str(value) if isinstance(value, Path) else value for name, value in workload.items()
    }
    return AblateRequest(**{**others, "study": study, "settings": settings, "workload": texts})


def _check_study(
    study: str | None, settings: Mapping[str, Any], workload: Mapping[str, Any]
) -> None:
    if study not in _STUDIES:
        found = "no study" if study is None else f"the study {study!r}"
        raise UsageError(f"found {found}; expected {' or '.join(_STUDIES)}, or --config FILE.toml")
    if "model" not in workload:
        raise UsageError(f"{study} of which model? expected MODEL after it")
    for other, names in _ONLY.items():
        for name in names:
            if name in settings and study != other:
                raise UsageError(f"{flag(name)} belongs to {other}, and the study is {study}")
    check_workload(workload)  # with --config there may be more in [workload]


def check_workload(given: Mapping[str, Any]) -> None:
    """Checks that nothing of a workload is given in vain.

    Raises:
        UsageError: something is.
    """
    if given.get("separator") is not None and not {"text", "calibration_text"} & given.keys():
        raise UsageError(
            "found a separator of documents and no text: give --text or --calibration-text too"
        )
    if "processor" in given and not given.get("images"):
        raise UsageError("found a processor and no image for it to prepare: give --image too")
    for name in ("task_data", "task_limit"):
        if name in given and not given.get("tasks"):
            raise UsageError(f"found {flag(name)} and no task: give --tasks too")


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
