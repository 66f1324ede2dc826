"""Which options of the command line go together: what can be checked before PyTorch is loaded."""

from tracer.choices import CANDIDATES, ITSELF, NEED_WRAPPERS, NO_ISOLATION
from tracer.cli.parser.export import ExportRequest, check_export
from tracer.cli.report_requests import DiffRequest, HistoryRequest
from tracer.cli.requests import (
    AblateRequest,
    CheckRequest,
    CompareRequest,
    ModelRequest,
    Request,
    ShowRequest,
    flag,
)
from tracer.errors import UsageError
from tracer.models.locate import check_offload, is_graph, is_trace, locate, locate_processor


def check(request: Request | ExportRequest) -> None:
    """Checks what can be checked before PyTorch is loaded.

    Raises:
        UsageError: options that do not go together.
        ModelLoadError: names that lead nowhere.
    """
    if isinstance(request, CheckRequest):
        return  # each check is checked when its turn comes
    if isinstance(request, AblateRequest):
        if "model" in request.workload:
            locate(request.workload["model"])
        return
    if isinstance(request, DiffRequest | HistoryRequest):
        return
    if not (isinstance(request, ShowRequest) and is_trace(request.model)):
        _check_model(request)
    if isinstance(request, ExportRequest):
        check_export(request)
    if isinstance(request, CompareRequest):
        _check_sides(request)
        _check_findings(request)
        _check_gate(request)
        _check_debugger(request)


def _check_sides(request: CompareRequest) -> None:
    """Checks what changes how both models are run."""
    has_trace = request.reference is not None or is_trace(request.candidate)
    if request.candidate_device is not None:
        if is_trace(request.candidate):
            raise UsageError("--candidate-device runs a model, and the candidate is a trace")
        if request.offload is not None:
            raise UsageError("--candidate-device moves a model, and --offload leaves it on disk")
    if not request.train:
        return
    for name in (request.model, request.candidate, request.reference):
        if name is not None and is_graph(name):
            raise UsageError(f"--train: {name} is a graph, which has no mode: give two models")
    if has_trace:
        raise UsageError("--train: the random numbers of a trace are not known; give two models")
    if request.candidate in NEED_WRAPPERS:
        others = [kind for kind in CANDIDATES if kind not in NEED_WRAPPERS]
        raise UsageError(
            f"--train: wrapped models have no training mode; give a --candidate {'|'.join(others)} "
            "or another model"
        )
    if request.steps is not None:
        raise UsageError("--train goes with one forward pass, and --steps generates: choose one")


def _check_model(request: ModelRequest) -> None:
    """Checks how the model, its inputs and its candidate are to be made."""
    if request.model is not None:
        locate(request.model)
    if request.candidate not in (*CANDIDATES, ITSELF) and not is_trace(request.candidate):
        locate(request.candidate, CANDIDATES)
    reference = getattr(request, "reference", None)
    if reference is not None and is_graph(reference):
        locate(reference)
    if request.processor is not None:
        locate_processor(request.processor)
    _check_offload(request)
    for needed, names in (
        (NEED_WRAPPERS, ("variant",)),
        (
            ("quantized",),
            ("activation", "weight", "override", "config", "calibrate", "calibration_text"),
        ),
    ):
        for name in names:
            if getattr(request, name) not in (None, ()) and request.candidate not in needed:
                raise UsageError(
                    f"{flag(name)} goes with --candidate {' or '.join(needed)}, and the candidate "
                    f"is {request.candidate}"
                )
    if request.config is not None:
        for name in request.given("activation", "weight"):
            raise UsageError(
                f"--config says what activations and weights are, and {flag(name)} too: choose one"
            )
    if request.map_input:
        if request.candidate in CANDIDATES:
            raise UsageError(
                "--map-input names the arguments of another model, and the candidate is "
                f"{request.candidate}, which has those of the model: leave it out"
            )
        if request.steps is not None:
            raise UsageError("--steps gives both sides input_ids: leave --map-input out")
    if request.inputs is not None:
        for name in request.making_inputs:
            raise UsageError(f"{flag(name)} makes inputs, and --inputs gives them: choose one")


def _check_offload(request: ModelRequest) -> None:
    if request.offload is None:
        return
    if request.model is None:
        raise UsageError("--offload keeps the weights of a model on disk, and both are traces")
    if request.candidate == "compile":
        raise UsageError(
            "--offload loads the weights of a module when it is called, which compiled code does "
            "not do: leave it out, or choose another candidate than compile"
        )
    check_offload(request.offload)


def _check_findings(request: CompareRequest) -> None:
    if request.what_if and request.isolate == NO_ISOLATION:
        raise UsageError(
            f"--what-if swaps the modules that introduce most, and --isolate {NO_ISOLATION} "
            "measures none: leave one of them out"
        )
    if request.focus and request.json:
        raise UsageError(
            "--focus prints values, and --json the report and nothing else: choose one"
        )


def _check_gate(request: CompareRequest) -> None:
    if request.baseline is None and request.fail_on == "coverage":
        raise UsageError("--fail-on coverage is checked against a --baseline, and there is none")
    if request.fail_on == "regression" and not (request.baseline or request.limits):
        raise UsageError(
            "--fail-on regression is checked against a --baseline or limits (--max-peir, "
            "--min-sqnr, --min-cosine, --max-l2), and there are none"
        )
    if request.baseline_any and request.baseline is None:
        raise UsageError("--baseline-any goes with --baseline FILE.json|TRACE, and there is none")
    for path in request.report:
        if request.baseline and path.expanduser().resolve() == request.baseline.resolve():
            raise UsageError(
                f"--report {path} would write over the baseline, and a run that fails would be the "
                "next one: write it elsewhere, and move it there when it is to be the baseline"
            )


def _check_debugger(request: CompareRequest) -> None:
    for name in ("break_at", "break_when"):
        if getattr(request, name) is not None and not request.breakpoints:
            raise UsageError(f"{flag(name)} goes with --break GLOB, and there is none")
    if not request.debugs:
        if request.debugger is not None:
            raise UsageError("--debugger goes with --break GLOB or --post-mortem: none is given")
        return
    if request.json:
        raise UsageError(
            "a debugger prints, and --json prints the report and nothing else: choose one, or "
            "write the report with --report FILE.json"
        )
    from tracer.debugger.prompt import choose_debugger

    choose_debugger(request.debugger)
