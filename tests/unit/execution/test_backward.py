"""One call of one module, forward and backward."""

import torch
from torch import nn

from tracer.execution.backward import Trained, run_forward

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


def trained(module: nn.Module, **arguments: object) -> Trained:
    names = {id(inner): name for name, inner in module.named_modules()}
    return Trained("reference", module, names, {n: n for n in names.values()}, arguments, ())


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.drop, self.unused = nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(1, 1)

    def forward(self, x: torch.Tensor, factor: int) -> torch.Tensor:
        x += 1.0  # what is given may be edited in place
        return self.drop(self.linear(x)) * factor


def test_gradients_are_those_of_a_plain_backward() -> None:
    module = Scaled()
    weight = torch.arange(6.0).reshape(2, 3)
    of = [module.linear.weight, module.unused.weight]
    with run_forward(trained(module.eval(), x=X, factor=2)) as forward:
        (given,) = forward.given.values()
        found = forward.gradients([forward.call.output], [weight], [given, *of])
        assert forward.unused == [False, False, True]
    leaf = X.clone().requires_grad_()
    (2 * module.linear(leaf + 1.0) * weight).sum().backward()
    assert torch.equal(found[0], leaf.grad)
    assert torch.equal(found[1], module.linear.weight.grad)
    assert torch.equal(found[2], torch.zeros(1, 1))


def test_nothing_is_left_behind() -> None:
    module = Scaled().train()
    values, state = X.clone(), torch.get_rng_state()
    outputs = []
    for _ in range(2):
        with run_forward(trained(module, x=X, factor=1)) as forward:
            outputs.append(forward.call.output)
            forward.gradients([outputs[-1]], [torch.ones(2, 3)], [module.linear.weight])
    assert torch.equal(*outputs)  # each draws the same numbers
    assert torch.equal(X, values)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.linear.weight.grad is None
    assert not any(inner._forward_hooks for inner in module.modules())


def test_other_modules_in_their_place_and_moved_values() -> None:
    module, other = Scaled().eval(), nn.Linear(3, 3)
    right = module.linear(X + 1.0)
    instead = trained(module, x=X, factor=1)
    both = ((module.linear, other),)
    replaced = Trained(
        instead.side, module, instead.names, instead.streams, instead.arguments, (), both
    )
    with run_forward(replaced) as forward:
        assert torch.equal(forward.call.output, other(X + 1.0))
    with run_forward(instead, lambda tensor: tensor * 2) as forward:
        assert torch.equal(forward.call.output, 4 * right)
