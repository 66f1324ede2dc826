"""`trace_model compare`: which of its names is the reference, the model and the candidate."""

from collections.abc import Mapping
from typing import Any

from tracer.choices import CANDIDATES, DEFAULT_CANDIDATE, ITSELF, NEED_WRAPPERS
from tracer.cli.requests import CompareRequest
from tracer.errors import UsageError
from tracer.models.locate import is_graph, is_saved, is_trace
from tracer.text import listed


def request(given: Mapping[str, Any]) -> CompareRequest:
    """The request of the options that were given.

    Raises:
        UsageError: traces where a model is expected, or the other way round.
    """
    model: str | None = given["model"]
    reference: str | None = given.get("reference")
    candidate: str | None = given.get("candidate")
    if is_trace(given["model"]):
        if reference is not None:
            raise UsageError(f"{model} is a trace, as --reference is: give one of them")
        if candidate is None or candidate in CANDIDATES:
            raise UsageError(
                f"{model} is a trace, which is compared with a model or another trace: "
                "--candidate PATH, or MODEL --reference TRACE --candidate KIND"
            )
        reference = model
        model, candidate = (None, candidate) if is_trace(candidate) else (candidate, ITSELF)
    elif reference is not None and is_saved(reference):
        raise UsageError(
            f"--reference {reference} is a saved quantised model: record it first, `trace_model "
            f"record {model} --candidate {reference} --out run.trace`, and give the trace"
        )
    elif reference is not None and not (is_trace(reference) or is_graph(reference)):
        raise UsageError(
            f"--reference {reference} is no trace: expected a folder that `trace_model record` "
            "has made, or a file with an exported graph; a model that is the reference is given as "
            "MODEL"
        )
    if given.get("through") is not None:
        if (
            reference is not None
            or candidate not in (None, *NEED_WRAPPERS)
            or is_trace(given["model"])
        ):
            raise UsageError(
                "--through makes its own stages of MODEL: leave out --reference, and a --candidate "
                f"that is none of {listed(NEED_WRAPPERS)}"
            )
        candidate = candidate or "quantized"
    if candidate is None:
        alone = reference is None and "candidate_device" not in given
        candidate = DEFAULT_CANDIDATE if alone else ITSELF
    sides = {"model": model, "reference": reference, "candidate": candidate}
    return CompareRequest(**{**given, **sides})
