import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

import tracer
from wrappers import evaluate
from wrappers.numerics.affine import AffineQParams
from wrappers.studies import LoadedWorkload, Trial, Workload, load
from wrappers.studies.execute.quantising import decode_model, prefill_model
from wrappers.studies.execute.scoring import (
    _leaks,
    _of_masks,
    _probe,
    _quiet,
    _score,
    _sequences,
    measure,
)

LAYERS = 2


@pytest.fixture(scope="module")
def prefill_metrics(loaded: LoadedWorkload) -> dict:
    return measure(loaded, Trial({"activation": "int16"}, 0))


@pytest.fixture(scope="module")
def decode_metrics(loaded: LoadedWorkload) -> dict:
    return measure(loaded, Trial({"source": "float", "steps": 4, "calibration": 3}, 0))


class TestPrefill:
    def test_the_loss_is_that_of_the_quantised_model(self, loaded: LoadedWorkload, prefill_metrics):
        model = prefill_model(loaded, Trial({"activation": "int16"}, 0))
        total = count = 0
        for ids in loaded.texts:
            for start in range(0, len(ids), 63):
                row = torch.tensor([[0, *ids[start : start + 63]]])
                with torch.no_grad():
                    logits = model(row).logits[0, :-1].double()
                total += float(functional.cross_entropy(logits, row[0, 1:], reduction="sum"))
                count += row.shape[1] - 1
        assert sum(prefill_metrics["tokens"]) == count
        assert prefill_metrics["loss"] == pytest.approx(total / count, rel=1e-5)
        assert prefill_metrics["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)

    def test_the_float_model_and_its_layers(self, loaded: LoadedWorkload, prefill_metrics):
        expected = evaluate.perplexity(loaded.model, loaded.texts, bos=0)
        assert prefill_metrics["float_loss"] == pytest.approx(expected.loss, rel=1e-6)
        assert expected.tokens == tuple(prefill_metrics["tokens"])
        for name in ("weights_peir", "attention_peir", "layer_l2"):
            assert len(prefill_metrics[name]) == LAYERS
            assert all(0 < error < 0.2 for error in prefill_metrics[name]), name

    def test_layer_errors_by_hand(self, loaded: LoadedWorkload, prefill_metrics):
        model = prefill_model(loaded, Trial({"activation": "int16"}, 0))
        kept: list[list[torch.Tensor]] = [[], []]
        for each, outputs in zip((loaded.model, model), kept, strict=True):
            layers = each.model.layers
            hooks = [
                layer.register_forward_hook(lambda m, a, out, outputs=outputs: outputs.append(out))
                for layer in layers
            ]
            with torch.no_grad():
                each(**_probe(loaded))
            for hook in hooks:
                hook.remove()
        errors = [
            float((r - c).double().norm() / r.double().norm()) for r, c in zip(*kept, strict=True)
        ]
        assert prefill_metrics["layer_l2"] == pytest.approx(errors, rel=1e-4)

    def test_the_generation_check(self, prefill_metrics, loaded: LoadedWorkload):
        assert 0 <= prefill_metrics["equal"] <= 1
        assert 0 <= prefill_metrics["first_different"] <= 6
        assert "tasks" not in prefill_metrics
        quick = replace(loaded, workload=replace(loaded.workload, new_tokens=0))
        assert "equal" not in measure(quick, Trial({}, 0))


class TestImages:
    @pytest.mark.slow
    @pytest.mark.parametrize("images", [(), ("synthetic",)], ids=["text", "image"])
    def test_a_decode_model_that_takes_images(self, images: tuple[str, ...]):
        workload = Workload(
            "tiny-qwen3-vl", images=images, tokens=20, window=100, calibration_length=96, prompts=1,
            new_tokens=2,
        )  # fmt: skip
        found = load(workload)
        settings = {"activation": "int16", "source": "quantized", "steps": 3, "calibration": 2}
        trial = Trial(settings, 0)
        metrics = measure(found, trial)
        for name in ("loss", "quantized_past_loss"):
            assert metrics[name] == pytest.approx(metrics["float_loss"], rel=0.2)
        assert metrics["loss"] == pytest.approx(metrics["float_loss"], rel=0.01)
        assert len(metrics["quantized_past_layer_own_l2"]) == LAYERS
        prefill = prefill_model(found, trial)
        fusion = decode_model(found, trial, prefill).model.points["mm_fusion"]
        assert (fusion.qparams is not None) == bool(images)  # what no text reaches stays float


class TestMasks:
    def test_a_small_fill_value_leaks(self, loaded: LoadedWorkload):
        def leaks(fill: float) -> tuple[float, float]:
            trial = Trial({"attention_mask_fill_value": fill}, 0)
            found = _leaks(loaded, prefill_model(loaded, trial))
            return found["leak"], found["leaking"]

        assert leaks(-120.0) == (0.0, 0.0)
        most, share = leaks(-1.0)
        assert most > 0.5
        assert 0.5 < share < 1.0  # the last query has nothing hidden from it

    def test_leaks_by_hand(self, loaded: LoadedWorkload):
        model = prefill_model(loaded, Trial({"attention_mask_fill_value": -8.0}, 0))
        paid = []
        for ids in loaded.texts:
            for start in range(0, len(ids), 63):
                row = torch.tensor([[0, *ids[start : start + 63]]])
                with torch.no_grad():
                    layers = model(row, output_attentions=True).attentions
                for heads in layers:
                    for weights in heads[0]:
                        paid += [float(w[q + 1 :].sum()) for q, w in enumerate(weights)]
        found = _leaks(loaded, model)
        assert found["leak"] == pytest.approx(max(paid), rel=1e-5)
        assert found["leaking"] == pytest.approx(sum(p > 0.01 for p in paid) / len(paid))
        assert 0 < found["leaking"] < 1

    def test_saturation(self, loaded: LoadedWorkload):
        def step(fill: float) -> float:
            trial = Trial({"attention_mask_fill_value": fill}, 0)
            return _of_masks(prefill_model(loaded, trial), _probe(loaded))["mask_step"]

        assert step(-240.0) == pytest.approx(240 / 255, rel=0.1)
        assert step(-240.0) > 1.5 * step(-120.0)
        model = prefill_model(loaded, Trial({"attention_mask_fill_value": -40.0}, 0))
        inputs = _probe(loaded)
        assert _of_masks(model, inputs)["mask_saturation"] < 0.2
        for layer in model.model.layers:
            point = layer.self_attn.points["mask_add"]
            q = point.qparams
            point.quantizer = AffineQParams(q.scale / 1e4, q.zero_point, q.dtype)
        assert _of_masks(model, inputs)["mask_saturation"] > 0.9
        assert not any("quantize" in vars(layer.self_attn) for layer in model.model.layers)


class TestDecode:
    @pytest.fixture(scope="class")
    @classmethod
    def models(cls, loaded: LoadedWorkload):
        trial = Trial({"source": "float", "steps": 4, "calibration": 3}, 0)
        prefill = prefill_model(loaded, trial)
        return prefill, decode_model(loaded, trial, prefill)

    @pytest.mark.covers
    def test_as_deployed(self, loaded: LoadedWorkload, decode_metrics, models):
        options = {"bos": 0, "prompt": 8, "batch": 32}
        found = evaluate.decoded_perplexity(*models, loaded.texts, **options)
        assert decode_metrics["loss"] == found.loss
        floats = evaluate.decoded_perplexity(loaded.model, loaded.model, loaded.texts, **options)
        assert decode_metrics["float_loss"] == pytest.approx(floats.loss, rel=1e-6)

    def test_both_objectives(self, loaded: LoadedWorkload, decode_metrics, models):
        """A step over each past against one forward of all tokens so far."""
        prefill, decode = models
        for name, past in (("quantized_past_loss", prefill), ("float_past_loss", loaded.model)):
            losses, floats = [], []
            for ids in loaded.texts:
                for start in range(0, len(ids), 63):
                    row = torch.tensor([[0, *ids[start : start + 63]]])
                    for place in range(8, row.shape[1] - 1, 4):
                        step = tracer.models.decode_step(past, {"input_ids": row[:, : place + 1]})
                        token = int(row[0, place + 1])
                        with torch.no_grad():
                            likely = decode(**step).logits[0, -1].double().log_softmax(-1)
                            whole = loaded.model(row[:, : place + 1]).logits[0, -1].double()
                        losses.append(-float(likely[token]))
                        floats.append(-float(whole.log_softmax(-1)[token]))
            assert decode_metrics[name] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
            assert decode_metrics["float_step_loss"] == pytest.approx(
                sum(floats) / len(floats), rel=1e-5
            )

    def test_layers_over_each_past(self, decode_metrics):
        for name in ("layer_l2", "layer_own_l2", "layer_sensitivity"):
            for past in ("quantized_past", "float_past"):
                assert len(decode_metrics[f"{past}_{name}"]) == LAYERS
                assert all(0 < error < 1 for error in decode_metrics[f"{past}_{name}"])
            assert decode_metrics[f"quantized_past_{name}"] != decode_metrics[f"float_past_{name}"]


def test_the_sequences_that_are_compared(loaded: LoadedWorkload):
    found = _sequences(loaded)
    longest = max(loaded.texts, key=len)
    length = found.shape[1] - 1
    assert length == min(63, len(longest))
    assert found[0].tolist() == [0, *longest[:length]]
    texts = ["".join(map(chr, ids)) for ids in loaded.texts]
    assert all(any("".join(map(chr, row[1:])) in text for text in texts) for row in found.tolist())
    assert (found[:, 0] == 0).all()


@pytest.mark.parametrize(("scores", "expected"), [
    ({"alias": "a", "acc_norm,none": 0.2, "acc,none": 0.5}, ("t", 0.5)),
    ({"alias": "a", "ppl_stderr,none": 0.1, "ppl,none": 3.0}, ("t ppl", 3.0)),
])  # fmt: skip
def test_the_score_of_a_task(scores, expected):
    assert _score("t", scores) == expected


def test_what_is_said_by_others_is_left_out(capfd):
    with pytest.raises(ValueError, match="told"), _quiet():
        subprocess.run("echo from outside >&2", shell=True, check=True)
        print("from inside", file=sys.stderr)
        raise ValueError("told")
    print("after", file=sys.stderr)
    assert capfd.readouterr().err == "after\n"


def test_a_float_configuration_has_no_error(loaded: LoadedWorkload):
    metrics = measure(loaded, Trial({"overrides": {"*": "off"}}, 0))
    assert metrics["equal"] == 1
    assert metrics["loss"] == pytest.approx(
        evaluate.perplexity(loaded.model, loaded.texts, bos=0).loss, rel=1e-5
    )
    assert max(metrics["layer_l2"]) < 1e-5
