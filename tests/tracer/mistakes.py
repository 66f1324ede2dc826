"""Mistakes that people make when they re-implement or wrap a Llama, each planted by one function.

A row of `FLOAT` or `WRAPPED` names the mistake, what plants it in a copy of the model, and the
origin that the verdict must name: the module, and the argument or else the kind.
"""

import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.models.llama import modeling_llama as llama


@dataclass(frozen=True)
class Mistake:
    """One planted mistake and the origin that must be found for it."""

    name: str
    plant: Callable[[Any], None]
    module: str
    found: str  # the argument's name, or "parameter" or "computation"


def attention_forward(
    self: Any,
    hidden_states: torch.Tensor,
    position_embeddings: Any = None,
    attention_mask: torch.Tensor | None = None,
    past_key_values: Any = None,
    *,
    rotate: Callable[..., Any] = llama.apply_rotary_pos_emb,
    expand: Callable[..., Any] = llama.repeat_kv,
    keep_mask: bool = True,
    softmax_dim: int = -1,
    transpose_back: bool = True,
    **kwargs: Any,
) -> Any:
    """A re-implementation of Llama's attention, right unless an option makes it wrong."""
    shape = (*hidden_states.shape[:-1], -1, self.head_dim)
    query = self.q_proj(hidden_states).view(shape).transpose(1, 2)
    key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
    value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
    query, key = rotate(query, key, *position_embeddings)
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, self.layer_idx)
    key, value = (expand(states, self.num_key_value_groups) for states in (key, value))
    logits = query @ key.transpose(2, 3) * self.scaling
    if keep_mask and attention_mask is not None:
        logits = logits + attention_mask
    weights = logits.softmax(softmax_dim)
    output = weights @ value
    if transpose_back:
        output = output.transpose(1, 2)
    return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights


def layer_forward(
    self: Any,
    hidden_states: torch.Tensor,
    *,
    attention_residual: bool = True,
    mlp_residual: bool = True,
    norm_after: bool = False,
    **kwargs: Any,
) -> torch.Tensor:
    """A re-implementation of Llama's decoder layer, right unless an option makes it wrong."""
    normed = hidden_states if norm_after else self.input_layernorm(hidden_states)
    attended, _ = self.self_attn(hidden_states=normed, **kwargs)
    attended = self.input_layernorm(attended) if norm_after else attended
    middle = hidden_states + attended if attention_residual else attended
    output = self.mlp(self.post_attention_layernorm(middle))
    return middle + output if mlp_residual else output


def model_forward(
    self: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    past_key_values: Any = None,
    use_cache: bool | None = None,
    *,
    make_mask: Callable[[Any, torch.Tensor, Any], Any] | None = None,
    shift: int = 0,
    change_tables: Callable[[Any], Any] = lambda tables: tables,
    embed_scale: float = 1.0,
    skip_layer: int | None = None,
    **kwargs: Any,
) -> Any:
    """A re-implementation of the Llama model, right unless an option makes it wrong."""
    hidden = self.embed_tokens(input_ids) * embed_scale
    positions = torch.arange(hidden.shape[1]).unsqueeze(0) + shift
    mask = (make_mask or correct_mask)(self, hidden, attention_mask)
    tables = change_tables(self.rotary_emb(hidden, position_ids=positions))
    for index, layer in enumerate(self.layers):
        if index != skip_layer:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_embeddings=tables,
                position_ids=positions,
                past_key_values=None,
                use_cache=False,
            )
    return llama.BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))


def correct_mask(model: Any, hidden: torch.Tensor, mask: torch.Tensor | None) -> Any:
    """transformers' own causal mask."""
    positions = torch.arange(hidden.shape[1]).unsqueeze(0)
    return llama.create_causal_mask(
        config=model.config,
        inputs_embeds=hidden,
        attention_mask=mask,
        past_key_values=None,
        position_ids=positions,
    )


def reforward(path: str, forward: Callable[..., Any], **options: Any) -> Callable[[Any], None]:
    """Replaces the forward of one module."""

    def plant(model: Any) -> None:
        module = model.get_submodule(path)
        module.forward = types.MethodType(partial_method(forward, **options), module)

    return plant


