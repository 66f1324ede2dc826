"""Layers whose output may carry a constant factor."""

from __future__ import annotations

from torch import Tensor, nn

from wrappers.core.module import QuantModule
from wrappers.core.offloading import is_offloaded, load_scaled


class ScaledOutput(QuantModule):
    """Base of layers whose output is proportional to their parameters, `weight` and perhaps
    `bias`, so that they may carry a constant factor."""

    output_scale = 1.0
    """The factor that the output has over that of the float layer."""

    def fold_output_scale(self, factor: float) -> None:
        """Multiply the parameters, and with them every output, by `factor`.

        The layer then owns its parameters instead of sharing them with the float model, or loads
        them multiplied where they are loaded when needed.
        """
        self.output_scale *= factor
        if is_offloaded(self):
            load_scaled(self, factor)
            return
        for name, parameter in list(self.named_parameters(recurse=False)):
            scaled = parameter.detach() * factor
            setattr(self, name, nn.Parameter(scaled, requires_grad=parameter.requires_grad))

    @property
    def reference_output_scale(self) -> float:
        """The same factor, as a comparison with the float layer asks for it."""
        return self.output_scale

    def to_reference_output(self, output: Tensor) -> Tensor:
        """The output as the float layer would give it."""
        return output if self.output_scale == 1.0 else output / self.output_scale
