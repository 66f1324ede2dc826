"""Algorithms that make a quantised model better than rounding alone does.

from wrappers import algorithms
quantized = algorithms.quantize(model, config, batches, [algorithms.GPTQ()])
"""

from wrappers.algorithms.bias import BiasCorrection
from wrappers.algorithms.equalisation import CrossLayerEqualisation
from wrappers.algorithms.gptq import GPTQ
from wrappers.algorithms.rotation import Rotation
from wrappers.algorithms.smoothing import SmoothQuant
from wrappers.algorithms.stage import Stage, quantize

__all__ = [
    "GPTQ", "BiasCorrection", "CrossLayerEqualisation", "Rotation", "SmoothQuant", "Stage",
    "quantize",
]  # fmt: skip
