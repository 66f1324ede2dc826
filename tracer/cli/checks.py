"""Which options of the command line go together: what can be checked before PyTorch is loaded."""

import argparse

from tracer.choices import CANDIDATES, ITSELF, NEED_WRAPPERS, NO_ISOLATION, WITH_VOCABULARY
from tracer.errors import UsageError
from tracer.models.locate import check_offload, is_trace, locate, locate_processor


def check(options: argparse.Namespace) -> None:
    """Checks what can be checked before PyTorch is loaded.

    Raises:
        UsageError: options that do not go together.
        ModelLoadError: names that lead nowhere.
    """
    _sort_sides(options)
    check_making(options)
    _check_sides(options)
    if options.what_if and options.isolate == NO_ISOLATION:
        raise UsageError(
            f"--what-if swaps the modules that introduce most, and --isolate {NO_ISOLATION} "
            "measures none: leave one of them out"
        )
    if options.focus and options.json:
        raise UsageError(
            "--focus prints values, and --json the report and nothing else: choose one"
        )
    _check_gate(options)
    _check_debugger(options)


def _sort_sides(options: argparse.Namespace) -> None:
    """Tells what is reference, model and candidate: a trace in the place of MODEL is the reference.

    `model` is None afterwards where both sides are traces.
    """
    if is_trace(options.model):
        if options.reference is not None:
            raise UsageError(f"{options.model} is a trace, as --reference is: give one of them")
        if options.candidate is None or options.candidate in CANDIDATES:
            raise UsageError(
                f"{options.model} is a trace, which is compared with a model or another trace: "
                "--candidate PATH, or MODEL --reference TRACE --candidate KIND"
            )
        options.reference, options.model = options.model, options.candidate
        options.candidate = None
        if is_trace(options.model):
            options.model, options.candidate = None, options.model
    elif options.reference is not None and not is_trace(options.reference):
        raise UsageError(
            f"--reference {options.reference} is no trace: expected a folder that `trace_model "
            "record` has made; a model that is the reference is given as MODEL"
        )
    if options.candidate is None:
        is_another = options.reference is None and options.candidate_device is None
        options.candidate = "wrapped" if is_another else ITSELF


def _check_sides(options: argparse.Namespace) -> None:
    """Checks what changes how both models are run."""
    has_trace = options.reference is not None or is_trace(options.candidate)
    if options.candidate_device is not None:
        if is_trace(options.candidate):
            raise UsageError("--candidate-device runs a model, and the candidate is a trace")
        if options.offload is not None:
            raise UsageError("--candidate-device moves a model, and --offload leaves it on disk")
    if not options.train:
        return
    if has_trace:
        raise UsageError("--train: the random numbers of a trace are not known; give two models")
    if options.candidate in NEED_WRAPPERS:
        others = [kind for kind in CANDIDATES if kind not in NEED_WRAPPERS]
        raise UsageError(
            f"--train: wrapped models have no training mode; give a --candidate {'|'.join(others)} "
            "or another model"
        )
    if options.steps is not None:
        raise UsageError("--train goes with one forward pass, and --steps generates: choose one")


def check_making(options: argparse.Namespace) -> None:
    """Checks how the model, its inputs and its candidate are to be made."""
    if options.model is not None:
        locate(options.model)
    if options.candidate not in (*CANDIDATES, ITSELF) and not is_trace(options.candidate):
        locate(options.candidate, CANDIDATES)
    if options.processor is not None:
        locate_processor(options.processor)
    if options.offload is not None:
        _check_offload(options)
    for needed, names in (
        (NEED_WRAPPERS, ("variant",)),
        (("quantized",), ("activation", "weight", "calibrate", "calibration_text")),
    ):
        for name in names:
            if getattr(options, name) is not None and options.candidate not in needed:
                raise UsageError(
                    f"{flag(name)} goes with --candidate {' or '.join(needed)}, and the candidate "
                    f"is {options.candidate}"
                )
    if options.inputs is not None:
        for name in making_inputs(options):
            raise UsageError(f"{flag(name)} makes inputs, and --inputs gives them: choose one")


def _check_offload(options: argparse.Namespace) -> None:
    if options.model is None:
        raise UsageError("--offload keeps the weights of a model on disk, and both are traces")
    if options.candidate == "compile":
        raise UsageError(
            "--offload loads the weights of a module when it is called, which compiled code does "
            "not do: leave it out, or choose another candidate than compile"
        )
    check_offload(options.offload)


# The options that say how inputs are made.
MAKE_INPUTS = (
    "prompt",
    "sequence_length",
    "batch",
    "padding",
    "image",
    "processor",
    "max_pixels",
    "video",
)


def making_inputs(options: argparse.Namespace) -> list[str]:
    """Those of them that were given; a processor may be there for the model's sake alone."""
    given = [name for name in MAKE_INPUTS if getattr(options, name) is not None]
    return [name for name in given if name != "processor" or options.model not in WITH_VOCABULARY]


def _check_gate(options: argparse.Namespace) -> None:
    if options.baseline is None and options.fail_on == "coverage":
        raise UsageError("--fail-on coverage is held against a --baseline, and there is none")
    if options.fail_on == "regression" and not (options.baseline or options.max_peir):
        raise UsageError(
            "--fail-on regression is held against a --baseline or limits (--max-peir), and there "
            "are none"
        )
    for path in options.report if options.baseline is not None else ():
        if path.expanduser().resolve() == options.baseline.resolve():
            raise UsageError(
                f"--report {path} would write over the baseline, and a run that fails would be the "
                "next one: write it elsewhere, and move it there when it is to be the baseline"
            )


def _check_debugger(options: argparse.Namespace) -> None:
    for name in ("break_at", "break_when"):
        if getattr(options, name) is not None and not options.breakpoints:
            raise UsageError(f"{flag(name)} goes with --break GLOB, and there is none")
    if not debugs(options):
        if options.debugger is not None:
            raise UsageError("--debugger goes with --break GLOB or --post-mortem: none is given")
        return
    if options.json:
        raise UsageError(
            "a debugger prints, and --json prints the report and nothing else: choose one, or "
            "write the report with --report FILE.json"
        )
    from tracer.debugger.prompt import choose_debugger

    choose_debugger(options.debugger)


def debugs(options: argparse.Namespace) -> bool:
    return bool(options.breakpoints) or options.post_mortem


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
