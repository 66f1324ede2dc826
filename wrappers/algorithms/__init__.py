"""Algorithms that make a quantised model better than rounding alone does.

from wrappers import algorithms
quantized = algorithms.quantize(model, config, batches, [algorithms.GPTQ()])
"""

from wrappers.algorithms.bias import BiasCorrection
from wrappers.algorithms.equalisation import CrossLayerEqualisation
from wrappers.algorithms.gptq import GPTQ
from wrappers.algorithms.reconstruction import (
    AdaRound,
    BlockReconstruction,
    BlockResult,
    reconstructed,
)
from wrappers.algorithms.rotation import Rotation
from wrappers.algorithms.smoothing import SmoothQuant
from wrappers.algorithms.stage import Stage, quantize

__all__ = [
    "GPTQ", "AdaRound", "BiasCorrection", "BlockReconstruction", "BlockResult",
    "CrossLayerEqualisation", "Rotation", "SmoothQuant", "Stage", "quantize", "reconstructed",
]  # fmt: skip
