"""Wrapper-based post-training quantisation.

config = wrappers.PTQConfig(activation=wrappers.affine("uint8"), weight=wrappers.affine("uint8"))
wrapped = wrappers.prepare(model, config)
wrappers.calibrate(wrapped, batches)
quantized = wrappers.convert(wrapped)
"""

# Importing the families and layers registers their wrappers.
from wrappers.core.config import PTQConfig
from wrappers.core.module import QuantModule, iter_points, iter_wrappers
from wrappers.core.point import Mode, QuantPoint
from wrappers.core.registry import register
from wrappers.core.spec import KVCacheSpec, QuantSpec, affine, microscaling, no_quantization
from wrappers.deploy.decode_calibration import calibrate_both, calibrate_decode, decode_inputs
from wrappers.deploy.export import export
from wrappers.deploy.runtime import Runtime
from wrappers.deploy.sampling import Sampling
from wrappers.deploy.saving import load, save
from wrappers.deploy.steps import Step
from wrappers.families import llama as llama
from wrappers.families import qwen3_vl as qwen3_vl
from wrappers.layers import activations as activations
from wrappers.layers import convolutions as convolutions
from wrappers.layers import linear as linear
from wrappers.layers import norms as norms
from wrappers.numerics.dtypes import DType, QScheme
from wrappers.quantize import (
    calibrate,
    convert,
    count_rounding,
    overrides_for,
    prepare,
    summary,
)

__all__ = [
    "DType", "KVCacheSpec", "Mode", "PTQConfig", "QScheme", "QuantModule", "QuantPoint",
    "QuantSpec", "Runtime", "Sampling", "Step", "affine", "calibrate", "calibrate_both",
    "calibrate_decode", "convert", "count_rounding", "decode_inputs", "export", "iter_points",
    "iter_wrappers", "load", "microscaling", "no_quantization", "overrides_for", "prepare",
    "register", "save", "summary",
]  # fmt: skip
