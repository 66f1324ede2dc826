"""A small model in layers, and backends of `torch.compile` that change one node of its graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(self.up(x), -1)  # SOFTMAX
        return self.down(weights)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(8), Mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(x))


class Layers(nn.Module):
    """Two layers, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList([Layer(), Layer()]), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def layers() -> Layers:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Layers().eval()


Edit = Callable[[fx.GraphModule, fx.Node], None]


def planted(edit: Edit, target: object = torch.softmax) -> Callable[..., Any]:
    """A backend that edits the nodes of an operation, and runs the graph as it is then."""

    def plant(module: fx.GraphModule, inputs: object) -> Callable[..., Any]:
        for node in list(module.graph.nodes):
            if node.target in (target, getattr(target, "__name__", None)):
                edit(module, node)
        module.recompile()
        return module.forward

    return plant


def other_axis(module: fx.GraphModule, node: fx.Node) -> None:
    node.args = (node.args[0], 0)


def scaled(module: fx.GraphModule, node: fx.Node) -> None:
    _after(module, node, lambda node: module.graph.call_method("mul", (node, 1.01)))


def cast_down(module: fx.GraphModule, node: fx.Node) -> None:
    graph = module.graph

    def cast(node: fx.Node) -> fx.Node:
        with graph.inserting_after(node):
            down = graph.call_method("bfloat16", (node,))
        with graph.inserting_after(down):
            return graph.call_method("float", (down,))

    _after(module, node, cast)


def _after(module: fx.GraphModule, node: fx.Node, make: Callable[[fx.Node], fx.Node]) -> None:
    users = list(node.users)
    with module.graph.inserting_after(node):
        made = make(node)
    for user in users:
        user.replace_input_with(node, made)
