"""Mistakes in a quantised model, whose reference is the same model quantised rightly."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

import wrappers
from benchmarks.mistakes import qwen3_vl
from benchmarks.mistakes.decoder import Tensor, mlp_forward, one_weight
from benchmarks.mistakes.llama import ATTENTION, DOWN, LAYER, MLP, NORM, attend, other_keys
from benchmarks.mistakes.planting import Mistake, after, assign, parameter, reforward
from wrappers.core.quantizers import IdentityQuantizer
from wrappers.numerics.affine import AffineQParams, affine_qparams


def requantize(path: str, point: str, change: Callable[[Any], Any]) -> Callable[[Any], None]:
    """A quantization point gets another quantiser."""

    def plant(model: Any) -> None:
        place = model.get_submodule(path).points[point]
        place.quantizer = change(place.quantizer)

    return plant


def rescaled(factor: float) -> Callable[[AffineQParams], AffineQParams]:
    return lambda own: replace(own, scale=own.scale * factor)


def off_zero(own: AffineQParams) -> AffineQParams:
    moved = own.zero_point + torch.where(own.zero_point > 100, -9, 9)
    return replace(own, zero_point=moved.to(torch.int32))


def one_channel(own: AffineQParams) -> AffineQParams:
    scale = own.scale.clone()
    scale[5] *= 1.7
    return replace(own, scale=scale)


def one_for_all(own: AffineQParams) -> AffineQParams:
    """One scale for a tensor that has one for each channel."""
    return AffineQParams(own.scale.max(), own.zero_point.median(), own.dtype)


def of_weight(path: str, dtype: str, axis: int) -> Callable[[Any], None]:
    """Another type or axis of channels for a weight, with the parameters that fit it."""

    def plant(model: Any) -> None:
        module = model.get_submodule(path)
        low, high = module.weight.aminmax(dim=1 - axis)
        scheme = wrappers.QScheme.PER_CHANNEL_ASYMMETRIC
        qparams = affine_qparams(low, high, wrappers.DType.parse(dtype), scheme, axis=axis)
        module.points["weight"].quantizer = qparams

    return plant


def exchange_points(path: str, first: str, second: str) -> Callable[[Any], None]:
    def plant(model: Any) -> None:
        one, other = (model.get_submodule(path).points[name] for name in (first, second))
        one.quantizer, other.quantizer = other.quantizer, one.quantizer

    return plant


def to_float(path: str) -> Callable[[Any], None]:
    """One module was forgotten when the others were converted."""

    def plant(model: Any) -> None:
        model.get_submodule(path).mode = wrappers.Mode.NO_QUANT

    return plant


def calibrated_on(batch: dict[str, Tensor]) -> Callable[[Any], None]:
    def plant(model: Any) -> None:
        wrappers.calibrate(model, [batch])
        wrappers.convert(model)

    return plant


class RoundingDown(AffineQParams):
    """Takes the code below in place of the nearest."""

    def fake_quantize(self, x: Tensor, *, may_overwrite: bool = False) -> Tensor:
        codes = (x / self.scale).floor() + self.zero_point  # wrong
        return (codes.clamp(self.dtype.qmin, self.dtype.qmax) - self.zero_point) * self.scale


class ZeroPointLost(AffineQParams):
    """Codes are taken back to numbers without the zero point."""

    def fake_quantize(self, x: Tensor, *, may_overwrite: bool = False) -> Tensor:
        codes = (x / self.scale).round() + self.zero_point
        return codes.clamp(self.dtype.qmin, self.dtype.qmax) * self.scale  # wrong


def as_kind(kind: type[AffineQParams]) -> Callable[[AffineQParams], AffineQParams]:
    return lambda own: kind(own.scale, own.zero_point, own.dtype, own.axis)


def product_left_out(self: Any, x: Tensor) -> Tensor:
    x = self.quantize(x, "act_in")
    return self.act_fn(self.gate_proj(x)) * self.up_proj(x)


def product_too_early(self: Any, x: Tensor) -> Tensor:
    x = self.quantize(x, "act_in")
    return self.act_fn(self.gate_proj(x)) * self.quantize(self.up_proj(x), "mul")


def residual_quantized(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
    """The sums are taken before the points, which see what is added."""
    attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
    first, second = self.residual_points
    middle = hidden_states + self.quantize(attended, first)
    return self.quantize(middle + self.mlp(self.post_attention_layernorm(middle)), second)


def through_wrong_weight(model: Any) -> None:
    """What was made of an earlier weight is still in use."""
    module = model.get_submodule(DOWN)
    right = module.weight.detach().clone()
    module.weight.data.copy_(right.flip(0))
    with torch.no_grad():
        module(torch.zeros(1, module.in_features))
    module.weight.data.copy_(right)


def again(model: Any) -> None:
    """What o_proj returns goes through the point of its input as well."""
    module = model.get_submodule(f"{ATTENTION}.o_proj")
    point = copy.deepcopy(module.points["act_in"])
    after(f"{ATTENTION}.o_proj", lambda x: point.fake_quantize(x, may_overwrite=False))(model)


OTHER_TOKENS = {
    "input_ids": torch.randint(1, 500, (1, 16), generator=torch.Generator().manual_seed(9))
}
mlp = partial(reforward, MLP, mlp_forward)

LLAMA = [
    Mistake("activation scale doubled", requantize(DOWN, "act_in", rescaled(2.0)), DOWN, "parameter"),
    Mistake("activation range halved", requantize(f"{MLP}.gate_proj", "act_out", rescaled(0.5)), f"{MLP}.gate_proj", "parameter"),
    Mistake("zero point off", requantize(f"{MLP}.up_proj", "act_out", off_zero), f"{MLP}.up_proj", "parameter"),
    Mistake("weight scale of one channel", requantize(f"{ATTENTION}.o_proj", "weight", one_channel), f"{ATTENTION}.o_proj", "parameter"),
    Mistake("weight with one scale", requantize(f"{ATTENTION}.v_proj", "weight", one_for_all), f"{ATTENTION}.v_proj", "parameter"),
    Mistake("weight's channels along the other axis", of_weight(f"{ATTENTION}.q_proj", "uint8", axis=1), f"{ATTENTION}.q_proj", "parameter"),
    Mistake("weight in 4 bits", of_weight(f"{MLP}.up_proj", "uint4", axis=0), f"{MLP}.up_proj", "parameter"),
    Mistake("scales of queries and keys exchanged", exchange_points(ATTENTION, "q_rot", "k_rot"), ATTENTION, "parameter"),
    Mistake("range of the mask cut", requantize(ATTENTION, "attn_mask", rescaled(0.02)), ATTENTION, "parameter"),
    Mistake("point of the softmax not quantised", requantize(ATTENTION, "softmax", lambda own: IdentityQuantizer()), ATTENTION, "parameter"),
    Mistake("rounding down", requantize(DOWN, "act_out", as_kind(RoundingDown)), DOWN, "computation"),
    Mistake("zero point lost on the way back", requantize(NORM, "act_out", as_kind(ZeroPointLost)), NORM, "computation"),
    Mistake("point of the product left out", mlp(product=product_left_out), MLP, "computation"),
    Mistake("point of the product too early", mlp(product=product_too_early), MLP, "computation"),
    Mistake("points of the residual before the sums", reforward(LAYER, residual_quantized), LAYER, "computation"),
    Mistake("output quantised again", again, f"{ATTENTION}.o_proj", "computation"),
    Mistake("one module left in float", to_float(DOWN), DOWN, "computation", line="F.linear("),
    Mistake("stale quantised weight", through_wrong_weight, DOWN, "computation", line="F.linear("),
    Mistake("calibrated on other text", calibrated_on(OTHER_TOKENS), "model.embed_tokens", "parameter"),
    Mistake("one weight", parameter(f"{MLP}.up_proj", one_weight), f"{MLP}.up_proj", "parameter"),
    Mistake("norm eps", assign(NORM, "variance_epsilon", lambda eps: 1e-2), NORM, "computation", line="variance_epsilon"),
    Mistake("KV head order", attend(other_keys), ATTENTION, "computation"),
]  # fmt: skip

TEXT, VISION = qwen3_vl.TEXT, qwen3_vl.VISION
TEXT_ATTENTION, VISION_ATTENTION = qwen3_vl.ATTENTION, qwen3_vl.VISION_ATTENTION
MERGER = qwen3_vl.MERGER

QWEN3_VL = [
    Mistake("scale of the norm of the queries", requantize(f"{TEXT_ATTENTION}.q_norm", "act_out", rescaled(2.0)), f"{TEXT_ATTENTION}.q_norm", "parameter"),
    Mistake("scales of queries and keys exchanged", exchange_points(TEXT_ATTENTION, "q_x1", "k_x1"), TEXT_ATTENTION, "parameter"),
    Mistake("range of a deepstack sum halved", requantize(TEXT, "deepstack_sum_0", rescaled(0.5)), TEXT, "parameter"),
    Mistake("zero point after the fusion off", requantize("model", "mm_fusion", off_zero), "model", "parameter"),
    Mistake("zero point lost on the way back", requantize(f"{qwen3_vl.LAYER}.mlp", "gated_out", as_kind(ZeroPointLost)), f"{qwen3_vl.LAYER}.mlp", "computation"),
    Mistake("patch weights with one scale", requantize(f"{VISION}.patch_embed.proj", "weight", one_for_all), f"{VISION}.patch_embed.proj", "parameter"),
    Mistake("scale of the position embedding", requantize(VISION, "pos_embed", rescaled(2.0)), VISION, "parameter"),
    Mistake("weight's channels along the other axis", of_weight(f"{VISION_ATTENTION}.proj", "uint8", axis=1), f"{VISION_ATTENTION}.proj", "parameter"),
    Mistake("scale of the vision softmax doubled", requantize(VISION_ATTENTION, "softmax", rescaled(2.0)), VISION_ATTENTION, "parameter"),
    Mistake("step of a layer norm", requantize(f"{MERGER}.norm", "rsqrt", rescaled(0.5)), f"{MERGER}.norm", "parameter"),
    Mistake("weight scale of one channel of the merger", requantize(f"{MERGER}.linear_fc1", "weight", one_channel), f"{MERGER}.linear_fc1", "parameter"),
    Mistake("rounding down", requantize(f"{qwen3_vl.BLOCK}.mlp.linear_fc1", "act_out", as_kind(RoundingDown)), f"{qwen3_vl.BLOCK}.mlp.linear_fc1", "computation"),
    Mistake("one module left in float", to_float(f"{MERGER}.linear_fc1"), f"{MERGER}.linear_fc1", "computation", line="F.linear("),
]  # fmt: skip
