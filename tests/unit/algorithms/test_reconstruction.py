"""Learned rounding against all roundings of a small layer, and blocks of whole models."""

import itertools
import warnings

import pytest
import torch
from torch import nn
from transformers import DynamicCache

import wrappers
from tests.builders import qwen3_vl_whole
from tests.builders.llama import tiny, tokens
from wrappers import PTQConfig, affine, algorithms
from wrappers.algorithms import GPTQ, AdaRound, BlockReconstruction, reconstructed
from wrappers.algorithms.learning import LearnedRange, LearnedRounding, codes_of
from wrappers.errors import CalibrationWarning, ConfigError, ModelInputError, WrapError
from wrappers.numerics.affine import AffineQParams
from wrappers.numerics.dtypes import DType

UINT3 = DType.parse("uint3")


def grid_of(weight, dtype=UINT3):
    low, high = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
    scale = (high - low) / (dtype.qmax - dtype.qmin)
    return AffineQParams(scale, torch.round(-low / scale), dtype, 0)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestRounding:
    def test_it_begins_at_the_weight_and_ends_on_the_grid(self):
        weight = drawn(3, 7)
        grid = grid_of(weight)
        rounding = LearnedRounding(weight, grid)
        position = weight / grid.scale[:, None] + grid.zero_point[:, None]
        inside = (position.clamp(0, 7) - grid.zero_point[:, None]) * grid.scale[:, None]
        torch.testing.assert_close(rounding.weight(), inside)
        rounding.hard = True
        torch.testing.assert_close(rounding.weight(), grid.fake_quantize(weight))
        assert rounding.undecided(2.0) == 0

    def test_codes_of_a_rounded_weight_give_way_to_the_side_of_the_weight(self):
        weight = drawn(3, 7)
        grid = grid_of(weight)
        start = (codes_of(weight, grid) + torch.tensor([0, 1, -1, 0, 2, -2, 0])).clamp(0, 7)
        rounding = LearnedRounding(weight, grid, start)
        position = weight.double() / grid.scale[:, None] + grid.zero_point[:, None]
        other = 2 * rounding.low + 1 - start
        toward = (other - start) * (position - start) >= 0
        assert torch.equal((other - start).abs(), torch.ones_like(start))
        assert (toward | (other < 0) | (start == 0) | (start == 7)).all()
        assert other.min() >= 0 and other.max() <= 7
        rounding.hard = True
        found = rounding.weight() / grid.scale[:, None] + grid.zero_point[:, None]
        torch.testing.assert_close(found, start.float())

    def test_gradient_of_the_soft_rounding(self):
        weight, x = drawn(2, 4), drawn(9, 4, seed=1).double()
        rounding = LearnedRounding(weight, grid_of(weight))
        v = (0.9 * rounding.v.detach()).double().requires_grad_()  # nowhere at a bend

        def loss(v):
            rounding.v = v
            off = (rounding.weight() - weight.double()) @ x.T + 0.1
            return off.pow(2).sum() + 0.3 * rounding.undecided(3.0)

        assert torch.autograd.gradcheck(loss, (v,))
        # And by hand: d/dv of 1.2 sigmoid(v) - 0.1, where that is between 0 and 1.
        (found,) = torch.autograd.grad(rounding.weight().sum(), v)
        s = torch.sigmoid(v)
        expected = 1.2 * s * (1 - s) * rounding.scale.double()
        torch.testing.assert_close(found, expected)


def test_gradient_of_a_range():
    qparams = AffineQParams(torch.tensor(0.3), torch.tensor(3), UINT3)
    x = torch.tensor([-2.0, -0.5, 0.13, 0.4, 5.0], requires_grad=True)
    learned = LearnedRange(qparams)
    y = learned.fake_quantize(x)
    torch.testing.assert_close(y, qparams.fake_quantize(x.detach()))
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    (y * weights).sum().backward()
    # Learned step size quantisation: round(x / s) - x / s inside, the bound outside; times s here.
    steps = torch.tensor([-3, round(-0.5 / 0.3) + 0.5 / 0.3, 0 - 0.13 / 0.3, 1 - 0.4 / 0.3, 4])
    torch.testing.assert_close(learned.t.grad, (weights * steps).sum() * 0.3)
    torch.testing.assert_close(x.grad, weights * torch.tensor([0.0, 1, 1, 1, 0]))


