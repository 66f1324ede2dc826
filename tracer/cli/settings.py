"""How the two models of a comparison were made, for a later one to be checked against.

settings(parse(["compare", "tiny-llama", "--candidate", "quantized", "--weight", "uint4"]))
{"reference": "tiny-llama", "candidate": "quantized", "weight": "uint4", ...}
"""

import hashlib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

from tracer import choices
from tracer.cli.requests import CompareRequest, ModelRequest
from tracer.comparison.result import Comparison
from tracer.models.locate import factory_of, is_graph, is_trace

# The group of the options that say how a wrapped or quantised candidate is made.
_GROUP = "the wrapped or quantised candidate"
_DEFAULTS: Mapping[str, object] = {
    "variant": choices.DEFAULT_VARIANT,
    "activation": choices.DEFAULT_ACTIVATION,
    "weight": choices.DEFAULT_WEIGHT,
    "calibrate": choices.DEFAULT_CALIBRATE,
}
# Of a candidate that is wrapped and not quantised.
_OF_WRAPPED = ("variant",)


def identified(comparison: Comparison, request: CompareRequest) -> Comparison:
    """The comparison with the settings of its models."""
    assert comparison.identity is not None
    identity = replace(comparison.identity, settings=settings(request))
    return replace(comparison, identity=identity)


def settings(request: CompareRequest) -> dict[str, str]:
    """What the models were made from and how, by the names of the options.

    A trace says itself what it is of, and where it lies says nothing. A seed counts where the
    candidate depends on it.
    """
    found: dict[str, object] = {}
    if request.reference is None and request.model is not None:
        found["reference"] = _place(request.model)
    elif request.reference is not None and is_graph(request.reference):
        found["reference"] = _place(request.reference)
    if not is_trace(request.candidate):
        found["candidate"] = _place(request.candidate)
    if request.candidate in choices.NEED_WRAPPERS:
        quantized = request.candidate == "quantized"
        names = _group() if quantized else _OF_WRAPPED
        given = request.given(*names)
        found |= {name: given[name] if name in given else _DEFAULTS.get(name) for name in names}
    if request.candidate == "quantized" or request.train or factory_of(request.candidate):
        found["seed"] = request.seed
    return {name: _plain(value) for name, value in found.items() if value is not None}


def _group() -> list[str]:
    """The options of the group."""
    names, inside = [], False
    for field in fields(ModelRequest):
        inside = field.metadata["group"] == _GROUP if "group" in field.metadata else inside
        if inside:
            names.append(field.name)
    return names


def _place(name: str) -> str:
    """A path below the working directory from there, as it may lie elsewhere on another machine."""
    path, here = Path(name).expanduser(), Path.cwd()
    if path.is_absolute() and path.is_relative_to(here):
        return str(path.relative_to(here))
    return name


def _plain(value: object) -> str:
    """A setting as text; of a file what it holds, wherever it lies."""
    if isinstance(value, Path):
        return f"{value.name} {hashlib.blake2b(value.read_bytes(), digest_size=6).hexdigest()}"
    if isinstance(value, tuple):
        return ", ".join("=".join(map(_plain, each)) if isinstance(each, tuple) else _plain(each)
                         for each in value)  # fmt: skip
    return str(value)
