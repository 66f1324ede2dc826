"""How far each decoder layer of a quantised model is from the float one, and how much that matters.

    for found in layer_errors(reference, candidate, inputs):
        print(found.layer, found.inherited, found.introduced, found.sensitivity)

The errors of layers are measured by the tracer: as the candidate runs, and by isolation, where each
layer is given the reference's inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trace_model.annotations import checked
from wrappers.core.module import iter_wrappers
from wrappers.core.point import Mode
from wrappers.errors import ArgumentError


@dataclass(frozen=True)
class LayerError:
    """Relative L2 errors, sqrt(sum d^2 / sum r^2), that one layer has to do with.

    Attributes:
        layer: its module name.
        inherited: of its output as the candidate runs: what the layers before it make wrong is in
            it.
        introduced: of its output with the reference's inputs: what it makes wrong itself.
        sensitivity: of the model's logits with this layer alone quantised: how much of what it
            makes wrong arrives there.
    """

    layer: str
    inherited: float
    introduced: float
    sensitivity: float


@checked(ArgumentError)
def layer_errors(
    reference: nn.Module, candidate: nn.Module, inputs: Mapping[str, Any]
) -> tuple[LayerError, ...]:
    """Measures each layer in one call of both models, in the order of execution.

    Args:
        reference: the float model, a causal LM.
        candidate: the same, wrapped and quantised; its modes are as they were afterwards.
        inputs: keyword arguments of both: a sequence, or a decode step with its cache, which
            `tracer.models.decode_step` makes. They are not changed.

    Raises:
        tracer.TracerError: the models have no list of layers in common, or one of them raised.
    """
    import tracer

    lists = [
        (name, part) for name, part in reference.named_modules() if isinstance(part, nn.ModuleList)
    ]
    names = [f"{name}.{place}" for name, part in lists for place in range(len(part))]
    comparison = tracer.compare(
        reference,
        candidate,
        dict(inputs),
        include=["", *names],  # nothing else is reported
        confirm=False,
        isolate="layers",
        causes=False,
    )
    assert comparison.isolation is not None  # it was asked for
    # Of several outputs the first is the activation.
    inherited = {row.module: row for row in reversed(comparison.rows) if row.is_output}
    logits = _logits(reference, inputs)
    found = []
    for call in comparison.isolation.calls:
        with _alone(candidate, call.module):
            difference = _logits(candidate, inputs) - logits
        found.append(
            LayerError(
                layer=call.module,
                inherited=inherited[call.module].visible_errors[1],
                introduced=call.introduced,
                sensitivity=float(difference.norm() / logits.norm()),
            )
        )
    return tuple(found)


@torch.no_grad()
def _logits(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    logits: Tensor = model(**copy.deepcopy(dict(inputs))).logits  # a cache would be written to
    return logits.double()


@contextmanager
def _alone(model: nn.Module, layer: str) -> Iterator[None]:
    """Quantises in one layer only for a while."""
    before = {module: module.mode for _, module in iter_wrappers(model)}
    try:
        for name, module in iter_wrappers(model):
            if not f"{name}.".startswith(f"{layer}."):
                module.mode = Mode.NO_QUANT
        yield
    finally:
        for module, mode in before.items():
            module.mode = mode
