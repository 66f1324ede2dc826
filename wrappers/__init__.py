"""Wrapper-based post-training quantisation.

config = wrappers.PTQConfig(activation=wrappers.affine("uint8"), weight=wrappers.affine("uint8"))
wrapped = wrappers.prepare(model, config)
wrappers.calibrate(wrapped, batches)
quantized = wrappers.convert(wrapped)
"""

from importlib import import_module
from typing import TYPE_CHECKING

# Importing the layers registers their wrappers.
from wrappers.core.config import PTQConfig
from wrappers.core.module import QuantModule, iter_points, iter_wrappers
from wrappers.core.point import Mode, QuantPoint
from wrappers.core.registry import register, register_family
from wrappers.core.spec import KVCacheSpec, QuantSpec, affine, microscaling, no_quantization
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

if TYPE_CHECKING:
    from wrappers.deploy.decode_calibration import calibrate_both, calibrate_decode, decode_inputs
    from wrappers.deploy.export import export
    from wrappers.deploy.runtime import Runtime
    from wrappers.deploy.sampling import Sampling
    from wrappers.deploy.saving import load, save
    from wrappers.deploy.steps import Step

register_family("transformers.models.llama", "wrappers.families.llama")
register_family("transformers.models.qwen3_vl", "wrappers.families.qwen3_vl")

__all__ = [
    "DType", "KVCacheSpec", "Mode", "PTQConfig", "QScheme", "QuantModule", "QuantPoint",
    "QuantSpec", "Runtime", "Sampling", "Step", "affine", "calibrate", "calibrate_both",
    "calibrate_decode", "convert", "count_rounding", "decode_inputs", "export", "iter_points",
    "iter_wrappers", "load", "microscaling", "no_quantization", "overrides_for", "prepare",
    "register", "save", "summary",
]  # fmt: skip

# Imported when first used: what a quantised model is deployed with, a comparison does not need.
_ROOMS = {
    "decode_calibration": ("calibrate_both", "calibrate_decode", "decode_inputs"),
    "export": ("export",),
    "runtime": ("Runtime",),
    "sampling": ("Sampling",),
    "saving": ("load", "save"),
    "steps": ("Step",),
}
_ROOM_OF = {name: f"wrappers.deploy.{room}" for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'wrappers' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_ROOM_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
