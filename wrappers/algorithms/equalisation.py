"""Cross-layer equalisation: gives channels between two linear layers like ranges on both sides.

    equalised = CrossLayerEqualisation()(model, config, batches)  # a float model, the same function

Between v_proj and o_proj, and between up_proj and down_proj, nothing but sums and products comes,
so that channel j of the first may be divided by what column j of the second is multiplied by:
sqrt(largest weight of the one / largest weight of the other). Query heads that share a value head
count as one column. No data is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from wrappers.algorithms.stage import float_copy
from wrappers.algorithms.structure import Pair, decoder_of
from wrappers.core.config import PTQConfig
from wrappers.quantize import ModelInputs

LEAST = 1e-8  # of a range that counts


@dataclass(frozen=True)
class CrossLayerEqualisation:
    """The stage; it has no options."""

    rewrites_float: ClassVar[bool] = True

    def __call__(
        self, model: nn.Module, config: PTQConfig, batches: Sequence[ModelInputs]
    ) -> nn.Module:
        """A float model that computes the same function.

        Raises:
            WrapError: the model is prepared already, or its layers are not known.
        """
        equalised = float_copy(model, "cross-layer equalisation")
        for layer in decoder_of(equalised).layers:
            for pair in layer.pairs():
                if isinstance(pair.writer, nn.Linear):
                    pair.divide(equalising(pair))
        return equalised


def equalising(pair: Pair) -> Tensor:
    """What each output of the writer is divided by, [outputs]; 1 where a channel is dead."""
    written = pair.writer.get_parameter("weight").detach().double().abs().amax(1)
    columns = [reader.weight.detach().double().abs().amax(0) for reader in pair.readers.values()]
    read = pair.gathered(torch.stack(columns).amax(0))
    alive = (written > LEAST) & (read > LEAST)
    return torch.where(alive, (written / read.clamp(min=LEAST)).sqrt(), 1.0)
