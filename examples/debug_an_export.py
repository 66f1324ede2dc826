"""A graph that does not compute what its model does: which node is it, and where was it written?

python examples/debug_an_export.py

A model is exported, and a pass over the graph gets a constant wrong, as a converter would. The
file is compared with the model: rows by module, the module that is wrong, and the line of the
model's own source that the node was made from.
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

import tracer


class Attention(nn.Module):
    def __init__(self, size, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, hidden):
        batch, length, size = hidden.shape
        split = self.qkv(hidden).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind()
        scores = query @ key.transpose(-1, -2)
        scores = scores / 2.0
        mixed = scores.softmax(-1) @ value
        return self.out(mixed.transpose(1, 2).reshape(batch, length, size))


class Block(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(size), Attention(size, heads=4)

    def forward(self, hidden):
        return hidden + self.attention(self.norm(hidden))


def wrong_pass(program):
    """Takes the scale of the second block's attention for a shift of two bits."""
    for node in program.graph.nodes:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        if node.target == torch.ops.aten.div.Tensor and stack[-1][0] == "1.attention":
            node.args = (node.args[0], 4.0)


torch.manual_seed(0)
model = nn.Sequential(Block(16), Block(16), nn.Linear(16, 8)).eval()
hidden = torch.randn(1, 6, 16)
with torch.no_grad():
    program = torch.export.export(model, (hidden,))

print("# As it was exported")
tracer.compare(model, program, (hidden,)).show()

wrong_pass(program)
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "model.pt2"
    torch.export.save(program, file)
    print("\n# After the pass, from its file")
    tracer.compare(model, tracer.open_graph(file), (hidden,)).show()
