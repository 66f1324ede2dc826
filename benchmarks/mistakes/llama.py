"""Mistakes in a Llama: the float model, a generation with a cache, and the wrapped model."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache
from transformers.models.llama import modeling_llama as llama

from benchmarks.mistakes.decoder import (
    CentredNorm,
    GemmaNorm,
    HalfNorm,
    InPlaceNorm,
    Tensor,
    as_given,
    as_numbers,
    as_they_lie,
    attention_forward,
    clipped,
    correct_mask,
    gate_and_up_exchanged,
    gate_not_activated,
    halved,
    heads_exchanged,
    heads_flipped,
    heads_reversed,
    in_bfloat16,
    in_half,
    interleaved,
    inverted,
    key_late,
    keys_as_values,
    layer_forward,
    left_out,
    masked_afterwards,
    minus_infinity,
    mlp_forward,
    negative_sine,
    no_mask,
    not_itself,
    not_negated,
    not_read,
    not_written,
    of_ten_thousand,
    of_the_first,
    of_the_norm,
    off_by_one,
    one_channel,
    one_head_lost,
    one_weight,
    only_query,
    other_half,
    other_rows,
    other_side,
    over_queries,
    quick_gelu,
    scaled_by_width,
    scaled_twice,
    sees_next,
    summed,
    through_bfloat16,
    through_float8,
    tiled,
    to_eight_bits,
    unscaled,
    weak,
    window,
    without_mask,
    without_padding,
)
from benchmarks.mistakes.planting import (
    Mistake,
    after,
    assign,
    buffer,
    child,
    everywhere,
    exchange,
    given,
    helper,
    method,
    parameter,
    recast,
    reforward,
    take,
    together,
)


def consecutive(past: int, length: int) -> Tensor:
    return torch.arange(length) + past


def model_forward(
    self: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Any = None,
    inputs_embeds: Tensor | None = None,
    use_cache: bool | None = None,
    *,
    make_mask: Callable[..., Any] = correct_mask,
    positions: Callable[[int, int], Tensor] = consecutive,
    change_tables: Callable[[Any], Any] = lambda tables: tables,
    change_ids: Callable[[Tensor], Tensor] = lambda ids: ids,
    embed_scale: float = 1.0,
    order: Callable[[Any], Any] = lambda layers: layers,
    cacheless: int | None = None,
    norms: int = 1,
    **kwargs: Any,
) -> Any:
    """A re-implementation of the Llama model, right unless an option makes it wrong."""
    hidden = self.embed_tokens(change_ids(input_ids)) * embed_scale
    if use_cache and past_key_values is None:
        past_key_values = DynamicCache(config=self.config)
    past = 0 if past_key_values is None else past_key_values.get_seq_length()
    ids = position_ids
    if ids is None or positions is not consecutive:
        ids = positions(past, hidden.shape[1]).unsqueeze(0)
    mask = make_mask(self, hidden, attention_mask, past_key_values)
    tables = change_tables(self.rotary_emb(hidden, position_ids=ids))
    for index, layer in enumerate(order(self.layers)):
        hidden = layer(
            hidden,
            attention_mask=mask,
            position_embeddings=tables,
            position_ids=ids,
            past_key_values=None if index == cacheless else past_key_values,
            use_cache=use_cache,
        )
    for _ in range(norms):
        hidden = self.norm(hidden)
    return llama.BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)


def causal_forward(
    self: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    change_mask: Callable[[Any], Any] = lambda mask: mask,
    change_states: Callable[[Tensor], Tensor] = lambda states: states,
    change_logits: Callable[[Tensor], Tensor] = lambda logits: logits,
    **kwargs: Any,
) -> Any:
    """A re-implementation of the causal LM, right unless an option makes it wrong."""
    states = self.model(input_ids=input_ids, attention_mask=change_mask(attention_mask), **kwargs)
    logits = change_logits(self.lm_head(change_states(states.last_hidden_state)))
    return llama.CausalLMOutputWithPast(logits=logits, past_key_values=states.past_key_values)


def rotary_in_bfloat16(self: Any, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    angles = position_ids[..., None].bfloat16() * self.inv_freq.bfloat16()  # wrong
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def mask_edited(self: Any, own: Any, *args: Any, **kwargs: Any) -> Any:
    """Weakens the mask that all layers share, after it was used."""
    output = own(*args, **kwargs)
    kwargs["attention_mask"].clamp_(min=-2.0)  # wrong
    return output


def tables_edited(self: Any, own: Any, *args: Any, **kwargs: Any) -> Any:
    """Negates the sine table that all layers share, after it was used."""
    output = own(*args, **kwargs)
    kwargs["position_embeddings"][1].neg_()  # wrong
    return output


def dropout_left_on(model: Any) -> None:
    module = model.get_submodule(ATTENTION)
    module.attention_dropout = 0.2
    module.train()


def one_layer_less(model: Any) -> None:
    model.model.config.num_hidden_layers -= 1


def add_bias(model: Any) -> None:
    """A bias that the reference does not have."""
    head = model.lm_head
    head.bias = nn.Parameter(torch.linspace(-1.0, 1.0, head.out_features), requires_grad=False)


def other_eps(amount: float) -> Callable[[Any], None]:
    """Every norm with another epsilon."""
    return everywhere(
        "Norm", lambda path: assign(path, "variance_epsilon", lambda eps: eps + amount)
    )


def bias_on_queries(model: Any) -> None:
    module = model.get_submodule(f"{ATTENTION}.q_proj")
    module.bias = nn.Parameter(torch.linspace(-0.3, 0.3, module.out_features), requires_grad=False)


def hook_left(model: Any) -> None:
    model.get_submodule(DOWN).register_forward_hook(lambda module, args, output: 1.05 * output)


def under_autocast(self: Any, own: Any, *args: Any, **kwargs: Any) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return own(*args, **kwargs)


def in_half_precision(self: Any, own: Any, x: Tensor) -> Tensor:
    self.bfloat16()
    return own(x.bfloat16()).to(x.dtype)


def layer_norm(norm: Any, bias: bool = False) -> nn.Module:
    other = nn.LayerNorm(len(norm.weight), eps=norm.variance_epsilon, bias=bias)
    other.weight = norm.weight
    return other


LAYER = "model.layers.1"
ATTENTION = f"{LAYER}.self_attn"
MLP = f"{LAYER}.mlp"
FIRST_NORM = f"{LAYER}.input_layernorm"
NORM = f"{LAYER}.post_attention_layernorm"
DOWN = f"{LAYER}.mlp.down_proj"
attention = partial(reforward, ATTENTION, attention_forward)
layer = partial(reforward, LAYER, layer_forward)
mlp = partial(reforward, MLP, mlp_forward)
model = partial(reforward, "model", model_forward)
causal = partial(reforward, "", causal_forward)

FLOAT = [
    Mistake("one weight", parameter(f"{MLP}.up_proj", one_weight), f"{MLP}.up_proj", "parameter"),
    Mistake("one bad channel", parameter(f"{ATTENTION}.o_proj", one_channel), f"{ATTENTION}.o_proj", "parameter"),
    Mistake("rows of q_proj rotated", parameter(f"{ATTENTION}.q_proj", other_rows), f"{ATTENTION}.q_proj", "parameter"),
    Mistake("two heads of v_proj exchanged", parameter(f"{ATTENTION}.v_proj", heads_exchanged), f"{ATTENTION}.v_proj", "parameter"),
    Mistake("columns of o_proj in another order", parameter(f"{ATTENTION}.o_proj", lambda w: w.roll(8, 1)), f"{ATTENTION}.o_proj", "parameter"),
    Mistake("q_proj transposed", parameter(f"{ATTENTION}.q_proj", torch.t), f"{ATTENTION}.q_proj", "parameter"),
    Mistake("k_proj scaled", parameter(f"{ATTENTION}.k_proj", lambda w: w * 0.5), f"{ATTENTION}.k_proj", "parameter"),
    Mistake("weight through 8-bit floats", parameter(f"{MLP}.gate_proj", through_float8), f"{MLP}.gate_proj", "parameter"),
    Mistake("weight in 8 bits", parameter(DOWN, to_eight_bits), DOWN, "parameter"),
    Mistake("norm weight plus one", parameter(NORM, lambda w: w + 1), NORM, "parameter"),
    Mistake("norm weight of the layer before", take(NORM, "model.layers.0.post_attention_layernorm"), NORM, "parameter"),
    Mistake("gate and up exchanged", exchange(f"{MLP}.gate_proj", f"{MLP}.up_proj"), f"{MLP}.gate_proj", "parameter"),
    Mistake("layers exchanged", exchange("model.layers.1", "model.layers.2"), FIRST_NORM, "parameter"),
    Mistake("embedding of another row", parameter("model.embed_tokens", lambda w: w.roll(1, 0)), "model.embed_tokens", "parameter"),
    Mistake("head of another checkpoint", parameter("lm_head", lambda w: w + 0.01 * w.roll(1, 0)), "lm_head", "parameter"),
    Mistake("bias added", add_bias, "lm_head", "parameter"),
    Mistake("another rope base", buffer("model.rotary_emb", "inv_freq", lambda f: f**1.1), "model.rotary_emb", "parameter"),
    Mistake("norm eps", assign(NORM, "variance_epsilon", lambda eps: 1e-2), NORM, "computation", line="variance_epsilon"),
    Mistake("eps of all norms", other_eps(1e-4), "model.layers.0.input_layernorm", "computation", line="variance_epsilon"),
    Mistake("eps of all norms ten times as large", other_eps(9e-6), "model.layers.0.input_layernorm", "computation", line="variance_epsilon"),
    Mistake("attention scale", assign(ATTENTION, "scaling", lambda s: s * 1.1), ATTENTION, "computation", line="* scaling"),
    Mistake("attention scale squared", assign(ATTENTION, "scaling", lambda s: s * s), ATTENTION, "computation", line="* scaling"),
    Mistake("attention scale missing", attention(score=unscaled), ATTENTION, "computation"),
    Mistake("attention scale applied twice", attention(score=scaled_twice), ATTENTION, "computation"),
    Mistake("attention scale by the hidden size", attention(score=scaled_by_width), ATTENTION, "computation"),
    Mistake("rotate-half sign", attention(rotate=negative_sine), ATTENTION, "computation"),
    Mistake("rotate-half without negation", attention(rotate=not_negated), ATTENTION, "computation"),
    Mistake("rope interleaved", attention(rotate=interleaved), ATTENTION, "computation"),
    Mistake("rope on the query only", attention(rotate=only_query), ATTENTION, "computation", line="key = expand(key"),
    Mistake("rope on half of the channels", attention(rotate=other_half), ATTENTION, "computation"),
    Mistake("rope of the keys one position late", attention(rotate=key_late), ATTENTION, "computation"),
    Mistake("another rotation helper in all layers", everywhere("Attention", lambda p: helper(p, apply_rotary_pos_emb=interleaved)), "model.layers.0.self_attn", "computation"),
    Mistake("KV head order", attention(expand=tiled), ATTENTION, "computation"),
    Mistake("KV head order of the values", attention(expand_values=tiled), ATTENTION, "computation"),
    Mistake("head order of the output", attention(gather=heads_reversed), ATTENTION, "computation"),
    Mistake("heads not transposed back", attention(gather=as_they_lie), ATTENTION, "computation", line="self.o_proj("),
    Mistake("one head lost", attention(gather=one_head_lost), ATTENTION, "computation"),
    Mistake("mask dropped inside attention", attention(weigh=without_mask), ATTENTION, "computation"),
    Mistake("mask applied after the softmax", attention(weigh=masked_afterwards), ATTENTION, "computation"),
    Mistake("softmax over the queries", attention(weigh=over_queries), ATTENTION, "computation"),
    Mistake("softmax in bfloat16", attention(weigh=in_bfloat16), ATTENTION, "computation"),
    Mistake("logits clipped", attention(weigh=clipped), ATTENTION, "computation"),
    Mistake("dropout left on", dropout_left_on, ATTENTION, "computation", line="dropout(", train=True),
    Mistake("mask edited for the layers after", method(ATTENTION, "forward", mask_edited), ATTENTION, "computation"),
    Mistake("tables edited for the layers after", method(ATTENTION, "forward", tables_edited), ATTENTION, "computation"),
    Mistake("attention residual left out", layer(after_attention=left_out), LAYER, "computation", line="inside = second("),
    Mistake("attention residual after the norm", layer(after_attention=of_the_norm), LAYER, "computation"),
    Mistake("attention output halved", layer(after_attention=halved), LAYER, "computation"),
    Mistake("MLP residual left out", layer(after_mlp=left_out), LAYER, "computation", line="return after_mlp("),
    Mistake("MLP residual after the norm", layer(after_mlp=of_the_norm), LAYER, "computation"),
    Mistake("norm after attention", layer(norm_after=True), LAYER, "computation", line="self.self_attn("),
    Mistake("norms exchanged", layer(norms_exchanged=True), LAYER, "computation", line="normed ="),
    Mistake("second norm left out", layer(second_norm=False), LAYER, "computation", line="self.mlp(inside)"),
    Mistake("attention and MLP in parallel", layer(parallel=True), LAYER, "computation", line="inside = second("),
    Mistake("mask not handed to the attention", given(ATTENTION, attention_mask=lambda mask: None), LAYER, "attention_mask"),
    Mistake("tables exchanged on the way", given(ATTENTION, position_embeddings=lambda t: t[::-1]), LAYER, "position_embeddings"),
    Mistake("gate not activated", mlp(product=gate_not_activated), MLP, "computation"),
    Mistake("up activated in place of gate", mlp(product=gate_and_up_exchanged), MLP, "computation"),
    Mistake("gate added, not multiplied", mlp(product=summed), MLP, "computation"),
    Mistake("norm in the memory of the residual", recast(FIRST_NORM, InPlaceNorm), FIRST_NORM, "computation"),
    Mistake("norm as in Gemma", recast(NORM, GemmaNorm), NORM, "computation"),
    Mistake("norm in bfloat16", recast(FIRST_NORM, HalfNorm), FIRST_NORM, "computation"),
    Mistake("norm takes the mean away", recast("model.norm", CentredNorm), "model.norm", "computation"),
    Mistake("layer norm for RMS norm", child(NORM, layer_norm), NORM, "computation", line="self.post_attention_layernorm("),
    Mistake("another activation", child(f"{MLP}.act_fn", lambda act: nn.GELU()), f"{MLP}.act_fn", "computation", line="self.act_fn("),
    Mistake("approximate activation", reforward(f"{MLP}.act_fn", quick_gelu), f"{MLP}.act_fn", "computation"),
    Mistake("padding dropped from the mask", model(make_mask=without_padding), "model", "attention_mask"),
    Mistake("padding on the other side", model(make_mask=other_side), "model", "attention_mask"),
    Mistake("no mask at all", model(make_mask=no_mask), "model", "attention_mask"),
    Mistake("integer mask added", model(make_mask=as_given), "model", "attention_mask"),
    Mistake("boolean mask added", model(make_mask=as_numbers), "model", "attention_mask"),
    Mistake("mask inverted", model(make_mask=inverted), "model", "attention_mask"),
    Mistake("mask too weak", model(make_mask=weak), "model", "attention_mask"),
    Mistake("mask of minus infinity", model(make_mask=minus_infinity), "model", "attention_mask"),
    Mistake("mask shows the next token", model(make_mask=sees_next), "model", "attention_mask"),
    Mistake("mask hides the token itself", model(make_mask=not_itself), "model", "attention_mask"),
    Mistake("mask of a window", model(make_mask=window), "model", "attention_mask"),
    Mistake("position ids off by one", model(positions=lambda past, n: torch.arange(n) + past + 1), "model", "position_ids"),
    Mistake("position ids of the parts", model(positions=lambda past, n: torch.arange(n) % 8), "model", "position_ids"),
    Mistake("cosine of the position before", model(change_tables=lambda t: (t[0].roll(1, 1), t[1])), "model", "position_embeddings"),
    Mistake("cosine and sine swapped", model(change_tables=lambda t: (t[1], t[0])), "model", "position_embeddings"),
    Mistake("tables through bfloat16", model(change_tables=lambda t: (through_bfloat16(t[0]), through_bfloat16(t[1]))), "model", "position_embeddings"),
    Mistake("positions in bfloat16", reforward("model.rotary_emb", rotary_in_bfloat16), "model.rotary_emb", "computation"),
    Mistake("scale of the tables", assign("model.rotary_emb", "attention_scaling", lambda s: 1.1 * s), "model.rotary_emb", "computation", line="self.attention_scaling"),
    Mistake("tokens shifted", model(change_ids=lambda ids: ids.roll(1, 1)), "model", "input"),
    Mistake("embedding scaled", model(embed_scale=8.0), "model", "computation", line="* embed_scale"),
    Mistake("layer skipped", model(order=lambda layers: [layers[0], *layers[2:]]), "model", "computation", line="hidden = layer("),
    Mistake("layers in another order", model(order=lambda layers: [layers[0], layers[2], layers[1], *layers[3:]]), "model", "computation", line="hidden = layer("),
    Mistake("one layer less by the config", one_layer_less, "model", "computation", line="self.norm(hidden_states)"),
    Mistake("last norm left out", model(norms=0), "model", "computation", line="hidden = layer("),
    Mistake("last norm twice", model(norms=2), "model", "computation", line="self.norm(hidden)"),
    Mistake("sequence shifted", after("model.norm", lambda x: x.roll(1, 1)), "model.norm", "computation"),
    Mistake("activation negated", after(DOWN, torch.neg), DOWN, "computation"),
    Mistake("activation clipped", after(DOWN, lambda x: x.clamp(-0.05, 0.05)), DOWN, "computation"),
    Mistake("cast down", after(DOWN, through_bfloat16), DOWN, "computation"),
    Mistake("channels rotated", after(f"{ATTENTION}.o_proj", lambda x: x.roll(1, -1)), f"{ATTENTION}.o_proj", "computation"),
    Mistake("mask not handed to the model", causal(change_mask=lambda mask: None), "", "attention_mask"),
    Mistake("padding reversed for the model", causal(change_mask=lambda mask: mask.flip(-1)), "", "attention_mask"),
    Mistake("states shifted before the head", causal(change_states=lambda x: x.roll(1, 1)), "", "computation"),
    Mistake("states cast before the head", causal(change_states=through_bfloat16), "", "computation"),
    Mistake("logits scaled", causal(change_logits=lambda x: x / 0.7), "", "computation"),
    Mistake("logits capped", causal(change_logits=lambda x: 5 * torch.tanh(x / 5)), "", "computation"),
    Mistake("logits in bfloat16", causal(change_logits=torch.Tensor.bfloat16), "", "computation", missed="a value in a coarser dtype is allowed that dtype's rounding; the agreement says so"),
    Mistake("mask of the first sequence for all", model(make_mask=of_the_first), "model", "attention_mask"),
    Mistake("bias on q_proj", bias_on_queries, f"{ATTENTION}.q_proj", "parameter"),
    Mistake("norm taken out", child(NORM, lambda norm: nn.Identity()), NORM, "computation", line="self.post_attention_layernorm("),
    Mistake("layer norm with a bias of zeros", child(NORM, partial(layer_norm, bias=True)), NORM, "computation", line="self.post_attention_layernorm("),
    Mistake("hook left behind", hook_left, DOWN, "computation"),
    Mistake("overflow in float16", after(DOWN, lambda x: (x * 1e6).half().float() / 1e6), DOWN, "computation"),
    Mistake("residual in bfloat16", layer(after_attention=lambda b, a, n: through_bfloat16(b + a)), LAYER, "computation"),
    Mistake("attention under autocast", method(ATTENTION, "forward", under_autocast), ATTENTION, "computation"),
    Mistake("MLP in bfloat16", method(MLP, "forward", in_half_precision), MLP, "computation"),
    Mistake("MLP loaded in bfloat16", lambda model: model.get_submodule(MLP).bfloat16(), f"{MLP}.gate_proj", "parameter"),
    Mistake("eps of one norm twice as large", assign(NORM, "variance_epsilon", lambda eps: 2 * eps), NORM, "computation", missed="its effect is within the rounding of float32; the agreement names the setting"),
    Mistake("queries doubled and keys halved", together(parameter(f"{ATTENTION}.q_proj", lambda w: 2 * w), parameter(f"{ATTENTION}.k_proj", lambda w: w / 2)), f"{ATTENTION}.q_proj", "parameter"),
    Mistake("another mask of the same meaning, and a scale", together(model(make_mask=of_ten_thousand), assign(ATTENTION, "scaling", lambda s: 0.5 * s)), ATTENTION, "computation", line="* scaling"),
    Mistake("two mistakes", together(parameter(f"{MLP}.up_proj", one_weight), layer(after_mlp=left_out)), f"{MLP}.up_proj", "parameter"),
]  # fmt: skip

# Of these, what a bfloat16 model's own rounding does not hide.
COARSE = (
    "norm weight plus one",
    "attention scale missing",
    "rotate-half sign",
    "KV head order",
    "mask dropped inside attention",
    "attention residual left out",
    "up activated in place of gate",
    "another activation",
    "integer mask added",
    "position ids of the parts",
    "cosine and sine swapped",
    "tokens shifted",
    "layer skipped",
    "sequence shifted",
    "logits scaled",
)


def next_positions(past: int, length: int) -> Tensor:
    """One too many, as soon as there is a past."""
    return torch.arange(length) + past + (past > 0)


def without_past(model: Any, hidden: Tensor, mask: Any, past: Any) -> Any:
    """After a past everything is shown, padding too."""
    right = correct_mask(model, hidden, mask, past)
    return torch.zeros_like(right) if past.get_seq_length() else right


def past_padding_late(model: Any, hidden: Tensor, mask: Tensor, past: Any) -> Any:
    """After a past the padding is taken one position too late."""
    return correct_mask(model, hidden, mask.roll(1, 1) if past.get_seq_length() else mask, past)


def reordered(cache: Any) -> Any:
    cache.reorder_cache(torch.tensor([1, 0, 2]))
    return cache


def repeated(cache: Any) -> Any:
    """The last position is that before it once more."""
    for cached in cache.layers:
        cached.keys[:, :, -1] = cached.keys[:, :, -2]
        cached.values[:, :, -1] = cached.values[:, :, -2]
    return cache


def hand_on(**changes: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Other inputs for each step."""

    def change(self: Any, own: Any, *args: Any) -> dict[str, Any]:
        step = own(*args)
        return {**step, **{name: change(step[name]) for name, change in changes.items()}}

    return method("", "step_inputs", change)


