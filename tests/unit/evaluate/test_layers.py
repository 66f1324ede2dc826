"""Errors of layers against what hooks on the two models give."""

import pytest
import torch

import tracer
import wrappers
from tests.builders.llama import calibrated, tiny, tokens, wrap
from wrappers import PTQConfig, affine
from wrappers.evaluate import LayerError, layer_errors


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def inputs():
    return {"input_ids": tokens(2, 12)}


def relative(reference: torch.Tensor, candidate: torch.Tensor) -> float:
    return float((reference - candidate).double().norm() / reference.double().norm())


def outputs_of_layers(model, inputs, given=()):
    """What each layer returns; with `given`, each layer reads these in place of its input."""
    kept = []
    handles = []
    for place, layer in enumerate(model.model.layers):

        def before(module, args, kwargs, place=place):
            return ((given[place], *args[1:]), kwargs) if given else None

        handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(layer.register_forward_hook(lambda m, a, out: kept.append((a[0], out))))
    with torch.no_grad():
        logits = model(**inputs).logits
    for handle in handles:
        handle.remove()
    return [pair[0] for pair in kept], [pair[1] for pair in kept], logits


@pytest.fixture(scope="module")
def quantized(model, inputs):
    return wrappers.convert(calibrated(model, "prefill", [inputs["input_ids"]]))


@pytest.fixture(scope="module")
def found(model, quantized, inputs) -> tuple[LayerError, ...]:
    return layer_errors(model, quantized, inputs)


class TestSequence:
    def test_each_layer_in_order(self, model, found):
        names = [f"model.layers.{place}" for place in range(len(model.model.layers))]
        assert [each.layer for each in found] == names

    def test_inherited_and_introduced(self, model, quantized, inputs, found):
        given, reference, _ = outputs_of_layers(model, inputs)
        _, freely, _ = outputs_of_layers(quantized, inputs)
        _, forced, _ = outputs_of_layers(quantized, inputs, given)
        for each, right, wrong, own in zip(found, reference, freely, forced, strict=True):
            assert each.inherited == pytest.approx(relative(right, wrong), rel=1e-4)
            assert each.introduced == pytest.approx(relative(right, own), rel=1e-4)
            assert each.introduced > 1e-4

    def test_sensitivity_is_that_of_a_model_with_one_quantised_layer(self, model, inputs, found):
        _, _, logits = outputs_of_layers(model, inputs)
        for each in found:
            others = [
                f"{name}.{point}"
                for name, point, _ in wrappers.iter_points(wrap(model, "prefill"))
                if not f"{name}.".startswith(f"{each.layer}.")
            ]
            off = wrappers.no_quantization().to_dict()
            config = PTQConfig(activation=affine("uint8"), weight=affine("uint8"))
            config = PTQConfig.from_dict(
                config.to_dict() | {"variant": "prefill", "overrides": dict.fromkeys(others, off)}
            )
            alone = wrappers.prepare(model, config)
            wrappers.calibrate(alone, [inputs["input_ids"]])
            _, _, changed = outputs_of_layers(wrappers.convert(alone), inputs)
            assert each.sensitivity == pytest.approx(relative(logits, changed), rel=1e-3)

    def test_models_are_left_as_they_were(self, model, quantized, inputs, found):
        assert all(m.mode is wrappers.Mode.QUANT for _, m in wrappers.iter_wrappers(quantized))
        assert layer_errors(model, quantized, inputs) == found

    def test_the_worst_layer_is_seen(self, model, inputs):
        wrapped = wrap(model, "prefill")
        wrappers.calibrate(wrapped, [inputs["input_ids"]])
        wrappers.convert(wrapped)
        for name, module in wrappers.iter_wrappers(wrapped):
            if not f"{name}.".startswith("model.layers.1."):
                module.mode = wrappers.Mode.NO_QUANT
        found = layer_errors(model, wrapped, inputs)
        assert max(found, key=lambda each: each.introduced).layer == "model.layers.1"
        assert found[0].introduced < 1e-6
        assert found[0].sensitivity < 1e-6 < 1e-4 < found[1].sensitivity


class TestStep:
    def test_a_step_over_a_cache(self, model, inputs):
        wrapped = wrap(model, "decode")
        wrappers.calibrate_decode(model, wrapped, [inputs["input_ids"]], steps=3, source="float")
        decode = wrappers.convert(wrapped)
        step = tracer.models.decode_step(model, inputs)
        length = step["past_key_values"].get_seq_length()
        found = layer_errors(model, decode, step)
        assert step["past_key_values"].get_seq_length() == length == 11
        assert [each.layer for each in found] == ["model.layers.0", "model.layers.1"]
        assert all(1e-4 < each.introduced < 0.5 for each in found)
        assert found == layer_errors(model, decode, step)

    def test_a_float_decode_model_has_no_error(self, model, inputs):
        step = tracer.models.decode_step(model, inputs)
        for each in layer_errors(model, wrap(model, "decode"), step):
            assert max(each.inherited, each.introduced, each.sensitivity) < 1e-5


def test_models_without_layers(model, inputs):
    with pytest.raises(tracer.TracerError, match="no lists of repeated modules"):
        layer_errors(model.lm_head, model.lm_head, {"input": torch.ones(2, 32)})
