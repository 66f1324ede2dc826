"""The base of observers, and those that learn nothing from data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from wrappers.core.quantizers import IdentityQuantizer, Quantizer
from wrappers.errors import TensorError
from wrappers.numerics.dtypes import MX_TYPES, NumberType, QScheme
from wrappers.numerics.microscaling import MXQuantizer
from wrappers.numerics.windowed import Along, WindowedQuantizer


class Observer(ABC):
    """The base: what every observer counts and refuses.

    Args:
        dtype: the type; None where `affine` is False.
        qscheme: the scheme; None where `affine` is False.
        axis: the dimension of the channels for per-channel schemes, else None.

    Attributes:
        seen: how many finite values were observed since the last reset.
        dropped: how many NaN and infinite ones were left out.
    """

    affine: ClassVar[bool] = True
    """It gives scale and zero point."""

    needs_data: ClassVar[bool] = True
    """It cannot give a quantiser before it saw values."""

    def __init__(
        self,
        dtype: NumberType | None = None,
        qscheme: QScheme | None = None,
        axis: int | None = None,
    ) -> None:
        self.dtype = dtype
        self.qscheme = qscheme
        self.axis = axis
        self.reset()

    @property
    def kind(self) -> str:
        """What it quantises to, in a word: "uint4", "mxfp4"."""
        return str(self.dtype)

    def reset(self) -> None:
        """Forget all that was seen."""
        self.seen = 0
        self.dropped = 0

    def observe(self, x: Tensor) -> None:
        """Take in one tensor, which is left as it is.

        Raises:
            TensorError: `x` is not a floating-point tensor.
        """
        if not x.is_floating_point():
            raise TensorError(f"only floating-point tensors are observed, found {x.dtype}")
        if x.numel() > 0:
            self._observe(x.detach())

    @abstractmethod
    def quantizer(self) -> Quantizer:
        """The quantiser for what was seen.

        Raises:
            UnseenObserverError: nothing finite was seen, and the observer needs data.
        """

    def accepts(self, quantizer: Quantizer) -> bool:
        """Could this observer have given `quantizer`?"""
        return quantizer == self.quantizer()

    @abstractmethod
    def _observe(self, x: Tensor) -> None:
        """Take in a tensor that is not empty."""


class IdentityObserver(Observer):
    """For what is never quantised."""

    affine = False
    needs_data = False
    kind = "identity"

    def quantizer(self) -> Quantizer:
        """One that changes nothing."""
        return IdentityQuantizer()

    def _observe(self, x: Tensor) -> None:
        self.seen += x.numel()


class MXObserver(Observer):
    """For microscaling, whose scales come from each tensor itself: nothing is to be learned.

    Args:
        element: a key of `wrappers.numerics.microscaling.ELEMENT_FORMATS`.
        block_size: how many values share a scale.
        block_axis: the dimension that blocks run along.
    """

    affine = False
    needs_data = False

    def __init__(
        self,
        dtype: NumberType | None = None,
        qscheme: QScheme | None = None,
        axis: int | None = None,
        *,
        element: str = "int8",
        block_size: int = 32,
        block_axis: int = -1,
    ) -> None:
        self._quantizer = MXQuantizer(element, block_size, block_axis)
        super().__init__(dtype, qscheme, axis)

    @property
    def kind(self) -> str:
        """The name of the microscaling type."""
        return next(name for name, each in MX_TYPES.items() if each == self._quantizer.element)

    def quantizer(self) -> MXQuantizer:
        """The rounding to the element format, block by block."""
        return self._quantizer

    def _observe(self, x: Tensor) -> None:
        self.seen += x.numel()


class WindowedObserver(Observer):
    """For cached keys and values, whose ranges come from themselves: nothing is to be learned.

    Args:
        bits, along, group, residual: see `WindowedQuantizer`.
    """

    affine = False
    needs_data = False

    def __init__(
        self,
        dtype: NumberType | None = None,
        qscheme: QScheme | None = None,
        axis: int | None = None,
        *,
        bits: int = 8,
        along: Along = "tokens",
        group: int = 32,
        residual: int = 32,
    ) -> None:
        self._quantizer = WindowedQuantizer(bits, along, group, residual)
        super().__init__(dtype, qscheme, axis)

    @property
    def kind(self) -> str:
        """The integer type of the codes."""
        return f"int{self._quantizer.bits}"

    def quantizer(self) -> WindowedQuantizer:
        """The rounding of old tokens."""
        return self._quantizer

    def _observe(self, x: Tensor) -> None:
        self.seen += x.numel()
