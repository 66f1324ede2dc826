"""The stages that rewrite a float model: the same function, by the tracer; and their numbers,
computed again in float64."""

import copy

import pytest
import torch
from torch import nn

import tracer
import wrappers
from tests.builders import qwen3_vl_whole
from tests.builders.llama import tiny, tokens
from wrappers import PTQConfig, affine, algorithms
from wrappers.algorithms import BiasCorrection, CrossLayerEqualisation, Rotation, SmoothQuant
from wrappers.algorithms.rotation import hadamard
from wrappers.errors import ConfigError, WrapError

CONFIG = PTQConfig(activation=affine("uint8"), weight=affine("uint4"), variant="prefill_reference")
STAGES = {
    "smoothing": SmoothQuant(),
    "by activations": SmoothQuant(strengths=(0.5,), statistic="mean"),
    "equalisation": CrossLayerEqualisation(),
    "rotation": Rotation(),
    "rotation of values": Rotation(stream=False),
    "rotation of the stream": Rotation(values=False),
}


def with_outliers(**changes):
    """A small Llama with norms that are not 1 and channels that stand out."""
    model = tiny(**changes)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
            if "up_proj" in name or "v_proj" in name:
                parameter[0] *= 20
    return model


def data():
    return [{"input_ids": tokens(2, 12, seed)} for seed in (1, 2)]


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"attention_bias": True}],
                         ids=["untied", "tied", "biases"])  # fmt: skip
def test_a_llama_computes_the_same_function(name, changes):
    model = with_outliers(**changes)
    before = copy.deepcopy(model.state_dict())
    stage = STAGES[name]
    found = stage(model, CONFIG, data())
    comparison = tracer.compare(model, found, data()[0])
    assert comparison.verdict.agrees or comparison.verdict.outcome.value == "equivalent"
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [n for n, _ in found.named_modules()] == [n for n, _ in model.named_modules()]
    changed = {
        key for key, value in found.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed


@pytest.mark.parametrize("name", STAGES)
def test_a_qwen3_vl_computes_the_same_function(name):
    model, inputs = qwen3_vl_whole.tiny(), qwen3_vl_whole.EXAMPLES["both"]()
    found = STAGES[name](model, CONFIG, [inputs])
    with torch.no_grad():
        torch.testing.assert_close(found(**inputs).logits, model(**inputs).logits)


def test_equalised_channels_have_like_ranges():
    model = with_outliers()
    found = CrossLayerEqualisation()(model, CONFIG, data())
    for layer in found.model.layers:
        up, down = layer.mlp.up_proj.weight, layer.mlp.down_proj.weight
        torch.testing.assert_close(up.abs().amax(1), down.abs().amax(0))
        value, output = layer.self_attn.v_proj.weight, layer.self_attn.o_proj.weight
        # 4 query heads of 8 over 2 value heads: heads 0 and 1 read value head 0.
        columns = output.abs().amax(0).view(2, 2, 8).amax(1).flatten()
        torch.testing.assert_close(value.abs().amax(1), columns)


def test_smoothing_factors_in_float64():
    model, batches = with_outliers(), data()
    found = SmoothQuant(strengths=(0.7,))(model, CONFIG, batches)
    layer, smoothed = model.model.layers[0], found.model.layers[0]
    seen = []
    handle = layer.self_attn.q_proj.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    inputs = torch.cat([x.flatten(0, -2) for x in seen]).double().abs().amax(0)
    attention = layer.self_attn
    weights = torch.cat(
        [each.weight for each in (attention.q_proj, attention.k_proj, attention.v_proj)]
    ).double().abs().amax(0)  # fmt: skip
    factors = inputs**0.7 / weights**0.3
    factors /= factors.log().mean().exp()
    expected = attention.q_proj.weight.double() * factors
    torch.testing.assert_close(smoothed.self_attn.q_proj.weight, expected.float())
    expected = layer.input_layernorm.weight.double() / factors
    torch.testing.assert_close(smoothed.input_layernorm.weight, expected.float())


def rounded_to(codes, x, dimension=None):
    """Asymmetric, in float64: per tensor, or per row."""
    low, high = (x.min(), x.max()) if dimension is None else (x.amin(1, True), x.amax(1, True))
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / codes
    zero = (-low / scale).round().clamp(0, codes)
    return (((x / scale).round() + zero).clamp(0, codes) - zero) * scale


def test_the_strength_is_that_of_the_least_error():
    model, batches = with_outliers(), data()
    found = SmoothQuant()(model, CONFIG, batches)
    mlp = model.model.layers[0].mlp
    seen = []
    handle = mlp.down_proj.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    x = torch.cat([each.flatten(0, -2) for each in seen]).double()
    weight = mlp.down_proj.weight.detach().double()

    def error(factors):
        read = rounded_to(255, x / factors) @ rounded_to(15, weight * factors, 1).T
        return float((read - x @ weight.T).pow(2).sum())

    candidates = [torch.ones(x.shape[1], dtype=torch.float64)]
    for strength in torch.arange(1, 10) / 10:
        made = x.abs().amax(0) ** strength / weight.abs().amax(0) ** (1 - strength)
        candidates.append(made / made.log().mean().exp())
    best = min(candidates, key=error)
    assert best is not candidates[0]
    torch.testing.assert_close(found.model.layers[0].mlp.down_proj.weight, (weight * best).float())


@pytest.mark.parametrize("size", [1, 2, 8, 12, 20, 7])
def test_rotations_are_orthogonal_and_even(size):
    found = hadamard(size, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found @ found.T, torch.eye(size, dtype=torch.float64))
    if size & (size - 1) == 0:
        torch.testing.assert_close(found.abs(), torch.full_like(found, size**-0.5))


def test_a_rotated_stream_is_the_stream_rotated():
    model = with_outliers()
    found = Rotation(values=False, seed=5)(model, CONFIG, data())
    turn = hadamard(32, torch.Generator().manual_seed(5))
    ids = tokens(1, 7)
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True).hidden_states[1].double() @ turn
        rotated = found(ids, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(rotated, expected.float(), rtol=1e-4, atol=1e-5)
    assert not found.config.tie_word_embeddings
    assert (found.model.norm.weight == 1).all()


class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 4, bias=False)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def test_corrected_biases_leave_no_mean_error():
    model = Shifted()
    x = 1 + torch.rand(200, 8, generator=torch.Generator().manual_seed(1))
    config = PTQConfig(weight=affine("uint3"), activation=affine("int16"))
    plain = algorithms.quantize(model, config, [x])
    found = algorithms.quantize(model, config, [x], [BiasCorrection()])
    with torch.no_grad():
        hidden = plain.first.quantize(plain.first.weight, "weight")
        first = model.first(x).double().mean(0) - (x @ hidden.T + model.first.bias).double().mean(0)
        shifts = [(each(x) - model(x)).mean(0).abs().max() for each in (plain, found)]
    torch.testing.assert_close(
        found.first.bias, (model.first.bias + first).float(), rtol=1e-3, atol=1e-3
    )
    assert model.second.bias is None and found.second.bias is not None
    assert shifts[1] < shifts[0] / 20
    again = algorithms.quantize(model, config, [x], [algorithms.GPTQ(), BiasCorrection()])
    with torch.no_grad():
        assert (again(x) - model(x)).mean(0).abs().max() < shifts[0] / 20


