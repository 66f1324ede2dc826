"""Prepare, calibrate, convert, on models."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from wrappers import (
    Mode,
    PTQConfig,
    affine,
    calibrate,
    convert,
    iter_points,
    iter_wrappers,
    no_quantization,
    overrides_for,
    prepare,
)
from wrappers.errors import (
    ArgumentError,
    CalibrationWarning,
    ConfigError,
    MissingWrapperError,
    ModeError,
    ModelInputError,
    ObserverError,
    UnknownOverrideError,
    UnseenObserverError,
    WrapError,
)
from wrappers.layers.linear import QuantLinear


class Net(nn.Module):
    """A shared layer, a layer off the usual path, a list, and a norm that has no wrapper."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.GELU()])
        self.again = self.first
        self.seldom = nn.Linear(6, 6)
        self.norm = nn.GroupNorm(2, 6)

    def forward(self, x, seldom=False):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        x = self.again(x)
        return self.norm(self.seldom(x) if seldom else x)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64, max_position_embeddings=64,
    )).eval()  # fmt: skip


# --- prepare


def test_names_parameters_and_the_float_model_stay(net):
    wrapped = prepare(net, PTQConfig())
    assert [name for name, _ in wrapped.named_modules()] == [
        name for name, _ in net.named_modules()
    ]
    parameters = dict(wrapped.named_parameters())
    assert list(parameters) == [name for name, _ in net.named_parameters()]
    assert all(parameters[name] is value for name, value in net.named_parameters())
    assert type(wrapped) is Net
    before = {name: type(module) for name, module in net.named_modules()}
    state = copy.deepcopy(net.state_dict())
    expected = net(X)
    wrapped = prepare(net, PTQConfig())
    calibrate(wrapped, [(X, True)])
    convert(wrapped)(X)
    assert {name: type(module) for name, module in net.named_modules()} == before
    assert all(torch.equal(net.state_dict()[name], value) for name, value in state.items())
    assert torch.equal(net(X), expected)


def test_a_module_that_occurs_twice_is_wrapped_once(net):
    wrapped = prepare(net, PTQConfig())
    assert wrapped.first is wrapped.again
    assert isinstance(wrapped.first, QuantLinear)
    assert [name for name, _ in iter_wrappers(wrapped)] == [
        "first",
        "blocks.0",
        "blocks.1",
        "seldom",
    ]


def test_all_wrappers_start_switched_off(net):
    wrapped = prepare(net, PTQConfig())
    assert {module.mode for _, module in iter_wrappers(wrapped)} == {Mode.NO_QUANT}
    torch.testing.assert_close(wrapped(X), net(X))


def test_what_cannot_be_wrapped(net):
    with pytest.raises(
        MissingWrapperError, match=r"^norm owns parameters: .*GroupNorm has no wrapper; .*Linear"
    ):
        prepare(net, PTQConfig(strict_wrap=True))
    wrapped = prepare(net, PTQConfig())
    with pytest.raises(WrapError, match="first is a QuantLinear: the model is wrapped already"):
        prepare(wrapped, PTQConfig())
    with pytest.raises(WrapError, match="nothing in Sequential has a wrapper"):
        prepare(nn.Sequential(nn.GroupNorm(2, 6)), PTQConfig())


def test_overrides_reach_their_points(net):
    config = PTQConfig(
        overrides={
            "blocks": {"0": {"weight": affine("int4"), "act_in": {"dtype": "uint4"}}},
            "seldom.act_out": no_quantization(),
        }
    )
    specs = {
        f"{module}.{name}": point.spec for module, name, point in iter_points(prepare(net, config))
    }
    assert specs["blocks.0.weight"] == affine("int4")
    assert specs["blocks.0.act_in"] == affine("uint4")
    assert specs["blocks.0.act_out"] == affine("uint8")
    assert specs["seldom.act_out"] == no_quantization()


@pytest.mark.parametrize(("path", "advice"), [
    ("blocks.0.wieght", "did you mean blocks.0.weight"),
    ("block.0.act_in", "did you mean blocks.0.act_in"),
    ("blocks.0", "did you mean"),
    ("zzzzzzzzzzzzzzzzzzzzzzzz", "there are first.weight, first.act_in"),
])  # fmt: skip
def test_an_override_of_nothing_lists_near_names(net, path, advice):
    with pytest.raises(
        UnknownOverrideError, match=rf"'{path}' names no quantization point; {advice}"
    ):
        prepare(net, PTQConfig(overrides={path: affine("int8")}))


