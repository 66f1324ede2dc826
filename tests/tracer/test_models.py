"""Models by name, and candidates made of them."""

import copy
from pathlib import Path

import pytest
import torch

import wrappers
from tracer import compare
from tracer.choices import BUILT_IN, CANDIDATES
from tracer.errors import InputError, ModelLoadError, UsageError
from tracer.models import Loaded, calibration, candidate, cast, load, share_parameters
from tracer.tiny import TINY


@pytest.fixture(scope="module")
def llama() -> Loaded:
    return load("tiny-llama")


@pytest.fixture(scope="module")
def qwen() -> Loaded:
    return load("tiny-qwen3-vl")


def storages(model: torch.nn.Module) -> set[int]:
    return {parameter.data_ptr() for parameter in model.parameters()}


class TestBuiltIn:
    def test_each_is_listed_and_built(self):
        assert list(TINY) == list(BUILT_IN)

    @pytest.mark.parametrize("name", BUILT_IN)
    def test_a_seed_gives_the_same_model_and_inputs(self, name: str):
        one, again, other = load(name, seed=5), load(name, seed=5), load(name, seed=6)
        pairs = zip(one.model.parameters(), again.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert all(torch.equal(one.inputs[key], again.inputs[key]) for key in one.inputs)
        assert not torch.equal(one.inputs["input_ids"], other.inputs["input_ids"])
        first, second = next(one.model.parameters()), next(other.model.parameters())
        assert not torch.equal(first, second)

    @pytest.mark.parametrize("name", BUILT_IN)
    def test_the_global_random_state_is_left_alone(self, name: str):
        state = torch.get_rng_state()
        load(name, batch=2)
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize("name", BUILT_IN)
    @pytest.mark.parametrize("padding", ["right", "left"])
    def test_activations_are_lively(self, name: str, padding: str):
        loaded = load(name, batch=3, padding=padding)
        spread: dict[str, float] = {}

        def watch(name: str):
            def hook(module, args, output):
                if isinstance(output, torch.Tensor) and output.is_floating_point():
                    spread[name] = output.std().item()

            return hook

        for module_name, module in loaded.model.named_modules():
            module.register_forward_hook(watch(module_name))
        with torch.no_grad():
            loaded.model(**loaded.inputs)
        assert spread
        assert all(0.05 < value < 20 for value in spread.values()), spread

    def test_modes_and_reference_attention(self, llama, qwen):
        for loaded in (llama, qwen):
            assert not loaded.model.training
            assert loaded.model.config._attn_implementation == "eager"
        assert qwen.model.config.vision_config._attn_implementation == "eager"

    def test_notes_tell_what_was_chosen(self, llama):
        assert llama.notes == ("inputs: 32 random tokens (seed 0)",)
        assert llama.tokenizer is None


class TestOptions:
    @pytest.mark.parametrize("dtype", ["float64", "bfloat16", torch.float16])
    def test_dtype(self, dtype):
        model = load("tiny-llama", dtype=dtype).model
        wanted = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {wanted}
        assert model.config.dtype == wanted

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"dtype": "float31"}, UsageError, "unknown dtype 'float31': .*did you mean 'float32'"),
            ({"device": "quux"}, UsageError, "device 'quux' cannot be used here"),
            ({"device": "meta"}, UsageError, "holds no values"),
            ({"padding": "middle"}, UsageError, "padding 'middle'"),
            ({"batch": 0}, UsageError, "batch 0"),
            ({"sequence_length": 513}, InputError, "513 tokens: tiny-llama has 512 positions"),
            ({"attn_implementation": "quux"}, UsageError, "no attention implementation 'quux'"),
            (
                {"inputs": {"input_ids": torch.tensor([[1]])}, "batch": 2},
                UsageError,
                "exclude a prompt, a sequence length and a batch size",
            ),
            ({"inputs": "nowhere.safetensors"}, ModelLoadError, "no such file of inputs"),
        ],
    )
    def test_refused(self, options: dict[str, object], error: type[Exception], message: str):
        with pytest.raises(error, match=message):
            load("tiny-llama", **options)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
    def test_a_device_that_is_not_there(self):
        with pytest.raises(UsageError, match=r"'cuda' cannot be used here.*this machine has cpu"):
            load("tiny-llama", device="cuda")

    def test_given_inputs(self):
        ids = torch.tensor([[4, 5]])
        loaded = load("tiny-llama", inputs={"input_ids": ids})
        assert torch.equal(loaded.inputs["input_ids"], ids)
        assert loaded.notes == ("inputs: given: input_ids",)


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

    def test_eager_against_sdpa(self):
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

    def test_the_finer_types_come_closer(self, llama):
        def error(activation: str, weight: str) -> float:
            made = candidate(llama, "quantized", activation=activation, weight=weight)
            with torch.no_grad():
                r, c = (model(**llama.inputs).logits for model in (llama.model, made))
            return float((r - c).abs().mean())

        assert error("int16", "uint8") < error("uint8", "uint8") < error("uint8", "uint4")

    def test_variants(self, llama):
        one, other = (
            candidate(llama, "wrapped", variant=v) for v in ("prefill", "prefill_reference")
        )
        assert type(one.model.layers[0].self_attn) is not type(other.model.layers[0].self_attn)

    def test_a_path(self, llama, tmp_path: Path):
        llama.model.save_pretrained(tmp_path)
        made = candidate(llama, str(tmp_path))
        assert compare(llama.model, made, llama.inputs).verdict.agrees

    def test_a_path_whose_vocabulary_is_too_small(self, llama, tmp_path: Path):
        small = copy.deepcopy(llama.model)
        small.resize_token_embeddings(int(llama.inputs["input_ids"].max()))
        small.save_pretrained(tmp_path)
        with pytest.raises(InputError, match="has a vocabulary of"):
            candidate(llama, str(tmp_path))

    def test_compile_needs_a_compiler(self, llama, monkeypatch):
        monkeypatch.setattr("shutil.which", lambda name: None)
        with pytest.raises(UsageError, match="needs a C\\+\\+ compiler"):
            candidate(llama, "compile")

    # PyTorch's compiler imports a deprecated part of PyTorch.
    @pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
    def test_compile_shares_weights(self, llama):
        made = candidate(llama, "compile")
        assert storages(made) == storages(llama.model)
        assert hasattr(made, "_orig_mod")

    def test_no_wrappers_yet(self, qwen):
        message = "no wrappers for Qwen3VLForConditionalGeneration yet.*: bfloat16, float16, sdpa"
        with pytest.raises(UsageError, match=message):
            candidate(qwen, "wrapped")

    def test_unknown(self, llama):
        with pytest.raises(ModelLoadError, match=r"unknown candidate 'quantised'.*'quantized'"):
            candidate(llama, "quantised")
        assert "quantized" in CANDIDATES

    def test_unknown_types_and_variants(self, llama):
        with pytest.raises(wrappers.errors.WrappersError, match="not 99"):
            candidate(llama, "quantized", activation="uint99")
        with pytest.raises(wrappers.errors.WrappersError, match="'prefil'"):
            candidate(llama, "wrapped", variant="prefil")