def partial_method(forward: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """A method with some options set."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs, **options)

    return method


def after(path: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], None]:
    """Changes what one module's own forward returns."""

    def plant(model: Any) -> None:
        module = model.get_submodule(path)
        own = module.forward
        module.forward = lambda *args, **kwargs: change(own(*args, **kwargs))

    return plant


def assign(path: str, name: str, change: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Changes a plain attribute of one module."""

    def plant(model: Any) -> None:
        module = model.get_submodule(path)
        setattr(module, name, change(getattr(module, name)))

    return plant


def parameter(
    path: str, change: Callable[[torch.Tensor], torch.Tensor], name: str = "weight"
) -> Callable[[Any], None]:
    """Gives one module another parameter than the reference has."""

    def plant(model: Any) -> None:
        module = model.get_submodule(path)
        value = change(getattr(module, name).detach().clone())
        setattr(module, name, nn.Parameter(value, requires_grad=False))

    return plant


def add_bias(model: Any) -> None:
    """A bias that the reference does not have."""
    head = model.lm_head
    head.bias = nn.Parameter(torch.linspace(-1.0, 1.0, head.out_features), requires_grad=False)


def all_norms(model: Any) -> None:
    """Every norm with another epsilon, each alone within the tolerance of its output."""
    for module in model.modules():
        if isinstance(module, llama.LlamaRMSNorm):
            module.variance_epsilon = module.variance_epsilon + 1e-4


def one_weight(weight: torch.Tensor) -> torch.Tensor:
    weight[3, 5] += 0.5
    return weight


def swap_rows(weight: torch.Tensor) -> torch.Tensor:
    return weight[torch.arange(len(weight)).roll(8)]


def negative_sine(query: Any, key: Any, cos: Any, sin: Any) -> Any:
    return llama.apply_rotary_pos_emb(query, key, cos, -sin)


def interleaved(query: Any, key: Any, cos: Any, sin: Any) -> Any:
    def turn(x: torch.Tensor) -> torch.Tensor:
        return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)

    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return query * cos + turn(query) * sin, key * cos + turn(key) * sin


def only_query(query: Any, key: Any, cos: Any, sin: Any) -> Any:
    return llama.apply_rotary_pos_emb(query, key, cos, sin)[0], key


def tiled(states: torch.Tensor, groups: int) -> torch.Tensor:
    return states.repeat(1, groups, 1, 1)


def without_padding(model: Any, hidden: torch.Tensor, mask: Any) -> Any:
    return correct_mask(model, hidden, None)


def as_given(model: Any, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    # Integer ones, added to the logits as they are: every position sees the future.
    return mask[:, None, None, :]


def inverted(model: Any, hidden: torch.Tensor, mask: Any) -> torch.Tensor:
    right = correct_mask(model, hidden, mask)
    return torch.where(right < 0, 0.0, torch.finfo(right.dtype).min)


def weak(model: Any, hidden: torch.Tensor, mask: Any) -> torch.Tensor:
    return correct_mask(model, hidden, mask).clamp(min=-5.0)


def sees_next(model: Any, hidden: torch.Tensor, mask: Any) -> torch.Tensor:
    right = correct_mask(model, hidden, mask)
    return torch.cat([right[:, :, 1:], right[:, :, -1:]], dim=2)


def no_mask(model: Any, hidden: torch.Tensor, mask: Any) -> None:
    return None


LAYER = "model.layers.1"
ATTENTION = f"{LAYER}.self_attn"
NORM = f"{LAYER}.post_attention_layernorm"
DOWN = f"{LAYER}.mlp.down_proj"
attention = partial(reforward, ATTENTION, attention_forward)
layer = partial(reforward, LAYER, layer_forward)
model = partial(reforward, "model", model_forward)

FLOAT = [
    Mistake("one weight", parameter(f"{LAYER}.mlp.up_proj", one_weight), f"{LAYER}.mlp.up_proj", "parameter"),
    Mistake("rows of q_proj rotated", parameter(f"{ATTENTION}.q_proj", swap_rows), f"{ATTENTION}.q_proj", "parameter"),
    Mistake("k_proj scaled", parameter(f"{ATTENTION}.k_proj", lambda w: w * 0.5), f"{ATTENTION}.k_proj", "parameter"),
    Mistake("norm weight plus one", parameter(NORM, lambda w: w + 1), NORM, "parameter"),
    Mistake("embedding of another row", parameter("model.embed_tokens", lambda w: w.roll(1, 0)), "model.embed_tokens", "parameter"),
    Mistake("bias added", add_bias, "lm_head", "parameter"),
    Mistake("norm eps", assign(NORM, "variance_epsilon", lambda eps: 1e-2), NORM, "computation"),
    Mistake("eps of all norms", all_norms, "model.layers.0.input_layernorm", "computation"),
    Mistake("attention scale", assign(ATTENTION, "scaling", lambda s: s * 1.1), ATTENTION, "computation"),
    Mistake("attention scale twice", assign(ATTENTION, "scaling", lambda s: s * s), ATTENTION, "computation"),
    Mistake("rotate-half sign", attention(rotate=negative_sine), ATTENTION, "computation"),
    Mistake("rope interleaved", attention(rotate=interleaved), ATTENTION, "computation"),
    Mistake("rope on the query only", attention(rotate=only_query), ATTENTION, "computation"),
    Mistake("KV head order", attention(expand=tiled), ATTENTION, "computation"),
    Mistake("mask dropped inside attention", attention(keep_mask=False), ATTENTION, "computation"),
    Mistake("softmax over the queries", attention(softmax_dim=-2), ATTENTION, "computation"),
    Mistake("heads not transposed back", attention(transpose_back=False), ATTENTION, "computation"),
    Mistake("attention residual left out", layer(attention_residual=False), LAYER, "computation"),
    Mistake("MLP residual left out", layer(mlp_residual=False), LAYER, "computation"),
    Mistake("norm after attention", layer(norm_after=True), LAYER, "computation"),
    Mistake("padding dropped from the mask", model(make_mask=without_padding), "model", "attention_mask"),
    Mistake("no mask at all", model(make_mask=no_mask), "model", "attention_mask"),
    Mistake("integer mask added", model(make_mask=as_given), "model", "attention_mask"),
    Mistake("mask inverted", model(make_mask=inverted), "model", "attention_mask"),
    Mistake("mask too weak", model(make_mask=weak), "model", "attention_mask"),
    Mistake("mask shows the next token", model(make_mask=sees_next), "model", "attention_mask"),
    Mistake("position ids off by one", model(shift=1), "model", "position_ids"),
    Mistake("cosine of the position before", model(change_tables=lambda t: (t[0].roll(1, 1), t[1])), "model", "position_embeddings"),
    Mistake("cosine and sine swapped", model(change_tables=lambda t: (t[1], t[0])), "model", "position_embeddings"),
    Mistake("embedding scaled", model(embed_scale=8.0), "model", "computation"),
    Mistake("layer skipped", model(skip_layer=1), "model", "computation"),
    Mistake("activation negated", after(DOWN, torch.neg), DOWN, "computation"),
    Mistake("activation clipped", after(DOWN, lambda x: x.clamp(-0.05, 0.05)), DOWN, "computation"),
    Mistake("cast down", after(DOWN, lambda x: x.bfloat16().float()), DOWN, "computation"),
    Mistake("sequence shifted", after("model.norm", lambda x: x.roll(1, 1)), "model.norm", "computation"),
    Mistake("channels rotated", after(f"{ATTENTION}.o_proj", lambda x: x.roll(1, -1)), f"{ATTENTION}.o_proj", "computation"),
    Mistake("another activation", reforward(f"{LAYER}.mlp.act_fn", lambda self, x: torch.nn.functional.gelu(x)), f"{LAYER}.mlp.act_fn", "computation"),
]  # fmt: skip


def drop_padding(candidate: Any) -> None:
    """The wrapped model builds its mask without the padding."""
    own = candidate.model.masks.additive
    candidate.model.masks.additive = lambda mask, **kwargs: own(None, **kwargs)


def shift_positions(candidate: Any) -> None:
    """The wrapped model counts positions from one."""
    own = candidate.model.forward

    def forward(*args: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        positions = torch.arange(input_ids.shape[1]).unsqueeze(0) + 1
        return own(*args, input_ids=input_ids, **{**kwargs, "position_ids": positions})

    candidate.model.forward = forward


def other_heads(candidate: Any) -> None:
    """Each group of query heads attends to the keys of another one."""
    module = candidate.get_submodule(ATTENTION)
    own = module._attend_heads

    def attend(query: Any, key: torch.Tensor, *args: Any) -> Any:
        return own(query, key.roll(module.head_dim, -1), *args)

    module._attend_heads = attend


def other_sine(candidate: Any) -> None:
    """The sine table is negated where it should not be, or is not where it should."""
    module = candidate.get_submodule(ATTENTION)
    own = module._sine_table
    module._sine_table = lambda sin: -own(sin)


def wrong_scale(candidate: Any) -> None:
    """The factor on the logits is applied a second time."""
    module = candidate.get_submodule(ATTENTION)
    own = module._attend_heads
    module._attend_heads = lambda query, *args: own(query * module.scaling, *args)


WRAPPED = [
    Mistake("one weight", parameter(f"{LAYER}.mlp.up_proj", one_weight), f"{LAYER}.mlp.up_proj", "parameter"),
    Mistake("norm eps", assign(NORM, "variance_epsilon", lambda eps: 1e-2), NORM, "computation"),
    Mistake("attention scale", wrong_scale, ATTENTION, "computation"),
    Mistake("rotate-half sign", other_sine, ATTENTION, "computation"),
    Mistake("KV head order", other_heads, ATTENTION, "computation"),
    Mistake("attention residual left out", layer(attention_residual=False), LAYER, "computation"),
    Mistake("mask dropped for a padded batch", drop_padding, "model", "attention_mask"),
    Mistake("position ids off by one", shift_positions, "model", "position_ids"),
]  # fmt: skip
