"""Re-implementations of what decoders are made of, right unless an option makes them wrong.

They serve Llama and the text half of Qwen3-VL; the options are the mistakes that people make when
they write an attention, a layer or a mask of their own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

Tensor = torch.Tensor


def scaled(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    return query @ key.transpose(2, 3) * scaling


def masked_softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    return (logits if mask is None else logits + mask).softmax(-1)


def update(past: Any, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    return past.update(key, value, layer)


def heads_together(output: Tensor) -> Tensor:
    # [B, heads, query, head_dim] -> [B, query, heads, head_dim]
    return output.transpose(1, 2)


def own_norms(self: Any, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """The norms over each head, of the models that have them."""
    if not hasattr(self, "q_norm"):
        return query, key
    return self.q_norm(query), self.k_norm(key)


def attention_forward(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: Any = None,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    *,
    normalise: Callable[..., Any] = own_norms,
    rotate: Callable[..., Any] = apply_rotary_pos_emb,
    cache: Callable[..., Any] = update,
    expand: Callable[..., Any] = repeat_kv,
    expand_values: Callable[..., Any] | None = None,
    score: Callable[..., Any] = scaled,
    weigh: Callable[..., Any] = masked_softmax,
    gather: Callable[..., Any] = heads_together,
    **kwargs: Any,
) -> Any:
    """An attention."""
    shape = (*hidden_states.shape[:-1], -1, self.head_dim)
    query, key = self.q_proj(hidden_states).view(shape), self.k_proj(hidden_states).view(shape)
    query, key = normalise(self, query, key)
    value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
    query, key = rotate(query.transpose(1, 2), key.transpose(1, 2), *position_embeddings)
    if past_key_values is not None:
        key, value = cache(past_key_values, key, value, self.layer_idx)
    key = expand(key, self.num_key_value_groups)
    value = (expand_values or expand)(value, self.num_key_value_groups)
    weights = weigh(score(query, key, self.scaling), attention_mask)
    output = gather(weights @ value)
    return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights


def residual(before: Tensor, added: Tensor, normed: Tensor) -> Tensor:
    return before + added


def layer_forward(
    self: Any,
    hidden_states: Tensor,
    *,
    after_attention: Callable[..., Tensor] = residual,
    after_mlp: Callable[..., Tensor] = residual,
    norm_after: bool = False,
    norms_exchanged: bool = False,
    second_norm: bool = True,
    parallel: bool = False,
    **kwargs: Any,
) -> Tensor:
    """A decoder layer."""
    first, second = self.input_layernorm, self.post_attention_layernorm
    if norms_exchanged:
        first, second = second, first
    normed = hidden_states if norm_after else first(hidden_states)
    attended, _ = self.self_attn(hidden_states=normed, **kwargs)
    attended = first(attended) if norm_after else attended
    middle = after_attention(hidden_states, attended, normed)
    inside = second(hidden_states if parallel else middle) if second_norm else middle
    return after_mlp(middle, self.mlp(inside), inside)


def gated(self: Any, x: Tensor) -> Tensor:
    return self.act_fn(self.gate_proj(x)) * self.up_proj(x)


def mlp_forward(self: Any, x: Tensor, *, product: Callable[..., Tensor] = gated) -> Tensor:
    """A gated MLP."""
    return self.down_proj(product(self, x))


def correct_mask(model: Any, hidden: Tensor, mask: Tensor | None, past: Any = None) -> Any:
    """transformers' own causal mask."""
    return create_causal_mask(
        config=model.config,
        inputs_embeds=hidden,
        attention_mask=mask,
        past_key_values=past,
        position_ids=None,
    )


# Wrong masks: each takes what `correct_mask` takes.


def no_mask(model: Any, hidden: Tensor, mask: Any, past: Any = None) -> None:
    return None


def without_padding(model: Any, hidden: Tensor, mask: Any, past: Any = None) -> Any:
    return correct_mask(model, hidden, None, past)


def other_side(model: Any, hidden: Tensor, mask: Tensor, past: Any = None) -> Any:
    return correct_mask(model, hidden, mask.flip(-1), past)


def as_given(model: Any, hidden: Tensor, mask: Tensor, past: Any = None) -> Tensor:
    # Integer ones, added to the logits as they are: every position sees the future.
    return mask[:, None, None, :]


def as_numbers(model: Any, hidden: Tensor, mask: Any, past: Any = None) -> Tensor:
    # Booleans, added to the logits as one and zero.
    return (correct_mask(model, hidden, mask, past) == 0).to(hidden.dtype)


