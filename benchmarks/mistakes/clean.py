"""Right pairs: what computes the same in another way, and must agree."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn import functional

import wrappers
from benchmarks.mistakes import llama, ported, qwen3_vl
from benchmarks.mistakes.decode import generates, prefill_and_decode
from benchmarks.mistakes.decoder import (
    Tensor,
    attention_forward,
    layer_forward,
    mlp_forward,
    of_ten_thousand,
)
from benchmarks.mistakes.models import (
    VARIANTS,
    Source,
    generation,
    longer_llama,
    one_forward,
    pictures_and_text,
    quantized,
    right_side,
    static_llama,
    tiny_llama,
    tiny_qwen3_vl,
    without_cache,
)
from benchmarks.mistakes.planting import Plant, everywhere, reforward, together

Change = Callable[[Any], Any]


@dataclass(frozen=True)
class Pair:
    """A reference, a right candidate, and what both are run on."""

    group: str
    name: str
    make: Callable[[], tuple[nn.Module, nn.Module, Mapping[str, Any]]]
    rename: Mapping[str, str] | None = None


def itself(model: Any) -> Any:
    return model


def sharing(model: Any) -> Any:
    """A copy with the same parameters."""
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def with_attention(kind: str) -> Change:
    def change(model: Any) -> Any:
        other = copy.deepcopy(model)
        other.set_attn_implementation(kind)
        return other

    return change


def compiled(model: Any) -> Any:
    return torch.compile(copy.deepcopy(model), backend="eager")


def wrapped(variant: str, dtype: torch.dtype = torch.float32) -> Change:
    """Casts a copy, since a wrapped model shares its parameters."""
    config = wrappers.PTQConfig(variant=variant)
    return lambda model: wrappers.prepare(copy.deepcopy(model), config).to(dtype)


def as_dtype(dtype: torch.dtype) -> Change:
    return lambda model: copy.deepcopy(model).to(dtype)


def rewritten(*plants: Plant) -> Change:
    """A copy whose modules compute with our own forwards."""

    def change(model: Any) -> Any:
        other = copy.deepcopy(model)
        together(*plants)(other)
        return other

    return change


def all_of(kind: str, forward: Callable[..., Any], **options: Any) -> Plant:
    return everywhere(kind, lambda path: reforward(path, forward, **options))


def parallel(model: Any) -> Any:
    return nn.DataParallel(copy.deepcopy(model))


class Served(nn.Module):
    """A model inside another."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.wrapped = model

    def forward(self, **inputs: Any) -> Any:
        return self.wrapped(**inputs)