def neighbours_cache(model: Any) -> None:
    for index, other in ((1, 2), (2, 1)):
        model.get_submodule(f"model.layers.{index}.self_attn").layer_idx = other


GENERATION = [
    Mistake("keys cached before they are rotated", attention(rotate=only_query), ATTENTION, "computation", line="past.update("),
    Mistake("cache not written", attention(cache=not_written), ATTENTION, "computation"),
    Mistake("cache not read", attention(cache=not_read), ATTENTION, "computation"),
    Mistake("cached keys off by one", attention(cache=off_by_one), ATTENTION, "computation"),
    Mistake("keys and values exchanged in the cache", attention(cache=keys_as_values), ATTENTION, "computation"),
    Mistake("cache in bfloat16", attention(cache=in_half), ATTENTION, "computation"),
    Mistake("another order of heads in the cache", attention(cache=heads_flipped), ATTENTION, "computation"),
    Mistake("cache of another layer", neighbours_cache, ATTENTION, "computation", line="layer_idx"),
    Mistake("layer without the cache", model(cacheless=1), "model", "past_key_values", missed="what the prefill does not return comes first, and is named at the root, unconfirmed"),
    Mistake("next position off by one", model(positions=next_positions), "model", "position_ids"),
    Mistake("positions begin again", model(positions=lambda past, n: torch.arange(n)), "model", "position_ids"),
    Mistake("mask without the past", model(make_mask=without_past), "model", "attention_mask"),
    Mistake("padding of the past off by one", model(make_mask=past_padding_late), "model", "attention_mask"),
    Mistake("token of another sequence", hand_on(input_ids=lambda ids: ids.roll(1, 0)), "", "input_ids"),
    Mistake("padding forgotten after the first step", hand_on(attention_mask=torch.ones_like), "", "attention_mask"),
    Mistake("sequences of the cache exchanged", hand_on(past_key_values=reordered), "", "past_key_values"),
    Mistake("stale last position in the cache", hand_on(past_key_values=repeated), "", "past_key_values"),
]  # fmt: skip


