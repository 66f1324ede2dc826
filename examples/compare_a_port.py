"""A Llama of transformers against a port with names and modules of its own.

    python examples/compare_a_port.py
    trace_model compare tiny-llama --candidate examples/compare_a_port.py:build

Modules are paired by the values of their parameters, whatever they are called; two of them return
their result in another form, and say how to read it back. `build` is what the command line calls;
`build_wrong` has a mistake in one attention.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

import tracer


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        size = width // heads
        self.heads, self.groups, self.size = heads, groups, size
        self.scale = size**-0.5
        self.query = nn.Linear(width, heads * size, bias=False)
        self.key = nn.Linear(width, groups * size, bias=False)
        self.value = nn.Linear(width, groups * size, bias=False)
        self.mix = nn.Linear(heads * size, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        query = self.query(x).view(batch, length, self.heads, self.size).transpose(1, 2)
        key = self.key(x).view(batch, length, self.groups, self.size).transpose(1, 2)
        value = self.value(x).view(batch, length, self.groups, self.size).transpose(1, 2)
        query, key = rotated(query, cos, sin), rotated(key, cos, sin)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self.scale, enable_gqa=True
        )
        return self.mix(mixed.transpose(1, 2).reshape(batch, length, -1))

    def to_reference_output(self, output: Tensor) -> tuple[Tensor]:
        return (output,)  # transformers' returns the weights of the attention as well


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, config) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        self.attention = SelfAttention(width, heads, groups)
        self.feed_forward = FeedForward(width, config.intermediate_size)
        self.attention_norm = nn.RMSNorm(width, eps=eps)
        self.feed_forward_norm = nn.RMSNorm(width, eps=eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Port(nn.Module):
    def __init__(self, config) -> None:
        super().__init__()
        self.size = config.hidden_size // config.num_attention_heads
        self.base = config.rope_parameters["rope_theta"]
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.classifier = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.tokens(input_ids)
        frequencies = self.base ** -(torch.arange(0, self.size, 2) / self.size)
        angles = torch.outer(torch.arange(input_ids.shape[1]), frequencies).repeat(1, 2)
        for block in self.blocks:
            x = block(x, angles.cos(), angles.sin())
        return self.classifier(self.norm(x))

    def to_reference_output(self, output: Tensor) -> dict[str, Tensor]:
        return {"logits": output}


def build() -> nn.Module:
    """The port of the built-in Llama, with its weights."""
    original = tracer.models.load("tiny-llama").model
    port = Port(original.config)
    # Both define their parameters in the same order.
    weights = zip(port.state_dict(), original.state_dict().values(), strict=True)
    port.load_state_dict(dict(weights))
    return port


def build_wrong() -> nn.Module:
    port = build()
    port.blocks[2].attention.scale *= 2.0
    return port


if __name__ == "__main__":
    loaded = tracer.models.load("tiny-llama")
    tracer.compare(loaded.model, build(), loaded.inputs).show()
    tracer.compare(loaded.model, build_wrong(), loaded.inputs).show()
