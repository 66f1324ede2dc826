"""Modules with a scheme of compressed-tensors, as checkpoints of llm-compressor have after loading.

`forward` is replaced on each such module, and quantises its input, its weight until that is
compressed, and its output. Attention modules with a quantised cache do their keys and values.
"""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tracer.adapters.quantised.adapter import (
    Adapter,
    QuantizedTensor,
    float_weight,
    given_weight,
)
from tracer.execution.torch_internals import forward_pre_hooks, parameters_of

# Which part of a scheme says how a tensor is quantised.
_PARTS = {"weight": "weights", "input": "input_activations", "output": "output_activations"}
_STATES = ("q", "k", "v")
_STATES_IN_WORDS = {"q": "query", "k": "key", "v": "value"}
# The modules that call `forward_quantize`, each by a name of its own.
_CALLERS = (
    "compressed_tensors.quantization.lifecycle.forward",
    "compressed_tensors.modeling.kvcache",
    "compressed_tensors.modeling.attention",
)
_HOOK = "ct_decompress_hook"


class CompressedTensors(Adapter):
    """A module that has a quantization scheme."""

    @property
    def tensors(self) -> Mapping[str, QuantizedTensor]:
        scheme: Any = self.module.quantization_scheme
        if isinstance(getattr(self.module, "weight", None), torch.Tensor) or _is_packed(
            self.module
        ):
            parts = {name: getattr(scheme, part) for name, part in _PARTS.items()}
        else:
            states = [n for n in _STATES if hasattr(self.module, f"{n}_scale")]
            parts = dict.fromkeys(states or _STATES[1:], scheme.input_activations)
        return {name: self._tensor(name, args) for name, args in parts.items() if args is not None}

    @property
    def own(self) -> frozenset[str]:
        names = (
            *dict(self.module.named_parameters(recurse=False)),
            *dict(self.module.named_buffers(recurse=False)),
        )
        return frozenset(
            name for name in names if name.startswith(tuple(f"{n}_" for n in (*_PARTS, *_STATES)))
        )

    @contextmanager
    def disabled(self, name: str, reference: nn.Module | None = None) -> Iterator[None]:
        weight = float_weight(self.module, reference) if name == "weight" else None
        with _left_out(self.module, name), given_weight(self.module, weight):
            yield

    def _tensor(self, name: str, args: Any) -> QuantizedTensor:
        role = "weight" if name == "weight" else _STATES_IN_WORDS.get(name, "activation")
        held = {n: getattr(self.module, n, None) for n in (f"{name}_scale", f"{name}_global_scale")}
        scales = {n: scale for n, scale in held.items() if isinstance(scale, torch.Tensor)}
        return QuantizedTensor(
            kind=f"{_type_of(args)}{args.num_bits} {role}",
            scales=scales,
            zero_point=getattr(self.module, f"{name}_zero_point", None),
            zero_points=(
                (0, 0)
                if args.symmetric or _type_of(args) != "int"
                else (-(2 ** (args.num_bits - 1)), 2 ** (args.num_bits - 1) - 1)
            ),
            channels=_channels(self.module, args) if name == "weight" else 0,
            may_be_one=args.scale_dtype is not None,
        )


def adapter_of(module: nn.Module) -> Adapter | None:
    """What a module has of compressed-tensors; None if nothing."""
    library = sys.modules.get("compressed_tensors.quantization")
    scheme = vars(module).get("quantization_scheme")
    if library is None or not isinstance(scheme, library.QuantizationScheme):
        return None
    return CompressedTensors(module)


def settle(model: nn.Module) -> None:
    """Decompresses what the first forward of a model would decompress, and quietly.

    What that makes of the places of parameters, which then load from elsewhere, is undone where
    nothing lies elsewhere.
    """
    handle = vars(model).get(_HOOK)
    if handle is not None:
        decompress = forward_pre_hooks(model)[handle.id]
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            decompress(model, ())
    offload: Any = sys.modules.get("compressed_tensors.offload.module")
    for module in model.modules() if offload is not None else ():
        place: Any = parameters_of(module)
        if isinstance(place, offload.OffloadCache) and _is_here(place):
            offload.remove_module_offload(module)
            if vars(module)["forward"].__func__ is type(module).forward:
                del vars(module)["forward"]


def against_config(model: nn.Module) -> tuple[list[str], list[str]]:
    """What of a loaded model is quantised otherwise than its config says.

    Returns:
        The modules that were not quantised although a target names them, and those that were
        although they are to be ignored.
    """
    library = sys.modules.get("compressed_tensors.utils.match")
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    config = getattr(config, "quantization_config", None)
    if library is None or config is None:
        return [], []
    groups = [group for group in config.config_groups.values() if group.weights is not None]
    targets = [target for group in groups for target in group.targets]
    wanted = {name for name, _ in library.match_named_modules(model, targets, config.ignore)}
    weights = {
        name
        for name, module in model.named_modules()
        if (adapter := adapter_of(module)) is not None and "weight" in adapter.tensors
    }
    quantizable = {
        name for name in wanted if isinstance(model.get_submodule(name), nn.Linear | nn.Embedding)
    }
    ignored = {
        name
        for name in weights - wanted
        if library.is_match(name, model.get_submodule(name), config.ignore or [])
    }
    return sorted(quantizable - weights), sorted(ignored)


def _is_here(place: Any) -> bool:
    return torch.device(place.onload_device) == torch.device(place.offload_device)


def _type_of(args: Any) -> str:
    """What the elements are: "int" or "float"."""
    return str(getattr(args.type, "value", args.type))


def _is_packed(module: nn.Module) -> bool:
    return hasattr(module, "weight_packed")


def _channels(module: nn.Module, args: Any) -> int:
    scale = getattr(module, "weight_scale", None)
    rows = getattr(module, "out_features", getattr(module, "num_embeddings", 0))
    if scale is None or args.strategy not in ("channel", "group", "tensor_group"):
        return 0
    return int(max(scale.numel(), rows))


@contextmanager
def _left_out(module: nn.Module, name: str) -> Iterator[None]:
    """Lets what quantises a tensor of a module pass it on as it is."""

    def passing(quantize: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def pass_on(owner: nn.Module, value: torch.Tensor, base_name: str, args: Any) -> Any:
            if owner is module and base_name == name:
                return value
            return quantize(owner, value, base_name, args)

        return pass_on

    callers = [vars(sys.modules[caller]) for caller in _CALLERS if caller in sys.modules]
    before = [caller["forward_quantize"] for caller in callers]
    for caller, quantize in zip(callers, before, strict=True):
        caller["forward_quantize"] = passing(quantize)
    try:
        yield
    finally:
        for caller, quantize in zip(callers, before, strict=True):
            caller["forward_quantize"] = quantize