# Mistakes in the wrapped model, for both of its variants.


def additive(change: Callable[..., Any]) -> Callable[[Any], None]:
    """The wrapped model makes its mask otherwise."""

    def plant(candidate: Any) -> None:
        own = candidate.model.masks.additive
        candidate.model.masks.additive = lambda mask, **kwargs: change(own, mask, **kwargs)

    return plant


def only_none_or_bool(candidate: Any) -> None:
    """A mask is built for None and booleans only; what else comes is added to the logits."""

    def plant(masks: Any) -> None:
        own = masks.additive

        def build(mask: Any, **kwargs: Any) -> Tensor:
            if mask is None or mask.dtype == torch.bool:
                return own(mask, **kwargs)
            return mask[:, None, None, :].float() if mask.dim() == 2 else mask

        masks.additive = build

    for module in candidate.modules():
        if hasattr(module, "masks"):
            plant(module.masks)


def padding_kept_visible(own: Any, mask: Any, **kwargs: Any) -> Tensor:
    return own(None, **kwargs)


def one_position_late(own: Any, mask: Any, **kwargs: Any) -> Tensor:
    return own(mask, **kwargs).roll(1, -1)


def faded(own: Any, mask: Any, **kwargs: Any) -> Tensor:
    return own(mask, **kwargs) / 40