def inverted(model: Any, hidden: Tensor, mask: Any, past: Any = None) -> Tensor:
    right = correct_mask(model, hidden, mask, past)
    return torch.where(right < 0, 0.0, torch.finfo(right.dtype).min)


def weak(model: Any, hidden: Tensor, mask: Any, past: Any = None) -> Tensor:
    return correct_mask(model, hidden, mask, past).clamp(min=-5.0)


def minus_infinity(model: Any, hidden: Tensor, mask: Any, past: Any = None) -> Tensor:
    # Rows that are hidden as a whole, those of padding, have no softmax.
    right = correct_mask(model, hidden, mask, past)
    return torch.where(right < 0, -torch.inf, right)


def sees_next(model: Any, hidden: Tensor, mask: Any, past: Any = None) -> Tensor:
    right = correct_mask(model, hidden, mask, past)
    return torch.cat([right[:, :, 1:], right[:, :, -1:]], dim=2)


def not_itself(model: Any, hidden: Tensor, mask: Any, past: Any = None) -> Tensor:
    right = correct_mask(model, hidden, mask, past).clone()
    right.diagonal(dim1=-2, dim2=-1).fill_(torch.finfo(right.dtype).min)
    return right


def window(model: Any, hidden: Tensor, mask: Any, past: Any = None) -> Tensor:
    right = correct_mask(model, hidden, mask, past)
    far = torch.ones(right.shape[-2:], dtype=torch.bool).tril(-6)
    return right.masked_fill(far, torch.finfo(right.dtype).min)


def of_the_first(model: Any, hidden: Tensor, mask: Any, past: Any = None) -> Tensor:
    return correct_mask(model, hidden, mask, past)[:1]


def of_ten_thousand(model: Any, hidden: Tensor, mask: Tensor, past: Any = None) -> Tensor:
    """A right mask, with -1e4 where nothing is shown."""
    length = hidden.shape[1]
    visible = torch.ones(length, length, dtype=torch.bool).tril() & mask[:, None, None, :].bool()
    return torch.where(visible, 0.0, -1e4)


# Wrong parts of an attention.


