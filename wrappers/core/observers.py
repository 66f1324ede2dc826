"""Observers watch a tensor during calibration and give the quantiser it gets afterwards.

    observer = build_observer("minmax", DType.parse("uint8"), QScheme.PER_TENSOR_ASYMMETRIC)
    observer.observe(x)
    x_quantised = observer.quantizer().fake_quantize(x)

NaN and infinities in the data are left out of every range and counted in `dropped`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from wrappers.core.observer import IdentityObserver, MXObserver, Observer, WindowedObserver
from wrappers.core.quantizers import Quantizer
from wrappers.errors import ConfigError, ObserverError, TensorError, UnseenObserverError
from wrappers.numerics.affine import AffineQParams, affine_qparams
from wrappers.numerics.dtypes import FloatType, NumberType, QScheme
from wrappers.numerics.floats import FloatQParams, float_qparams
from wrappers.numerics.grouped import GroupedQParams

# The extremes of nothing, of a tensor and by channel. Observers have them in common, and replace
# them: hundreds of tensors would have to be kept and put back around every traced run.
_NOTHING_SEEN = tuple(
    (torch.full(channels, math.inf), torch.full(channels, -math.inf)) for channels in ((), (0,))
)


class AffineObserver(Observer):
    """Base of observers that keep extremes per tensor or channel and give affine parameters."""

    minimum: Tensor  # float32, 0-d or [channels]; +inf where nothing finite was seen
    maximum: Tensor  # likewise, -inf

    def reset(self) -> None:
        """Forget all that was seen."""
        super().reset()
        self.minimum, self.maximum = _NOTHING_SEEN[self.axis is not None]

    def quantizer(self) -> AffineQParams | FloatQParams:
        """Scale and zero point for the range seen, or the scale alone for floats.

        Raises:
            UnseenObserverError: nothing finite was seen, in the tensor or in one of its channels.
        """
        if self.seen == 0:
            dropped = f"only NaN and infinities ({self.dropped} of them)"
            raise UnseenObserverError(f"it saw {dropped if self.dropped else 'no data'}")
        minimum, maximum = self._range()
        unseen = torch.nonzero(torch.isinf(minimum).reshape(-1)).reshape(-1).tolist()
        if unseen:
            raise UnseenObserverError(f"it saw no finite value in channels {unseen}")
        if self.dtype is None or self.qscheme is None:
            raise ObserverError("an affine observer needs a dtype and a qscheme")
        if isinstance(self.dtype, FloatType):
            return float_qparams(minimum, maximum, self.dtype, self.qscheme, axis=self.axis)
        return affine_qparams(minimum, maximum, self.dtype, self.qscheme, axis=self.axis)

    def accepts(self, quantizer: Quantizer) -> bool:
        """Could this observer have given `quantizer`, or one that is finer?"""
        if isinstance(quantizer, GroupedQParams):
            return quantizer.dtype == self.dtype and self.axis == 0
        return (
            isinstance(quantizer, AffineQParams | FloatQParams)
            and quantizer.dtype == self.dtype
            and quantizer.axis == self.axis
        )

    def _range(self) -> tuple[Tensor, Tensor]:
        return self.minimum, self.maximum

    def _observe(self, x: Tensor) -> None:
        minimum, maximum = _extremes(x, self.axis)
        if _is_finite(minimum) and _is_finite(maximum):
            finite = x.numel()
        else:
            is_finite = torch.isfinite(x)
            finite = int(is_finite.sum())
            minimum, _ = _extremes(torch.where(is_finite, x, math.inf), self.axis)
            _, maximum = _extremes(torch.where(is_finite, x, -math.inf), self.axis)
        self.dropped += x.numel() - finite
        if finite == 0:
            return
        minimum, maximum = minimum.to(torch.float32), maximum.to(torch.float32)
        if self.seen == 0:
            self.minimum, self.maximum = minimum, maximum
        else:
            if self.minimum.shape != minimum.shape:
                raise TensorError(
                    f"{minimum.numel()} channels along dimension {self.axis} after "
                    f"{self.minimum.numel()} before: the number of channels must not change"
                )
            self.minimum = self.minimum.to(minimum.device)
            self.maximum = self.maximum.to(maximum.device)
            self._widen(minimum, maximum)
        self.seen += finite

    def _widen(self, minimum: Tensor, maximum: Tensor) -> None:
        """Take in the range of a tensor that is not the first; infinite where nothing is finite."""
        self.minimum = torch.minimum(self.minimum, minimum)
        self.maximum = torch.maximum(self.maximum, maximum)


class MinMaxObserver(AffineObserver):
    """The least and the greatest value seen."""


class EMAObserver(AffineObserver):
    """A moving average of the ranges of the tensors seen; the first one sets it.

    Args:
        momentum: the weight of the past, in [0, 1).
    """

    def __init__(
        self,
        dtype: NumberType | None = None,
        qscheme: QScheme | None = None,
        axis: int | None = None,
        *,
        momentum: float = 0.9,
    ) -> None:
        if not _is_number(momentum) or not 0 <= momentum < 1:
            raise ConfigError(f"momentum must be a number in [0, 1), not {momentum!r}")
        self.momentum = momentum
        super().__init__(dtype, qscheme, axis)

    def _widen(self, minimum: Tensor, maximum: Tensor) -> None:
        self.minimum = self._averaged(self.minimum, minimum)
        self.maximum = self._averaged(self.maximum, maximum)

    def _averaged(self, past: Tensor, now: Tensor) -> Tensor:
        # A channel without a finite value now keeps its past; one without a past starts here.
        average = self.momentum * past + (1 - self.momentum) * now
        return torch.where(torch.isinf(past), now, torch.where(torch.isinf(now), past, average))


class PercentileObserver(AffineObserver):
    """The range that holds all but the outermost values, from a random sample of what was seen.

    The sample is uniform over all values of all tensors. The extremes themselves are known
    exactly: the range never lies outside of them, and `percentile=100` gives just them.

    Args:
        percentile: how many percent of the values lie below the maximum, and above the minimum,
            in (50, 100].
        capacity: how many values the sample holds, per channel with a per-channel scheme.
        seed: of the sample.
    """

    def __init__(
        self,
        dtype: NumberType | None = None,
        qscheme: QScheme | None = None,
        axis: int | None = None,
        *,
        percentile: float = 99.9,
        capacity: int = 1 << 16,
        seed: int = 0,
    ) -> None:
        if not _is_number(percentile) or not 50 < percentile <= 100:
            raise ConfigError(f"percentile must be a number in (50, 100], not {percentile!r}")
        for name, value, least in (("capacity", capacity, 2), ("seed", seed, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} must be an integer of at least {least}, not {value!r}")
        self.percentile = percentile
        self.capacity = capacity
        self.seed = seed
        super().__init__(dtype, qscheme, axis)

    def reset(self) -> None:
        """Forget all that was seen, and draw as at first."""
        super().reset()
        # A value stays in the sample while its key, a random number, is among the greatest.
        self._sample = torch.empty(0, 0)  # [channels or 1, kept]
        self._keys = torch.empty(0, 0)  # likewise; -1 where the value is not finite
        self._tensors = 0
        self._values_per_channel = 0

    def _observe(self, x: Tensor) -> None:
        super()._observe(x)
        channels = x.reshape(1, -1) if self.axis is None else x.movedim(self.axis, 0).flatten(1)
        values = channels.to(device="cpu", dtype=torch.float32)  # [channels or 1, values]
        generator = torch.Generator().manual_seed(self.seed + self._tensors)
        keys = torch.rand(values.shape, generator=generator, dtype=torch.float64)
        keys = torch.where(torch.isfinite(values), keys, -1.0)
        self._tensors += 1
        self._values_per_channel += values.shape[1]
        if self._sample.numel() > 0:
            values = torch.cat((self._sample, values), dim=1)
            keys = torch.cat((self._keys, keys), dim=1)
        if values.shape[1] > self.capacity:
            keys, kept = torch.topk(keys, self.capacity, dim=1)
            values = values.gather(1, kept)
        self._sample, self._keys = values, keys

    def _range(self) -> tuple[Tensor, Tensor]:
        minimum, maximum = self.minimum.reshape(-1).cpu(), self.maximum.reshape(-1).cpu()
        bounds = [
            self._quantiles(sample[keys >= 0], low, high)
            for sample, keys, low, high in zip(
                self._sample, self._keys, minimum.tolist(), maximum.tolist(), strict=True
            )
        ]
        low, high = torch.tensor(bounds, dtype=torch.float32).unbind(dim=1)
        return low.reshape(self.minimum.shape), high.reshape(self.maximum.shape)

    def _quantiles(self, sample: Tensor, minimum: float, maximum: float) -> tuple[float, float]:
        """Lower and upper quantile of a channel, interpolated between its sorted values.

        The exact extremes stand at the ends, the values of the sample evenly between them. As
        long as the sample holds every value, these are `torch.quantile`'s.
        """
        if sample.numel() == 0:
            return minimum, maximum
        ordered = torch.sort(sample.to(torch.float64)).values
        if self._values_per_channel > self.capacity:
            ends = ordered.new_tensor([minimum, maximum])
            points = torch.cat((ends[:1], ordered, ends[1:]))
            positions = (torch.arange(len(points), dtype=torch.float64) - 0.5) / len(ordered)
            positions[0], positions[-1] = 0, 1
        else:
            points = ordered
            positions = torch.linspace(0, 1, len(points), dtype=torch.float64)
        share = self.percentile / 100
        return _interpolate(1 - share, positions, points), _interpolate(share, positions, points)


OBSERVERS: Mapping[str, type[Observer]] = {
    "minmax": MinMaxObserver, "ema": EMAObserver, "percentile": PercentileObserver,
    "mx": MXObserver, "windowed": WindowedObserver, "identity": IdentityObserver,
}  # fmt: skip


def build_observer(
    name: str,
    dtype: NumberType | None = None,
    qscheme: QScheme | None = None,
    *,
    axis: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Observer:
    """A fresh observer.

    Args:
        name: a key of `OBSERVERS`.
        dtype: the type, for observers that have one.
        qscheme: the scheme, likewise.
        axis: the dimension of the channels; looked at by per-channel schemes only.
        options: keyword arguments of that observer.

    Raises:
        ConfigError: the name or an option is unknown or out of range.
    """
    if name not in OBSERVERS:
        raise ConfigError(f"unknown observer {name!r}: choose one of {', '.join(OBSERVERS)}")
    kind: Callable[..., Observer] = OBSERVERS[name]
    options = options or {}
    known = [
        parameter.name
        for parameter in inspect.signature(kind).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(
            f"the observer {name!r} has no option {', '.join(map(repr, unknown))}; "
            f"its options: {', '.join(known) or 'none'}"
        )
    per_channel = qscheme is not None and qscheme.per_channel
    return kind(dtype, qscheme, axis if per_channel else None, **options)


def _extremes(x: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    """Least and greatest value, 0-d or [channels]."""
    if axis is None:
        return torch.aminmax(x)
    others = [dimension for dimension in range(x.dim()) if dimension != axis % x.dim()]
    return torch.amin(x, dim=others), torch.amax(x, dim=others)


def _is_finite(x: Tensor) -> bool:
    """Whether all values are finite; one is looked at without operations of PyTorch."""
    return math.isfinite(x.item()) if x.dim() == 0 else bool(torch.isfinite(x).all())


def _interpolate(position: float, positions: Tensor, points: Tensor) -> float:
    """The value at `position` of the line through (positions, points), both sorted."""
    if len(points) == 1:
        return float(points[0])
    right = int(torch.searchsorted(positions, position).clamp(1, positions.numel() - 1))
    (x0, x1), (y0, y1) = positions[right - 1 : right + 1], points[right - 1 : right + 1]
    return float(torch.lerp(y0, y1, (position - x0) / (x1 - x0)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