class TestCalibration:
    def test_random_sequences_besides_the_inputs(self, llama):
        data = calibration(llama, count=3, seed=0)
        assert data.batches[0] is llama.inputs
        assert [tuple(batch["input_ids"].shape) for batch in data.batches] == [(1, 32)] * 4
        assert len({tuple(batch["input_ids"][0].tolist()) for batch in data.batches}) == 4
        assert data.description == (
            "the inputs themselves and 3 random sequences of 32 tokens (seed 0)"
        )

    def test_none_besides_the_inputs(self, llama):
        data = calibration(llama, count=0)
        assert data.batches == (llama.inputs,)
        assert data.description == "the inputs themselves"

    def test_images_stay_the_only_inputs(self, qwen, tmp_path: Path):
        assert calibration(qwen).batches == (qwen.inputs,)
        with pytest.raises(UsageError, match="text alone cannot calibrate it"):
            calibration(qwen, text=tmp_path / "text.txt")

    def test_a_text(self, shared_data: Path, tmp_path: Path):
        loaded = load(shared_data / "stories260K" / "hf", sequence_length=16)
        text = tmp_path / "text.txt"
        text.write_text("Once upon a time, there was a little girl named Lily. " * 10)
        data = calibration(loaded, count=2, text=text)
        ids = loaded.tokenizer(text.read_text())["input_ids"]
        assert [batch["input_ids"][0].tolist() for batch in data.batches[1:]] == [
            ids[:16],
            ids[16:32],
        ]
        assert data.description.endswith(f"the first 2 sequences of 16 tokens of {text}")
        text.write_text("Once")
        with pytest.raises(UsageError, match="tokens: one sequence takes 16"):
            calibration(loaded, text=text)
        with pytest.raises(UsageError, match="cannot be read"):
            calibration(loaded, text=tmp_path / "none.txt")

    def test_refused(self, llama, tmp_path: Path):
        with pytest.raises(UsageError, match="calibrate -1: expected a number of sequences"):
            calibration(llama, count=-1)
        with pytest.raises(UsageError, match="has no tokenizer, so the text"):
            calibration(llama, text=tmp_path / "text.txt")


class TestRealCheckpoints:
    @pytest.mark.parametrize("name", ["stories260K", "wikitext2-llama"])
    @pytest.mark.parametrize("options", [{}, {"batch": 3, "padding": "left"}], ids=str)
    def test_agrees_wrapped_and_fused(self, shared_data: Path, name: str, options):
        loaded = load(shared_data / name / "hf", **options)
        assert next(loaded.model.parameters()).dtype == torch.float32
        assert "default prompt" in loaded.notes[-1]
        for kind in ("wrapped", "sdpa"):
            assert compare(loaded.model, candidate(loaded, kind), loaded.inputs).verdict.agrees

    def test_dtype_as_stored(self, shared_data: Path):
        model = load(shared_data / "wikitext2-llama" / "hf", dtype="auto").model
        assert next(model.parameters()).dtype == torch.bfloat16

    def test_a_prompt(self, shared_data: Path):
        loaded = load(shared_data / "stories260K" / "hf", prompt="Lily went home.")
        assert loaded.tokenizer.decode(loaded.inputs["input_ids"][0]).endswith("Lily went home.")
        assert "tokens of the prompt" in loaded.notes[-1]

    def test_a_prompt_that_is_too_long(self, shared_data: Path):
        with pytest.raises(InputError, match="has 512 positions; give a shorter text"):
            load(shared_data / "stories260K" / "hf", prompt="Lily went home. " * 300)


def test_casting_leaves_integers_and_unsaved_buffers(llama):
    model = copy.deepcopy(llama.model)
    model.register_buffer("steps", torch.tensor([3]))
    cast(model, torch.float16)
    assert model.steps.dtype == torch.int64
    assert model.lm_head.weight.dtype == torch.float16


def test_a_twin_shares_tied_weights_once():
    layer = torch.nn.Linear(3, 3)
    model = torch.nn.Sequential(layer, torch.nn.ReLU(), layer)
    twin = share_parameters(model)
    assert twin[0] is twin[2]
    assert twin[0] is not layer
    assert twin[0].weight is layer.weight