def shift_positions(candidate: Any) -> None:
    """The wrapped model counts positions from one."""
    own = candidate.model.forward

    def forward(*args: Any, input_ids: Tensor, **kwargs: Any) -> Any:
        positions = torch.arange(input_ids.shape[1]).unsqueeze(0) + 1
        return own(*args, input_ids=input_ids, **{**kwargs, "position_ids": positions})

    candidate.model.forward = forward


def attend(change: Callable[..., tuple[Any, ...]], path: str = ATTENTION) -> Callable[[Any], None]:
    """The heads attend with other queries, keys, values, tables or masks."""
    return method(path, "_attend_heads", lambda module, own, *args: own(*change(module, *args)))


def other_keys(module: Any, query: Tensor, key: Tensor, *rest: Any) -> tuple[Any, ...]:
    return query, key.roll(module.head_dim, -1), *rest


def other_values(
    module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Any, ...]:
    return query, key, value.roll(module.head_dim, -1), *rest


def scaled_again(module: Any, query: Tensor, *rest: Any) -> tuple[Any, ...]:
    return query * module.scaling, *rest


def late_tables(module: Any, *states_and_inputs: Any) -> tuple[Any, ...]:
    *states, inputs = states_and_inputs
    return *states, replace(inputs, cos=inputs.cos.roll(1, 1), sin=inputs.sin.roll(1, 1))


