"""Mistakes that people make in other architectures than Llama are found; right pairs agree.

A row of `MISTAKES` names the model, what is planted in a copy of it, and the origin that the
verdict must name: the module, and the argument or else the kind. The models of transformers are
those of `test_families`; the ones below have what PyTorch itself brings.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations, rnn

import tracer
from tests.builders.model_families import FAMILIES, IDS, MASK
from tracer.tensors.leaves import tensor_leaves

Plant = Callable[[Any], None]

PLAIN = torch.randn(3, 8, generator=torch.Generator().manual_seed(4))
STATES = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(5))
OTHERS = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(6))
PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(7))
HIDDEN = torch.tensor([[False] * 7, [False] * 5 + [True] * 2])


class Block(nn.Module):
    """A block of a diffusion model: a convolution that is told the time, and a skip."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, channels)
        self.conv = nn.Conv2d(channels, out, 3, padding=1)
        self.time = nn.Linear(8, out)
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x, time):
        hidden = self.conv(F.silu(self.norm(x))) + self.time(F.silu(time))[:, :, None, None]
        return hidden + self.skip(x)


class UNet(nn.Module):
    """Down, across and up again, with connections from each level to its like."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 3, padding=1)
        self.embed = nn.Linear(8, 8)
        self.down = nn.ModuleList([Block(8, 8), Block(8, 16)])
        self.middle = Block(16, 16)
        self.up = nn.ModuleList([Block(32, 8), Block(16, 8)])
        self.leave = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x, step):
        angles = step[:, None].to(x) * torch.exp(-torch.arange(4).to(x))
        time = self.embed(torch.cat([angles.sin(), angles.cos()], dim=-1))
        x = self.enter(x)
        levels = []
        for block in self.down:
            x = block(x, time)
            levels.append(x)
            x = F.avg_pool2d(x, 2)
        x = self.middle(x, time)
        for block in self.up:
            x = block(torch.cat([F.interpolate(x, scale_factor=2), levels.pop()], dim=1), time)
        return self.leave(x)


class Residual(nn.Module):
    """Convolutions with batch normalisation, whose activations are edited in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        hidden = self.norm(self.conv(x))
        hidden += x
        return self.head(self.dropout(self.relu(hidden).mean(dim=(2, 3))))


class Packed(nn.Module):
    """Sequences of several lengths through a recurrent layer, and its last state."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed = nn.Embedding(99, 8)
        self.rnn = kind(8, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(12, 5)

    def forward(self, ids, lengths):
        packed = rnn.pack_padded_sequence(
            self.embed(ids), lengths, batch_first=True, enforce_sorted=False
        )
        output, state = self.rnn(packed)
        return self.head(rnn.pad_packed_sequence(output, batch_first=True)[0]), state


class Unrolled(nn.Module):
    """One cell, called for every step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(16, 8)
        self.head = nn.Linear(8, 3)
        self.forget_at: int | None = None

    def forward(self, x):
        state = x.new_zeros(x.shape[0], 8)
        outputs = []
        for step in range(x.shape[1]):
            if step == self.forget_at:
                state = state * 0.5
            state = self.cell(x[:, step], state)
            outputs.append(self.head(state))
        return torch.stack(outputs, dim=1)


class Mix(nn.Module):
    """A complex matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 16, dtype=torch.complex64))

    def forward(self, spectrum):
        return spectrum @ self.weight


class Spectral(nn.Module):
    """A filter and a mixture of channels in the frequency domain."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(4, 16, dtype=torch.complex64))
        self.mix = Mix()
        self.norm = "backward"

    def forward(self, x):
        spectrum = self.mix(torch.fft.rfft(x, dim=1) * self.filter)
        return torch.fft.irfft(spectrum, n=x.shape[1], dim=1, norm=self.norm)


class Adapted(nn.Module):
    """A linear layer with a correction of low rank beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_a = nn.Linear(base.in_features, 2, bias=False)
        self.lora_b = nn.Linear(2, base.out_features, bias=False)
        self.scaling = 0.5

    def forward(self, x):
        return self.base_layer(x) + self.scaling * self.lora_b(self.lora_a(x))


class Table(nn.Module):
    """Integers to integers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randperm(99))

    def forward(self, ids):
        return self.table[ids]


