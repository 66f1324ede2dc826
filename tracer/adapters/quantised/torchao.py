"""Modules that torchao quantised: by a weight of a class of its own, or by fake quantisers (QAT).

A weight of torchao's also says whether the input is quantised, in each call or by a kept scale:
what multiplies with it does both.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from tracer.adapters.quantised.adapter import (
    Adapter,
    QuantizedTensor,
    float_weight,
    given_weight,
)
from tracer.execution.torch_internals import parameters_of
from tracer.tensors.dequantised import dequantised
from tracer.tensors.leaves import dtype_name

_COMMON = "torchao.quantization.quantize_.common"
_INTX = "torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor"
_QUANTIZERS = {"weight": "weight_fake_quantizer", "input": "activation_fake_quantizer"}
_POWERS_OF_TWO = ("float8_e8m0fnu", "float8_e4m3fn", "uint8")


class QuantizedWeight(Adapter):
    """A module whose weight is a tensor of torchao's."""

    @property
    def tensors(self) -> Mapping[str, QuantizedTensor]:
        weight: Any = self._weight
        scale, zero_point = getattr(weight, "scale", None), getattr(weight, "zero_point", None)
        inputs = _input_kind(weight)
        is_known = not inputs or _input_quantizer(weight) is not None
        found = {
            "weight": QuantizedTensor(
                kind=f"{_dtype_of(weight)} weight{'' if is_known else ' and activation'}",
                scales={"scale": scale} if isinstance(scale, torch.Tensor) else {},
                zero_point=zero_point if _is_integer(zero_point) else None,
                zero_points=_bounds(_dtype_of(weight)),
                channels=scale.numel()
                if isinstance(scale, torch.Tensor) and _has_channels(weight)
                else 0,
                may_be_one=scale is not None and dtype_name(scale.dtype) in _POWERS_OF_TWO,
            )
        }
        if inputs and is_known:
            kept = getattr(weight, "act_quant_scale", None)
            found["input"] = QuantizedTensor(
                kind=f"{inputs} activation",
                scales={} if kept is None else {"act_quant_scale": kept},
                zero_point=getattr(weight, "act_quant_zero_point", None),
                zero_points=_bounds(inputs),
            )
        return found

    @contextmanager
    def disabled(self, name: str, reference: nn.Module | None = None) -> Iterator[None]:
        weight = dequantised(self._weight)
        scale = getattr(self._weight, "act_pre_scale", None)
        if scale is not None:
            weight = weight * scale
        with ExitStack() as stack:
            if name == "weight":
                theirs = float_weight(self.module, reference)
                weight = weight if theirs is None else theirs
                quantize = _input_quantizer(self._weight)
                if quantize is not None:
                    before = self.module.register_forward_pre_hook(
                        lambda _, given: (quantize(given[0]), *given[1:])
                    )
                    stack.callback(before.remove)
            stack.enter_context(given_weight(self.module, weight))
            yield

    @property
    def _weight(self) -> torch.Tensor:
        weight = parameters_of(self.module)["weight"]
        assert weight is not None
        return weight


class FakeQuantized(Adapter):
    """A layer of QAT, with fake quantisers around a float weight."""

    @property
    def tensors(self) -> Mapping[str, QuantizedTensor]:
        return {
            name: _fake(quantizer, name)
            for name in _QUANTIZERS
            if (quantizer := self._quantizer(name)) is not None and quantizer.enabled
        }

    @contextmanager
    def disabled(self, name: str, reference: nn.Module | None = None) -> Iterator[None]:
        quantizer: Any = self._quantizer(name)
        before = quantizer.enabled
        quantizer.enabled = False
        try:
            yield
        finally:
            quantizer.enabled = before

    def _quantizer(self, name: str) -> Any:
        return getattr(self.module, _QUANTIZERS[name], None)


def _weight_of(module: nn.Module) -> object:
    # A scripted module's parameters are in a mapping of its own kind.
    return dict(parameters_of(module).items()).get("weight")


def adapter_of(module: nn.Module) -> Adapter | None:
    """What a module has of torchao; None if nothing."""
    tensors = sys.modules.get("torchao.utils")
    if tensors is None:
        return None
    if isinstance(_weight_of(module), tensors.TorchAOBaseTensor):
        return QuantizedWeight(module)
    qat = sys.modules.get("torchao.quantization.qat")
    if qat is not None and isinstance(
        module, qat.linear.FakeQuantizedLinear | qat.embedding.FakeQuantizedEmbedding
    ):
        return FakeQuantized(module)
    return None


