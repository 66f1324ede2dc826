"""What a command line asks for: one frozen request for each command.

    parse(["compare", "tiny-llama", "--batch", "2"]) == CompareRequest(model="tiny-llama", batch=2)

A field is an option of the same name, with its default and its help; the parser is made of them.
None stands for an option that was not given, where what it goes to has a default of its own.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracer import choices
from tracer.cli import types
from tracer.cli.report_requests import DiffRequest, HistoryRequest
from tracer.cli.streams import DEFAULT, Output
from tracer.reports import known_suffixes

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# The options that say how inputs are made.
_MAKE_INPUTS = (
    *("prompt", "sequence_length", "batch", "padding"),
    *("image", "processor", "max_pixels", "video"),
)


def option(text: str, *, default: Any = None, **settings: Any) -> Any:
    """A field that is an option with a value.

    Args:
        text: its help.
        default: of a field that is not given; MISSING where it must be.
        settings: of `ArgumentParser.add_argument`; or of these the `names` if they are others than
            the field's, the title of a `group` that begins here, and `exclusive` for options of
            which one is given.
    """
    return field(default=default, metadata={"help": text, **settings})


def switch(text: str, **settings: Any) -> Any:
    """A field that is an option without a value."""
    return option(text, default=False, action="store_true", **settings)


def repeatable(text: str, **settings: Any) -> Any:
    """A field that is an option which is given any number of times."""
    return option(text, default=(), action="append", **settings)


def _named(known: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {what}" for name, what in known.items())


MODEL = (
    f"a local folder, a Hugging Face hub id, or a built-in model ({_named(choices.BUILT_IN)}); or "
    "a function, FILE.py:FUNCTION or MODULE:FUNCTION, that returns a model, or a pair of it "
    "and its inputs by name, whose code is run; or a file with an exported graph "
    f"({', '.join(choices.GRAPHS)})"
)


_SALVAGE = "of a damaged trace use what stands before the damage"


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """How a model, its inputs and its candidate are made.

    Attributes:
        model: a name or a path; None where `compare` is given two traces.
        candidate: a kind of candidate or a path; or the model itself.
        output: how much is printed; its options are those of every command.
    """

    output: Output = DEFAULT
    model: str | None = option(MODEL, default=MISSING, names=("model",), metavar="MODEL")
    candidate: str = option(
        "a candidate made from the model instead of it, as `trace_model compare` makes it: "
        f"{', '.join(choices.CANDIDATES)} (default: the model itself)",
        default=choices.ITSELF,
        metavar="KIND",
    )
    dtype: str | None = option(
        "of the weights, on both sides unless the candidate says otherwise; auto: as stored "
        f"(default: {choices.DEFAULT_DTYPE}, so that rounding in half precision hides nothing)",
        choices=("auto", *choices.DTYPES),
        group="the model",
    )
    device: str | None = option(f"cpu, cuda, cuda:1, mps, ... (default: {choices.DEFAULT_DEVICE})")
    cache: Path | None = option(
        "where models of the hub are kept (default: what HF_HUB_CACHE says)",
        type=types.folder,
        metavar="FOLDER",
    )
    offload: str | bool | None = option(
        "leave the weights of both models on disk until a module needs its own, for models that "
        "do not fit in memory; those that a checkpoint does not hold as they are needed are "
        "kept in FOLDER meanwhile (default: the system's temporary folder)",
        metavar="FOLDER",
        nargs="?",
        const=True,
    )
    inside: bool = switch(
        "open layers that PyTorch computes in one piece (nn.TransformerEncoderLayer); the numbers "
        "are then those of the path without that"
    )
    trust_remote_code: bool = switch("run Python code that comes with a checkpoint (default: off)")
    prompt: str | None = option(
        "a text (default: a short English one, or a question about --image; random tokens "
        "without a tokenizer, and around a synthetic image for a Qwen3-VL)",
        metavar="TEXT",
        group="the inputs",
    )
    image: tuple[Path, ...] = repeatable(
        "a photo that a Qwen3-VL sees before the prompt (repeatable: all in one sequence; with "
        "--batch one in each, or the only one in all)",
        type=types.file,
        metavar="FILE",
    )
    processor: str | None = option(
        "what makes tokens and patches of prompt and images (default: the model's own); "
        "tiny-qwen3-vl, which has none, is built with its vocabulary",
        metavar="FOLDER|HUB_ID",
    )
    max_pixels: int | None = option(
        "shrinks larger images to at most N pixels, for fewer tokens: a Qwen3-VL makes one of "
        "32 x 32 pixels",
        type=types.count(1),
        metavar="N",
    )
    video: int | None = option(
        "adds a synthetic clip of FRAMES frames to the synthetic image of a Qwen3-VL",
        type=types.count(1),
        metavar="FRAMES",
    )
    sequence_length: int | None = option(
        "tokens in the longest sequence; a text is repeated or cut to it (not with --image)",
        type=types.count(1),
        metavar="N",
    )
    batch: int | None = option(
        "sequences, of different lengths and padded if more than one "
        f"(default: {choices.DEFAULT_BATCH})",
        type=types.count(1),
        metavar="N",
    )
    padding: str | None = option(
        f"the side that is padded (default: {choices.DEFAULT_PADDING})",
        choices=choices.PADDING_SIDES,
    )
    inputs: Path | None = option(
        "the model's keyword arguments, instead of the above",
        type=types.file,
        metavar="FILE.safetensors",
    )
    map_input: tuple[tuple[str, str], ...] = repeatable(
        "the candidate's name of an argument, and the model's: tokens=input_ids (repeatable)",
        type=types.argument,
        metavar="OWN_NAME=NAME",
    )
    seed: int = option(
        "of random inputs, of what a model writes to be calibrated on, of what drops out with "
        "--train, and of the weights of random-llama and tiny-qwen3-vl "
        f"(default: {choices.DEFAULT_SEED})",
        default=choices.DEFAULT_SEED,
        type=types.seed,
        metavar="N",
    )
    steps: int | None = option(
        "generate: a prefill, and N decode steps with the last tokens of each sequence; with "
        "--variant decode the candidate's prefill is in the variant prefill",
        type=types.count(1),
        metavar="N",
    )
    variant: str | None = option(
        f"form of the wrappers: prefill ({choices.VARIANTS['prefill']}), prefill_reference "
        f"({choices.VARIANTS['prefill_reference']}), or decode ({choices.VARIANTS['decode']}), "
        "which is run on the last token of each sequence over the float model's cache (default: "
        f"{choices.DEFAULT_VARIANT})",
        group="the wrapped or quantised candidate",
    )
    activation: str | None = option(
        "uint8, int16, fp8_e4m3, fp8_e5m2, nvfp4, mxfp4, ... (default: "
        f"{choices.DEFAULT_ACTIVATION})",
        metavar="DTYPE",
    )
    weight: str | None = option(
        f"likewise: uint8, uint4, ... (default: {choices.DEFAULT_WEIGHT})", metavar="DTYPE"
    )
    override: tuple[tuple[str, str], ...] = repeatable(
        "another type for matching modules or quantization points; float: none (repeatable; the "
        "last one that matches counts)",
        type=types.override,
        metavar="GLOB=DTYPE",
    )
    config: Path | None = option(
        "a PTQConfig as its to_json() writes it, instead of --activation and --weight",
        type=types.file,
        metavar="FILE.json",
    )
    calibrate: int | None = option(
        "how many inputs to calibrate on besides the inputs themselves: sequences, synthetic "
        "images, or random parts of the images with other questions (default: "
        f"{choices.DEFAULT_CALIBRATE})",
        type=types.count(0),
        metavar="N",
    )
    calibration_text: Path | None = option(
        "a text to take them, or what is said about images, from (default: what the model "
        "writes itself, with this --seed; random tokens for one without a tokenizer)",
        type=types.file,
        metavar="FILE",
    )

    def given(self, *names: str) -> dict[str, Any]:
        """Those of the options that were given."""
        return {name: value for name in names if (value := getattr(self, name)) not in (None, ())}

    @property
    def making_inputs(self) -> tuple[str, ...]:
        """The given options that make inputs; a processor may be there for the model's sake."""
        found = self.given(*_MAKE_INPUTS)
        if self.model in choices.WITH_VOCABULARY:
            found.pop("processor", None)
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class CompareRequest(ModelRequest):
    """`trace_model compare`.

    Attributes:
        reference: a trace that is the reference; None where the model is.
        map: regular expressions and replacements for the candidate's module names.
        breakpoints: globs of `--break`.
        max_peir, min_sqnr, min_cosine, max_l2: globs and limits, in the order in which they were
            given.
    """

    model: str | None = option(
        f"{MODEL}; or a trace, to be compared with --candidate",
        default=MISSING,
        names=("model",),
        metavar="MODEL",
    )
    candidate: str = option(
        f"the model under test (default: {choices.DEFAULT_CANDIDATE}; with --reference or "
        f"--candidate-device the model itself). {_named(choices.CANDIDATES)}; or the path of "
        "another model, of a trace, of an exported graph, of a saved quantised model (`trace_model "
        "quantize`), or of a function that makes a model, as for MODEL",
        default=choices.ITSELF,
        metavar="KIND|PATH",
    )
    reference: str | None = option(
        "a trace of `trace_model record`, or an exported graph, instead of the model",
        metavar="TRACE|GRAPH",
    )
    inside: bool = switch(
        "look inside what is compiled, in stages and module by module, also where it agrees (by "
        "itself where it diverges); and open layers that PyTorch computes in one piece "
        "(nn.TransformerEncoderLayer), whose numbers are then those of the path without that"
    )
    salvage: bool = switch(_SALVAGE)
    through: str | None = option(
        "compares what becomes of MODEL on its way to a file, each stage with the one before: "
        "float, wrapped, quantised (where there are wrappers for it), exported, run; names the "
        "first stage that adds an error beyond its own kind, and the module in it",
        choices=choices.EXPORTED_TO,
    )
    candidate_device: str | None = option(
        "run the candidate on another device than the model: cuda, cuda:1, mps, cpu, ...; "
        "without --candidate it is the model itself",
        metavar="DEVICE",
    )
    tolerance: float | None = option(
        "peak error to interval ratio up to which values agree; by default a limit per dtype",
        type=types.tolerance,
        metavar="PEIR",
        group="what is compared",
    )
    train: bool = switch(
        "compare in training mode; dropout then drops the same elements on both sides, in each "
        "call of paired modules"
    )
    strict: bool = switch(
        "values that differ inside and are made good again before the output are a divergence"
    )
    noise_floor: bool = switch(
        "measure what rounding alone does to the reference (against itself in float64, and with "
        "inputs moved by one unit in the last place); differences are also given as multiples "
        "of it"
    )
    map: tuple[tuple[str, str], ...] = repeatable(
        "turns the candidate's module names into the reference's; the last = separates "
        "(repeatable)",
        type=types.rule,
        metavar="REGEX=REPLACEMENT",
    )
    isolate: str | None = option(
        "measure the error that modules introduce themselves, with the reference's inputs: of "
        "every module in its own forward, of attention and MLP blocks, of layers, or of matching "
        "modules; for a quantised candidate also which quantization points cause it (default: "
        f"{choices.LEVELS[0]} with --candidate quantized, else {choices.NO_ISOLATION})",
        metavar="|".join((*choices.LEVELS, "GLOB", choices.NO_ISOLATION)),
        group="whose error it is",
    )
    what_if: int = option(
        "swap the reference's module in for each of the N that introduce most, and for all of "
        "them, and say how far the final output recovers",
        default=0,
        type=types.count(1),
        metavar="N",
    )
    zoom: str | None = option(
        "name the operation that is the culprit inside a module (by either model's name of it), "
        "and its line (by itself where the origin lies in a module's own forward)",
        metavar="MODULE",
    )
    breakpoints: tuple[str, ...] = repeatable(
        "open a debugger where the candidate calls matching modules (by either model's names), "
        "with both models at that call (repeatable)",
        metavar="GLOB",
        names=("--break",),
        dest="breakpoints",
        group="the debugger",
    )
    break_at: str | None = option(
        f"of a call: before it, or after it (default: {choices.BREAK_AT[0]})",
        choices=choices.BREAK_AT,
    )
    break_when: str | None = option(
        "diverged: only where an argument (--break-at end: an output) disagrees (default: "
        f"{choices.BREAK_WHEN[0]})",
        choices=choices.BREAK_WHEN,
    )
    post_mortem: bool = switch("open a debugger where a model raises")
    debugger: str | None = option(
        "which one opens (default: what PYTHONBREAKPOINT says, else ipdb in a terminal and pdb "
        "elsewhere)",
        choices=choices.DEBUGGERS,
    )
    focus: tuple[str, ...] = repeatable(
        "print the values of matching modules, on both sides, by either's names (repeatable)",
        metavar="GLOB",
        group="what is reported",
    )
    all: bool = switch("print every row, arguments included, none folded")
    report: tuple[Path, ...] = repeatable(
        f"write a report as well, in the format of the suffix: {known_suffixes()} (repeatable)",
        type=types.report,
        metavar="FILE",
    )
    json: bool = switch("print the JSON report and nothing else")
    baseline: Path | None = option(
        "a report of a former run, or a trace of a former candidate (`trace_model record ... "
        "--values fingerprints`): says which outputs are worse, better, gone and new since",
        type=types.baseline,
        metavar="FILE.json|TRACE",
        group="the gate",
    )
    baseline_any: bool = switch(
        "take the baseline also where it is of another reference, candidate, dtype or other "
        "inputs, which is refused otherwise"
    )
    max_peir: tuple[tuple[str, float], ...] = repeatable(
        "a limit on the outputs of matching modules, instead of the tolerance (repeatable; the "
        "last one that matches counts)",
        type=types.limit,
        metavar="GLOB=PEIR",
    )
    min_sqnr: tuple[tuple[str, float], ...] = repeatable(
        "as --max-peir, for the ratio of signal to noise in dB, at least",
        type=types.limit_of("DB", "lm_head=30"),
        metavar="GLOB=DB",
    )
    min_cosine: tuple[tuple[str, float], ...] = repeatable(
        "as --max-peir, for the cosine similarity, at least",
        type=types.limit_of("COSINE", "lm_head=0.999", -1.0, 1.0),
        metavar="GLOB=COSINE",
    )
    max_l2: tuple[tuple[str, float], ...] = repeatable(
        "as --max-peir, for the relative L2 error, at most",
        type=types.limit_of("L2", "lm_head=0.02", 0.0),
        metavar="GLOB=L2",
    )
    fail_on: str | None = option(
        "what makes the exit code 1: less was compared than in the baseline (coverage); that, "
        "or an output is worse than in the baseline or beyond a limit (regression); that, "
        "or the models diverge, a quantised candidate too (divergence) (default: regression with "
        "--baseline, and with limits on a quantised candidate; else divergence, which is not "
        "asked of a quantised one)",
        choices=choices.FAIL_ON,
    )
    exit_skip: int | None = option(
        "exit with CODE instead of 2 and 3, where nothing can be said of the models: 125 tells "
        "`git bisect run` to skip a commit",
        type=types.count(2, 255),
        metavar="CODE",
    )

    @property
    def debugs(self) -> bool:
        """Whether a debugger may open."""
        return bool(self.breakpoints) or self.post_mortem

    @property
    def limits(self) -> dict[str, tuple[tuple[str, float], ...]]:
        """The given limits by the names of `tracer.gate`'s."""
        return self.given("max_peir", "min_sqnr", "min_cosine", "max_l2")