@dataclass
class Result:
    """What some models return."""

    states: torch.Tensor
    parts: list[dict[str, Any]]
    steps: int


class Structured(nn.Module):
    """Returns a dataclass of lists of dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(8, 8)
        self.right = nn.Linear(8, 8)
        self.steps = 3

    def forward(self, x):
        return Result(self.left(x), [{"right": self.right(x), "rest": (x, None)}], self.steps)


class Generated(nn.Module):
    """Takes no tensor at all."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = nn.ParameterList([nn.Parameter(torch.randn(3, 8)) for _ in range(2)])
        self.layer = nn.Linear(8, 8)

    def forward(self, scale=1.0):
        return self.layer(scale * self.seeds[0] + self.seeds[1])


def parametrized() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(8, 8)),
        nn.GELU(),
        parametrizations.orthogonal(nn.Linear(8, 8)),
        parametrizations.spectral_norm(nn.Linear(8, 4)),
    )


def with_hooks() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    model[2].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return model


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this form of quantisation is deprecated
        return torch.ao.quantization.quantize_dynamic(
            nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), {nn.Linear}
        )


def encoder_layer() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)


# The model and its inputs; a name that ends in "in training" is run in that mode.
MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "unet": (UNet, (PIXELS, torch.tensor([3, 7]))), "residual": (Residual, PIXELS),
    "residual in training": (Residual, PIXELS),
    "packed lstm": (lambda: Packed(nn.LSTM), (IDS, torch.tensor([10, 6]))),
    "packed gru": (lambda: Packed(nn.GRU), (IDS, torch.tensor([5, 10]))),
    "unrolled": (Unrolled, STATES), "spectral": (Spectral, STATES),
    "adapted": (lambda: nn.Sequential(Adapted(nn.Linear(8, 8)), nn.Tanh()), PLAIN),
    "table": (lambda: nn.Sequential(Table(), Table()), IDS),
    "structured": (Structured, PLAIN), "generated": (Generated, {}),
    "parametrized": (parametrized, PLAIN), "with hooks": (with_hooks, PLAIN),
    "quantized": (quantized, PLAIN),
    "dropout in training": (
        lambda: nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 8)),
        PLAIN,
    ),
    "attention": (lambda: nn.MultiheadAttention(16, 2, batch_first=True), (OTHERS, STATES, STATES)),
    "encoder layers": (
        lambda: nn.TransformerEncoder(encoder_layer(), 2),
        {"src": STATES, "src_key_padding_mask": HIDDEN},
    ),
    "encoder layers in training": (
        lambda: nn.TransformerEncoder(encoder_layer(), 2),
        {"src": STATES},
    ),
    "decoder layers": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(
            16, 2, 24, batch_first=True,
        ), num_layers=2),
        {
            "tgt": OTHERS, "memory": STATES,
            "tgt_mask": nn.Transformer.generate_square_subsequent_mask(5),
        },
    ),
    "jagged": (
        lambda: nn.Sequential(nn.Linear(16, 8), nn.GELU()),
        torch.nested.nested_tensor([STATES[0], OTHERS[0]], layout=torch.jagged),
    ),
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")