class GateAndUp(nn.Module):
    """Both projections of a gated MLP in one layer."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_and_up = nn.Linear(mlp.hidden_size, 2 * mlp.intermediate_size, bias=False)
        self.gate_and_up.weight = nn.Parameter(
            torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)).detach()
        )
        self.down_proj, self.act_fn = mlp.down_proj, mlp.act_fn

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_and_up(x).chunk(2, dim=-1)
        return self.down_proj(self.act_fn(gate) * up)


def fused(model: Any) -> Any:
    other = copy.deepcopy(model)
    for layer in other.model.layers:
        layer.mlp = GateAndUp(layer.mlp)
    return other


def up_first(self: Any, x: Tensor) -> Tensor:
    up = self.up_proj(x)
    return up * self.act_fn(self.gate_proj(x))


def added_in_place(before: Tensor, added: Tensor, normed: Tensor) -> Tensor:
    """The sum takes the place of what came in, which nobody reads again."""
    return before.add_(added)


def by_square_root(self: Any, x: Tensor) -> Tensor:
    return self.weight * (x / (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).sqrt())


def head_by_head(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    heads = zip(query.unbind(1), key.unbind(1), strict=True)
    return torch.stack([(q * scaling) @ k.mT for q, k in heads], dim=1)


def in_two_parts(logits: Tensor, mask: Tensor | None) -> Tensor:
    """The softmax of a flash attention: by exponentials and their sums."""
    logits = logits if mask is None else logits + mask
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


def linear_patches(self: Any, hidden_states: Tensor) -> Tensor:
    return functional.linear(hidden_states, self.proj.weight.flatten(1), self.proj.bias)


def saved_and_loaded(model: Any) -> Any:
    other = copy.deepcopy(model)
    for module in other.modules():
        for point in getattr(module, "points", {}).values():
            point.reset()
    other.load_state_dict(model.state_dict())
    return other


def one_sequence(source: Source) -> Source:
    """The first sequence alone, without a mask."""

    def single() -> tuple[nn.Module, dict[str, Any]]:
        model, inputs = source()
        return model, {"input_ids": inputs["input_ids"][:1]}

    return single


def long_sequence(source: Source) -> Source:
    def longer() -> tuple[nn.Module, dict[str, Any]]:
        model, _ = source()
        generator = torch.Generator().manual_seed(5)
        return model, {"input_ids": torch.randint(1, 500, (1, 300), generator=generator)}

    return longer


def text_only() -> tuple[nn.Module, dict[str, Any]]:
    model, inputs = tiny_qwen3_vl()
    ids = inputs["input_ids"].clamp(max=500)
    return model, {"input_ids": ids, "attention_mask": inputs["attention_mask"]}


def one_image() -> tuple[nn.Module, dict[str, Any]]:
    model, _ = tiny_qwen3_vl()
    return model, pictures_and_text(model.config, ((2, 6, 4),))


def generated_by(change: Change) -> Change:
    """The change is made to the model, and what comes of it generates."""

    def changed(model: Any) -> Any:
        return type(model)(change(model.prefill), steps=model.steps)

    return changed


def pairs(group: str, listed: Mapping[str, tuple[Source, Change]]) -> list[Pair]:
    return [Pair(group, name, partial(made, *how)) for name, how in listed.items()]


def made(source: Source, change: Change) -> tuple[nn.Module, nn.Module, Mapping[str, Any]]:
    reference, inputs = source()
    candidate = change(reference)
    if isinstance(candidate, OptimizedModule):
        with torch.no_grad():
            candidate(**inputs)  # compiling is none of the verdict's work
    return reference, candidate, inputs


HALF = torch.bfloat16

CLEAN = [
    *pairs(
        "right pairs, decode",
        {
            f"{what}, padded on the {side}": (sided(generation(longer_llama, steps=16)), change)
            for side, sided in (("left", itself), ("right", right_side))
            for what, change in (
                ("decode", generated_by(wrapped("decode"))),
                ("prefill and decode", prefill_and_decode),
                ("SDPA", generated_by(with_attention("sdpa"))),
                ("bfloat16", as_dtype(HALF)),
            )
        }
        | {
            f"{what} against one forward, padded on the {side}": (
                sided(one_forward(longer_llama, steps=16)),
                change,
            )
            for side, sided in (("left", itself), ("right", right_side))
            for what, change in (
                ("steps", generates),
                ("prefill and decode", prefill_and_decode),
            )
        }
        | {
            "static cache": (static_llama, copy.deepcopy),
        },
    ),
    *pairs(
        "right pairs, Llama",
        {
            "copy": (tiny_llama, copy.deepcopy),
            "itself": (tiny_llama, itself),
            "shared parameters": (tiny_llama, sharing),
            "SDPA, padded on the left": (tiny_llama, with_attention("sdpa")),
            "SDPA, padded on the right": (right_side(tiny_llama), with_attention("sdpa")),
            "SDPA, no mask": (one_sequence(tiny_llama), with_attention("sdpa")),
            "SDPA, 300 tokens": (long_sequence(tiny_llama), with_attention("sdpa")),
            "compiled": (tiny_llama, compiled),
            "bfloat16": (tiny_llama, as_dtype(torch.bfloat16)),
            "float16": (tiny_llama, as_dtype(torch.float16)),
            "float64": (right_side(tiny_llama), as_dtype(torch.float64)),
            "in DataParallel": (tiny_llama, parallel),
            "inside another model": (tiny_llama, lambda model: Served(copy.deepcopy(model))),
            "attention rewritten": (tiny_llama, rewritten(all_of("Attention", attention_forward))),
            "layers rewritten": (tiny_llama, rewritten(all_of("DecoderLayer", layer_forward))),
            "MLP rewritten": (tiny_llama, rewritten(all_of("MLP", mlp_forward))),
            "model rewritten": (tiny_llama, rewritten(llama.model())),
            "head rewritten": (tiny_llama, rewritten(llama.causal())),
            "head by head": (
                tiny_llama,
                rewritten(all_of("Attention", attention_forward, score=head_by_head)),
            ),
            "softmax in parts": (
                tiny_llama,
                rewritten(all_of("Attention", attention_forward, weigh=in_two_parts)),
            ),
            "mask of -1e4": (tiny_llama, rewritten(llama.model(make_mask=of_ten_thousand))),
            "norms by a root": (tiny_llama, rewritten(all_of("Norm", by_square_root))),
            "other order of calls": (
                tiny_llama,
                rewritten(all_of("MLP", mlp_forward, product=up_first)),
            ),
            "gate and up in one layer": (tiny_llama, fused),
            "residual in place": (
                tiny_llama,
                rewritten(all_of("DecoderLayer", layer_forward, after_mlp=added_in_place)),
            ),
            "generation": (generation(tiny_llama), copy.deepcopy),
            "generation, SDPA": (generation(tiny_llama), generated_by(with_attention("sdpa"))),
            "generation, bfloat16": (generation(tiny_llama), as_dtype(torch.bfloat16)),
            "generation, rewritten": (
                generation(tiny_llama),
                generated_by(rewritten(llama.model(), all_of("Attention", attention_forward))),
            ),
            **{
                f"{what}, {variant}": (source, make(variant))
                for variant in VARIANTS
                for what, source, make in (
                    ("wrapped", tiny_llama, wrapped),
                    ("wrapped, padded on the right", right_side(tiny_llama), wrapped),
                    ("wrapped, no mask", one_sequence(tiny_llama), wrapped),
                    ("wrapped, no cache", without_cache(tiny_llama), wrapped),
                    ("wrapped, 300 tokens", long_sequence(tiny_llama), wrapped),
                    ("wrapped, bfloat16", tiny_llama, partial(wrapped, dtype=HALF)),
                    (
                        "wrapped, generation",
                        generation(tiny_llama),
                        lambda variant: generated_by(wrapped(variant)),
                    ),
                )
            },
            **{
                f"{what}, {variant}": (quantized(tiny_llama, variant), change)
                for variant in VARIANTS
                for what, change in (
                    ("quantised copy", copy.deepcopy),
                    ("quantised, saved and loaded", saved_and_loaded),
                )
            },
        },
    ),
    Pair(
        "right pairs, Llama",
        "ported",
        partial(made, without_cache(tiny_llama), ported.port),
        ported.RENAME,
    ),
    *pairs(
        "right pairs, Qwen3-VL",
        {
            "copy": (tiny_qwen3_vl, copy.deepcopy),
            "itself": (tiny_qwen3_vl, itself),
            "shared parameters": (tiny_qwen3_vl, sharing),
            "SDPA, padded on the left": (tiny_qwen3_vl, with_attention("sdpa")),
            "SDPA, padded on the right": (right_side(tiny_qwen3_vl), with_attention("sdpa")),
            "SDPA, one image of two frames": (one_image, with_attention("sdpa")),
            "text alone": (text_only, with_attention("sdpa")),
            "compiled": (tiny_qwen3_vl, compiled),
            "bfloat16": (tiny_qwen3_vl, as_dtype(torch.bfloat16)),
            "float64": (right_side(tiny_qwen3_vl), as_dtype(torch.float64)),
            "inside another model": (tiny_qwen3_vl, lambda model: Served(copy.deepcopy(model))),
            "attention rewritten": (
                tiny_qwen3_vl,
                rewritten(
                    all_of("TextAttention", attention_forward),
                    all_of("VisionAttention", qwen3_vl.vision_attention),
                ),
            ),
            "layers rewritten": (
                tiny_qwen3_vl,
                rewritten(
                    all_of("DecoderLayer", layer_forward),
                    all_of("VisionBlock", qwen3_vl.block_forward),
                ),
            ),
            "text model rewritten": (tiny_qwen3_vl, rewritten(qwen3_vl.text())),
            "mergers rewritten": (
                tiny_qwen3_vl,
                rewritten(all_of("PatchMerger", qwen3_vl.merger_forward)),
            ),
            "patches by a linear layer": (
                tiny_qwen3_vl,
                rewritten(all_of("PatchEmbed", linear_patches)),
            ),
            "other order of calls": (
                tiny_qwen3_vl,
                rewritten(all_of("TextMLP", mlp_forward, product=up_first)),
            ),
            "generation": (generation(tiny_qwen3_vl), copy.deepcopy),
            "generation, SDPA": (generation(tiny_qwen3_vl), generated_by(with_attention("sdpa"))),
            **{
                f"{what}, {variant}": (source, make(variant))
                for variant in VARIANTS
                for what, source, make in (
                    ("wrapped", tiny_qwen3_vl, wrapped),
                    ("wrapped, padded on the right", right_side(tiny_qwen3_vl), wrapped),
                    ("wrapped, one image of two frames", one_image, wrapped),
                    ("wrapped, text alone", text_only, wrapped),
                    ("wrapped, bfloat16", tiny_qwen3_vl, partial(wrapped, dtype=HALF)),
                    (
                        "wrapped, generation",
                        generation(tiny_qwen3_vl),
                        lambda variant: generated_by(wrapped(variant)),
                    ),
                )
            },
            **{
                f"quantised copy, {variant}": (quantized(tiny_qwen3_vl, variant), copy.deepcopy)
                for variant in VARIANTS
            },
        },
    ),
]
