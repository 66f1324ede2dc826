"""A tiny decoder, its exported program, and mistakes planted in the graph."""

import copy
import warnings
from collections.abc import Callable

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.nn import functional

DIM, HEADS, TOKENS = 16, 2, 6


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(DIM, DIM) for _ in range(4))

    def forward(self, hidden, mask, position_embeddings):
        batch, length, _ = hidden.shape
        q, k, v = (
            part(hidden).view(batch, length, HEADS, -1).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        cos, sin = position_embeddings
        q = q * cos + q.roll(1, -1) * sin
        k = k * cos + k.roll(1, -1) * sin
        scores = q @ k.transpose(-1, -2)
        scores = scores * 0.35
        scores = scores + mask
        weights = scores.softmax(dim=-1)
        heads = weights @ v
        return self.o(heads.transpose(1, 2).reshape(batch, length, DIM)), weights


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(DIM) + 0.5)

    def forward(self, x):
        variance = x.pow(2).mean(-1, keepdim=True)
        return x * torch.rsqrt(variance + 1e-5) * self.weight


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.drop = nn.Linear(DIM, 24), nn.Linear(24, DIM), nn.Dropout(0.3)

    def forward(self, x):
        return self.down(self.drop(functional.silu(self.up(x))))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.attn, self.mlp = Norm(), Norm(), Attention(), MLP()

    def forward(self, hidden, mask, position_embeddings):
        attended, _ = self.attn(
            self.first(hidden), mask=mask, position_embeddings=position_embeddings
        )
        hidden = hidden + attended
        return hidden + self.mlp(self.second(hidden))


class Decoder(nn.Module):
    """Two blocks between an embedding and a head, with a batch norm and a dropout."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, DIM)
        self.blocks = nn.ModuleList(Block() for _ in range(layers))
        self.bn, self.head = nn.BatchNorm1d(DIM), nn.Linear(DIM, 32)

    def forward(self, ids, mask=None):
        hidden = self.embed(ids)
        length = ids.shape[1]
        hides = torch.full((length, length), -100.0).triu(1)
        if mask is not None:
            hides = hides[None, None] + (1.0 - mask[:, None, None, :]) * -100.0
        angles = torch.arange(length)[:, None] * torch.arange(DIM // HEADS)[None] * 0.1
        position = angles.cos(), angles.sin()
        for block in self.blocks:
            hidden = block(hidden, hides, position)
        hidden = self.bn(hidden.transpose(1, 2)).transpose(1, 2)
        return {"logits": self.head(hidden)}


def decoder(layers: int = 2) -> Decoder:
    """In evaluation mode, with running statistics that are not those it begins with."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Decoder(layers)
        made.bn.running_mean.normal_()
        made.bn.running_var.uniform_(0.5, 2.0)
    return made.eval()


def decoder_inputs(tokens: int = TOKENS) -> dict[str, torch.Tensor]:
    """Two sequences of which the second is padded at its end."""
    ids = torch.randint(0, 32, (2, tokens), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, tokens)
    mask[1, -2:] = 0.0
    return {"ids": ids, "mask": mask}


def exported(model: nn.Module | None = None, **options: object) -> ExportedProgram:
    """The program of a decoder."""
    made = decoder() if model is None else model
    with torch.no_grad():
        return torch.export.export(made, (), decoder_inputs(), strict=False, **options)


def dynamic() -> ExportedProgram:
    """The program of a decoder for sequences of any length."""
    of_any_length = {1: torch.export.Dim.DYNAMIC}
    return exported(dynamic_shapes={"ids": of_any_length, "mask": of_any_length})


def nodes(program: ExportedProgram, operator: str, module: str) -> list[fx.Node]:
    """The nodes of an operator in a module."""
    return [
        node
        for node in program.graph.nodes
        if node.op == "call_function"
        and getattr(node.target, "__name__", "").split(".")[0] == operator
        and list(node.meta["nn_module_stack"].values())[-1][0] == module
    ]


def _argument(node: fx.Node, index: int, value: object) -> None:
    node.args = (*node.args[:index], value, *node.args[index + 1 :])


def _replaced(program: ExportedProgram, node: fx.Node, other: fx.Node) -> None:
    node.replace_all_uses_with(other)
    program.graph.erase_node(node)