def mask_forgotten(module: Any, *states_and_inputs: Any) -> tuple[Any, ...]:
    *states, inputs = states_and_inputs
    return *states, replace(inputs, mask=torch.zeros_like(inputs.mask), exact_mask=None)


def heads_out_of_order(module: Any, own: Any, *args: Any) -> Any:
    result = own(*args)
    return type(result)(result.output.roll(module.head_dim, -1), result.weights)


def other_sine(module: Any, own: Any, sin: Tensor) -> Tensor:
    """The table is negated where it should not be, or is not where it should."""
    return -own(sin)


WRAPPED = [
    Mistake("one weight", parameter(f"{MLP}.up_proj", one_weight), f"{MLP}.up_proj", "parameter"),
    Mistake("one bad channel of the keys", parameter(f"{ATTENTION}.k_proj", one_channel), f"{ATTENTION}.k_proj", "parameter"),
    Mistake("head not converted", parameter("lm_head", through_bfloat16), "lm_head", "parameter"),
    Mistake("norm eps", assign(NORM, "variance_epsilon", lambda eps: 1e-2), NORM, "computation", line="variance_epsilon"),
    Mistake("attention scale", attend(scaled_again), ATTENTION, "computation"),
    Mistake("rotate-half sign", method(ATTENTION, "sine_table", other_sine), ATTENTION, "computation"),
    Mistake("tables of the position before", attend(late_tables), ATTENTION, "computation"),
    Mistake("KV head order", attend(other_keys), ATTENTION, "computation"),
    Mistake("KV head order of the values", attend(other_values), ATTENTION, "computation"),
    Mistake("head order of the output", method(ATTENTION, "_attend_heads", heads_out_of_order), ATTENTION, "computation"),
    Mistake("mask dropped inside attention", attend(mask_forgotten), ATTENTION, "computation"),
    Mistake("attention residual left out", layer(after_attention=left_out), LAYER, "computation", line="inside = second("),
    Mistake("second norm left out", layer(second_norm=False), LAYER, "computation", line="self.mlp(inside)"),
    Mistake("up activated in place of gate", mlp(product=gate_and_up_exchanged), MLP, "computation"),
    Mistake("sigmoid alone for the activation", reforward(f"{MLP}.act_fn", lambda self, x: torch.sigmoid(x)), f"{MLP}.act_fn", "computation"),
    Mistake("mask built for None and bool only", only_none_or_bool, "model", "attention_mask"),
    Mistake("mask dropped for a padded batch", additive(padding_kept_visible), "model", "attention_mask"),
    Mistake("mask off by one", additive(one_position_late), "model", "attention_mask"),
    Mistake("mask of -3 for -120", additive(faded), "model", "attention_mask"),
    Mistake("position ids off by one", shift_positions, "model", "position_ids"),
    Mistake("rope tables exchanged", after("model.rotary_emb", lambda tables: tables[::-1]), "model.rotary_emb", "computation"),
]  # fmt: skip
