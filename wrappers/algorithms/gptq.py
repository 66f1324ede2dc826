"""GPTQ: rounds the columns of a weight one by one, and lets those not yet rounded make up for the
error that each makes in the layer's outputs on calibration data.

    wrapped = GPTQ(group_size=32)(model, config, batches)

Layers are done in the order in which they run, those that read one input together; each sees what
the layers rounded before it make of the data. Bits and schemes are those of the weight points, so
overrides of the config give single layers other ones.

Memory beyond the model: of the layers that read one input, two matrices of inputs x inputs in
float32 while data runs, four in float64 while they are rounded, and the new weights. Nothing is
kept of the activations. Time: two forwards over the data for each such group, stopped where it has
run, so that a decoder of L layers takes about 4 L + 2 forwards; and for each layer the
decomposition of the matrix, inputs^3, and the rounding, outputs x inputs^2. Without `match_float`
it is one matrix, one forward and one matrix in float64 less. The weights from before stay with the
model for a bias correction, until `quantize` is done.

Of a model whose weights accelerate loads when they are needed, no more than those of one module are
in memory; new ones go to temporary files, and the result is the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor, nn

from wrappers.algorithms.calls import call_groups, stopping_at, warn_of_missed
from wrappers.algorithms.ranges import SHRUNK, Ranges, best_range
from wrappers.algorithms.stage import (
    as_prepared,
    checked,
    copied,
    note_before_rounding,
    replace_parameter,
    set_unquantized,
    weighted_layers,
)
from wrappers.core.config import PTQConfig
from wrappers.core.module import QuantModule
from wrappers.core.offloading import parameter_of
from wrappers.core.point import QuantPoint
from wrappers.errors import ConfigError, WrapError
from wrappers.numerics.dtypes import DType, QScheme
from wrappers.quantize import ModelInputs

BLOCK = 128  # columns whose corrections are gathered before they reach the columns after them


@dataclass(frozen=True)
class GPTQ:
    """The stage.

    Args:
        act_order: columns with the largest inputs are rounded first.
        group_size: columns that share a scale in a row; None for one scale for the whole row.
        static_groups: a group is of neighbouring columns, and its range that of the original
            weight; otherwise of columns that are rounded one after the other, and its range that
            of the weight as corrected by then.
        damping: added to the diagonal of the matrix, as a share of the mean of it.
        ranges: "minmax" covers all weights; "mse" shrinks each range to where the squared error of
            rounding is least; "weighted_mse" weighs that error by how large the inputs are.
        match_float: aim at the outputs of the float model on its own activations, instead of those
            of the unrounded layer on the activations of the model as rounded so far. Costs a
            second forward, and a second matrix.

    Raises:
        ConfigError: a field is out of range.
    """

    rewrites_float: ClassVar[bool] = False

    act_order: bool = True
    group_size: int | None = None
    static_groups: bool = False
    damping: float = 0.01
    ranges: Ranges = "mse"
    match_float: bool = True

    def __post_init__(self) -> None:
        if self.group_size is not None and self.group_size < 1:
            raise ConfigError(f"group_size must be at least 1 or None, not {self.group_size!r}")
        if not self.damping > 0:
            raise ConfigError(f"damping must be above 0, not {self.damping!r}")
        if self.ranges not in get_args(Ranges):
            raise ConfigError(
                f"ranges must be 'minmax', 'mse' or 'weighted_mse', not {self.ranges!r}"
            )

    def __call__(
        self, model: nn.Module, config: PTQConfig, batches: Sequence[ModelInputs]
    ) -> nn.Module:
        """A prepared model whose linear layers have rounded weights and locked weight points.

        Raises:
            WrapError: no linear layer has a weight point of integers.
            ModelInputError: there are no batches.

        Warns:
            CalibrationWarning: no input reached some layers, which stay as they were.
        """
        checked(batches)
        wrapped = copied(as_prepared(model, config))
        set_unquantized(wrapped)
        before = copied(wrapped)
        reference = before if self.match_float else None
        layers = {
            name: layer
            for name, layer in weighted_layers(wrapped).items()
            if isinstance(layer.points["weight"].observer.dtype, DType)
            and not layer.points["weight"].locked
        }
        if not layers:
            raise WrapError(
                f"no linear layer of {type(model).__name__} has a weight point of integers"
            )
        groups, once = call_groups(wrapped, layers, batches)
        warn_of_missed("GPTQ", layers, groups)
        for group in groups:
            hessian, cross = _moments(wrapped, reference, group, batches, stop=once)
            for name in group:
                self._round(layers[name], hessian, cross)
        note_before_rounding(wrapped, before)
        return wrapped

    def _round(self, layer: QuantModule, hessian: Tensor, cross: Tensor | None) -> None:
        point = layer.points["weight"]
        weight = parameter_of(layer, "weight").detach().to(torch.float64)
        if cross is not None:
            weight = _matching(weight, hessian, cross, self.damping)
        rounded = self.rounded(weight, hessian, point)
        replace_parameter(layer, "weight", rounded)

    def rounded(self, weight: Tensor, hessian: Tensor, point: QuantPoint) -> Tensor:
        """The rounded weight; its scales and zero points go into `point`.

        Args:
            weight: float64, [outputs, inputs].
            hessian: the sum of x x^T over inputs x, [inputs, inputs].
            point: the weight point, with an affine type.
        """
        dtype, qscheme = point.observer.dtype, point.observer.qscheme
        assert isinstance(dtype, DType) and qscheme is not None
        inputs = weight.shape[1]
        hessian = hessian.to(torch.float64)
        importance = hessian.diagonal().clone()
        order = (
            torch.argsort(importance, descending=True, stable=True)
            if self.act_order
            else torch.arange(inputs, device=weight.device)
        )
        upper = _decomposed(hessian[order][:, order], self.damping)
        work, importance = weight[:, order].clone(), importance[order]
        groups = _Groups(self, weight, order, importance, dtype, qscheme)
        result = torch.empty_like(work)
        for start in range(0, inputs, BLOCK):
            end = min(start + BLOCK, inputs)
            errors = torch.empty_like(work[:, start:end])
            for column in range(start, end):
                if groups.begins(column):
                    # What earlier blocks owe these columns has been paid, and within this block
                    # the corrections reach to its end; a group that goes on has them added.
                    stop = groups.end(column)
                    current = work[:, column:stop].clone()
                    if stop > end:
                        paid = slice(0, column - start)
                        current[:, end - column :] -= (
                            errors[:, paid] @ upper[start:column, end:stop]
                        )
                    groups.set_range(column, current)
                result[:, column] = groups.round(column, work[:, column])
                error = (work[:, column] - result[:, column]) / upper[column, column]
                work[:, column:end] -= error.unsqueeze(1) * upper[column, column:end]
                errors[:, column - start] = error
            work[:, end:] -= errors @ upper[start:end, end:]
        groups.load_into(point)
        restored = torch.empty_like(result)
        restored[:, order] = result
        return restored


class _Groups:
    """Which columns share a range, in the order of rounding, and the scales of each."""

    def __init__(
        self,
        options: GPTQ,
        weight: Tensor,
        order: Tensor,
        importance: Tensor,
        dtype: DType,
        qscheme: QScheme,
    ) -> None:
        self.options, self.dtype, self.qscheme = options, dtype, qscheme
        self.importance, self.order = importance, order
        inputs = weight.shape[1]
        self.size = options.group_size or inputs
        positions = torch.arange(inputs, device=weight.device)
        self.fixed = options.group_size is None or options.static_groups
        # The group of each column in the order of rounding.
        self.of = (order if self.fixed else positions) // self.size
        count = -(-inputs // self.size)
        rows = weight.shape[0] if qscheme.per_channel else 1
        self.scale = weight.new_ones(rows, count)
        self.zero_point = weight.new_zeros(rows, count)
        if self.fixed:
            by_original = torch.empty_like(importance)
            by_original[order] = importance
            for group in range(count):
                columns = slice(group * self.size, (group + 1) * self.size)
                self._set(group, weight[:, columns], by_original[columns])

    def begins(self, column: int) -> bool:
        return not self.fixed and column % self.size == 0

    def end(self, column: int) -> int:
        return min(column + self.size, len(self.of))

    def set_range(self, column: int, weight: Tensor) -> None:
        self._set(int(self.of[column]), weight, self.importance[column : self.end(column)])

    def round(self, column: int, weight: Tensor) -> Tensor:
        group = self.of[column]
        scale, zero_point = self.scale[:, group], self.zero_point[:, group]
        codes = torch.round(weight / scale) + zero_point
        return (codes.clamp(self.dtype.qmin, self.dtype.qmax) - zero_point) * scale

    def load_into(self, point: QuantPoint) -> None:
        zero_point = self.zero_point.to(torch.int32)
        if self.options.group_size is not None:
            columns = torch.empty_like(self.of)
            columns[self.order] = self.of
            point.load_qparams(self.scale, zero_point, columns=columns)
        elif self.qscheme.per_channel:
            point.load_qparams(self.scale[:, 0], zero_point[:, 0])
        else:
            point.load_qparams(self.scale[0, 0], zero_point[0, 0])

    def _set(self, group: int, weight: Tensor, importance: Tensor) -> None:
        weights = weight if self.qscheme.per_channel else weight.reshape(1, -1)
        if self.options.ranges == "weighted_mse":
            by_weight = importance.expand_as(weight).reshape(weights.shape)
        else:
            by_weight = torch.ones_like(weights)
        shrunk = (1.0,) if self.options.ranges == "minmax" else SHRUNK
        scale, zero_point = best_range(weights, by_weight, self.dtype, self.qscheme, shrunk)
        self.scale[:, group], self.zero_point[:, group] = scale, zero_point


def _moments(
    wrapped: nn.Module,
    reference: nn.Module | None,
    group: list[str],
    batches: Sequence[ModelInputs],
    *,
    stop: bool,
) -> tuple[Tensor, Tensor | None]:
    """The mean of x x^T over the inputs of a group, and of (float x) x^T with a reference."""
    hessian: Tensor | None = None
    cross: Tensor | None = None
    count = 0
    heard: list[Tensor] = []

    def hear(name: str, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        if name == group[0]:
            wide = torch.promote_types(x.dtype, torch.float32)
            heard.append(x.detach().flatten(0, -2).to(wide))

    def inputs(model: nn.Module, batch: ModelInputs) -> Tensor:
        heard.clear()
        stopping_at(model, group, hear, batch, stop=stop)
        return torch.cat(heard) if heard else torch.empty(0)

    for batch in batches:
        x = inputs(wrapped, batch)
        if x.numel() == 0:
            continue
        hessian = x.T @ x if hessian is None else hessian.add_(x.T @ x)
        count += len(x)
        if reference is not None:
            of_float = inputs(reference, batch)
            cross = of_float.T @ x if cross is None else cross.add_(of_float.T @ x)
    assert hessian is not None
    return hessian / count, None if cross is None else cross / count


def _matching(weight: Tensor, hessian: Tensor, cross: Tensor, damping: float) -> Tensor:
    """The weight whose outputs on x are nearest to those of `weight` on the float model's x."""
    hessian, cross = hessian.to(torch.float64), cross.to(torch.float64)
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(
        len(hessian), dtype=hessian.dtype, device=hessian.device
    )
    # W + W (cross - hessian) / damped: where both models agree the weight stays as it is.
    shift: Tensor = torch.linalg.solve(damped, (cross - hessian).T @ weight.T)
    return weight + shift.T


def _decomposed(hessian: Tensor, damping: float) -> Tensor:
    """The upper triangular factor of the inverse of the damped matrix."""
    hessian = hessian.clone()
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1.0
    diagonal += damping * diagonal[~dead].mean() if not dead.all() else 1.0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper
