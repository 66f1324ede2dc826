"""compressed-tensors: points that are off are computed by hand, and planted mistakes named.

`from_pretrained` and the names of scales are those of checkpoints of llm-compressor.
"""

import sys

import pytest
import torch
from torch.nn.functional import linear

import tracer
from tests.builders.quantised import (
    INPUTS,
    compressed,
    edit,
    edit_config,
    float_folder,
    observed,
    small,
)
from tracer import models
from tracer.adapters.quantised.compressed import settle
from tracer.adapters.quantised.lookup import adapter_of, is_quantized
from tracer.adapters.quantised.silent import SilentKind, silent_mistakes
from tracer.cli import main
from tracer.errors import ModelLoadError

pytest.importorskip("compressed_tensors", reason="needs compressed-tensors")

DOWN = "model.layers.0.mlp.down_proj"
PRESETS = {"W8A8": None, "W4A16": 8, "FP8": None, "FP8_DYNAMIC": None, "W4A8": 8, "MXFP4A16": None}


def load(folder):
    return models.load(folder, inputs=INPUTS).model


def found(folder):
    mistakes = silent_mistakes(load(folder))
    return {(m.kind, m.module, m.tensor) for m in mistakes.found} if mistakes else set()


@pytest.fixture(scope="module")
def w8a8(tmp_path_factory):
    return compressed(tmp_path_factory.mktemp("w8a8"), "W8A8")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_right_checkpoint_has_nothing_wrong_and_its_points_are_those_of_its_scheme(
    preset, tmp_path
):
    folder = compressed(tmp_path, preset, group_size=PRESETS[preset])
    model = load(folder)
    assert silent_mistakes(model) is None
    assert is_quantized(model)
    assert adapter_of(model.lm_head) is None
    points = adapter_of(model.get_submodule(DOWN)).ablatable_points()
    assert points["weight"].endswith(" weight")
    assert ("input" in points) == ("A16" not in preset)
    assert all(p.is_floating_point() for n, p in model.named_parameters() if n.endswith("weight"))


def test_each_point_off_is_computed_without_it(w8a8):
    reference, model = small(), load(w8a8)
    own, theirs = model.get_submodule(DOWN), reference.get_submodule(DOWN)
    adapter = adapter_of(own)
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(3))
    scale = theirs.weight.abs().amax(1, keepdim=True) / 127.5
    weight = (theirs.weight / scale).round().clamp(-128, 127) * scale
    step = x.abs().amax(-1, keepdim=True) / 127.5  # one for each token
    quantized = (x / step).round().clamp(-128, 127) * step
    with torch.no_grad():
        before = own(x)
        torch.testing.assert_close(before, linear(quantized, weight))
        with adapter.disabled("input"):
            torch.testing.assert_close(own(x), linear(x, weight))
        with adapter.disabled("weight", theirs):
            torch.testing.assert_close(own(x), linear(quantized, theirs.weight))
            with adapter.disabled("input"):
                assert torch.equal(own(x), theirs(x))
        assert torch.equal(own(x), before)


def test_what_is_raised_while_a_point_is_off_puts_it_back(w8a8):
    model = load(w8a8)
    own = model.get_submodule(DOWN)
    with (
        pytest.raises(RuntimeError),
        adapter_of(own).disabled("weight", small().get_submodule(DOWN)),
    ):
        raise RuntimeError
    mine = load(w8a8).get_submodule(DOWN)
    assert torch.equal(own.weight, mine.weight)


def test_without_the_reference_a_kept_float_weight_is_not_quantised():
    model = observed("W8A8")
    own, float_model = model.get_submodule(DOWN), small()
    adapter, x = adapter_of(own), torch.randn(3, 64)
    with torch.no_grad(), adapter.disabled("weight"), adapter.disabled("input"):
        assert torch.equal(own(x), float_model.get_submodule(DOWN)(x))


