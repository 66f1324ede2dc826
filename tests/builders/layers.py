"""Layers that have wrappers, with an input of each."""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from wrappers import PTQConfig, calibrate, convert, prepare

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape):
    return torch.randn(shape, generator=GENERATOR)


LAYERS = {
    "linear": (lambda: nn.Linear(16, 8), randn(3, 5, 16)),
    "linear without bias": (lambda: nn.Linear(16, 8, bias=False), randn(5, 16)),
    "conv2d": (lambda: nn.Conv2d(3, 6, 3, stride=2, padding=1), randn(2, 3, 9, 8)),
    "conv2d groups": (lambda: nn.Conv2d(4, 6, 2, groups=2, bias=False), randn(2, 4, 5, 5)),
    "conv2d reflect": (
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        randn(1, 3, 6, 6),
    ),
    "conv3d": (lambda: nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4)), randn(2, 3, 2, 8, 8)),
    "embedding": (lambda: nn.Embedding(32, 8), torch.arange(12).reshape(2, 6)),
    "embedding with padding": (lambda: nn.Embedding(9, 8, padding_idx=0), torch.arange(9)),
    "rms norm": (lambda: nn.RMSNorm(16, eps=1e-6), randn(3, 5, 16)),
    "rms norm without eps": (lambda: nn.RMSNorm(16), randn(3, 16)),
    "rms norm without weight": (
        lambda: nn.RMSNorm((5, 16), elementwise_affine=False),
        randn(3, 5, 16),
    ),
    "llama rms norm": (lambda: LlamaRMSNorm(16), randn(3, 5, 16)),
    "layer norm": (lambda: nn.LayerNorm(16), randn(3, 5, 16)),
    "layer norm of two dimensions": (lambda: nn.LayerNorm((5, 16)), randn(3, 5, 16)),
    "layer norm without bias": (lambda: nn.LayerNorm(16, bias=False), randn(3, 16)),
    "layer norm without weight": (lambda: nn.LayerNorm(16, elementwise_affine=False), randn(3, 16)),
    "relu": (nn.ReLU, randn(3, 16)),
    "relu in place": (lambda: nn.ReLU(inplace=True), randn(3, 16)),
    "sigmoid": (nn.Sigmoid, randn(3, 16)),
    "tanh": (nn.Tanh, randn(3, 16)),
    "gelu": (nn.GELU, randn(3, 16)),
    "gelu by tanh": (lambda: nn.GELU(approximate="tanh"), randn(3, 16)),
    "silu": (nn.SiLU, randn(3, 16)),
    "silu in place": (lambda: nn.SiLU(inplace=True), randn(3, 16)),
    **{
        f"transformers {name}": ((lambda name=name: ACT2FN[name]), randn(3, 16))
        for name in (
            "gelu",
            "gelu_python",
            "gelu_pytorch_tanh",
            "gelu_python_tanh",
            "gelu_new",
            "gelu_fast",
            "quick_gelu",
            "silu",
            "swish",
            "relu",
            "sigmoid",
            "tanh",
        )
    },
}


def layer(name):
    torch.manual_seed(0)
    build, x = LAYERS[name]
    source = build().eval()
    with torch.no_grad():
        for parameter in source.parameters():
            if parameter.dim() == 1:  # ones and zeros hide mistakes
                parameter.add_(0.3 * torch.randn_like(parameter))
    return source, x.clone()


def by_torch(x, low, high, levels=255):
    """Fake quantisation to uint8 of the range [low, high] and 0, by torch's operator."""
    if low == high:
        return torch.full_like(x, low)
    scale = (max(high, 0.0) - min(low, 0.0)) / levels
    zero_point = round(-min(low, 0.0) / scale)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, levels)


def linear(**fields):
    """A float linear layer of 6 to 4 and its wrapper."""
    torch.manual_seed(0)
    source = nn.Linear(6, 4)
    return source, prepare(source, PTQConfig(**fields))


def quantized_linear(**fields):
    source, wrapper = linear(**fields)
    calibrate(wrapper, [torch.randn(32, 6)])
    return source, convert(wrapper)


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
