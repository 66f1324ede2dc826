"""Wrapper-based post-training quantisation.

config = wrappers.PTQConfig(activation=wrappers.affine("uint8"), weight=wrappers.affine("uint8"))
wrapped = wrappers.prepare(model, config)
wrappers.calibrate(wrapped, batches)
quantized = wrappers.convert(wrapped)
"""

# Importing these registers their wrappers.
from wrappers import llama as llama
from wrappers import nn as nn
from wrappers import qwen3_vl as qwen3_vl
from wrappers.config import PTQConfig, QuantSpec, affine, microscaling, no_quantization
from wrappers.decoding import calibrate_both, calibrate_decode, decode_inputs
from wrappers.dtypes import DType, QScheme
from wrappers.export import export
from wrappers.module import Mode, QuantModule, QuantPoint, iter_points, iter_wrappers
from wrappers.quantize import calibrate, convert, prepare
from wrappers.registry import register
from wrappers.runtime import Runtime, Sampling
from wrappers.steps import Step

__all__ = [
    "DType",
    "Mode",
    "PTQConfig",
    "QScheme",
    "QuantModule",
    "QuantPoint",
    "QuantSpec",
    "Runtime",
    "Sampling",
    "Step",
    "affine",
    "calibrate",
    "calibrate_both",
    "calibrate_decode",
    "convert",
    "decode_inputs",
    "export",
    "iter_points",
    "iter_wrappers",
    "microscaling",
    "no_quantization",
    "prepare",
    "register",
]