def test_scales_of_attention_are_points_of_their_own(tmp_path):
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        apply_quantization_config,
    )

    model, reference = small(), small()
    config = QuantizationConfig(
        config_groups={},
        kv_cache_scheme=QuantizationArgs(num_bits=8, symmetric=True),
        quantization_status="frozen",
    )
    apply_quantization_config(model, config, show_progress=False)
    attention = model.model.layers[0].self_attn
    attention.k_scale.data.fill_(0.5)
    attention.v_scale.data.fill_(1.0)
    assert adapter_of(attention).ablatable_points() == {"k": "int8 key", "v": "int8 value"}
    mistakes = silent_mistakes(model).found
    assert [(m.kind, m.module, m.tensor) for m in mistakes] == [
        (SilentKind.SCALE_OF_ONE, "model.layers.0.self_attn", "v_scale")
    ]
    with torch.no_grad():
        expected = reference(**INPUTS).logits
        assert not torch.equal(model(**INPUTS).logits, expected)
        with adapter_of(attention).disabled("k"), adapter_of(attention).disabled("v"):
            assert torch.equal(model(**INPUTS).logits, expected)


def test_what_the_first_forward_would_decompress_is_decompressed_at_once_and_quietly(
    w8a8, capsys, monkeypatch
):
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(w8a8)
    assert model.get_submodule(DOWN).weight.dtype is torch.int8
    capsys.readouterr()
    settle(model)
    assert capsys.readouterr().err == ""
    own = model.get_submodule(DOWN)
    assert own.weight.dtype is torch.float32
    # Broken: find how compressed-tensors now decompresses, and where it keeps parameters then.
    assert type(own._parameters) is dict
    assert "forward" not in vars(model.model.norm)
    before = own.weight.clone()
    settle(model)
    assert torch.equal(own.weight, before)


def scale_of(value):
    return lambda tensors: tensors[f"{DOWN}.weight_scale"].fill_(value)


def without(*names):
    def change(tensors):
        for name in names:
            del tensors[name]

    return change


def per_tensor(tensors):
    scale = tensors[f"{DOWN}.weight_scale"]
    scale.fill_(scale.max())


def single(tensors):
    tensors[f"{DOWN}.weight_scale"] = tensors[f"{DOWN}.weight_scale"].max().reshape(1)


def one_of(value):
    def change(tensors):
        tensors[f"{DOWN}.weight_scale"][3] = value

    return change


def stored_as_float(tensors):
    tensors[f"{DOWN}.weight"] = small().get_submodule(DOWN).weight.detach()
    del tensors[f"{DOWN}.weight_scale"]


def head_too(tensors):
    tensors["lm_head.weight_scale"] = torch.full((96, 1), 0.01)
    tensors["lm_head.weight"] = (tensors["lm_head.weight"] / 0.01).round().clamp(-128, 127)


SCALE = f"{DOWN}.weight_scale"
PLANTED = {
    "one": (scale_of(1.0), (SilentKind.SCALE_OF_ONE, DOWN, "weight_scale")),
    "one of many": (one_of(1.0), (SilentKind.SCALE_OF_ONE, DOWN, "weight_scale")),
    "zero": (scale_of(0.0), (SilentKind.SCALE_NOT_POSITIVE, DOWN, "weight_scale")),
    "negative": (one_of(-0.1), (SilentKind.SCALE_NOT_POSITIVE, DOWN, "weight_scale")),
    "nan": (one_of(float("nan")), (SilentKind.SCALE_NOT_FINITE, DOWN, "weight_scale")),
    "missing": (without(SCALE), (SilentKind.UNFILLED, DOWN, "weight_scale")),
    "equal": (per_tensor, (SilentKind.PER_TENSOR, DOWN, "weight_scale")),
    "single": (single, (SilentKind.PER_TENSOR, DOWN, "weight_scale")),
    "float": (stored_as_float, (SilentKind.NOT_QUANTIZED, DOWN, "weight")),
    "ignored": (head_too, (SilentKind.IGNORED_YET_QUANTIZED, "lm_head", "weight")),
}