def test_overrides_by_pattern_reach_their_points(net):
    wrapped = prepare(net, PTQConfig(overrides={"blocks.*:activation": no_quantization()}))
    off = {
        f"{module}.{name}"
        for module, name, point in iter_points(wrapped)
        if point.spec == no_quantization()
    }
    assert off and all(name.startswith("blocks.") and "weight" not in name for name in off)
    with pytest.raises(UnknownOverrideError, match=r"'block\.\*' matches no quantization point"):
        prepare(net, PTQConfig(overrides={"block.*": no_quantization()}))


def test_a_single_layer_and_inputs_of_every_form(net):
    wrapped = prepare(nn.Linear(6, 2), PTQConfig(overrides={"weight": affine("int8")}))
    assert wrapped.points["weight"].spec == affine("int8")
    wrapped = prepare(net, PTQConfig())
    calibrate(wrapped, [X, (X,), [X, True], {"x": X, "seldom": True}])
    assert wrapped.seldom.points["act_in"].observer.seen == 2 * X.numel()
    assert wrapped.blocks[0].points["act_in"].observer.seen == 4 * X.numel()
    assert {module.mode for _, module in iter_wrappers(wrapped)} == {Mode.CALIBRATE}


# --- calibrate


def test_calibrating_sees_every_batch_without_gradients(net):
    wrapped = prepare(net, PTQConfig())

    def batches():
        for _ in range(2):
            assert not torch.is_grad_enabled()
            yield X.clone().requires_grad_()

    calibrate(wrapped, batches())
    assert not wrapped.first.points["act_in"].observer.minimum.requires_grad
    seen = []

    def progress(batches):
        for batch in batches:
            seen.append(batch)
            yield batch

    calibrate(prepare(net, PTQConfig()), [X, X], progress=progress)
    assert len(seen) == 2


def test_what_cannot_be_calibrated(net):
    with pytest.raises(ModelInputError, match="no calibration inputs"):
        calibrate(prepare(net, PTQConfig()), iter(()))
    with pytest.raises(ArgumentError, match="inputs holds 'a prompt'"):
        calibrate(prepare(net, PTQConfig()), ["a prompt"])
    with pytest.raises(ModelInputError, match="not str"):
        calibrate(prepare(net, PTQConfig()), iter(["a prompt"]))
    with pytest.raises(ModeError, match="give the model that prepare"):
        calibrate(net, [X])
    with pytest.raises(ModeError, match="give the model that prepare"):
        convert(net)


def test_what_is_damaged_is_told(net):
    wrapped, clean = prepare(net, PTQConfig()), prepare(net, PTQConfig())
    dirty = X.clone()
    dirty[0] = math.nan
    with pytest.warns(CalibrationWarning, match=r"first\.act_in \(12\)"):
        calibrate(wrapped, [(dirty, True)])
    calibrate(clean, [(X[1:], True)])
    assert torch.equal(convert(wrapped)(X), convert(clean)(X))
    with torch.no_grad():
        net.seldom.bias[0] = math.nan
        net.blocks[0].weight[0, 0] = math.inf
    with pytest.raises(ObserverError, match=r"'weight' of blocks\.0 holds 1 NaN"):
        calibrate(prepare(net, PTQConfig()), [X])


# --- convert


def test_points_that_saw_nothing_are_all_named_and_nothing_changes(net):
    wrapped = prepare(net, PTQConfig())
    calibrate(wrapped, [X])
    with pytest.raises(
        UnseenObserverError,
        match=r"^2 quantization points saw no data .*: seldom\.act_in, seldom\.act_out\.",
    ):
        convert(wrapped)
    assert {module.mode for _, module in iter_wrappers(wrapped)} == {Mode.CALIBRATE}
    calibrate(wrapped, [(X, True)])
    assert convert(wrapped) is wrapped


def test_points_that_see_nothing_and_many_names(net, llama):
    overrides = {"seldom": {"act_in": no_quantization(), "act_out": no_quantization()}}
    wrapped = prepare(net, PTQConfig(overrides=overrides))
    calibrate(wrapped, [X])
    convert(wrapped)
    with pytest.raises(UnseenObserverError, match=r"and \d+ more\. Calibrate"):
        convert(prepare(llama, PTQConfig()))


