"""What a command line asks for: one frozen request for each command.

    parse(["compare", "tiny-llama", "--batch", "2"]) == CompareRequest(model="tiny-llama", batch=2)

A field has the name of its option. None stands for an option that was not given where the function
that it goes to has a default of its own (`given`); the defaults of the others are written here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracer.choices import ITSELF, WITH_VOCABULARY

# The options that say how inputs are made.
_MAKE_INPUTS = (
    *("prompt", "sequence_length", "batch", "padding"),
    *("image", "processor", "max_pixels", "video"),
)


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """How a model, its inputs and its candidate are made.

    Attributes:
        model: a name or a path; None where `compare` is given two traces.
        candidate: a kind of candidate or a path; or the model itself.
    """

    model: str | None
    candidate: str = ITSELF
    dtype: str | None = None
    device: str | None = None
    offload: str | bool | None = None
    trust_remote_code: bool = False
    prompt: str | None = None
    image: tuple[Path, ...] = ()
    processor: str | None = None
    max_pixels: int | None = None
    video: int | None = None
    sequence_length: int | None = None
    batch: int | None = None
    padding: str | None = None
    inputs: Path | None = None
    seed: int = 0
    steps: int | None = None
    variant: str | None = None
    activation: str | None = None
    weight: str | None = None
    calibrate: int | None = None
    calibration_text: Path | None = None

    def given(self, *names: str) -> dict[str, Any]:
        """Those of the options that were given."""
        return {name: value for name in names if (value := getattr(self, name)) not in (None, ())}

    @property
    def making_inputs(self) -> tuple[str, ...]:
        """The given options that make inputs; a processor may be there for the model's sake."""
        found = self.given(*_MAKE_INPUTS)
        if self.model in WITH_VOCABULARY:
            found.pop("processor", None)
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class CompareRequest(ModelRequest):
    """`trace_model compare`.

    Attributes:
        reference: a trace that is the reference; None where the model is.
        map: regular expressions and replacements for the candidate's module names.
        breakpoints: globs of `--break`.
        max_peir: globs and limits, in the order in which they were given.
    """

    reference: str | None = None
    candidate_device: str | None = None
    tolerance: float | None = None
    train: bool = False
    noise_floor: bool = False
    map: tuple[tuple[str, str], ...] = ()
    isolate: str | None = None
    what_if: int = 0
    zoom: str | None = None
    breakpoints: tuple[str, ...] = ()
    break_at: str | None = None
    break_when: str | None = None
    post_mortem: bool = False
    debugger: str | None = None
    focus: tuple[str, ...] = ()
    all: bool = False
    report: tuple[Path, ...] = ()
    json: bool = False
    baseline: Path | None = None
    max_peir: tuple[tuple[str, float], ...] = ()
    fail_on: str | None = None

    @property
    def debugs(self) -> bool:
        """Whether a debugger may open."""
        return bool(self.breakpoints) or self.post_mortem


@dataclass(frozen=True, kw_only=True)
class RecordRequest(ModelRequest):
    """`trace_model record`."""

    model: str
    out: str
    include: tuple[str, ...] = ()
    values: str | None = None


@dataclass(frozen=True, kw_only=True)
class ShowRequest(ModelRequest):
    """`trace_model show`."""

    model: str
    include: tuple[str, ...] = ()
    focus: tuple[str, ...] = ()
    print_options: tuple[tuple[str, object], ...] = ()
    tree: bool = False
    json: bool = False


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


Request = CompareRequest | RecordRequest | ShowRequest | AblateRequest


def flag(name: str) -> str:
    """The option of a field."""
    return f"--{name.replace('_', '-')}"
