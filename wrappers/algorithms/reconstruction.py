"""Block reconstruction: learns which way weights are rounded, and how wide activations' ranges are,
so that each block's output is nearest to the float one.

    wrapped = BlockReconstruction()(model, config, batches)
    for result in reconstructed(wrapped):
        print(result)  # model.layers.0: error 0.0132 -> 0.0097

A block is an element of a module list: a decoder layer, a vision block; linear layers outside of
those are blocks by themselves. `AdaRound` takes each linear layer by itself. Blocks are done in the
order in which they run, each behind those done before it, quantised as they will be. A block whose
error on calibration data that it did not learn from does not become less is rolled back: it stays
what it was. After GPTQ learning begins at its codes, and each weight may go to the next code on the
side of the weight from before; weights of embeddings and convolutions are left to rounding.

Memory beyond the model: of one block, inputs and outputs over all data, five values in float32 for
each weight, and what a forward keeps for its gradient. Time: two forwards over the data for each
block, stopped where it begins, and `steps` forwards and backwards of the block over one batch. Of a
model whose weights accelerate loads when they are needed, those of one module are in memory.

Sources: Nagel et al. 2020 (AdaRound), Li et al. 2021 (BRECQ), Esser et al. 2020 (LSQ).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from wrappers.algorithms.calls import Call, call_groups, calls_of, warn_of_missed
from wrappers.algorithms.learning import (
    LearnedRange,
    LearnedRounding,
    codes_of,
    has_learnable_range,
    is_bypassed,
)
from wrappers.algorithms.ranges import SHRUNK, best_range
from wrappers.algorithms.stage import (
    as_prepared,
    before_rounding,
    checked,
    copied,
    note_before_rounding,
    replace_parameter,
    set_unquantized,
    weighted_layers,
)
from wrappers.core.config import PTQConfig
from wrappers.core.module import QuantModule, iter_points, iter_wrappers
from wrappers.core.offloading import parameter_of
from wrappers.core.point import QuantPoint
from wrappers.core.quantizers import Quantizer
from wrappers.errors import ConfigError, WrapError
from wrappers.numerics.affine import AffineQParams
from wrappers.numerics.dtypes import DType
from wrappers.numerics.grouped import GroupedQParams
from wrappers.quantize import ModelInputs, calibrate, convert

RESULTS = "reconstructed"
UNDECIDED_FREE = 0.2  # of the steps, in which weights may lie between codes at no cost
LEAST = 1e-6  # of the mean size of a row
POWERS = 20.0, 2.0  # of what it costs afterwards, from the first step to the last


@dataclass(frozen=True)
class BlockResult:
    """What learning has made of one block.

    Attributes:
        name: of the module.
        before: the mean squared error of its outputs as it was rounded before, each row relative to
            its mean square.
        after: that of what was learned, on the same data.
        kept: what was learned is kept; otherwise the block stays what it was.
    """

    name: str
    before: float
    after: float

    @property
    def kept(self) -> bool:
        return self.after < self.before

    def __str__(self) -> str:
        back = "" if self.kept else ", rolled back"
        return f"{self.name}: error {self.before:.3g} -> {self.after:.3g}{back}"


def reconstructed(model: nn.Module) -> tuple[BlockResult, ...]:
    """What the last reconstruction has made of each block, in the order in which they run."""
    results: tuple[BlockResult, ...] = vars(model).get(RESULTS, ())
    return results


@dataclass(frozen=True)
class BlockReconstruction:
    """The stage.

    Args:
        level: "layer": blocks as a whole; "leaf": each linear layer by itself.
        steps: of learning for each block.
        rate: of learning, for the rounding of weights.
        range_rate: of learning, for ranges of activations; 0 leaves them to calibration.
        decide: what it costs at most that weights are not rounded, in units of the block's error.
        match_float: aim at the outputs of the float model on its own activations, instead of those
            of the float block on the activations of the model as quantised so far.
        shrink: begin with the ranges of weights where their squared error is least, instead of
            those of all weights. After GPTQ its ranges stay.
        held_out: share of the batches that a block does not learn from. Of a single batch none
            is held out, and errors are those on it.
        seed: of the order of the batches.

    Raises:
        ConfigError: a field is out of range.
    """

    rewrites_float: ClassVar[bool] = False

    level: Literal["layer", "leaf"] = "layer"
    steps: int = 200
    rate: float = 0.03
    range_rate: float = 1e-3
    decide: float = 1.0
    match_float: bool = True
    shrink: bool = True
    held_out: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if self.level not in ("layer", "leaf"):
            raise ConfigError(f"level must be 'layer' or 'leaf', not {self.level!r}")
        if self.steps < 1:
            raise ConfigError(f"steps must be at least 1, not {self.steps!r}")
        for name in ("rate", "decide"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)!r}")
        if not self.range_rate >= 0:
            raise ConfigError(f"range_rate must be at least 0, not {self.range_rate!r}")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out must be between 0 and 1, not {self.held_out!r}")

    def __call__(
        self, model: nn.Module, config: PTQConfig, batches: Sequence[ModelInputs]
    ) -> nn.Module:
        """A prepared model with rounded weights and locked points, where learning has helped.

        Raises:
            WrapError: no linear layer has a weight point of integers.
            ModelInputError: there are no batches.

        Warns:
            CalibrationWarning: no input reached some blocks, which stay as they were.
        """
        checked(batches)
        result = copied(as_prepared(model, config))
        set_unquantized(result)
        before = before_rounding(result)
        reference = copied(before)
        set_unquantized(reference)
        quantized = copied(result)
        calibrate(quantized, batches)
        convert(quantized)
        blocks = self._blocks(quantized)
        if not blocks:
            raise WrapError(
                f"no linear layer of {type(model).__name__} has a weight point of integers"
            )
        groups, once = call_groups(quantized, blocks, batches)
        names = [name for group in groups for name in group]
        warn_of_missed("reconstruction", blocks, groups)
        results = []
        for name in names:
            samples = self._samples(quantized, reference, name, batches, once=once)
            block = _Block(self, *(each.get_submodule(name) for each in (quantized, reference)))
            found = block.learned(name, samples)
            results.append(found)
            if found.kept:
                block.move_to(result.get_submodule(name))
        vars(result)[RESULTS] = tuple(results)
        note_before_rounding(result, reference)
        return result

    def _blocks(self, model: nn.Module) -> dict[str, nn.Module]:
        rounded = [name for name, layer in weighted_layers(model).items() if _is_rounded(layer)]
        if self.level == "leaf":
            return {name: model.get_submodule(name) for name in rounded}
        elements = [
            f"{name}.{index}".lstrip(".")
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList)
            for index in range(len(module))
        ]

        def block(layer: str) -> str:
            around = [name for name in elements if layer.startswith(f"{name}.")]
            return min(around, key=len, default=layer)

        names = dict.fromkeys(block(name) for name in rounded)
        return {name: model.get_submodule(name) for name in names}

    def _samples(
        self,
        quantized: nn.Module,
        reference: nn.Module,
        name: str,
        batches: Sequence[ModelInputs],
        *,
        once: bool,
    ) -> list[_Sample]:
        samples = []
        block = reference.get_submodule(name)
        for batch in batches:
            given = calls_of(quantized, name, batch, stop=once)
            aims = calls_of(reference, name, batch, stop=once) if self.match_float else given
            with torch.no_grad():
                samples += [
                    _Sample(call, aim.of(block).float())
                    for call, aim in zip(given, aims, strict=True)
                ]
        return samples


@dataclass(frozen=True)
class AdaRound(BlockReconstruction):
    """The stage that learns the rounding of each linear layer by itself."""

    level: Literal["layer", "leaf"] = "leaf"
    range_rate: float = 0.0


@dataclass(frozen=True)
class _Sample:
    """What a block is given in the quantised model, and the output that is aimed at."""

    given: Call
    expected: Tensor


def _is_rounded(layer: QuantModule) -> bool:
    return isinstance(layer.points["weight"].observer.dtype, DType)


class _Block:
    """A quantised block while it learns."""

    def __init__(
        self, options: BlockReconstruction, module: nn.Module, reference: nn.Module
    ) -> None:
        self.options, self.module = options, module
        self.rounding: dict[str, LearnedRounding] = {}
        self.grids: dict[str, AffineQParams | GroupedQParams] = {}
        for name, layer in weighted_layers(module).items():
            if _is_rounded(layer):
                self._add_rounding(name, layer, reference.get_submodule(name))
        self.ranges = {
            (name, point_name): LearnedRange(point.quantizer)
            for name, point_name, point in iter_points(module)
            if options.range_rate
            and has_learnable_range(point)
            and isinstance(point.quantizer, AffineQParams)
        }

    def _add_rounding(self, name: str, layer: QuantModule, reference: nn.Module) -> None:
        point = layer.points["weight"]
        weight = parameter_of(reference, "weight").detach()
        start = None
        if point.locked:
            assert isinstance(point.quantizer, AffineQParams | GroupedQParams)
            grid = point.quantizer
            start = codes_of(parameter_of(layer, "weight"), grid)
        else:
            grid = self._grid(weight, point)
        self.grids[name] = grid
        self.rounding[name] = LearnedRounding(weight, grid, start)

    def _grid(self, weight: Tensor, point: QuantPoint) -> AffineQParams:
        dtype, qscheme = point.observer.dtype, point.observer.qscheme
        assert isinstance(dtype, DType) and qscheme is not None
        rows = weight.to(torch.float64)
        rows = rows if qscheme.per_channel else rows.reshape(1, -1)
        shrunk = SHRUNK if self.options.shrink else (1.0,)
        scale, zero_point = best_range(rows, torch.ones_like(rows), dtype, qscheme, shrunk)
        if qscheme.per_channel:
            return AffineQParams(scale, zero_point, dtype, 0)
        return AffineQParams(scale[0], zero_point[0], dtype)

    def learned(self, name: str, samples: Sequence[_Sample]) -> BlockResult:
        """Learns, and puts what was learned into the quantised model where it is better."""
        held = min(max(1, round(self.options.held_out * len(samples))), len(samples) - 1)
        train, test = samples[: len(samples) - held], samples[-held:] if held else samples
        before = self._error(test)
        unit = self._error(train) or 1.0
        original = {id(point): point.quantizer for _, _, point in iter_points(self.module)}
        self._put()
        with ExitStack() as exact:
            for _, wrapper in iter_wrappers(self.module):
                for point in wrapper.points.values():
                    if is_bypassed(point):
                        exact.enter_context(wrapper.disabled(point.name))
            self._learn(train, unit)
        for rounding in self.rounding.values():
            rounding.hard = True
        result = BlockResult(name, before, self._error(test))
        for _, _, point in iter_points(self.module):
            point.quantizer = original[id(point)]
        if result.kept:
            self.move_to(self.module)
        return result

    def _put(self) -> None:
        for name, rounding in self.rounding.items():
            self._point(self.module, name, "weight").quantizer = cast(Quantizer, rounding)
        for (name, point), learned in self.ranges.items():
            self._point(self.module, name, point).quantizer = cast(Quantizer, learned)

    def _learn(self, train: Sequence[_Sample], unit: float) -> None:
        options = self.options
        generator = torch.Generator().manual_seed(options.seed)
        rounding = [each.v for each in self.rounding.values()]
        ranges = [each.t for each in self.ranges.values()]
        learned = [*rounding, *ranges]
        optimizer = torch.optim.Adam(
            [
                {"params": rounding, "lr": options.rate},
                {"params": ranges, "lr": options.range_rate},
            ]
        )
        for step in range(options.steps):
            sample = train[int(torch.randint(len(train), (), generator=generator))]
            with torch.enable_grad():
                error = self._difference(sample)
                loss = error / unit + options.decide * self._undecided(step)
                # Not backward(): the parameters are those of the float model.
                gradients = torch.autograd.grad(loss, learned, allow_unused=True)
            for tensor, gradient in zip(learned, gradients, strict=True):
                tensor.grad = gradient
            optimizer.step()

    def _undecided(self, step: int) -> Tensor | float:
        share = step / self.options.steps
        if share < UNDECIDED_FREE:
            return 0.0
        first, last = POWERS
        power = last + (first - last) * (1 - share) / (1 - UNDECIDED_FREE)
        weights = [(each.undecided(power), each.v.numel()) for each in self.rounding.values()]
        total = sum(count for _, count in weights)
        return torch.stack([cost * (count / total) for cost, count in weights]).sum()

    def _difference(self, sample: _Sample) -> Tensor:
        """The squared error of the block's output, relative to the size of each of its rows, as
        the norms that read it see it: some tokens are hundreds of times larger than others."""
        for name in self.rounding:
            self._point(self.module, name, "weight").forget_result()
        found = sample.given.of(self.module).float()
        size = sample.expected.pow(2).mean(-1, keepdim=True)
        size = size.clamp(min=LEAST * float(size.mean()) + torch.finfo(size.dtype).tiny)
        return ((found - sample.expected).pow(2) / size).mean()

    @torch.no_grad()
    def _error(self, samples: Sequence[_Sample]) -> float:
        return sum(float(self._difference(sample)) for sample in samples) / len(samples)

    def move_to(self, module: nn.Module) -> None:
        """Gives a block the weights that were learned, rounded, and the ranges."""
        for name, rounding in self.rounding.items():
            replace_parameter(module.get_submodule(name), "weight", rounding.weight())
            point = self._point(module, name, "weight")
            if not point.locked:
                grid = self.grids[name]
                point.load_qparams(grid.scale, grid.zero_point)
        for (name, point_name), learned in self.ranges.items():
            qparams = learned.learned()
            point = self._point(module, name, point_name)
            point.load_qparams(qparams.scale, qparams.zero_point)

    @staticmethod
    def _point(module: nn.Module, name: str, point: str) -> QuantPoint:
        wrapper = module.get_submodule(name)
        assert isinstance(wrapper, QuantModule)
        return wrapper.points[point]
