"""Wrappers of TICO's wrapq once they are quantised: each observer is a tensor that can be left out.

A `PTQWrapper` bears the float module's name and has the wrapper that computes inside; its points
are that one's.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tracer.adapters.quantised.adapter import Adapter, QuantizedTensor

_BASE = "tico.quantization.wrapq.wrappers.quant_module_base"
_WRAPPER = "tico.quantization.wrapq.wrappers.ptq_wrapper"
_MODE = "tico.quantization.wrapq.mode"
_WEIGHTS = ("weight", "bias")
_ALWAYS_USED = ("weight", "act_in", "act_out")


class WrapQ(Adapter):
    """A wrapper that is quantised."""

    @property
    def tensors(self) -> Mapping[str, QuantizedTensor]:
        return {
            name: _tensor(name, observer)
            for name, observer in self._observers()
            if observer.fake_quant_enabled
        }

    @contextmanager
    def disabled(self, name: str, reference: nn.Module | None = None) -> Iterator[None]:
        observer = dict(self._observers())[name]
        before = observer.fake_quant_enabled
        observer.set_fake_quant_enabled(False)
        try:
            yield
        finally:
            observer.set_fake_quant_enabled(before)

    def _observers(self) -> Iterator[tuple[str, Any]]:
        """Those that quantise, by name.

        What saw no data is for another variant of the wrapper, but for what every call passes.
        """
        module: Any = self.module
        for name, observer in module.named_observers(recurse=False):
            is_used = name in _ALWAYS_USED or _is_seen(observer)
            if is_used and type(observer).__name__ != "IdentityObserver":
                yield name, observer


def adapter_of(module: nn.Module) -> Adapter | None:
    """What a module has of wrapq; None if nothing, or while it does not quantise."""
    library, mode = sys.modules.get(_BASE), sys.modules.get(_MODE)
    if library is None or mode is None or not isinstance(module, library.QuantModuleBase):
        return None
    wrapper: Any = sys.modules.get(_WRAPPER)
    while wrapper is not None and isinstance(module, wrapper.PTQWrapper):
        module = module.wrapped
    return WrapQ(module) if module._mode is mode.Mode.QUANT else None


def _tensor(name: str, observer: Any) -> QuantizedTensor:
    role = "weight" if name in _WEIGHTS else "activation"
    if not hasattr(observer, "_cached_scale"):  # microscaling keeps no scale
        return QuantizedTensor(f"mx {observer.elem_format} {role}")
    return QuantizedTensor(
        kind=f"{observer.dtype} {role}",
        scales={"scale": observer._cached_scale},
        zero_point=observer._cached_zp,
        zero_points=(observer.dtype.qmin, observer.dtype.qmax),
        channels=observer._cached_scale.numel() if observer.channel_axis is not None else 0,
        # A constant is its own scale.
        may_be_one=bool((observer.min_val == observer.max_val).any()),
        is_seen=_is_seen(observer),
    )


def _is_seen(observer: Any) -> bool:
    """Whether an observer saw data, or was given its scale, or needs neither."""
    if not hasattr(observer, "min_val"):
        return True
    return bool(observer._qparams_locked or torch.isfinite(observer.min_val).all())