def wrong_scale(program: ExportedProgram) -> None:
    (scale,) = [n for n in nodes(program, "mul", "blocks.1.attn") if n.args[1] == 0.35]
    _argument(scale, 1, 0.25)


def wrong_axis(program: ExportedProgram) -> None:
    _argument(nodes(program, "softmax", "blocks.1.attn")[0], 1, -2)


def left_out_mask(program: ExportedProgram) -> None:
    add = nodes(program, "add", "blocks.1.attn")[-1]
    _replaced(program, add, add.args[0])


def left_out_residual(program: ExportedProgram) -> None:
    add = nodes(program, "add", "blocks.0")[0]
    _replaced(program, add, add.args[1])


def wrong_constant(program: ExportedProgram) -> None:
    _argument(nodes(program, "add", "blocks.0.first")[0], 1, 0.1)


def wrong_weight(program: ExportedProgram) -> None:
    name = "blocks.1.mlp.up.weight"
    program.state_dict[name] = nn.Parameter(program.state_dict[name].flip(0))


def wrong_initialiser(program: ExportedProgram) -> None:
    name = "blocks.0.second.weight"
    program.state_dict[name] = nn.Parameter(program.state_dict[name] * 1.2)


def wrong_shift(program: ExportedProgram) -> None:
    _argument(nodes(program, "roll", "blocks.1.attn")[0], 1, [-1])


def cast_down(program: ExportedProgram) -> None:
    softmax = nodes(program, "softmax", "blocks.0.attn")[0]
    users = list(softmax.users)
    with program.graph.inserting_before(users[0]):
        down = program.graph.call_function(torch.ops.aten.to.dtype, (softmax, torch.bfloat16))
        up = program.graph.call_function(torch.ops.aten.to.dtype, (down, torch.float32))
    for node in (down, up):
        node.meta = dict(softmax.meta)
    for user in users:
        user.replace_input_with(softmax, up)


def norm_in_training(program: ExportedProgram) -> None:
    _argument(nodes(program, "batch_norm", "bn")[0], 5, True)


def stale_mask(program: ExportedProgram) -> None:
    """The mask is what it was for inputs without padding."""
    add = next(n for n in nodes(program, "add", "") if "hides[None" in n.stack_trace)
    value = torch.full((TOKENS, TOKENS), -100.0).triu(1).expand(2, 1, -1, -1).clone()
    with program.graph.inserting_before(next(iter(program.graph.nodes))):
        constant = program.graph.placeholder("c_folded")
    constant.meta["val"] = add.meta["val"]
    _replaced(program, add, constant)
    program.constants["folded"] = value
    spec = InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument("c_folded"), "folded")
    program.graph_signature.input_specs.insert(0, spec)


def specialised_positions(program: ExportedProgram) -> None:
    """As many positions as the program was exported with, whatever it is given."""
    nodes(program, "arange", "")[0].args = (TOKENS,)


# What each leads to: the module that is named, and a part of the line of the candidate's.
MISTAKES: dict[str, tuple[Callable[[ExportedProgram], None], str, str]] = {
    "wrong scale": (wrong_scale, "blocks.1.attn", "scores = scores * 0.35"),
    "wrong axis": (wrong_axis, "blocks.1.attn", "weights = scores.softmax(dim=-1)"),
    "no mask": (left_out_mask, "blocks.1.attn", "scores = scores + mask"),
    "no residual": (left_out_residual, "blocks.0", "hidden = hidden + attended"),
    "wrong constant": (wrong_constant, "blocks.0.first", "variance + 1e-5"),
    "wrong weight": (wrong_weight, "blocks.1.mlp.up", ""),
    "wrong initialiser": (wrong_initialiser, "blocks.0.second", ""),
    "wrong shift": (wrong_shift, "blocks.1.attn", "q = q * cos + q.roll(1, -1) * sin"),
    "cast down": (cast_down, "blocks.0.attn", "weights = scores.softmax(dim=-1)"),
    "norm in training": (norm_in_training, "bn", "hidden = self.bn("),
    "stale mask": (stale_mask, "", "hides = hides[None, None]"),
}


def planted(program: ExportedProgram, mistake: str) -> ExportedProgram:
    """A copy of a program with one of the mistakes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of how torch copies its own specs
        made = copy.deepcopy(program)
    MISTAKES[mistake][0](made)
    return made
