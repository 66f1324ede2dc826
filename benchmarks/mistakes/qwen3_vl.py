"""Mistakes in a Qwen3-VL: the float model, a generation after an image, and the wrapped model."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen

from benchmarks.mistakes.decoder import (
    HalfNorm,
    Tensor,
    as_given,
    attention_forward,
    correct_mask,
    gate_and_up_exchanged,
    heads_reversed,
    in_half,
    interleaved,
    key_late,
    layer_forward,
    left_out,
    mlp_forward,
    negative_sine,
    no_mask,
    not_read,
    of_the_norm,
    one_channel,
    one_weight,
    own_norms,
    scaled_by_width,
    sees_next,
    through_bfloat16,
    tiled,
    weak,
    without_mask,
    without_padding,
)
from benchmarks.mistakes.llama import (
    attend,
    hand_on,
    heads_out_of_order,
    late_tables,
    only_none_or_bool,
    other_keys,
    other_sine,
    scaled_again,
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
)

TEXT, VISION = "model.language_model", "model.visual"
LAYER, BLOCK = f"{TEXT}.layers.1", f"{VISION}.blocks.1"
ATTENTION, VISION_ATTENTION = f"{LAYER}.self_attn", f"{BLOCK}.attn"
MERGER = f"{VISION}.merger"


def text_forward(
    self: Any,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Any = None,
    inputs_embeds: Tensor | None = None,
    use_cache: bool | None = None,
    visual_pos_masks: Tensor | None = None,
    deepstack_visual_embeds: Any = None,
    *,
    make_mask: Callable[..., Any] = correct_mask,
    change_tables: Callable[[Any], Any] = lambda tables: tables,
    deepstack_after: Callable[[int], int | None] = lambda layer: layer,
    add: Callable[[Tensor, Tensor], Tensor] = torch.add,
    before_norm: Callable[[Tensor], Tensor] = lambda hidden: hidden,
    **kwargs: Any,
) -> Any:
    """A re-implementation of the text model, right unless an option makes it wrong."""
    hidden = inputs_embeds
    if use_cache and past_key_values is None:
        past_key_values = DynamicCache(config=self.config)
    text_ids, rope_ids = position_ids, position_ids
    if position_ids.shape[0] == 4:
        text_ids, rope_ids = position_ids[0], position_ids[1:]
    else:
        text_ids = None
    mask = make_mask(self, hidden, attention_mask, past_key_values)
    tables = change_tables(self.rotary_emb(hidden, rope_ids))
    for index, layer in enumerate(self.layers):
        hidden = layer(
            hidden,
            attention_mask=mask,
            position_ids=text_ids,
            past_key_values=past_key_values,
            position_embeddings=tables,
        )
        features = deepstack_after(index)
        if deepstack_visual_embeds is not None and features is not None:
            hidden = hidden.clone()
            shown = hidden[visual_pos_masks]
            hidden[visual_pos_masks] = add(shown, deepstack_visual_embeds[features])
    hidden = self.norm(before_norm(hidden))
    return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)


def vision_attention(
    self: Any,
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    rotary_pos_emb: Any = None,
    position_embeddings: Any = None,
    *,
    split: Callable[[Tensor], Any] = lambda qkv: qkv.unbind(1),
    rotate: Callable[..., Any] = qwen.apply_rotary_pos_emb_vision,
    scale: Callable[[float], float] = lambda scaling: scaling,
    by_image: bool = True,
    causal: bool = False,
    **kwargs: Any,
) -> Tensor:
    """A re-implementation of the attention over patches, right unless an option makes it wrong."""
    length = hidden_states.shape[0]
    qkv = self.qkv(hidden_states).reshape(length, 3, self.num_heads, -1)
    query, key, value = split(qkv)
    query, key = rotate(query, key, *position_embeddings)
    ends = cu_seqlens.tolist() if by_image else [0, length]
    outputs = []
    for start, end in itertools.pairwise(ends):
        # [heads, patches, head_dim]
        q, k, v = (states[start:end].transpose(0, 1) for states in (query, key, value))
        logits = q @ k.mT * scale(self.scaling)
        if causal:
            logits = logits + torch.full_like(logits, -1e9).triu(1)
        outputs.append((logits.softmax(-1) @ v).transpose(0, 1))
    return self.proj(torch.cat(outputs).reshape(length, -1))


def block_forward(
    self: Any,
    hidden_states: Tensor,
    *,
    attention_residual: bool = True,
    norm_after: bool = False,
    **kwargs: Any,
) -> Tensor:
    """A re-implementation of the vision block, right unless an option makes it wrong."""
    if norm_after:
        attended = self.norm1(self.attn(hidden_states, **kwargs))
    else:
        attended = self.attn(self.norm1(hidden_states), **kwargs)
    middle = hidden_states + attended if attention_residual else attended
    return middle + self.mlp(self.norm2(middle))


def merger_forward(
    self: Any, x: Tensor, *, regroup: Callable[[Tensor], Tensor] = lambda groups: groups
) -> Tensor:
    """A re-implementation of the patch merger, right unless an option makes it wrong."""
    x = self.norm(x.view(-1, self.hidden_size) if self.use_postshuffle_norm else x)
    # [merged patches, patches, hidden]
    groups = regroup(x.view(-1, 4, self.hidden_size // 4))
    return self.linear_fc2(self.act_fn(self.linear_fc1(groups.reshape(-1, self.hidden_size))))


def patch_forward(
    self: Any, hidden_states: Tensor, *, view: Callable[[Any, Tensor], Tensor]
) -> Tensor:
    """The patch embedding with the pixels of a patch in another order."""
    return self.proj(view(self, hidden_states)).view(-1, self.embed_dim)


def frames_before_channels(self: Any, patches: Tensor) -> Tensor:
    shape = (-1, self.temporal_patch_size, self.in_channels, self.patch_size, self.patch_size)
    return patches.view(shape).transpose(1, 2)


def columns_before_rows(self: Any, patches: Tensor) -> Tensor:
    shape = (-1, self.in_channels, self.temporal_patch_size, self.patch_size, self.patch_size)
    return patches.view(shape).mT


def channels_reversed(self: Any, patches: Tensor) -> Tensor:
    """Blue, green, red for red, green, blue."""
    shape = (-1, self.in_channels, self.temporal_patch_size, self.patch_size, self.patch_size)
    return patches.view(shape).flip(1)


# Wrong norms over heads.


def no_norms(self: Any, query: Tensor, key: Tensor) -> Any:
    own_norms(self, query, key)
    return query, key


def norms_exchanged(self: Any, query: Tensor, key: Tensor) -> Any:
    return self.k_norm(query), self.q_norm(key)


def norms_over_all_heads(self: Any, query: Tensor, key: Tensor) -> Any:
    query, key = own_norms(self, query, key)
    return (
        query
        * query.pow(2).mean(-1, keepdim=True).sqrt()
        / query.pow(2).mean((-2, -1), keepdim=True).sqrt(),
        key,
    )


# Wrong positions. Each is given the model, its old method, and the arguments of that.


def change_positions(change: Callable[[Tensor], Tensor]) -> Callable[[Any], None]:
    """The model computes other 3-D positions, [3, batch, sequence]."""
    return method(
        "model", "compute_3d_position_ids", lambda self, own, **kwargs: change(own(**kwargs))
    )


def rows_first(positions: Tensor) -> Tensor:
    return positions[[0, 2, 1]]


def time_only(positions: Tensor) -> Tensor:
    return positions[:1].expand_as(positions)


def one_too_far(positions: Tensor) -> Tensor:
    """Everything after the first image is counted from one further on."""
    positions = positions.clone()
    positions[..., 20:] += 1
    return positions


def as_text(positions: Tensor) -> Tensor:
    return torch.arange(positions.shape[-1]).expand_as(positions)


def sections_in_blocks(self: Any, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Time, rows and columns one after the other, as in Qwen2-VL."""
    angles = position_ids[..., None].float() * self.inv_freq
    parts = angles.split([4, 2, 2], dim=-1)  # wrong
    angles = torch.cat([part[axis] for axis, part in enumerate(parts)], dim=-1)  # wrong
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def neighbours_in_turn(states: Any) -> Any:
    return states[1], states[0]


