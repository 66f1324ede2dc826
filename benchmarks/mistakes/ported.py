"""A Llama ported to other code, as people do it: other names, other rotations, no transformers.

Rotations turn neighbouring channels, so that the rows of the queries' and keys' weights come in
another order, which `Permuted` declares. The mistakes are those of the port and of its conversion.
"""

import copy
from typing import Any

import torch
from torch import nn

from benchmarks.mistakes.decoder import tiled
from benchmarks.mistakes.planting import Mistake, assign, exchange, parameter, take

Tensor = torch.Tensor

RENAME = {
    "^tok_embeddings": "model.embed_tokens",
    "^layers": "model.layers",
    "^norm": "model.norm",
    "^output": "lm_head",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    r"attention\b": "self_attn",
    r"\bw([qkvo])": r"\1_proj",
    "feed_forward": "mlp",
    r"\bw1": "gate_proj",
    r"\bw2": "down_proj",
    r"\bw3": "up_proj",
}


class Permuted(nn.Linear):
    """Gives each head's channels as neighbours that are turned together, not as halves."""

    def __init__(self, linear: Any, head_dim: int) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.head_dim = head_dim
        halves = linear.weight.detach().view(-1, 2, head_dim // 2, linear.in_features)
        self.weight = nn.Parameter(halves.transpose(1, 2).reshape(linear.weight.shape))

    def to_reference_output(self, output: Tensor) -> Tensor:
        pairs = output.view(*output.shape[:-1], -1, self.head_dim // 2, 2)
        return pairs.transpose(-1, -2).flatten(-3)


class Attention(nn.Module):
    def __init__(self, own: Any) -> None:
        super().__init__()
        self.head_dim, self.groups, self.scale = own.head_dim, own.num_key_value_groups, own.scaling
        self.wq = Permuted(own.q_proj, own.head_dim)
        self.wk = Permuted(own.k_proj, own.head_dim)
        self.wv, self.wo = own.v_proj, own.o_proj
        self.expand = lambda states: states.repeat_interleave(self.groups, dim=1)
        self.turn = turn

    def forward(self, x: Tensor, mask: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (
            w(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for w in (self.wq, self.wk, self.wv)
        )
        q, k = self.turn(q, tables), self.turn(k, tables)
        weights = (q * self.scale @ self.expand(k).mT + mask).softmax(-1)
        return self.wo((weights @ self.expand(v)).transpose(1, 2).flatten(2))

    def to_reference_output(self, output: Tensor) -> tuple[Tensor, None]:
        return output, None


class FeedForward(nn.Module):
    def __init__(self, own: Any) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = own.gate_proj, own.down_proj, own.up_proj

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))


class Norm(nn.Module):
    def __init__(self, own: Any) -> None:
        super().__init__()
        self.weight, self.eps = own.weight, own.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Block(nn.Module):
    def __init__(self, own: Any) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = (
            Norm(own.input_layernorm),
            Norm(own.post_attention_layernorm),
        )
        self.attention, self.feed_forward = Attention(own.self_attn), FeedForward(own.mlp)
        self.keep = 1.0

    def forward(self, x: Tensor, mask: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        h = x * self.keep + self.attention(self.attention_norm(x), mask, tables)
        return h + self.feed_forward(self.ffn_norm(h))


class Port(nn.Module):
    """The same Llama in other code."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.tok_embeddings, self.output = own.model.embed_tokens, own.lm_head
        self.layers = nn.ModuleList(Block(layer) for layer in own.model.layers)
        self.norm = Norm(own.model.norm)
        self.base = own.config.rope_parameters["rope_theta"]
        self.padding = True
        self.embedding_scale = 1.0

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool = False) -> Tensor:
        length = input_ids.shape[1]
        visible = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        if self.padding:
            visible = visible & attention_mask[:, None, None, :].bool()
        mask = torch.where(visible, 0.0, -1e9)
        head_dim = self.layers[0].attention.head_dim
        rates = self.base ** -(torch.arange(0, head_dim, 2) / head_dim)
        angles = torch.arange(length)[:, None] * rates
        tables = angles.cos(), angles.sin()
        h = self.tok_embeddings(input_ids) * self.embedding_scale
        for layer in self.layers:
            h = layer(h, mask, tables)
        return self.output(self.norm(h))

    def to_reference_output(self, output: Tensor) -> dict[str, Tensor]:
        return {"logits": output}


def turn(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Turns each pair of neighbouring channels."""
    cos, sin = tables
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def turn_halves(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Turns the halves of each head, as transformers does, whose weights lie otherwise."""
    cos, sin = tables
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def in_all_layers(path: str, name: str, value: Any) -> Any:
    def plant(model: Any) -> None:
        for layer in model.layers:
            setattr(layer.get_submodule(path), name, value)

    return plant


def not_permuted(model: Any) -> None:
    """The weights of queries and keys as they lie in the checkpoint."""
    for layer in model.layers:
        for linear in (layer.attention.wq, layer.attention.wk):
            weight = linear.weight.detach().view(-1, linear.head_dim // 2, 2, linear.in_features)
            halves = weight.transpose(1, 2).reshape(linear.weight.shape)
            linear.weight = nn.Parameter(halves, requires_grad=False)


def port(reference: Any) -> Port:
    """A right port."""
    return Port(copy.deepcopy(reference)).eval()


FIRST, SECOND = "model.layers.0", "model.layers.1"

PORTED = [
    Mistake("weights not permuted", not_permuted, f"{FIRST}.self_attn.q_proj", "parameter"),
    Mistake("halves turned for neighbours", in_all_layers("attention", "turn", turn_halves), f"{FIRST}.self_attn", "computation"),
    Mistake("gate and up exchanged", exchange("layers.1.feed_forward.w1", "layers.1.feed_forward.w3"), f"{SECOND}.mlp.gate_proj", "parameter"),
    Mistake("norms exchanged", exchange("layers.1.attention_norm", "layers.1.ffn_norm"), f"{SECOND}.input_layernorm", "parameter"),
    Mistake("weights of the layer before", take("layers.1.attention.wv", "layers.0.attention.wv"), f"{SECOND}.self_attn.v_proj", "parameter"),
    Mistake("embedding for the head", take("output", "tok_embeddings"), "lm_head", "parameter"),
    Mistake("weight transposed", parameter("layers.1.attention.wo", torch.t), f"{SECOND}.self_attn.o_proj", "parameter"),
    Mistake("norm eps", in_all_layers("ffn_norm", "eps", 1e-2), f"{FIRST}.post_attention_layernorm", "computation", line="self.eps"),
    Mistake("KV head order", in_all_layers("attention", "expand", lambda states: tiled(states, 2)), f"{FIRST}.self_attn", "computation", line="states.repeat("),
    Mistake("attention scale missing", in_all_layers("attention", "scale", 1.0), f"{FIRST}.self_attn", "computation", line="self.scale"),
    Mistake("residual left out", assign("layers.1", "keep", lambda keep: 0.0), SECOND, "computation", line="self.keep"),
    Mistake("padding forgotten", assign("", "padding", lambda padding: False), "", "attention_mask"),
    Mistake("another rope base", assign("", "base", lambda base: 500000.0), "", "position_embeddings", missed="tables of another shape under another name cannot be compared, so the error appears inside the attention"),
    Mistake("embedding scaled", assign("", "embedding_scale", lambda scale: 8.0), "", "computation", line="self.embedding_scale"),
]  # fmt: skip
