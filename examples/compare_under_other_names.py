"""A re-implementation with its own module names and one projection in place of three.

    python examples/compare_under_other_names.py

Rename rules pair what has another name; what was fused is compared with the parts that it holds,
and the coverage says so. A module that returns its result in another form declares how to read it
back.
"""

import torch
from torch import nn

import tracer


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x):
        weights = self.query(x) @ self.key(x).transpose(-1, -2) / x.shape[-1] ** 0.5
        return self.output(weights.softmax(-1) @ self.value(x))


class Original(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.attention = Attention(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(x + self.attention(x))


class ChannelsFirst(nn.Linear):
    """A linear layer that returns [channels, ...], as some accelerators want it."""

    def forward(self, x):
        return super().forward(x).movedim(-1, 0)

    def to_reference_output(self, output):
        return output.movedim(0, -1)


class FusedAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        weights = query @ key.transpose(-1, -2) / x.shape[-1] ** 0.5
        return self.out(weights.softmax(-1) @ value)


class Port(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.attn = FusedAttention(width)
        self.classifier = ChannelsFirst(width, 4)

    def forward(self, x):
        return self.classifier(x + self.attn(x)).movedim(0, -1)


torch.manual_seed(0)
original, port = Original(), Port()
state = original.state_dict()
with torch.no_grad():
    for kind in ("weight", "bias"):
        parts = [state[f"attention.{name}.{kind}"] for name in ("query", "key", "value")]
        getattr(port.attn.qkv, kind).copy_(torch.cat(parts))
        getattr(port.attn.out, kind).copy_(state[f"attention.output.{kind}"])
        getattr(port.classifier, kind).copy_(state[f"head.{kind}"])

comparison = tracer.compare(
    original,
    port,
    torch.randn(2, 5, 16),
    rename={r"^attn\.out$": "attention.output", r"^attn": "attention", "^classifier$": "head"},
)
comparison.show()
