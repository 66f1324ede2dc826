"""Algorithms that make a quantised model better than rounding alone does.

from wrappers import algorithms
quantized = algorithms.quantize(model, config, batches, [algorithms.GPTQ()])
"""

from wrappers.algorithms.gptq import GPTQ
from wrappers.algorithms.stage import Stage, quantize

__all__ = ["GPTQ", "Stage", "quantize"]