def test_more_bits_are_closer_and_their_state_restores_them(net):
    errors = []
    for dtype in ("uint4", "uint8", "uint16"):
        wrapped = prepare(net, PTQConfig(activation=affine(dtype), weight=affine(dtype)))
        calibrate(wrapped, [(X, True)])
        with torch.no_grad():
            errors.append(float((convert(wrapped)(X) - net(X)).abs().max()))
    assert errors[0] > errors[1] > errors[2] > 0
    quantized = prepare(net, PTQConfig())
    calibrate(quantized, [(X, True)])
    convert(quantized)
    fresh = prepare(copy.deepcopy(net), PTQConfig())
    fresh.load_state_dict(quantized.state_dict())
    assert torch.equal(convert(fresh)(X), quantized(X))


# --- a transformers model


TOKENS = torch.arange(12).reshape(2, 6)


def test_a_causal_lm_keeps_what_transformers_does_with_it(llama):
    llama(TOKENS, output_hidden_states=True)  # leaves transformers' recording hooks behind
    wrapped = prepare(llama, PTQConfig(strict_wrap=True))
    with torch.no_grad():
        expected = llama(TOKENS, output_hidden_states=True)
        found = wrapped(TOKENS, output_hidden_states=True)
    torch.testing.assert_close(found.logits, expected.logits)
    assert len(found.hidden_states) == len(expected.hidden_states) == 3
    for ours, theirs in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_tied_weights_and_rotary_embeddings_stay(llama):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=32, tie_word_embeddings=True,
    )  # fmt: skip
    wrapped = prepare(LlamaForCausalLM(config).eval(), PTQConfig())
    assert wrapped.lm_head.weight is wrapped.model.embed_tokens.weight
    assert type(prepare(llama, PTQConfig()).model.rotary_emb) is type(llama.model.rotary_emb)


def test_a_quantised_causal_lm_is_saved_and_restored(llama, tmp_path):
    quantized = prepare(llama, PTQConfig())
    calibrate(quantized, [TOKENS])
    convert(quantized).save_pretrained(tmp_path)
    fresh = prepare(copy.deepcopy(llama), PTQConfig())
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(convert(fresh)(TOKENS).logits, quantized(TOKENS).logits)


class TestOverridesFor:
    """Globs of modules and points."""

    def dtypes(self, net, rules, **options):
        config = PTQConfig(**options)
        found = overrides_for(net, config, rules)
        wrapped = prepare(net, replace(config, overrides=found))
        return {f"{m}.{p}".lstrip("."): point.kind for m, p, point in iter_points(wrapped)}

    def test_a_module_stands_for_its_points_and_the_last_rule_counts(self, net) -> None:
        plain = self.dtypes(net, {})
        assert set(plain.values()) == {"uint8"}
        found = self.dtypes(net, {"blocks": "int16", "blocks.0.weight": "int8", "first": "float"})
        inside = {path: kind for path, kind in found.items() if path.startswith("blocks.")}
        assert inside.pop("blocks.0.weight") == "int8"
        assert set(inside.values()) == {"int16"}
        first = {kind for path, kind in found.items() if path.startswith("first.")}
        assert first == {"identity"}
        changed = ("blocks.", "first.")
        assert {k for p, k in found.items() if not p.startswith(changed)} == {"uint8"}

    def test_the_config_s_own_overrides_and_observers_stay(self, net) -> None:
        own = {"blocks.0.weight": affine("int4"), "first.weight": affine("int4")}
        config = PTQConfig(activation=affine("uint8", observer="ema"), overrides=own)
        found = overrides_for(net, config, {"first": "int16"})
        assert found["blocks.0.weight"] == affine("int4")
        assert found["first.weight"] == affine("int16")
        assert found["first.act_in"] == affine("int16", observer="ema")

    def test_what_is_refused(self, net) -> None:
        with pytest.raises(UnknownOverrideError, match=r"'\*\.frist' .*did you mean .*\*\.first"):
            overrides_for(net, PTQConfig(), {"*.frist": "int8"})
        with pytest.raises(ConfigError, match="unknown integer type 'in8'"):
            overrides_for(net, PTQConfig(), {"*": "in8"})
