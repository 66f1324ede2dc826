"""Candidates that are made of a loaded model."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForSequenceClassification

import wrappers
from tracer import compare
from tracer.choices import CANDIDATES
from tracer.errors import InputError, ModelLoadError, UsageError
from tracer.models import calibration
from tracer.models.candidates import candidate, cast, share_parameters
from tracer.models.loading import Loaded, load


def storages(model: torch.nn.Module) -> set[int]:
    return {parameter.data_ptr() for parameter in model.parameters()}


class TestCandidates:
    @pytest.mark.parametrize("kind", ["wrapped", "sdpa"])
    def test_weights_are_shared(self, llama, kind: str):
        made = candidate(llama, kind)
        assert storages(made) & storages(llama.model)
        assert compare(llama.model, made, llama.inputs).verdict.agrees

    @pytest.mark.parametrize("kind", ["bfloat16", "float16"])
    def test_a_cast_copy(self, llama, kind: str):
        made = candidate(llama, kind)
        wanted = getattr(torch, kind)
        assert {parameter.dtype for parameter in made.parameters()} == {wanted}
        assert next(llama.model.parameters()).dtype == torch.float32
        # As when a checkpoint is loaded in that dtype: rotary frequencies keep their precision.
        assert made.model.rotary_emb.inv_freq.dtype == torch.float32
        assert compare(llama.model, made, llama.inputs).verdict.agrees

    def test_another_attention_leaves_the_reference_as_it_is(self, qwen):
        made = candidate(qwen, "sdpa")
        assert made.config.text_config._attn_implementation == "sdpa"
        assert made.config.vision_config._attn_implementation == "sdpa"
        assert made.model.language_model.layers[0].self_attn.config._attn_implementation == "sdpa"
        assert qwen.model.config.text_config._attn_implementation == "eager"
        assert storages(made) == storages(qwen.model)
        assert compare(qwen.model, made, qwen.inputs).verdict.agrees
        loaded = load("tiny-llama", attn_implementation="sdpa")
        made = candidate(loaded, "eager")
        assert made.config._attn_implementation == "eager"
        assert compare(loaded.model, made, loaded.inputs).verdict.agrees

    def test_quantized(self, llama):
        made = candidate(llama, "quantized", calibration=calibration(llama, count=2))
        modes = {module.mode for _, module in wrappers.iter_wrappers(made)}
        assert modes == {wrappers.Mode.QUANT}
        with torch.no_grad():
            r, c = (model(**llama.inputs).logits for model in (llama.model, made))
        assert 1e-3 < (r - c).abs().max() / (r.max() - r.min()) < 0.5

        def error(activation: str, weight: str) -> float:
            made = candidate(llama, "quantized", activation=activation, weight=weight)
            with torch.no_grad():
                r, c = (model(**llama.inputs).logits for model in (llama.model, made))
            return float((r - c).abs().mean())

        assert error("int16", "uint8") < error("uint8", "uint8") < error("uint8", "uint4")

    def test_variants_and_a_path(self, llama, tmp_path: Path):
        one, other = (
            candidate(llama, "wrapped", variant=v) for v in ("prefill", "prefill_reference")
        )
        assert type(one.model.layers[0].self_attn) is not type(other.model.layers[0].self_attn)
        llama.model.save_pretrained(tmp_path)
        made = candidate(llama, str(tmp_path))
        assert compare(llama.model, made, llama.inputs).verdict.agrees

    def test_what_cannot_be_made(self, llama, tmp_path: Path, monkeypatch):
        small = copy.deepcopy(llama.model)
        small.resize_token_embeddings(int(llama.inputs["input_ids"].max()))
        small.save_pretrained(tmp_path)
        with pytest.raises(InputError, match="has a vocabulary of"):
            candidate(llama, str(tmp_path))
        monkeypatch.setattr("shutil.which", lambda name: None)
        with pytest.raises(UsageError, match="needs a C\\+\\+ compiler"):
            candidate(llama, "compile")

    # PyTorch's compiler imports a deprecated part of PyTorch.
    @pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
    def test_compile_shares_weights(self, llama):
        made = candidate(llama, "compile")
        assert storages(made) == storages(llama.model)
        assert hasattr(made, "_orig_mod")

    @pytest.mark.parametrize("kind", ["wrapped", "sdpa", "bfloat16"])
    @pytest.mark.parametrize(
        "options", [{}, {"batch": 3, "padding": "left"}, {"video": 3}], ids=str
    )
    def test_images_and_clips(self, kind: str, options):
        loaded = load("tiny-qwen3-vl", **options)
        comparison = compare(loaded.model, candidate(loaded, kind), loaded.inputs)
        assert comparison.verdict.agrees
        assert comparison.coverage.reference_only == ()
        assert comparison.coverage.unmatched_calls == ()
        seen = [row for row in comparison.rows if row.module == "model.visual.merger"]
        assert {row.call for row in seen} == set(range(2 if "video" in options else 1))

    def test_no_wrappers(self):
        config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16)
        other = replace(load("tiny-llama"), name="other", model=GPT2LMHeadModel(config))
        message = (
            "no wrappers for GPT2LMHeadModel, so other has no candidate 'wrapped'; there are for "
            "LlamaForCausalLM, LlamaModel, .*; without wrappers work bfloat16, float16, sdpa"
        )
        with pytest.raises(UsageError, match=message):
            candidate(other, "wrapped")

    def test_another_head_on_a_model_with_wrappers(self):
        config = LlamaConfig(
            vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, pad_token_id=0,
        )  # fmt: skip
        model = LlamaForSequenceClassification(config).eval()
        inputs = {"input_ids": torch.tensor([[3, 1, 4]])}
        made = candidate(Loaded("other", model, inputs), "wrapped")
        assert isinstance(made.model.layers[0].self_attn, wrappers.QuantModule)
        assert compare(model, made, inputs).verdict.agrees

    @pytest.mark.parametrize(("kind", "options", "error", "said"), [
        ("quantised", {}, ModelLoadError, r"unknown candidate 'quantised'.*'quantized'"),
        ("quantized", {"activation": "uint99"}, wrappers.errors.WrappersError, "not 99"),
        ("wrapped", {"variant": "prefil"}, wrappers.errors.WrappersError, "'prefil'"),
    ])  # fmt: skip
    def test_unknown(self, llama, kind, options, error, said):
        with pytest.raises(error, match=said):
            candidate(llama, kind, **options)
        assert "quantized" in CANDIDATES


@pytest.mark.slow
@pytest.mark.parametrize(("names", "options"), [
    (["chelsea.png", "rocket.jpg"], {"prompt": "Which of them flies?"}),
    (["chelsea.png", "camera.png"], {"batch": 2, "padding": "left"}),
])  # fmt: skip
def test_candidates_of_photos_agree(photos, processor_folder, names, options):
    images = [photos[name] for name in names]
    options = options | {"processor": processor_folder, "max_pixels": 20_000}
    loaded = load("tiny-qwen3-vl", images=images, **options)
    for kind in ("wrapped", "sdpa", "bfloat16"):
        made = candidate(loaded, kind)
        assert compare(loaded.model, made, loaded.inputs).verdict.agrees, kind


@pytest.mark.parametrize("name", ["stories260K", "wikitext2-llama"])
@pytest.mark.parametrize("options", [{}, {"batch": 3, "padding": "left"}], ids=str)
def test_agrees_wrapped_and_fused(shared_data: Path, name: str, options):
    loaded = load(shared_data / name / "hf", **options)
    assert next(loaded.model.parameters()).dtype == torch.float32
    assert "default prompt" in loaded.notes[-1]
    for kind in ("wrapped", "sdpa"):
        assert compare(loaded.model, candidate(loaded, kind), loaded.inputs).verdict.agrees


def test_casts_and_copies(llama):
    model = copy.deepcopy(llama.model)
    model.register_buffer("steps", torch.tensor([3]))
    cast(model, torch.float16)
    assert model.steps.dtype == torch.int64
    assert model.lm_head.weight.dtype == torch.float16
    layer = torch.nn.Linear(3, 3)
    copy_model = share_parameters(torch.nn.Sequential(layer, torch.nn.ReLU(), layer))
    assert copy_model[0] is copy_model[2]
    assert copy_model[0] is not layer
    assert copy_model[0].weight is layer.weight