def against_config(model: nn.Module) -> tuple[list[str], list[str], list[str]]:
    """What of a loaded model is quantised otherwise than its config says.

    Returns:
        The linear layers that were not quantised, those that were although they are to be left
        alone, and those with one scale where each row is to have its own.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    library = sys.modules.get("transformers.quantizers.quantizers_utils")
    config = getattr(getattr(quantizer, "quantization_config", None), "quant_type", None)
    if library is None or config is None or hasattr(config, "fqn_to_config"):
        return [], [], []
    left_alone = getattr(quantizer, "modules_to_not_convert", None)
    by_row = type(getattr(config, "granularity", None)).__name__ in ("PerRow", "PerGroup")
    missed, ignored, whole = [], [], []
    for name, module in model.named_modules():
        adapter = adapter_of(module)
        is_wanted = library.should_convert_module(f"{name}.weight", left_alone)
        if adapter is None:
            missed += [name] if is_wanted and isinstance(module, nn.Linear) else []
            continue
        ignored += [] if is_wanted or not isinstance(module, nn.Linear) else [name]
        scales = adapter.tensors["weight"].scales.values()
        whole += [name] if by_row and any(s.numel() == 1 for s in scales) else []
    return missed, ignored, whole


def _dtype_of(weight: Any) -> str:
    """The dtype of a weight's elements: "int4"."""
    target = getattr(weight, "target_dtype", None)
    if target is None:
        name = type(weight).__name__.lower()
        data = getattr(weight, "qdata", None)
        target = None if "int4" in name or data is None else data.dtype
    return "int4" if target is None else dtype_name(target)


def _has_channels(weight: Any) -> bool:
    """Whether a weight is to have more scales than one."""
    block = getattr(weight, "block_size", None)
    return block is not None and len(block) == weight.dim() and list(block) != list(weight.shape)


def _bounds(dtype: str) -> tuple[float, float] | None:
    if not dtype.startswith(("int", "uint")):
        return None
    bits = int(dtype.lstrip("uint"))
    return (0, 2**bits - 1) if dtype.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _is_integer(tensor: object) -> bool:
    return isinstance(tensor, torch.Tensor) and not tensor.is_floating_point()


def _input_kind(weight: Any) -> str:
    """The dtype that a weight says inputs are quantised to; empty if they are not."""
    if getattr(weight, "activation_quantization", None) is not None:
        return str(weight.activation_quantization).partition("_")[0]
    how = getattr(weight, "act_quant_kwargs", None)
    if how is None:
        return ""
    dtype = getattr(how, "float8_dtype", None)
    return "int8" if dtype is None else dtype_name(dtype)


def _input_quantizer(weight: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What an input is quantised to and read back from; None where it is not, or how is not known.

    The two functions of torchao's are not public; tests of this module say when they are gone.
    """
    if getattr(weight, "activation_quantization", None) is not None:
        by_token: Callable[[torch.Tensor], torch.Tensor] = sys.modules[
            _INTX
        ]._apply_int8_act_asym_per_token_quant_dequant
        return by_token
    how = getattr(weight, "act_quant_kwargs", None)
    if type(how).__name__ not in ("QuantizeTensorToInt8Kwargs", "QuantizeTensorToFloat8Kwargs"):
        return None
    choose = sys.modules[_COMMON]._choose_quant_func_and_quantize_tensor
    kept = {}
    if getattr(weight, "act_quant_scale", None) is not None:
        kept = {"scale": weight.act_quant_scale, "zero_point": weight.act_quant_zero_point}
    before = getattr(weight, "act_pre_scale", None)

    def quantize(given: torch.Tensor) -> torch.Tensor:
        quantized = choose(given if before is None else given * before, how, **kept)
        read: torch.Tensor = quantized.dequantize().to(given.dtype)
        return read if before is None else read / before

    return quantize


def _fake(quantizer: Any, name: str) -> QuantizedTensor:
    config = quantizer.config
    dtype = getattr(config, "dtype", None)  # absent for int4 weights of float8 or bfloat16 inputs
    kind = "int4" if dtype is None else _name_of(dtype)
    is_kept = not getattr(config, "is_dynamic", True)
    scale, zero_point = getattr(quantizer, "scale", None), getattr(quantizer, "zero_point", None)
    return QuantizedTensor(
        kind=f"{kind} {'weight' if name == 'weight' else 'activation'}",
        scales={"scale": scale} if is_kept and scale is not None else {},
        zero_point=zero_point if is_kept and _is_integer(zero_point) else None,
        zero_points=_bounds(kind),
    )


def _name_of(dtype: Any) -> str:
    """The name of a dtype, or of one of torchao's own: "int4"."""
    return dtype_name(dtype) if isinstance(dtype, torch.dtype) else str(dtype.name).lower()