@pytest.mark.covers
def test_stages_compose():
    model, batches = tiny(), data()
    config = PTQConfig(activation=affine("int16"), weight=affine("uint4"))
    stages = [
        SmoothQuant(), CrossLayerEqualisation(), Rotation(), algorithms.GPTQ(group_size=8),
        BiasCorrection(),
    ]  # fmt: skip
    found = algorithms.quantize(model, config, batches, stages)
    plain = algorithms.quantize(model, config, batches)
    with torch.no_grad():
        errors = [
            sum((each(**b).logits - model(**b).logits).pow(2).sum() for b in batches)
            for each in (found, plain)
        ]
    assert errors[0] < errors[1]


def test_what_cannot_be():
    model, batches = tiny(), data()
    prepared = wrappers.prepare(model, CONFIG)
    for stage in (SmoothQuant(), CrossLayerEqualisation(), Rotation()):
        with pytest.raises(WrapError, match="rewrites a float model, and this one is prepared"):
            stage(prepared, CONFIG, batches)
        with pytest.raises(WrapError, match="Linear has 0 text models with embed_tokens"):
            stage(nn.Linear(2, 2), CONFIG, batches)
    with pytest.raises(WrapError, match="has no head to take up a rotation"):
        Rotation()(model.model, CONFIG, batches)
    for options in ({"strengths": ()}, {"strengths": (2.0,)}, {"statistic": "sum"}, {"rows": 0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            SmoothQuant(**options)
    with pytest.raises(ConfigError, match="rotates nothing"):
        Rotation(stream=False, values=False)
    model.model.layers[1].mlp.down_proj = nn.Sequential(model.model.layers[1].mlp.down_proj)
    with pytest.raises(WrapError, match=r"layers\.1\.mlp\.down_proj is a Sequential"):
        Rotation()(model, CONFIG, batches)
    model = tiny()
    model.model.norm = nn.LayerNorm(32)
    with pytest.raises(WrapError, match=r"model\.norm is a LayerNorm: this algorithm needs a root"):
        CrossLayerEqualisation()(model, CONFIG, batches)
    model = tiny()
    del model.model.layers[0].mlp.up_proj
    with pytest.raises(WrapError, match=r"model\.layers\.0 has no mlp\.up_proj"):
        SmoothQuant()(model, CONFIG, batches)
