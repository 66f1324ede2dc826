"""A quantization point, and the modes that a wrapper can be in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Tensor

from wrappers.core.observer import Observer
from wrappers.core.observers import AffineObserver, build_observer
from wrappers.core.quantizers import Quantizer, ScaledQuantizer, quantizer_from_state
from wrappers.core.rounding import RoundingCounts
from wrappers.core.spec import QuantSpec, Role
from wrappers.errors import ConfigError, ModeError, QParamsError
from wrappers.numerics.affine import AffineQParams
from wrappers.numerics.dtypes import FloatType
from wrappers.numerics.floats import FloatQParams
from wrappers.numerics.grouped import GroupedQParams


class Mode(Enum):
    """What a wrapper does at its quantization points."""

    NO_QUANT = "no_quant"
    """Nothing: the arithmetic of the wrapper in plain floats."""

    CALIBRATE = "calibrate"
    """Observe; what is computed stays the same, bit for bit."""

    QUANT = "quant"
    """Fake-quantise."""


class QuantPoint:
    """A named place in a wrapper where a tensor is observed, and later fake-quantised.

    Attributes:
        name: as in the wrapper's forward.
        spec: how it is observed and quantised.
        role: whether it takes the config's spec of weights or that of activations.
        parameter: the attribute of the wrapper that it stands for; None for activations.
        observer: sees the tensor during calibration.
        quantizer: what the frozen observer left behind, or what was loaded; None before that.
        off: its wrapper leaves it out; see `QuantModule.disabled`.
        locked: `quantizer` was loaded, and calibration leaves it alone.
        counting: counts what rounding does, see `QuantModule.count_rounding`.
        counts: of the last time that it counted; None if it never did, or met no values.
        qscheme_note: how its scheme differs from the one asked for, and why; None if it does not.
    """

    def __init__(
        self,
        name: str,
        spec: QuantSpec,
        *,
        role: Role = "activation",
        parameter: str | None = None,
        channel_axis: int | None = None,
        exactly: bool = False,
    ) -> None:
        self.name = name
        self.spec = spec
        self.role = role
        self.parameter = parameter
        channels = role == "weight" and channel_axis is not None
        qscheme = spec.resolved_qscheme(channels=channels)
        self.qscheme_note: str | None = None
        if qscheme is not None and qscheme.per_channel and channel_axis is None:
            if role != "weight" or exactly:
                raise ConfigError(
                    f"the point {name!r} has no axis of channels: {qscheme.value} is not possible; "
                    "use a per-tensor scheme"
                )
            self.qscheme_note = f"{qscheme.value} asked for, and it has no axis of channels"
            qscheme = qscheme.per_tensor
        self.observer: Observer = build_observer(
            spec.observer, spec.dtype, qscheme, axis=channel_axis, options=spec.options
        )
        self.quantizer: Quantizer | None = None
        self.off = False
        self.locked = False
        self.counting = False
        self.counts: RoundingCounts | None = None
        self.changes = False
        self._cache: _QuantizedParameter | None = None

    @property
    def qparams(self) -> AffineQParams | None:
        """Scale and zero point, if it is frozen and has any."""
        return self.quantizer if isinstance(self.quantizer, AffineQParams) else None

    @property
    def device(self) -> torch.device | None:
        """Where its scales are, if it has any."""
        quantizer = self.quantizer
        return quantizer.scale.device if isinstance(quantizer, ScaledQuantizer) else None

    @property
    def kind(self) -> str:
        """What it quantises to, in a word: "uint4", "mxfp4", "identity"."""
        return self.observer.kind

    def summary(self) -> dict[str, object]:
        """What is known of it, in plain values; None where it is not known, or there is none.

        Lists have one item per channel, or per channel a list of one per group. "rounding" is what
        `RoundingCounts.shares` gives of the last time that it was counted.
        """
        observer = self.observer
        scale, zero_point = (
            getattr(self.quantizer, name, None) for name in ("scale", "zero_point")
        )
        seen = observer if isinstance(observer, AffineObserver) and observer.seen else None
        return {
            "role": self.role,
            "dtype": self.kind,
            "qscheme": None if observer.qscheme is None else observer.qscheme.value,
            "qscheme_note": self.qscheme_note,
            "observed_min": None if seen is None else seen.minimum.tolist(),
            "observed_max": None if seen is None else seen.maximum.tolist(),
            "scale": None if scale is None else scale.tolist(),
            "zero_point": None if zero_point is None else zero_point.tolist(),
            "rounding": None if self.counts is None else self.counts.shares(),
        }

    def load_qparams(
        self,
        scale: Tensor | float,
        zero_point: Tensor | int = 0,
        *,
        columns: Tensor | None = None,
    ) -> None:
        """Take scale and zero point found elsewhere, such as by GPTQ, and keep them for good.

        Args:
            scale: positive; 0-d, or [channels] for a per-channel scheme, or [channels, groups].
            zero_point: integers of the same shape; 0 stands for zeros of that shape.
            columns: the group of each column of the weight, for scales by group.

        Raises:
            QParamsError: the point's spec has no affine parameters, or these do not fit it.
        """
        observer = self.observer
        if observer.dtype is None:
            raise QParamsError(
                f"the point {self.name!r} is observed by {self.spec.observer!r}, "
                "which has no scale and zero point"
            )
        scale = torch.as_tensor(scale, dtype=torch.float32)
        zero_point = torch.as_tensor(zero_point, dtype=torch.int32, device=scale.device)
        if zero_point.dim() == 0:
            zero_point = zero_point.expand(scale.shape).clone()
        if observer.qscheme is not None and observer.qscheme.symmetric and zero_point.any():
            raise QParamsError(f"{observer.qscheme.value} has zero point 0, found {zero_point}")
        if isinstance(observer.dtype, FloatType):
            if columns is not None or zero_point.any():
                raise QParamsError(f"{observer.dtype} has no zero point and no groups of columns")
            self.quantizer = FloatQParams(scale, observer.dtype, observer.axis)
        elif columns is None:
            self.quantizer = AffineQParams(scale, zero_point, observer.dtype, observer.axis)
        else:
            if observer.axis != 0:
                raise QParamsError(
                    f"scales by group need a per-channel scheme along dimension 0, and the point "
                    f"{self.name!r} has {observer.qscheme.value if observer.qscheme else 'none'}"
                )
            self.quantizer = GroupedQParams(scale, zero_point, observer.dtype, columns)
        self.locked = True

    def reset(self) -> None:
        """Forget what was observed and frozen, unless locked."""
        self.observer.reset()
        if not self.locked:
            self.quantizer = None
        self.forget_result()

    def fake_quantize(self, x: Tensor, *, may_overwrite: bool, keep: bool = True) -> Tensor:
        """`x` fake-quantised; of a parameter, the same tensor until the parameter changes, unless
        it is not to be kept."""
        if self.quantizer is None:
            raise ModeError(f"the point {self.name!r} has no quantisation parameters yet")
        if self.parameter is None or not keep or not _can_cache(x):
            overwrite = may_overwrite and self.parameter is None and not self.counting
            return self._counted(x, self.quantizer.fake_quantize(x, may_overwrite=overwrite))
        if self._cache is None or not self._cache.is_of(x, self.quantizer):
            result = self.quantizer.fake_quantize(x)
            self._cache = _QuantizedParameter(x, x._version, x.data_ptr(), self.quantizer, result)
        return self._counted(x, self._cache.result)

    def _counted(self, x: Tensor, result: Tensor) -> Tensor:
        """`result`, once it has been counted if that is asked for."""
        if self.counting and x.numel():
            assert self.quantizer is not None
            self.changes = self.changes or x.dtype != result.dtype or not torch.equal(x, result)
            self.counts = self.counts or RoundingCounts()
            self.counts.add(x.detach(), result.detach(), self.quantizer)
        return result

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the quantiser of `get_extra_state`.

        Raises:
            QParamsError: it is of another kind than the spec asks for.
        """
        quantizer = quantizer_from_state(state)
        if not self.observer.accepts(quantizer):
            raise QParamsError(
                f"the state of the point {self.name!r} is {quantizer}, which its spec "
                f"{self.spec} does not give: prepare the model with the config it was saved with"
            )
        self.quantizer = quantizer
        self.locked = bool(state["locked"])

    def move(self, device: torch.device) -> None:
        """Follow the wrapper to another device; scales stay float32."""
        quantizer = self.quantizer
        if device.type != "meta" and isinstance(quantizer, ScaledQuantizer):
            self.quantizer = quantizer.to(device)  # to meta would lose the numbers

    def forget_result(self) -> None:
        """Drop the fake-quantised parameter that is kept, if any."""
        self._cache = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": None}


@dataclass(frozen=True, eq=False)
class _QuantizedParameter:
    """A fake-quantised parameter, and what it was made of."""

    source: Tensor
    version: int
    address: int
    quantizer: Quantizer
    result: Tensor

    def is_of(self, x: Tensor, quantizer: Quantizer) -> bool:
        """`x` and `quantizer` are the same and unchanged.

        An edit through `x.data` in place is the one change that torch does not count.
        """
        return (
            x is self.source
            and x._version == self.version
            and x.data_ptr() == self.address
            and quantizer is self.quantizer
        )


def _can_cache(x: Tensor) -> bool:
    """No gradient is wanted, no graph recorded, and changes of the tensor can be noticed."""
    return (
        not (x.requires_grad and torch.is_grad_enabled())
        and not torch.compiler.is_compiling()
        and not x.is_inference()
    )


class Quantize(Protocol):
    """What arithmetic calls at each of its quantization points."""

    def __call__(self, x: Tensor, name: str, *, may_overwrite: bool = False) -> Tensor:
        """Returns the tensor to go on with.

        Args:
            x: the tensor at the point.
            name: the point.
            may_overwrite: nobody else needs `x`, so it may be overwritten.
        """
        ...
