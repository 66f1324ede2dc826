"""The types that Circle has, and whether a model is made of these."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wrappers.core.module import iter_points, iter_wrappers
from wrappers.core.point import Mode, QuantPoint
from wrappers.core.quantizers import Quantizer
from wrappers.core.transformers_compat import tree_leaves
from wrappers.errors import ExportError
from wrappers.numerics.affine import AffineQParams
from wrappers.numerics.dtypes import INT16, UINT4, UINT8
from wrappers.numerics.floats import FloatQParams
from wrappers.numerics.grouped import GroupedQParams
from wrappers.numerics.microscaling import MXQuantizer
from wrappers.quantize import ModelInputs, call_arguments, listed

CIRCLE_TYPES = (UINT4, UINT8, INT16)
"""The integer types that can be written to a `.circle`."""

CIRCLE_ELEMENTS = ("int8", "fp4_e2m1")
"""The element formats of microscaling that can, of activations in blocks of `CIRCLE_BLOCK`."""

CIRCLE_BLOCK = 32


def check_types(model: nn.Module, inputs: ModelInputs) -> None:
    """Checks that Circle has the types of a model's points, parameters and inputs.

    Raises:
        ExportError: it has not.
    """
    refused = [
        f"{wrapper.ptq_config.scope}.{name}".lstrip(".") + f" ({kind})"
        for _, wrapper in iter_wrappers(model)
        if wrapper.mode is Mode.QUANT
        for name, point in wrapper.points.items()
        if (kind := _kind_without_a_type(point, point.quantizer))
    ]
    _refuse(refused)
    _check_floats(model, inputs)


def check_circle(prepared: nn.Module) -> None:
    """Checks that Circle has the types that a prepared model is to be quantised to.

    Raises:
        ExportError: it has not, or a tensor is no float32.
    """
    _refuse(
        [
            f"{name}.{point_name}".lstrip(".") + f" ({kind})"
            for name, point_name, point in iter_points(prepared)
            if (kind := _expected_without_a_type(point))
        ]
    )
    _check_floats(prepared, ())


def _refuse(points: list[str]) -> None:
    if points:
        types = ", ".join(map(str, CIRCLE_TYPES))
        raise ExportError(
            f"Circle has no type for {len(points)} quantization points: {listed(points)}. It "
            f"takes {types}, each with scale and zero point, and mxint8 and mxfp4 of activations "
            f"in blocks of {CIRCLE_BLOCK}; give these points another spec, or write a .pt2"
        )


def _check_floats(model: nn.Module, inputs: ModelInputs) -> None:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    leaves = tree_leaves(call_arguments(inputs))
    tensors |= {f"input {i}": leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
    others = [
        f"{name} ({str(tensor.dtype).removeprefix('torch.')})"
        for name, tensor in tensors.items()
        if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype != torch.float32)
    ]
    if others:
        raise ExportError(
            f"Circle's floats are float32, and {len(others)} tensors are not: {listed(others)}; "
            "convert the float model with float() and wrap it again, or write a .pt2"
        )


def _expected_without_a_type(point: QuantPoint) -> str | None:
    """What a point will quantise to, if Circle has no type for it."""
    dtype = point.observer.dtype
    if dtype is None:  # needs no data
        return _kind_without_a_type(point, point.observer.quantizer())
    return None if dtype in CIRCLE_TYPES else str(dtype)


def _kind_without_a_type(point: QuantPoint, quantizer: Quantizer | None) -> str | None:
    """What a point quantises to, if Circle has no type for it."""
    if isinstance(quantizer, MXQuantizer):
        if quantizer.element not in CIRCLE_ELEMENTS:
            return point.kind
        if quantizer.block_size != CIRCLE_BLOCK:
            return f"{point.kind} in blocks of {quantizer.block_size}"
        # Tico computes what is constant, and has no function for this.
        return None if point.parameter is None else f"{point.kind} of a parameter"
    if isinstance(quantizer, GroupedQParams):
        return f"{quantizer.dtype} by groups of columns"
    if isinstance(quantizer, FloatQParams):
        return str(quantizer.dtype)
    if isinstance(quantizer, AffineQParams) and quantizer.dtype not in CIRCLE_TYPES:
        return str(quantizer.dtype)
    return None
