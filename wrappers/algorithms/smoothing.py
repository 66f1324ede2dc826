"""SmoothQuant: divides channels of activations by factors and multiplies the columns of the weights
that read them, where norms and projections before them can take the factors up.

    smoothed = SmoothQuant()(model, config, batches)  # a float model, the same function

A factor is largest activation ^ strength / largest weight ^ (1 - strength), channel by channel. The
strength of each place is the one, of those given, whose quantised outputs on calibration data are
nearest to the float ones; none at all is tried too. The factors of values go to v_proj and o_proj:
query heads that share a value head have one factor. With `statistic="mean"` the factor is the mean
activation ^ strength alone, as in activation-aware weight quantisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from wrappers.algorithms.stage import checked, float_copy, listening, run
from wrappers.algorithms.structure import Pair, decoder_of
from wrappers.core.config import PTQConfig
from wrappers.core.point import QuantPoint
from wrappers.core.spec import Role
from wrappers.errors import ConfigError
from wrappers.quantize import ModelInputs

STRENGTHS = tuple(step / 10 for step in range(1, 10))
LEAST = 1e-5  # of a factor, and of what it is made of


@dataclass(frozen=True)
class SmoothQuant:
    """The stage.

    Args:
        strengths: those to try, from 0 to 1; a single one is taken as it is.
        statistic: "max": of activations against weights; "mean": of activations alone.
        rows: of the inputs of each layer that the search computes outputs of.

    Raises:
        ConfigError: a field is out of range.
    """

    rewrites_float: ClassVar[bool] = True

    strengths: tuple[float, ...] = STRENGTHS
    statistic: Literal["max", "mean"] = "max"
    rows: int = 512

    def __post_init__(self) -> None:
        if not self.strengths or not all(0 <= strength <= 1 for strength in self.strengths):
            raise ConfigError(f"strengths must be numbers from 0 to 1, not {self.strengths!r}")
        if self.statistic not in ("max", "mean"):
            raise ConfigError(f"statistic must be 'max' or 'mean', not {self.statistic!r}")
        if self.rows < 1:
            raise ConfigError(f"rows must be at least 1, not {self.rows!r}")

    def __call__(
        self, model: nn.Module, config: PTQConfig, batches: Sequence[ModelInputs]
    ) -> nn.Module:
        """A float model that computes the same function.

        Raises:
            WrapError: the model is prepared already, or its layers are not known.
            ModelInputError: there are no batches.
        """
        checked(batches)
        smoothed = float_copy(model, "SmoothQuant")
        pairs = [pair for layer in decoder_of(smoothed).layers for pair in layer.pairs()]
        seen = _inputs(smoothed, pairs, batches, self.rows)
        for pair in pairs:
            factors = self._best(pair, seen[pair.name], config)
            if factors is not None:
                pair.divide(factors)
        return smoothed

    def _best(self, pair: Pair, seen: _Inputs, config: PTQConfig) -> Tensor | None:
        weights = torch.stack([reader.weight.abs().amax(0) for reader in pair.readers.values()])
        candidates = [
            self.factors(pair, seen, weights.amax(0), strength) for strength in self.strengths
        ]
        if len(candidates) == 1:
            return candidates[0]
        least = output_error(pair, seen.sample, None, config)
        best: Tensor | None = None
        for factors in candidates:
            error = output_error(pair, seen.sample, pair.expanded(factors), config)
            if error < least:
                least, best = error, factors
        return best

    def factors(self, pair: Pair, seen: _Inputs, weights: Tensor, strength: float) -> Tensor:
        """What each output of the pair's writer is divided by, [outputs]."""
        statistic = seen.largest if self.statistic == "max" else seen.mean
        activations = pair.gathered(statistic).clamp(min=LEAST)
        factors = activations**strength
        if self.statistic == "max":
            factors = factors / pair.gathered(weights).clamp(min=LEAST) ** (1 - strength)
        # About as many above 1 as below, so that the writer's weights keep their size.
        factors = factors / torch.exp(torch.log(factors).mean())
        return factors.clamp(min=LEAST)


@dataclass
class _Inputs:
    """What a place has read: per channel the largest and the mean size, and some rows."""

    largest: Tensor
    mean: Tensor
    sample: Tensor


def _inputs(
    model: nn.Module, pairs: Sequence[Pair], batches: Sequence[ModelInputs], rows: int
) -> dict[str, _Inputs]:
    largest: dict[str, Tensor] = {}
    total: dict[str, Tensor] = {}
    samples: dict[str, list[Tensor]] = {}
    count: dict[str, int] = {}
    readers = {next(iter(pair.readers)): pair for pair in pairs}
    each = math.ceil(rows / len(batches))

    def hear(name: str, module: nn.Module, x: Tensor, output: Tensor) -> None:
        x = x.detach().flatten(0, -2)
        size, pair = x.abs(), readers[name].name
        top = size.amax(0)
        largest[pair] = torch.maximum(largest[pair], top) if pair in largest else top
        total[pair] = total[pair] + size.sum(0) if pair in total else size.sum(0)
        count[pair] = count.get(pair, 0) + len(x)
        step = max(1, len(x) // each)
        samples.setdefault(pair, []).append(x[::step][:each].clone())

    with listening({name: model.get_submodule(name) for name in readers}, hear):
        for batch in batches:
            run(model, batch)
    return {
        name: _Inputs(largest[name], total[name] / count[name], torch.cat(samples[name]))
        for name in largest
    }


@torch.no_grad()
def output_error(pair: Pair, x: Tensor, factors: Tensor | None, config: PTQConfig) -> float:
    """The squared error of the readers' outputs when inputs and weights are quantised.

    Args:
        pair: whose readers.
        x: their inputs, [rows, inputs].
        factors: that inputs are divided by and weights multiplied, [inputs]; None for none.
        config: how points are quantised.
    """
    error = 0.0
    for name, reader in pair.readers.items():
        expected = x @ reader.weight.T
        inputs = x if factors is None else x / factors
        weight = reader.weight if factors is None else reader.weight * factors
        inputs = quantized(inputs, config, name, "act_in", "activation")
        weight = quantized(weight, config, name, "weight", "weight")
        error += float((inputs @ weight.T - expected).double().pow(2).sum())
    return error


def quantized(x: Tensor, config: PTQConfig, module: str, point: str, role: Role) -> Tensor:
    """`x` as a point of a module would quantise it, with the range of `x` itself."""
    for part in module.split("."):
        config = config.child(part)
    axis = 0 if role == "weight" else None
    made = QuantPoint(point, config.spec_for(point, role=role), role=role, channel_axis=axis)
    made.observer.observe(x)
    return made.observer.quantizer().fake_quantize(x)
