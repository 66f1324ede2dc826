from dataclasses import replace

import pytest
import torch

import wrappers
from tracer.models import builtin as tiny
from wrappers.core.module import iter_points, iter_wrappers
from wrappers.core.point import Mode
from wrappers.core.quantizers import IdentityQuantizer
from wrappers.errors import StudyError
from wrappers.studies import LoadedWorkload, Trial
from wrappers.studies.execute.quantising import check_on, decode_model, prefill_model


def off(model: torch.nn.Module) -> set[str]:
    return {
        f"{name}.{point}"
        for name, point, each in iter_points(model)
        if isinstance(each.quantizer, IdentityQuantizer)
    }


def paths(model: torch.nn.Module) -> set[str]:
    return {f"{name}.{point}" for name, point, _ in iter_points(model)}


class TestPrefill:
    def test_as_by_hand(self, loaded: LoadedWorkload):
        settings = {"activation": "int16", "weight": "uint4", "attention_mask_fill_value": -50.0}
        made = prefill_model(loaded, Trial(settings | {"calibration": 3}, 7))
        config = wrappers.PTQConfig(
            activation=wrappers.affine("int16"),
            weight=wrappers.affine("uint4"),
            variant="prefill_reference",
            attention_mask_fill_value=-50.0,
        )
        expected = wrappers.prepare(loaded.model, config)
        rows = loaded.calibration_set(7, 3)
        wrappers.calibrate(expected, [{"input_ids": torch.tensor([row])} for row in rows])
        wrappers.convert(expected)
        ids = torch.tensor([loaded.texts[0][:20]])
        with torch.no_grad():
            assert torch.equal(made(ids).logits, expected(ids).logits)

    def test_the_variant(self, loaded: LoadedWorkload):
        made = prefill_model(loaded, Trial({"variant": "prefill"}, 0))
        assert made.ptq_config.variant == "prefill"

    def test_overrides_by_glob_of_which_the_last_wins(self, loaded: LoadedWorkload):
        overrides = {
            "*.q_proj.weight": {"dtype": "int4"},
            "model.layers.1.*": "off",
            "model.layers.1.self_attn.q_proj.weight": "int8",
        }
        made = prefill_model(loaded, Trial({"overrides": overrides}, 0))
        points = {f"{name}.{point}": each for name, point, each in iter_points(made)}
        assert points["model.layers.0.self_attn.q_proj.weight"].kind == "int4"
        assert points["model.layers.1.self_attn.q_proj.weight"].kind == "int8"
        layer = {path for path in points if path.startswith("model.layers.1.")}
        assert off(made) == layer - {"model.layers.1.self_attn.q_proj.weight"}

    def test_one_module_left_out_or_alone(self, loaded: LoadedWorkload):
        without = prefill_model(loaded, Trial({"leave_out": "model.layers.1.mlp"}, 0))
        alone = prefill_model(loaded, Trial({"only": "model.layers.1.mlp"}, 0))
        inside = {path for path in paths(without) if path.startswith("model.layers.1.mlp.")}
        assert inside
        assert (off(without), off(alone)) == (inside, paths(alone) - inside)

    @pytest.mark.parametrize(("settings", "message"), [
        ({"overrides": {"*.nothing": "off"}}, r"'\*\.nothing' matches none of the \d+"),
        ({"leave_out": "model.layers.9"}, "has no wrapped module 'model.layers.9'"),
    ])  # fmt: skip
    def test_names_that_are_not_there(self, loaded: LoadedWorkload, settings, message):
        with pytest.raises(StudyError, match=message):
            prefill_model(loaded, Trial(settings, 0))


