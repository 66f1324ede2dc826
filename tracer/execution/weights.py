"""What the parameters of a model are of, and where they lie, from one walk over them."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from tracer.execution.standin import StandIn
from tracer.execution.walks import all_parameters


@dataclass(frozen=True)
class Weights:
    """What a model's parameters are of, and where they lie.

    Attributes:
        numbers: how many numbers are of each floating dtype.
        devices: where they lie. Weights that are elsewhere until they are needed, and those of a
            recording, lie nowhere.
        dtype: the floating dtype of most; None if there is none.
    """

    numbers: Counter[torch.dtype]
    devices: frozenset[torch.device]
    dtype: torch.dtype | None

    @classmethod
    def of(cls, model: nn.Module) -> "Weights":
        """Looks at all parameters of a model once; a stand-in says its dtype itself."""
        numbers: Counter[torch.dtype] = Counter()
        parameters = all_parameters(model)
        for parameter in parameters:
            if parameter.is_floating_point():
                numbers[parameter.dtype] += parameter.numel()
        devices = {parameter.device for parameter in parameters if not parameter.is_meta}
        dtype = max(numbers, key=numbers.__getitem__, default=None)
        if isinstance(model, StandIn):
            dtype = model.dtype or dtype
            if not model.computes:
                devices = set()
                numbers = Counter({} if model.dtype is None else {model.dtype: 1})
        return cls(numbers, frozenset(devices), dtype)