@dataclass(frozen=True, kw_only=True)
class RecordRequest(ModelRequest):
    """`trace_model record`."""

    out: str = option(
        "the folder to make: run.trace", default=MISSING, required=True, metavar="FOLDER"
    )
    force: bool = switch(
        "replace a trace that is there already, once the new one is complete; nothing but a trace "
        "is ever replaced"
    )
    include: tuple[str, ...] = repeatable(
        "record matching modules only (repeatable)", metavar="GLOB"
    )
    values: str | None = option(
        "arguments and outputs; outputs alone; or fingerprints of 176 bytes instead of each "
        f"tensor, from which differences are estimated (default: {choices.VALUES[0]})",
        choices=choices.VALUES,
    )


@dataclass(frozen=True, kw_only=True)
class ShowRequest(ModelRequest):
    """`trace_model show`."""

    model: str = option(f"{MODEL}; or a trace", default=MISSING, names=("model",), metavar="MODEL")
    salvage: bool = switch(_SALVAGE)
    include: tuple[str, ...] = repeatable("show matching modules only (repeatable)", metavar="GLOB")
    focus: tuple[str, ...] = repeatable(
        "print the values themselves of matching modules (repeatable)", metavar="GLOB"
    )
    print_options: tuple[tuple[str, object], ...] = repeatable(
        f"how tensors are printed: torch's {', '.join(types.PRINT_OPTIONS)} (repeatable)",
        type=types.print_option,
        metavar="KEY=VALUE",
    )
    tree: bool = switch("one line per call, indented", exclusive=True)
    json: bool = switch("print JSON and nothing else", exclusive=True)