class TestDecode:
    @pytest.mark.parametrize("source", ["float", "quantized"])
    def test_as_by_hand(self, loaded: LoadedWorkload, source):
        trial = Trial({"source": source, "calibration": 2, "steps": 4}, 1)
        prefill = prefill_model(loaded, trial)
        made = decode_model(loaded, trial, prefill)
        config = wrappers.PTQConfig(
            activation=wrappers.affine("uint8"), weight=wrappers.affine("uint8"), variant="decode"
        )
        expected = wrappers.prepare(loaded.model, config)
        past = loaded.model if source == "float" else prefill
        prompts = [torch.tensor(loaded.calibration_set(1, 2))]
        wrappers.calibrate_decode(past, expected, prompts, steps=4, source=source)
        wrappers.convert(expected)
        assert scales(made) == scales(expected)

    def test_both_see_each_prompt_once_and_all_is_quantised(self, loaded: LoadedWorkload):
        trials = [
            Trial({"source": source, "calibration": 4, "steps": 4}, 1)
            for source in ("float", "quantized", "both")
        ]
        prefill = prefill_model(loaded, trials[0])
        found = [scales(decode_model(loaded, trial, prefill)) for trial in trials]
        assert found[2] not in found[:2]
        trial = Trial({"source": "float", "calibration": 2, "steps": 4}, 1)
        made = decode_model(loaded, trial, prefill_model(loaded, trial))
        assert {wrapper.mode for _, wrapper in iter_wrappers(made)} == {Mode.QUANT}
        assert made.ptq_config.variant == "decode"


def scales(model: torch.nn.Module) -> dict[str, list[float]]:
    return {
        f"{name}.{point}": each.qparams.scale.flatten().tolist()
        for name, point, each in iter_points(model)
        if each.qparams is not None
    }


class TestOnAModel:
    @pytest.mark.parametrize(("settings", "message"), [
        ({"overrides": {"*.nothing": "off"}}, r"'\*\.nothing' matches none of the \d+"),
        ({"only": "layers.0"}, "no wrapped module 'layers.0', such as model, "),
        ({"variant": "prefil"}, "do not fit the model: .* has no wrapper in the variant"),
        ({"source": "float", "steps": 24}, "24 steps of calibration sequences of 24 tokens"),
    ])  # fmt: skip
    def test_settings_that_do_not_fit(self, loaded: LoadedWorkload, settings, message):
        with pytest.raises(StudyError, match=message):
            check_on(loaded, [Trial({}, 0), Trial(settings, 0)])

    def test_settings_that_do(self, loaded: LoadedWorkload):
        fitting = ({"source": "both", "steps": 23}, {"variant": "prefill", "steps": 99}, {})
        check_on(loaded, [Trial(settings, 0) for settings in fitting])

    def test_each_form_of_the_model_is_prepared_once(self, loaded: LoadedWorkload, monkeypatch):
        made = []

        def counted(model, config):
            made.append(config.variant)
            return wrappers.prepare(model, config)

        monkeypatch.setattr("wrappers.studies.execute.quantising.prepare", counted)
        settings = [{"attention_mask_fill_value": fill} for fill in (-40.0, -80.0)]
        check_on(loaded, [Trial(each, seed) for each in settings for seed in (0, 1)])
        assert made == ["prefill_reference"]
        check_on(loaded, [Trial({"source": "float", "variant": "prefill"}, 0)])
        assert made[1:] == ["prefill", "decode"]


def test_what_no_text_reaches_stays_float(loaded: LoadedWorkload):
    """A whole Qwen3-VL is studied by its language model."""
    model = tiny.build("tiny-qwen3-vl", 0).eval()
    quantised = prefill_model(replace(loaded, model=model), Trial({"calibration": 2}, 0))
    activations = {
        f"{name}.{point}" for name, point, each in iter_points(quantised) if not each.parameter
    }
    inside = {path for path in activations if path.startswith("model.language_model.layers.")}
    images = {path for path in activations if path.startswith("model.visual.")}
    assert inside
    assert not inside & off(quantised)
    assert images
    assert images <= off(quantised)
    ids = {"input_ids": torch.tensor(loaded.calibration_set(1, 2))}
    with torch.no_grad():
        expected, found = model(**ids).logits, quantised(**ids).logits
    assert 1e-3 < float((expected - found).norm() / expected.norm()) < 0.5