def negative_sine(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return apply_rotary_pos_emb(query, key, cos, -sin)


def interleaved(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Any:
    def turn(x: Tensor) -> Tensor:
        return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)  # wrong

    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return query * cos + turn(query) * sin, key * cos + turn(key) * sin


def only_query(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return apply_rotary_pos_emb(query, key, cos, sin)[0], key


def other_half(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Any:
    """Only the first half of each head is turned, as in models with a partial rope."""
    half = cos.shape[-1] // 2
    turned = apply_rotary_pos_emb(  # wrong
        query[..., :half],
        key[..., :half],
        cos[..., :half],
        sin[..., :half],  # wrong
    )
    return tuple(
        torch.cat((new, old[..., half:]), dim=-1)
        for new, old in zip(turned, (query, key), strict=True)
    )


def not_negated(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Any:
    """(x2, x1) in place of (-x2, x1)."""
    half = sin.shape[-1] // 2
    return apply_rotary_pos_emb(
        query,
        key,
        cos,
        torch.cat((-sin[..., :half], sin[..., half:]), dim=-1),  # wrong
    )


def key_late(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Any:
    """Keys at the position before their own."""
    right, _ = apply_rotary_pos_emb(query, key, cos, sin)
    _, late = apply_rotary_pos_emb(query, key, cos.roll(1, 1), sin.roll(1, 1))  # wrong
    return right, late


def tiled(states: Tensor, groups: int) -> Tensor:
    return states.repeat(1, groups, 1, 1)


def unscaled(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    return query @ key.transpose(2, 3)


def scaled_twice(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    return (query * scaling) @ key.transpose(2, 3) * scaling


def scaled_by_width(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """By the root of the hidden size, not of the head's."""
    return query @ key.transpose(2, 3) * (query.shape[1] * query.shape[3]) ** -0.5


def without_mask(logits: Tensor, mask: Tensor | None) -> Tensor:
    return logits.softmax(-1)


def over_queries(logits: Tensor, mask: Tensor | None) -> Tensor:
    return (logits if mask is None else logits + mask).softmax(-2)


def masked_afterwards(logits: Tensor, mask: Tensor | None) -> Tensor:
    weights = logits.softmax(-1)  # wrong
    return weights if mask is None else weights * (mask == 0)  # wrong


def in_bfloat16(logits: Tensor, mask: Tensor | None) -> Tensor:
    return masked_softmax(logits.bfloat16(), mask).to(logits.dtype)


def clipped(logits: Tensor, mask: Tensor | None) -> Tensor:
    return masked_softmax(logits.clamp(-1.0, 1.0), mask)


def as_they_lie(output: Tensor) -> Tensor:
    return output


def heads_reversed(output: Tensor) -> Tensor:
    return output.flip(1).transpose(1, 2)


def one_head_lost(output: Tensor) -> Tensor:
    output = output.clone()
    output[:, 2] = 0.0  # wrong
    return output.transpose(1, 2)


# Wrong layers and MLPs.


def left_out(before: Tensor, added: Tensor, normed: Tensor) -> Tensor:
    return added


def of_the_norm(before: Tensor, added: Tensor, normed: Tensor) -> Tensor:
    return normed + added


def halved(before: Tensor, added: Tensor, normed: Tensor) -> Tensor:
    return before + 0.5 * added


def gate_and_up_exchanged(self: Any, x: Tensor) -> Tensor:
    return self.gate_proj(x) * self.act_fn(self.up_proj(x))


def gate_not_activated(self: Any, x: Tensor) -> Tensor:
    self.act_fn(self.gate_proj(x))
    return self.gate_proj(x) * self.up_proj(x)  # wrong


def summed(self: Any, x: Tensor) -> Tensor:
    return self.act_fn(self.gate_proj(x)) + self.up_proj(x)


# Wrong uses of the cache.


def not_written(past: Any, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    if past.get_seq_length(layer) == 0:
        past.update(torch.zeros_like(key), torch.zeros_like(value), layer)  # wrong
        return key, value
    return update(past, key, value, layer)


def not_read(past: Any, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    length = past.get_seq_length(layer)
    keys, values = update(past, key, value, layer)
    if length == 0:
        return keys, values
    # The keys before are there, each a copy of the first.
    return keys[:, :, :1].expand_as(keys), values[:, :, :1].expand_as(values)  # wrong


def off_by_one(past: Any, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    length = past.get_seq_length(layer)
    keys, values = update(past, key, value, layer)
    return (keys, values) if length == 0 else (keys.roll(1, 2), values)  # wrong


def keys_as_values(past: Any, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    past.update(value, key, layer)  # wrong
    cached = past.layers[layer]
    if cached.keys.shape[2] == key.shape[2]:
        return key, value
    return cached.keys, cached.values


def in_half(past: Any, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    return update(past, key.bfloat16().float(), value.bfloat16().float(), layer)


def heads_flipped(past: Any, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """Another layout, read as it was written: only another reader sees that."""
    keys, values = update(past, key.flip(1), value.flip(1), layer)  # wrong
    return keys.flip(1), values.flip(1)


# Wrong tensors.


def one_weight(weight: Tensor) -> Tensor:
    weight[3, 5] += 0.5
    return weight


def one_channel(weight: Tensor) -> Tensor:
    weight[7] *= 1.5
    return weight


def other_rows(weight: Tensor) -> Tensor:
    return weight.roll(8, 0)


def heads_exchanged(weight: Tensor) -> Tensor:
    """Two heads of 8 channels in each other's place."""
    return torch.cat((weight[8:16], weight[:8], weight[16:]))


def through_bfloat16(value: Tensor) -> Tensor:
    return value.bfloat16().to(value.dtype)


def through_float8(value: Tensor) -> Tensor:
    return value.to(torch.float8_e4m3fn).to(value.dtype)


def to_eight_bits(weight: Tensor) -> Tensor:
    step = weight.abs().max() / 127
    return (weight / step).round() * step


def quick_gelu(self: Any, x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


class InPlaceNorm:
    """Works in the memory of its input, which the residual still needs."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        scale = torch.rsqrt(variance + self.variance_epsilon)  # type: ignore[attr-defined]
        hidden_states.mul_(scale)  # wrong
        return self.weight * hidden_states  # type: ignore[attr-defined]


class GemmaNorm:
    """Multiplies by one plus the weight, as Gemma does."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) * (1 + 1 / self.weight)  # type: ignore[misc,attr-defined]


class HalfNorm:
    """Takes its statistics in bfloat16."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states.bfloat16()).to(hidden_states.dtype)  # type: ignore[misc]


class CentredNorm:
    """Takes the mean away first, as a layer norm."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        normed = functional.layer_norm(hidden_states, hidden_states.shape[-1:])  # wrong
        return self.weight * normed  # type: ignore[attr-defined]
