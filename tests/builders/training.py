"""Networks that go forward alike and may be trained otherwise."""

import torch
from torch import nn
from torch.nn.functional import gelu, linear
from torch.utils.checkpoint import checkpoint

IDS = {"ids": torch.arange(14).reshape(2, 7) % 9}


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.drop = nn.Linear(8, 16), nn.Linear(16, 8), nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.down(gelu(self.up(x))))


class Net(nn.Module):
    """Three layers, of which one may be of another class with the same parameters."""

    def __init__(self, layer: type[nn.Module] = MLP, place: int | None = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm, self.head = nn.Embedding(9, 8), nn.LayerNorm(8), nn.Linear(8, 9)
        layers = [MLP() for _ in range(3)]
        for index in range(3) if place is None else [place]:
            other = layer()
            other.load_state_dict(layers[index].state_dict())
            layers[index] = other
        self.layers = nn.ModuleList(layers)
        self.train()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(self.norm(x))


class Written(MLP):
    """The same in other operations."""

    def forward(self, x):
        h = linear(x, self.up.weight) + self.up.bias
        return self.drop(self.down(h * 0.5 * (1 + torch.erf(h / 2**0.5))))


class Checkpointed(MLP):
    """What is kept for the backward is computed again in it."""

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


class Reentrant(MLP):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=True)


class Detached(MLP):
    def forward(self, x):
        h = self.up(x).detach()  # the gradient ends here
        return self.drop(self.down(gelu(h)))


class ToPython(MLP):
    def forward(self, x):
        h = torch.tensor(self.up(x).tolist())  # the gradient ends here
        return self.drop(self.down(gelu(h)))


class Gated(MLP):
    def forward(self, x):
        h = self.up(x)
        return self.drop(self.down(h * gelu(h)))


class GatedDetached(MLP):
    def forward(self, x):
        h = self.up(x)
        return self.drop(self.down(h * gelu(h).detach()))  # a part of the gradient ends here


class Scaling(MLP):
    def forward(self, x):
        h = self.up(x)
        if h.requires_grad:
            h.register_hook(lambda gradient: gradient * 0.5)  # the hook scales
        return self.drop(self.down(gelu(h)))


class Hooked(MLP):
    """Hooks that look on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_full_backward_hook(lambda *_: None)
        self.up.register_full_backward_pre_hook(lambda *_: None)


class Complex(MLP):
    """The same by way of complex numbers."""

    def forward(self, x):
        h = torch.fft.irfft(torch.fft.rfft(self.up(x)), n=16)
        return self.drop(self.down(gelu(h)))


class OtherState(MLP):
    """Drops other elements in the backward."""

    def forward(self, x):
        def inner(x):
            return self.drop(self.down(gelu(self.up(x))))  # other numbers are drawn

        return checkpoint(inner, x, use_reentrant=False, preserve_rng_state=False)


class WithoutGrad(MLP):
    def forward(self, x):
        with torch.no_grad():
            h = self.up(x)  # the gradient ends here
        return self.drop(self.down(gelu(h)))


class Edited(MLP):
    """Edits in place what autograd has kept."""

    def forward(self, x):
        h = self.up(x).exp()
        y = h.log()
        h.add_(0)
        return self.drop(self.down(gelu(y)))


class Kept(MLP):
    def forward(self, x):
        return self.drop(self.down(gelu(self.up(x).exp().log())))


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return gelu(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        cdf = 0.5 * (1 + torch.erf(x / 2**0.5))
        density = torch.exp(-x * x / 2) / (2 * torch.pi) ** 0.5
        return gradient * (cdf + x * density)


class _WrongGelu(_Gelu):
    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        cdf = 0.5 * (1 + torch.erf(x / 2**0.5))
        density = torch.exp(-x * x / 2) / (2 * torch.pi) ** 0.5
        return gradient * (cdf - x * density)  # the sign is wrong


class RightBackward(MLP):
    def forward(self, x):
        return self.drop(self.down(_Gelu.apply(self.up(x))))


class WrongBackward(MLP):
    def forward(self, x):
        return self.drop(self.down(_WrongGelu.apply(self.up(x))))


class BetweenLayers(Net):
    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x.detach())  # the gradient ends here
        return self.head(self.norm(x))


class InAutocast(Net):
    def forward(self, ids):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(ids)


class Phase(nn.Module):
    """Complex numbers turned by a complex parameter."""

    def __init__(self, *, of_parts: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.turn = nn.Parameter(torch.randn(4, dtype=torch.complex64))
        self.of_parts = of_parts

    def forward(self, z):
        if not self.of_parts:
            return z * self.turn
        a, b, c, d = z.real, z.imag, self.turn.real, self.turn.imag
        return torch.complex(a * c - b * d, a * d + b * c)