# Wrong features.


def image_features(change: Callable[[Any], None]) -> Callable[[Any], None]:
    """The model changes what the vision model has given it for the images."""

    def compute(self: Any, own: Any, *args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        change(output)
        return output

    return method("model", "get_image_features", compute)


def images_exchanged(output: Any) -> None:
    output.pooler_output = output.pooler_output[::-1]


def features_late(output: Any) -> None:
    output.pooler_output = tuple(features.roll(1, 0) for features in output.pooler_output)


def features_lost(output: Any) -> None:
    output.pooler_output = tuple(torch.zeros_like(features) for features in output.pooler_output)


def deepstack_reversed(output: Any) -> None:
    output.deepstack_features = list(output.deepstack_features)[::-1]


def deepstack_of_the_head(output: Any) -> None:
    """The merged features of the last block in place of those of the first."""
    output.deepstack_features = [output.pooler_output, *output.deepstack_features[1:]]


def deepstack_cut(output: Any) -> None:
    output.deepstack_features = list(output.deepstack_features)[:1]


def pixels_again(pixels: Tensor) -> Tensor:
    """Normalised by a mean and a deviation of 0.5 once more."""
    return (pixels - 0.5) / 0.5


def raster_order(pixels: Tensor) -> Tensor:
    """Patches row by row, not merged block by merged block."""
    return pixels.view(-1, 2, 2, 2, pixels.shape[-1]).transpose(1, 2).reshape(pixels.shape)


def sides_exchanged(grid: Tensor) -> Tensor:
    return grid[:, [0, 2, 1]]


def images_as_one(ends: Tensor) -> Tensor:
    return ends[[0, -1]]


def rows_and_columns(tables: tuple[Tensor, Tensor]) -> Any:
    """The angles of columns where those of rows belong."""
    quarter = tables[0].shape[-1] // 4
    order = torch.arange(4 * quarter).view(4, quarter)[[1, 0, 3, 2]].flatten()
    return tuple(table[..., order] for table in tables)


def rms_norm(norm: Any) -> nn.Module:
    other = nn.RMSNorm(norm.normalized_shape, eps=norm.eps)
    other.weight = norm.weight
    other.register_parameter("bias", norm.bias)
    return other


def heads_of_qkv(qkv: Tensor) -> Any:
    """As if the heads came before queries, keys and values."""
    length, three, heads, width = qkv.shape
    return qkv.reshape(length, heads, three, width).unbind(2)


def without_bias(path: str) -> Callable[[Any], None]:
    def plant(model: Any) -> None:
        model.get_submodule(path).bias = None

    return plant


attention = partial(reforward, ATTENTION, attention_forward)
layer = partial(reforward, LAYER, layer_forward)
text = partial(reforward, TEXT, text_forward)
patches = partial(reforward, f"{VISION}.patch_embed", patch_forward)
block = partial(reforward, BLOCK, block_forward)
merger = partial(reforward, MERGER, merger_forward)
seeing = partial(reforward, VISION_ATTENTION, vision_attention)

FLOAT_TEXT = [
    Mistake("one weight", parameter(f"{LAYER}.mlp.up_proj", one_weight), f"{LAYER}.mlp.up_proj", "parameter"),
    Mistake("one bad channel", parameter(f"{ATTENTION}.v_proj", one_channel), f"{ATTENTION}.v_proj", "parameter"),
    Mistake("head tied to the embedding", take("lm_head", f"{TEXT}.embed_tokens"), "lm_head", "parameter"),
    Mistake("norms of queries and keys exchanged", exchange(f"{ATTENTION}.q_norm", f"{ATTENTION}.k_norm"), f"{ATTENTION}.q_norm", "parameter"),
    Mistake("norms exchanged in the forward", attention(normalise=norms_exchanged), ATTENTION, "computation"),
    Mistake("norms over heads left out", attention(normalise=no_norms), ATTENTION, "computation", line="rotate(query"),
    Mistake("norm of queries over all heads", attention(normalise=norms_over_all_heads), ATTENTION, "computation"),
    Mistake("norm in bfloat16", recast(f"{LAYER}.post_attention_layernorm", HalfNorm), f"{LAYER}.post_attention_layernorm", "computation"),
    Mistake("rotate-half sign", attention(rotate=negative_sine), ATTENTION, "computation"),
    Mistake("rope interleaved", attention(rotate=interleaved), ATTENTION, "computation"),
    Mistake("rope of the keys one position late", attention(rotate=key_late), ATTENTION, "computation"),
    Mistake("attention scale by the hidden size", attention(score=scaled_by_width), ATTENTION, "computation"),
    Mistake("KV head order", attention(expand=tiled), ATTENTION, "computation"),
    Mistake("head order of the output", attention(gather=heads_reversed), ATTENTION, "computation"),
    Mistake("mask dropped inside attention", attention(weigh=without_mask), ATTENTION, "computation"),
    Mistake("another rotation helper in all layers", everywhere("TextAttention", lambda p: helper(p, apply_rotary_pos_emb=interleaved)), f"{TEXT}.layers.0.self_attn", "computation"),
    Mistake("attention residual left out", layer(after_attention=left_out), LAYER, "computation", line="inside = second("),
    Mistake("MLP residual after the norm", layer(after_mlp=of_the_norm), LAYER, "computation"),
    Mistake("up activated in place of gate", reforward(f"{LAYER}.mlp", mlp_forward, product=gate_and_up_exchanged), f"{LAYER}.mlp", "computation"),
    Mistake("integer mask handed down", text(make_mask=as_given), TEXT, "attention_mask"),
    Mistake("no mask at all", text(make_mask=no_mask), TEXT, "attention_mask"),
    Mistake("padding dropped from the mask", text(make_mask=without_padding), TEXT, "attention_mask"),
    Mistake("mask shows the next token", text(make_mask=sees_next), TEXT, "attention_mask"),
    Mistake("mask too weak", text(make_mask=weak), TEXT, "attention_mask"),
    Mistake("mask not handed to the text model", given(TEXT, attention_mask=lambda mask: None), "model", "attention_mask"),
    Mistake("sections of the rope exchanged", assign(f"{TEXT}.rotary_emb", "mrope_section", lambda s: [s[0], 1, 3]), f"{TEXT}.rotary_emb", "computation", line="freqs_t["),
    Mistake("sections of the rope in blocks", reforward(f"{TEXT}.rotary_emb", sections_in_blocks), f"{TEXT}.rotary_emb", "computation"),
    Mistake("another rope base", buffer(f"{TEXT}.rotary_emb", "inv_freq", lambda f: f**0.9), f"{TEXT}.rotary_emb", "parameter"),
    Mistake("tables through bfloat16", text(change_tables=lambda t: (through_bfloat16(t[0]), through_bfloat16(t[1]))), TEXT, "position_embeddings"),
    Mistake("rows and columns exchanged", change_positions(rows_first), "model", "position_ids"),
    Mistake("time for rows and columns", change_positions(time_only), "model", "position_ids"),
    Mistake("positions after the image off by one", change_positions(one_too_far), "model", "position_ids"),
    Mistake("positions as of text alone", change_positions(as_text), "model", "position_ids"),
    Mistake("deepstack one layer late", text(deepstack_after=lambda i: i - 1 if i else None), TEXT, "computation", line="hidden = layer("),
    Mistake("deepstack left out", text(deepstack_after=lambda i: None), TEXT, "computation", line="layer("),
    Mistake("deepstack after the first layer only", text(deepstack_after=lambda i: None if i else i), TEXT, "computation", line="before_norm(hidden)"),
    Mistake("deepstack in the other order", text(deepstack_after=lambda i: 1 - i), TEXT, "computation", line="hidden[visual_pos_masks] ="),
    Mistake("deepstack in place of the states", text(add=lambda states, features: features), TEXT, "computation", line="hidden[visual_pos_masks] ="),
    Mistake("deepstack added twice", text(add=lambda states, features: states + 2 * features), TEXT, "computation"),
    Mistake("states cast before the last norm", text(before_norm=through_bfloat16), TEXT, "computation"),
    Mistake("deepstack positions off by one", given(TEXT, visual_pos_masks=lambda m: m.roll(1, -1)), "model", "visual_pos_masks"),
    Mistake("deepstack features reversed", image_features(deepstack_reversed), "model", "deepstack_visual_embeds"),
    Mistake("deepstack features of the wrong block", image_features(deepstack_of_the_head), "model", "deepstack_visual_embeds"),
    Mistake("deepstack features cut short", image_features(deepstack_cut), "model", "deepstack_visual_embeds", missed="a list that is shorter is a form; the error that it makes is named where it appears"),
    Mistake("images exchanged", image_features(images_exchanged), "model", "inputs_embeds"),
    Mistake("features one token late", image_features(features_late), "model", "inputs_embeds"),
    Mistake("features of the images lost", image_features(features_lost), "model", "inputs_embeds"),
    Mistake("embeddings scaled", given(TEXT, inputs_embeds=lambda x: 8.0 * x), "model", "inputs_embeds"),
    Mistake("states shifted before the head", given("lm_head", lambda x: x.roll(1, 1)), "", "computation"),
]  # fmt: skip

FLOAT_VISION = [
    Mistake("patch transposed", patches(view=columns_before_rows), f"{VISION}.patch_embed", "computation"),
    Mistake("frames before channels", patches(view=frames_before_channels), f"{VISION}.patch_embed", "computation"),
    Mistake("channels reversed", patches(view=channels_reversed), f"{VISION}.patch_embed", "computation"),
    Mistake("patch weights transposed", parameter(f"{VISION}.patch_embed.proj", lambda w: w.mT), f"{VISION}.patch_embed.proj", "parameter"),
    Mistake("patch bias missing", without_bias(f"{VISION}.patch_embed.proj"), f"{VISION}.patch_embed.proj", "parameter"),
    Mistake("pixels normalised again", given(VISION, pixels_again), "model", "computation"),
    Mistake("patches in raster order", given(VISION, raster_order), "model", "computation"),
    Mistake("height and width exchanged", given(VISION, grid_thw=sides_exchanged), "model", "grid_thw"),
    Mistake("position table transposed", parameter(f"{VISION}.pos_embed", lambda w: w.view(16, 16, -1).transpose(0, 1).reshape(w.shape)), f"{VISION}.pos_embed", "parameter"),
    Mistake("position table read in another order", given(f"{VISION}.pos_embed", lambda ids: ids.flip(0)), VISION, "input"),
    Mistake("position table off by one", given(f"{VISION}.pos_embed", lambda ids: (ids + 1).clamp(max=255)), VISION, "input"),
    Mistake("position embedding left out", after(f"{VISION}.pos_embed", torch.zeros_like), f"{VISION}.pos_embed", "computation"),
    Mistake("rope of rows and columns exchanged", everywhere("VisionBlock", lambda p: given(p, position_embeddings=rows_and_columns)), VISION, "position_embeddings"),
    Mistake("rope tables exchanged", everywhere("VisionBlock", lambda p: given(p, position_embeddings=neighbours_in_turn)), VISION, "position_embeddings"),
    Mistake("another rope base", buffer(f"{VISION}.rotary_pos_emb", "inv_freq", lambda f: f**0.9), f"{VISION}.rotary_pos_emb", "parameter"),
    Mistake("images as one sequence", everywhere("VisionBlock", lambda p: given(p, cu_seqlens=images_as_one)), VISION, "cu_seqlens"),
    Mistake("images as one sequence in the attention", seeing(by_image=False), VISION_ATTENTION, "computation", line="ends = cu_seqlens"),
    Mistake("attention to patches before only", seeing(causal=True), VISION_ATTENTION, "computation", line="full_like(logits"),
    Mistake("keys and values exchanged", seeing(split=lambda qkv: qkv[:, [0, 2, 1]].unbind(1)), VISION_ATTENTION, "computation"),
    Mistake("heads before queries, keys and values", seeing(split=heads_of_qkv), VISION_ATTENTION, "computation"),
    Mistake("rows of qkv in another order", parameter(f"{VISION_ATTENTION}.qkv", lambda w: w.roll(64, 0)), f"{VISION_ATTENTION}.qkv", "parameter"),
    Mistake("attention scale missing", seeing(scale=lambda s: 1.0), VISION_ATTENTION, "computation", line="* scale(self.scaling)"),
    Mistake("attention scale twice", seeing(scale=lambda s: s * s), VISION_ATTENTION, "computation", line="* scale(self.scaling)"),
    Mistake("rotate-half sign", seeing(rotate=lambda q, k, cos, sin: qwen.apply_rotary_pos_emb_vision(q, k, cos, -sin)), VISION_ATTENTION, "computation"),
    Mistake("rope left out", seeing(rotate=lambda q, k, cos, sin: (q, k)), VISION_ATTENTION, "computation", line="states[start:end]"),
    Mistake("rope on the query only", seeing(rotate=lambda q, k, cos, sin: (qwen.apply_rotary_pos_emb_vision(q, k, cos, sin)[0], k)), VISION_ATTENTION, "computation", line="states[start:end]"),
    Mistake("attention residual left out", block(attention_residual=False), BLOCK, "computation", line="self.norm2(middle)"),
    Mistake("norm after attention", block(norm_after=True), BLOCK, "computation", line="self.attn(hidden_states"),
    Mistake("RMS norm for layer norm", child(f"{BLOCK}.norm1", rms_norm), f"{BLOCK}.norm1", "computation", line="self.norm1("),
    Mistake("norm eps", assign(f"{BLOCK}.norm2", "eps", lambda eps: 1e-3), f"{BLOCK}.norm2", "computation", line="self.norm2("),
    Mistake("norm bias missing", without_bias(f"{BLOCK}.norm2"), f"{BLOCK}.norm2", "parameter"),
    Mistake("exact activation for the approximate one", child(f"{BLOCK}.mlp.act_fn", lambda act: nn.GELU()), f"{BLOCK}.mlp.act_fn", "computation", line="self.act_fn("),
    Mistake("approximate activation in the merger", child(f"{MERGER}.act_fn", lambda act: nn.GELU("tanh")), f"{MERGER}.act_fn", "computation", line="self.act_fn("),
    Mistake("merged column by column", merger(regroup=lambda g: g[:, [0, 2, 1, 3]]), MERGER, "computation"),
    Mistake("merged channel by channel", merger(regroup=lambda g: g.transpose(1, 2)), MERGER, "computation"),
    Mistake("one bad channel of the merger", parameter(f"{MERGER}.linear_fc2", one_channel), f"{MERGER}.linear_fc2", "parameter"),
    Mistake("deepstack mergers exchanged", exchange(f"{VISION}.deepstack_merger_list.0", f"{VISION}.deepstack_merger_list.1"), f"{VISION}.deepstack_merger_list.0.norm", "parameter"),
    Mistake("deepstack blocks in the other order", assign(VISION, "deepstack_visual_indexes", lambda i: i[::-1]), VISION, "computation", line="deepstack_merger_list["),
    Mistake("deepstack patches in another order", given(f"{VISION}.deepstack_merger_list.0", lambda x: x.roll(1, 0)), VISION, "computation"),
    Mistake("vision features cast down", after(MERGER, through_bfloat16), MERGER, "computation"),
]  # fmt: skip

GENERATION = [
    Mistake("offset of the images forgotten", hand_on(position_ids=lambda ids: ids + 7), "", "position_ids"),
    Mistake("cache not read", attention(cache=not_read), ATTENTION, "computation"),
    Mistake("cache in bfloat16", attention(cache=in_half), ATTENTION, "computation"),
    Mistake("padding forgotten after the first step", hand_on(attention_mask=torch.ones_like), "", "attention_mask"),
]  # fmt: skip


# Mistakes in the wrapped model, for both of its variants.


def attend_patches(change: Callable[..., tuple[Any, ...]]) -> Callable[[Any], None]:
    """The patches attend with other projections, tables or segments."""
    return method(
        VISION_ATTENTION, "_attend_segments", lambda module, own, *args: own(*change(module, *args))
    )


def queries_as_keys(module: Any, qkv: Tensor, *rest: Any) -> tuple[Any, ...]:
    query, key, value = qkv.chunk(3, dim=-1)
    return torch.cat((key, query, value), dim=-1), *rest


def one_segment(
    module: Any, qkv: Tensor, cos: Tensor, sin: Tensor, lengths: Any
) -> tuple[Any, ...]:
    return qkv, cos, sin, [sum(lengths)]


def patches_late(
    module: Any, qkv: Tensor, cos: Tensor, sin: Tensor, lengths: Any
) -> tuple[Any, ...]:
    return qkv, cos.roll(1, 0), sin.roll(1, 0), lengths


def add_features(change: Callable[..., tuple[Any, ...]]) -> Callable[[Any], None]:
    """The text model adds other features, or adds them elsewhere."""
    return method(TEXT, "_add_features", lambda module, own, *args: own(*change(*args)))


def scaled_logits(module: Any, qkv: Tensor, *rest: Any) -> tuple[Any, ...]:
    query, key, value = qkv.chunk(3, dim=-1)
    return torch.cat((query * module.scaling, key, value), dim=-1), *rest


WRAPPED = [
    Mistake("one weight", parameter(f"{LAYER}.mlp.up_proj", one_weight), f"{LAYER}.mlp.up_proj", "parameter"),
    Mistake("factor of the logits in the keys once more", parameter(f"{ATTENTION}.k_norm", lambda w: w / 4), f"{ATTENTION}.k_norm", "parameter"),
    Mistake("attention scale", attend(scaled_again, ATTENTION), ATTENTION, "computation"),
    Mistake("rotate-half sign", method(ATTENTION, "sine_table", other_sine), ATTENTION, "computation"),
    Mistake("tables of the position before", attend(late_tables, ATTENTION), ATTENTION, "computation"),
    Mistake("KV head order", attend(other_keys, ATTENTION), ATTENTION, "computation"),
    Mistake("head order of the output", method(ATTENTION, "_attend_heads", heads_out_of_order), ATTENTION, "computation"),
    Mistake("mask built for None and bool only", only_none_or_bool, TEXT, "attention_mask"),
    Mistake("attention residual left out", layer(after_attention=left_out), LAYER, "computation", line="inside = second("),
    Mistake("rows and columns exchanged", change_positions(rows_first), "model", "position_ids"),
    Mistake("images exchanged", image_features(images_exchanged), "model", "inputs_embeds"),
    Mistake("deepstack features reversed", image_features(deepstack_reversed), "model", "deepstack_visual_embeds"),
    Mistake("deepstack left out", method(TEXT, "_add_features", lambda module, own, hidden, *args: hidden), TEXT, "computation", line="layer("),
    Mistake("deepstack one token late", add_features(lambda hidden, positions, features, index: (hidden, positions, features.roll(1, 0), index)), TEXT, "computation"),
    Mistake("patch transposed", patches(view=columns_before_rows), f"{VISION}.patch_embed", "computation"),
    Mistake("position table read in another order", given(f"{VISION}.pos_embed", lambda ids: ids.flip(0)), VISION, "input"),
    Mistake("queries and keys exchanged", attend_patches(queries_as_keys), VISION_ATTENTION, "computation"),
    Mistake("images as one segment", attend_patches(one_segment), VISION_ATTENTION, "computation"),
    Mistake("rope of the patch before", attend_patches(patches_late), VISION_ATTENTION, "computation"),
    Mistake("vision attention scale twice", attend_patches(scaled_logits), VISION_ATTENTION, "computation"),
    Mistake("vision rotate-half sign", method(VISION_ATTENTION, "_sine_table", other_sine), VISION_ATTENTION, "computation"),
    Mistake("norm after attention", block(norm_after=True), BLOCK, "computation", line="self.attn(hidden_states"),
    Mistake("merged column by column", merger(regroup=lambda g: g[:, [0, 2, 1, 3]]), MERGER, "computation"),
    Mistake("deepstack mergers exchanged", exchange(f"{VISION}.deepstack_merger_list.0", f"{VISION}.deepstack_merger_list.1"), f"{VISION}.deepstack_merger_list.0.norm", "parameter"),
]  # fmt: skip