@dataclass(frozen=True, kw_only=True)
class AblateRequest:
    """`trace_model ablate`.

    Attributes:
        study: its name; None with a `config`.
        settings: of the study, those that were given, by the names of its parameters.
        workload: those of its parameters that were given, `model` among them.
    """

    study: str | None = None
    config: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    workload: Mapping[str, Any] = field(default_factory=dict)
    results: str | None = None
    retry_failed: bool = False
    workers: int = 1
    ray: str | None = None
    report: tuple[str, ...] = ()
    out: str | None = None
    cache: Path | None = None
    output: Output = DEFAULT


@dataclass(frozen=True, kw_only=True)
class CheckRequest:
    """`trace_model check`.

    Attributes:
        names: of checks, or of one of their input sets (`port.padded`); none for all.
        file: the configuration; None for the one that is found.
        device, dtype, cache: what every check is given instead of its own.
    """

    names: tuple[str, ...] = ()
    file: Path | None = None
    listing: bool = False
    print_command: bool = False
    update_baseline: bool = False
    report: tuple[Path, ...] = ()
    device: str | None = None
    dtype: str | None = None
    cache: Path | None = None
    output: Output = DEFAULT


Request = (
    CompareRequest
    | RecordRequest
    | ShowRequest
    | AblateRequest
    | CheckRequest
    | DiffRequest
    | HistoryRequest
)


def given(request: "DataclassInstance") -> str:
    """What a request asks for, in words: each field that is not as it would be without it."""
    values = {
        field.name: (getattr(request, field.name), field.default) for field in fields(request)
    }
    return ", ".join(f"{name}={value}" for name, (value, usual) in values.items() if value != usual)


def flag(name: str) -> str:
    """The option of a field."""
    return f"--{name.replace('_', '-')}"