class One(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(drawn(outputs, inputs, seed=4))

    def forward(self, x):
        return self.layer(x)


def off_outputs(rounded, weight, hessian):
    off = rounded.double() - weight.double()
    return ((off @ hessian) * off).sum(-1)


@pytest.mark.parametrize("after", [[], [GPTQ()], [GPTQ(group_size=5)]],
                         ids=["alone", "GPTQ", "groups"])  # fmt: skip
def test_learned_rounding_is_near_the_best_of_all(after):
    model = One(10, 3)
    mixed = drawn(10, 10, seed=2)
    data = [drawn(60, 10, seed=seed) @ mixed for seed in (5, 6, 7, 8)]
    config = PTQConfig(weight=affine("uint3"), activation=wrappers.no_quantization())
    before = model
    for stage in after:
        before = stage(before, config, data)
    found = AdaRound(steps=500, rate=0.1, shrink=False)(before, config, data).layer
    x = torch.cat(data[:3])  # what it learns from
    weight = model.layer.weight.detach()
    size = (x @ weight.T).pow(2).mean(1, keepdim=True)
    hessian = ((x / size).T @ x).double()  # of errors relative to the size of each row
    learned = off_outputs(found.weight.detach(), weight, hessian)
    quantizer = found.points["weight"].quantizer
    torch.testing.assert_close(quantizer.fake_quantize(found.weight.detach()), found.weight)
    if after:
        assert learned.sum() <= off_outputs(before.layer.weight.detach(), weight, hessian).sum()
        return
    low = torch.floor(weight / quantizer.scale[:, None]) + quantizer.zero_point[:, None]
    choices = torch.tensor([*itertools.product([0, 1], repeat=10)])
    codes = (low[:, None] + choices).clamp(0, 7)  # [rows, roundings, inputs]
    every = (codes - quantizer.zero_point[:, None, None]) * quantizer.scale[:, None, None]
    best = off_outputs(every, weight[:, None], hessian).amin(1)
    nearest = off_outputs(quantizer.fake_quantize(weight), weight, hessian)
    assert (best <= learned * 1.000001).all()
    assert learned.sum() < best.sum() + 0.05 * (nearest.sum() - best.sum())


def config_of(activation="uint8", weight="uint3", **changes):
    specs = {"activation": affine(activation), "weight": affine(weight)}
    return PTQConfig(**specs, variant="prefill_reference", **changes)


def data():
    return [{"input_ids": tokens(2, 12, seed)} for seed in (1, 2, 3, 4)]


def logits_error(model, quantized, batches):
    with torch.no_grad():
        return sum(float((quantized(**b).logits - model(**b).logits).pow(2).sum()) for b in batches)


@pytest.mark.covers
def test_blocks_of_a_llama():
    model, batches = tiny(num_hidden_layers=1), data()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    stages = [BlockReconstruction(steps=25, rate=0.1)]
    found = algorithms.quantize(model, config_of(), batches, stages)
    plain = algorithms.quantize(model, config_of(), batches)
    error = logits_error(model, found, batches)
    assert error < 0.9 * logits_error(model, plain, batches)
    results = reconstructed(found)
    assert [each.name for each in results] == ["model.layers.0", "lm_head"] and results[0].kept
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    for _, wrapper in wrappers.iter_wrappers(found.model.layers[0]):
        if isinstance(wrapper, nn.Linear):
            weight, point = wrapper.weight.detach(), wrapper.points["weight"]
            assert point.locked
            torch.testing.assert_close(point.quantizer.fake_quantize(weight), weight)
    again = algorithms.quantize(model, config_of(), batches, stages)
    assert logits_error(model, again, batches) == error


def test_ranges_are_learned_but_for_masks_and_fine_types():
    model, batches = tiny(num_hidden_layers=1), data()
    plain = wrappers.prepare(model, config_of())
    wrappers.calibrate(plain, batches)
    wrappers.convert(plain)
    found = BlockReconstruction(steps=20, rate=0.1, range_rate=0.01)(model, config_of(), batches)
    layer, before = found.model.layers[0], plain.model.layers[0]
    assert reconstructed(found)[0].kept
    changed = layer.self_attn.points["hidden"]
    assert changed.locked
    assert changed.qparams.scale != before.self_attn.points["hidden"].qparams.scale
    assert not layer.points["attn_mask"].locked
    assert not layer.self_attn.points["mask_add"].locked
    for stage, config in (
        (BlockReconstruction(steps=2, range_rate=0), config_of()),
        (BlockReconstruction(steps=2), config_of("int16")),
    ):
        found = stage(model, config, batches)
        points = [point for _, _, point in wrappers.iter_points(found)]
        assert all(not point.locked for point in points if point.role == "activation")


@pytest.mark.parametrize("activation", ["fp8_e4m3", "nvfp4", "mxfp8_e4m3"])
def test_weights_are_learned_behind_floats_of_few_bits(activation):
    model, batches = tiny(num_hidden_layers=1), data()
    config = PTQConfig(
        activation=affine(activation),
        weight=affine("int4"),
        overrides={"*.up_proj.weight": {"dtype": "fp8_e4m3", "qscheme": None}},
    )
    found = AdaRound(steps=20)(model, config, batches)
    kept = {result.name for result in reconstructed(found) if result.kept}
    assert kept and not any("up_proj" in name for name in kept)
    assert all(found.get_submodule(name).points["weight"].locked for name in kept)
    assert not any(p.locked for _, _, p in wrappers.iter_points(found) if p.role == "activation")
    rounded = algorithms.quantize(model, config, batches)
    learned = algorithms.quantize(found, config, batches)
    assert logits_error(model, learned, batches) < logits_error(model, rounded, batches)


@pytest.mark.covers
def test_text_and_vision_blocks_of_a_qwen3_vl():
    model, inputs = qwen3_vl_whole.tiny(), qwen3_vl_whole.EXAMPLES["both"]()
    config = config_of(overrides={"*.layers.1.*": wrappers.no_quantization()})
    found = BlockReconstruction(steps=10, rate=0.2)(model, config, [inputs])
    blocks = {each.name: each for each in reconstructed(found)}
    vision = [f"model.visual.blocks.{index}" for index in range(3)]
    assert [name for name in blocks if ".visual.blocks." in name] == vision
    assert "model.language_model.layers.1" not in blocks and [*blocks][-1] == "lm_head"
    assert blocks["model.language_model.layers.0"].kept and any(blocks[n].kept for n in vision)
    for name in [*vision, "model.language_model.layers.0"]:
        assert all(
            wrapper.points["weight"].locked == blocks[name].kept
            for _, wrapper in wrappers.iter_wrappers(found.get_submodule(name))
            if isinstance(wrapper, nn.Linear)
        )


def test_a_block_whose_error_grows_is_rolled_back():
    model = One(6, 4)
    # What it learns from has one direction only, and what it is judged by has all others.
    along = drawn(6, seed=3)
    learned_from = [drawn(30, 1, seed=seed) * along for seed in (2, 3, 4)]
    judged_by = drawn(50, 6, seed=5)
    config = PTQConfig(weight=affine("uint2"), activation=wrappers.no_quantization())
    stage = BlockReconstruction(steps=200, rate=0.1, shrink=False)
    found = stage(model, config, [*learned_from, judged_by])
    (result,) = reconstructed(found)
    assert not result.kept and result.after >= result.before
    assert str(result).startswith("layer: error 0.") and str(result).endswith(", rolled back")
    assert not found.layer.points["weight"].locked
    assert found.layer.weight is model.layer.weight
    plain = wrappers.prepare(model, config)
    wrappers.calibrate(plain, [judged_by])
    with torch.no_grad():
        aim = model(judged_by)
        off = wrappers.convert(plain)(judged_by) - aim
    expected = (off.pow(2).sum(1) / aim.pow(2).sum(1)).mean()
    assert result.before == pytest.approx(float(expected), rel=1e-4)


def test_what_cannot_be():
    model = One(4, 2)
    for field, value in (
        ("level", "model"), ("steps", 0), ("rate", 0), ("decide", 0), ("range_rate", -1),
        ("held_out", 1.0),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=field):
            BlockReconstruction(**{field: value})
    with pytest.raises(ModelInputError, match="with at least one in it, found none"):
        BlockReconstruction()(model, PTQConfig(), [])
    with pytest.raises(WrapError, match="no linear layer of One has a weight point of integers"):
        AdaRound()(model, PTQConfig(weight=wrappers.no_quantization()), [drawn(3, 4)])
    with pytest.raises(
        ModelInputError, match="a calibration input has past_key_values: give whole sequences"
    ):
        batch = {"input_ids": tokens(1, 4), "past_key_values": DynamicCache()}
        BlockReconstruction()(tiny(), PTQConfig(), [batch])
    model.seldom = nn.Linear(2, 2)
    config = PTQConfig(activation=wrappers.no_quantization())
    with pytest.warns(CalibrationWarning, match="no input reached seldom: reconstruction"):
        AdaRound(steps=1)(model, config, [drawn(3, 4)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reconstructed(AdaRound(steps=1)(One(4, 2), config, [drawn(3, 4)]))