def build(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    if name in MODELS:
        make, inputs = MODELS[name]
        return make().train(name.endswith("in training")), inputs
    make, inputs, _ = FAMILIES[name]
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    return model, inputs


def call(model: nn.Module, inputs: Any) -> object:
    with torch.no_grad():
        if isinstance(inputs, dict):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


@pytest.mark.covers
@pytest.mark.parametrize("name", [*MODELS, *FAMILIES])
def test_copies_agree_in_full_and_compute_what_they_do_untraced(name: str) -> None:
    model, inputs = build(name)
    candidate = copy.deepcopy(model)
    torch.manual_seed(1)
    comparison = tracer.compare(model, candidate, inputs, train=model.training)
    captured = tracer.capture(model, candidate, inputs, include="")
    traced = {value.value: value.candidate for value in captured if "output" in value.value}
    untraced = dict(tensor_leaves(call(candidate, inputs), "output"))
    assert comparison.verdict.agrees, comparison.verdict.explanation
    coverage = comparison.coverage
    assert coverage.candidate_only == coverage.unmatched_calls == ()
    assert bool(coverage.reference_only) == (name == "encoder layers")
    assert all("in one piece" in coverage.reasons[inside] for inside in coverage.reference_only)
    assert all(row.difference.max == 0.0 for row in comparison.rows)
    assert traced.keys() == untraced.keys()
    # In training each call draws random numbers of its own.
    as_untraced = (torch.equal(traced[path], value) for path, value in untraced.items())
    assert model.training or all(as_untraced)
    assert tracer.compare(model, model, inputs, train=model.training).verdict.agrees


@pytest.mark.parametrize(("name", "change"), [
    *((name, "bfloat16") for name in ("bert", "bart", "mamba", "unet", "packed lstm")),
    *((name, "float64") for name in ("t5", "gemma3", "residual in training", "encoder layers")),
    *((name, "eager attention") for name in ("bert", "gpt2", "bart", "whisper", "mixtral")),
    *((name, "compiled") for name in ("vit", "spectral", "unrolled")),
    *((name, "parallel") for name in ("gpt2", "structured")),
])  # fmt: skip
def test_right_pairs_agree(name: str, change: str) -> None:
    model, inputs = build(name)
    candidate = CHANGES[change](copy.deepcopy(model))
    verdict = tracer.compare(model, candidate, inputs, train=model.training).verdict
    assert verdict.agrees, verdict.explanation


@pytest.mark.covers
@pytest.mark.parametrize("name", FAMILIES)
def test_one_wrong_weight_is_found(name: str) -> None:
    model, inputs = build(name)
    wrong = FAMILIES[name][2]
    candidate = copy.deepcopy(model)
    with torch.no_grad():
        weight = next(candidate.get_submodule(wrong).parameters(recurse=False))
        weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
    verdict = tracer.compare(model, candidate, inputs).verdict
    assert not verdict.agrees
    assert (verdict.origin.module, verdict.origin.kind) == (wrong, "parameter")
    assert verdict.confirmed, verdict.explanation


def eager_attention(model: Any) -> nn.Module:
    model.set_attn_implementation("eager")
    return model


CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "bfloat16": lambda model: model.bfloat16(),
    "float64": lambda model: model.double(),
    "eager attention": eager_attention,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "parallel": nn.DataParallel,
}


# What is planted. Each changes a copy of a model, whose modules go by their paths.


def setting(path: str, **values: Any) -> Plant:
    """Other attributes of a module."""

    def plant(model: nn.Module) -> None:
        for name, value in values.items():
            setattr(model.get_submodule(path), name, value)

    return plant