@pytest.mark.parametrize("name", PLANTED)
def test_each_planted_mistake_is_found_and_no_other(name, tmp_path):
    change, expected = PLANTED[name]
    folder = edit(compressed(tmp_path, "W8A8"), change)
    also = {(SilentKind.UNFILLED, DOWN, "weight_scale")} if name == "float" else set()
    assert found(folder) == {expected} | also


def test_a_static_input_scale_that_is_missing_is_found(tmp_path):
    folder = edit(compressed(tmp_path, "FP8"), without(f"{DOWN}.input_scale"))
    assert found(folder) == {(SilentKind.UNFILLED, DOWN, "input_scale")}


def test_a_zero_point_of_a_symmetric_scheme_is_not_0():
    model = observed("W8A8")
    model.get_submodule(DOWN).weight_zero_point.data[2] = 7
    (mistake,) = silent_mistakes(model).found
    assert (mistake.kind, mistake.module) == (SilentKind.ZERO_POINT_OUTSIDE, DOWN)
    assert (mistake.found, mistake.expected) == ("7, 1 of 32", "0")


def test_an_asymmetric_zero_point_stays_in_its_range():
    model = observed("W4A16_ASYM", group_size=8)
    assert silent_mistakes(model) is None
    model.get_submodule(DOWN).weight_zero_point.data[0, 0] = 12
    (mistake,) = silent_mistakes(model).found
    assert mistake.expected == "-8 to 7"


def test_packed_weights_that_are_stored_as_floats_cannot_be_loaded(tmp_path):
    def change(tensors):
        for part in ("packed", "scale", "shape"):
            del tensors[f"{DOWN}.weight_{part}"]
        tensors[f"{DOWN}.weight"] = small().get_submodule(DOWN).weight.detach()

    folder = edit(compressed(tmp_path, "W4A16", group_size=8), change)
    with pytest.raises(ModelLoadError, match=rf"holds {DOWN}.weight as floats, although config"):
        load(folder)


def test_a_scheme_that_is_no_scheme_is_refused(tmp_path):
    folder = compressed(tmp_path, "W8A8")
    edit_config(folder, lambda config: config["config_groups"]["group_0"].update(weights="int8"))
    with pytest.raises(ModelLoadError, match=r"config.json cannot be used|cannot be loaded"):
        load(folder)


def test_the_command_line_ranks_and_flags(tmp_path, capsys):
    reference = float_folder(tmp_path / "float")
    candidate = edit(compressed(tmp_path / "w8a8", "W8A8"), scale_of(1.0))
    command = ["compare", str(reference), "--candidate", str(candidate), "--sequence-length", "8"]
    report = tmp_path / "report.json"
    assert main([*command, "--report", str(report)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "as expected of a quantised candidate; silently wrong in 1 module" in out
    assert f"a scale of exactly 1.0: `weight_scale` of `{DOWN}` (1, 32 of 32)" in out
    assert "without `weight` (int8 weight)" in out
    assert '"kind": "scale_of_one"' in report.read_text()


@pytest.mark.covers
def test_a_comparison_in_python_says_it_too(w8a8):
    reference, candidate = small(), load(w8a8)
    candidate.get_submodule(DOWN).weight_scale.data[0] = 0.0
    comparison = tracer.compare(reference, candidate, INPUTS)
    assert "a scale that is not above 0" in comparison.verdict.explanation
    assert "weight_scale` differ" not in comparison.verdict.explanation
    assert "Another checkpoint" not in comparison.verdict.explanation
    after = load(w8a8).get_submodule(DOWN).weight
    assert torch.equal(candidate.get_submodule(DOWN).weight, after)


def test_nothing_is_known_of_modules_where_the_library_is_not_there(monkeypatch):
    module = observed("W8A8").get_submodule(DOWN)
    monkeypatch.delitem(sys.modules, "compressed_tensors.quantization")
    assert adapter_of(module) is None