def parameter(path: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Plant:
    """Another value of a parameter or buffer."""

    def plant(model: nn.Module) -> None:
        owner, _, name = path.rpartition(".")
        tensor = getattr(model.get_submodule(owner), name)
        with torch.no_grad():
            tensor.copy_(change(tensor.clone()))

    return plant


def swapped(path: str, first: int, second: int) -> Plant:
    """Two modules of a list in each other's place."""

    def plant(model: nn.Module) -> None:
        modules: Any = model.get_submodule(path)
        modules[first], modules[second] = modules[second], modules[first]

    return plant


def computing(path: str, compute: Callable[..., object]) -> Plant:
    """Another forward; it is given the module, its old forward, and the arguments."""

    def plant(model: nn.Module) -> None:
        module = model.get_submodule(path)
        forward = module.forward
        module.forward = lambda *args, **kwargs: compute(module, forward, *args, **kwargs)

    return plant


def given(path: str, change: Callable[..., object] | None = None, **arguments: Any) -> Plant:
    """Other arguments for a module: a function of the first one, or values by keyword."""

    def pre_hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        changed = args if change is None else (change(args[0]), *args[1:])
        new = {k: v(kwargs.get(k)) if callable(v) else v for k, v in arguments.items()}
        return changed, {**kwargs, **new}

    def plant(model: nn.Module) -> None:
        model.get_submodule(path).register_forward_pre_hook(pre_hook, with_kwargs=True)

    return plant


def without_residual(module: Any, forward: Any, hidden: Any, inputs: Any) -> object:
    return module.LayerNorm(module.dropout(module.dense(hidden)))


def with_smaller_weights(module: Any, forward: Any, *args: Any, **kwargs: Any) -> object:
    weights, chosen, index = forward(*args, **kwargs)
    return weights, 0.9 * chosen, index


BERT, BART, T5 = "encoder.layer.0", "model.decoder.layers.0", "decoder.block.0.layer.0"
MISTAKES: dict[tuple[str, str], tuple[Plant, str, str]] = {
    ("bert", "residual left out"): (computing(f"{BERT}.attention.output", without_residual), f"{BERT}.attention.output", "computation"),
    ("bert", "attention scale"): (setting(f"{BERT}.attention.self", scaling=1.0), f"{BERT}.attention.self", "computation"),
    ("bert", "approximate activation"): (setting(f"{BERT}.intermediate", intermediate_act_fn=nn.GELU("tanh")), f"{BERT}.intermediate.intermediate_act_fn", "computation"),
    ("bert", "epsilon"): (setting("embeddings.LayerNorm", eps=0.1), "embeddings.LayerNorm", "computation"),
    ("bert", "layers in another order"): (swapped("encoder.layer", 0, 1), f"{BERT}.attention.self.query", "parameter"),
    ("bert", "mask dropped in one layer"): (given(f"{BERT}.attention.self", attention_mask=None), f"{BERT}.attention", "attention_mask"),
    ("gpt2", "weight transposed"): (parameter("transformer.h.1.attn.c_proj.weight", torch.t), "transformer.h.1.attn.c_proj", "parameter"),
    ("gpt2", "positions off by one"): (given("transformer.wpe", lambda ids: ids + 1), "transformer", "input"),
    ("t5", "buckets of the encoder"): (setting(f"{T5}.SelfAttention", is_decoder=False), f"{T5}.SelfAttention", "input"),
    ("t5", "mask of the encoder in the decoder"): (given("decoder", attention_mask=MASK), "", "attention_mask"),
    ("t5", "mask dropped across"): (given("decoder.block.1.layer.1", attention_mask=None), "decoder.block.1", "attention_mask"),
    ("t5", "scale of the head"): (given("lm_head", lambda x: 4 * x), "", "computation"),
    ("bart", "mask of the encoder in the decoder"): (given("model.decoder", attention_mask=MASK), "model", "attention_mask"),
    ("bart", "offset of the positions"): (setting("model.encoder.embed_positions", offset=1), "model.encoder.embed_positions", "computation"),
    ("bart", "scale of the embedding"): (setting("model.encoder.embed_tokens", embed_scale=4.0), "model.encoder.embed_tokens", "computation"),
    ("bart", "states of the encoder"): (given("model.decoder", encoder_hidden_states=lambda states: states.roll(1, dims=1)), "model", "encoder_hidden_states"),
    ("whisper", "padding of a convolution"): (given("model.encoder.conv2", lambda x: x.roll(1, dims=-1)), "model.encoder", "computation"),
    ("vit", "patches by columns"): (computing("vit.embeddings.patch_embeddings", lambda module, forward, x, **kwargs: forward(x.mT, **kwargs)), "vit.embeddings.patch_embeddings", "computation"),
    ("vit", "class token"): (parameter("vit.embeddings.cls_token", lambda token: token.roll(1, dims=-1) + 1), "vit.embeddings", "parameter"),
    ("mixtral", "weights of the experts"): (computing("model.layers.0.mlp.gate", with_smaller_weights), "model.layers.0.mlp.gate", "computation"),
    ("mixtral", "order of the experts"): (parameter("model.layers.1.mlp.experts.down_proj", lambda w: w.flip(0)), "model.layers.1.mlp.experts", "parameter"),
    ("gemma3", "norm without one"): (computing("model.layers.1.input_layernorm", lambda module, forward, x: module._norm(x) * module.weight), "model.layers.1.input_layernorm", "computation"),
    ("gemma3", "base of the local rotations"): (parameter("model.rotary_emb.sliding_attention_inv_freq", lambda freq: 1.3 * freq), "model.rotary_emb", "parameter"),
    ("mamba", "decay"): (parameter("backbone.layers.0.mixer.A_log", lambda a: a + 0.5), "backbone.layers.0.mixer", "parameter"),
    ("mamba", "bias of a convolution that is never called"): (parameter("backbone.layers.1.mixer.conv1d.bias", lambda bias: bias + 1), "backbone.layers.1.mixer", "parameter"),
    ("unet", "levels in another order"): (given("up.0", lambda x: x.roll(16, dims=1)), "", "computation"),
    ("unet", "groups of a norm"): (setting("down.1.norm", num_groups=4), "down.1.norm", "computation"),
    ("unet", "skip left out"): (computing("middle", lambda module, forward, x, time: forward(x, time) - x), "middle", "computation"),
    ("residual", "running variance"): (parameter("norm.running_var", lambda variance: 2 * variance), "norm", "parameter"),
    ("residual", "epsilon"): (setting("stem.1", eps=0.5), "stem.1", "computation"),
    ("residual", "statistics of the batch"): (lambda model: model.stem[1].train(), "stem.1", "computation"),
    ("residual in training", "rate of dropout"): (setting("dropout", p=0.6), "dropout", "computation"),
    ("packed lstm", "order of the gates"): (parameter("rnn.weight_ih_l0", lambda weight: weight.roll(6, 0)), "rnn", "parameter"),
    ("packed gru", "lengths"): (computing("", lambda module, forward, ids, lengths: forward(ids, lengths.flip(0))), "", "computation"),
    ("unrolled", "one step forgets"): (setting("", forget_at=4), "", "hx"),
    ("spectral", "scale of the transform"): (setting("", norm="ortho"), "", "computation"),
    ("spectral", "filter"): (parameter("filter", torch.conj), "", "parameter"),
    ("spectral", "mixture"): (parameter("mix.weight", torch.t), "mix", "parameter"),
    ("adapted", "scale"): (setting("0", scaling=1.0), "0", "computation"),
    ("table", "entries"): (parameter("0.table", lambda t: t.roll(1)), "0", "parameter"),
    ("structured", "number of steps"): (setting("", steps=4), "", "computation"),
    ("generated", "list of parameters"): (parameter("seeds.1", lambda seed: seed + 1), "", "parameter"),
    ("parametrized", "magnitude"): (parameter("0.parametrizations.weight.original0", lambda norm: 1.2 * norm), "0.parametrizations.weight", "parameter"),
    ("with hooks", "no hook"): (lambda model: model[0]._forward_hooks.clear(), "0", "computation"),
    ("dropout in training", "evaluation"): (lambda model: model[1].eval(), "1", "computation"),
    ("attention", "number of heads"): (setting("", num_heads=4, head_dim=4), "", "computation"),
    ("encoder layers", "one weight"): (
        parameter("layers.1.linear1.weight", lambda weight: weight.flip(0)),
        "layers.1",  # whose `linear1.weight` the verdict names; calls inside it are not seen
        "parameter",
    ),
    ("encoder layers in training", "norm first"): (
        setting("layers.0", norm_first=True),
        "layers.0",
        "computation",
    ),
    ("decoder layers", "no causal mask"): (given("", tgt_mask=None), "", "tgt_mask"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "mistake"), MISTAKES)
def test_a_mistake_is_found(name: str, mistake: str) -> None:
    plant, module, found = MISTAKES[name, mistake]
    model, inputs = build(name)
    candidate = copy.deepcopy(model)
    plant(candidate)
    verdict = tracer.compare(model, candidate, inputs, train=model.training).verdict
    assert not verdict.agrees
    assert verdict.origin is not None
    origin = verdict.origin.module, verdict.origin.argument or verdict.origin.kind
    assert origin == (module, found), verdict.explanation
    assert verdict.confirmed, verdict.explanation
