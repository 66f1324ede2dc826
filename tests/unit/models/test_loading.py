"""Models by name, and candidates made of them."""

import copy
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
)

import wrappers
from tracer import compare
from tracer.choices import BUILT_IN, CANDIDATES
from tracer.errors import InputError, ModelLoadError, UsageError
from tracer.models import calibration
from tracer.models.builtin import TINY
from tracer.models.candidates import candidate, cast, share_parameters
from tracer.models.loading import Loaded, load
from tracer.models.locate import locate


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
        trained = [name for name in BUILT_IN if isinstance(locate(name), Path)]
        assert trained == ["tiny-llama"]
        assert list(BUILT_IN) == [*trained, *TINY]

    @pytest.mark.parametrize("name", TINY)
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

    @pytest.mark.parametrize("name", TINY)
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
        length = llama.inputs["input_ids"].shape[1]
        assert llama.notes == (f"inputs: {length} tokens of the default prompt",)
        random = load("random-llama")
        assert random.notes == ("inputs: 32 random tokens (seed 0)",)
        assert random.tokenizer is None


class TestTrained:
    """The built-in model that is a checkpoint in the package."""

    def test_it_is_small_and_of_the_shape_of_the_random_one(self, llama):
        files = [*locate("tiny-llama").iterdir()]
        assert sum(file.stat().st_size for file in files) < 2 * 2**20
        random = load("random-llama").model
        assert {name: tensor.shape for name, tensor in llama.model.state_dict().items()} == {
            name: tensor.shape for name, tensor in random.state_dict().items()
        }
        dtypes = {
            parameter.dtype for parameter in load("tiny-llama", dtype="auto").model.parameters()
        }
        assert dtypes == {torch.float32}

    def test_it_is_loaded_without_a_network(self, monkeypatch):
        def refuse(*args: object) -> None:
            raise AssertionError(f"wanted to reach {args}")

        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("socket.socket.connect", refuse)
        monkeypatch.setattr("socket.getaddrinfo", refuse)
        assert load("tiny-llama").tokenizer is not None

    def test_a_seed_is_not_for_its_weights_or_its_prompt(self, llama):
        other = load("tiny-llama", seed=6)
        pairs = zip(llama.model.parameters(), other.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert torch.equal(llama.inputs["input_ids"], other.inputs["input_ids"])

    @pytest.mark.parametrize(
        "text", ["Once upon a time.", "naïve café, 日本!\n\tx == 1  ", "\u0000"]
    )
    def test_no_text_is_unknown_to_its_tokenizer(self, llama, text: str):
        ids = llama.tokenizer(text)["input_ids"]
        assert ids[0] == llama.tokenizer.bos_token_id == llama.model.config.bos_token_id
        assert llama.tokenizer.decode(ids[1:]) == text
        assert max(ids) < len(llama.tokenizer) == llama.model.config.vocab_size

    def test_it_has_learnt_how_stories_go(self, llama):
        story = (
            "Once upon a time there was a small boat. It wanted to see the sea. One day, a boy "
            'came to the boat and said, "Do you want to go with me?" The boat was very happy. '
            "They went to the sea and played all day."
        )
        ids = torch.tensor([llama.tokenizer(story)["input_ids"]])
        losses = {}
        for loaded in (llama, load("random-llama")):
            with torch.no_grad():
                logits = loaded.model(ids).logits[0, :-1].double()
            chosen = logits.log_softmax(-1).gather(1, ids[0, 1:, None])
            losses[loaded.name] = -float(chosen.mean())
        assert losses["tiny-llama"] < math.log(15)
        assert losses["random-llama"] > math.log(400)


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
            ({"inputs": {}, "images": ["none.png"]}, UsageError, "images, a processor and a video"),
            ({"inputs": {}, "processor": "none"}, UsageError, "images, a processor and a video"),
            ({"video": 2}, UsageError, "tiny-llama is a LlamaForCausalLM: images, a processor"),
            ({"images": ["none.png"]}, InputError, "none.png: not an image that can be read"),
            ({"processor": "nowhere"}, ModelLoadError, "no processor 'nowhere'"),
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
            vocab_size=16,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=0,
        )
        model = LlamaForSequenceClassification(config).eval()
        inputs = {"input_ids": torch.tensor([[3, 1, 4]])}
        made = candidate(Loaded("other", model, inputs), "wrapped")
        assert isinstance(made.model.layers[0].self_attn, wrappers.QuantModule)
        assert compare(model, made, inputs).verdict.agrees

    def test_unknown(self, llama):
        with pytest.raises(ModelLoadError, match=r"unknown candidate 'quantised'.*'quantized'"):
            candidate(llama, "quantised")
        assert "quantized" in CANDIDATES

    def test_unknown_types_and_variants(self, llama):
        with pytest.raises(wrappers.errors.WrappersError, match="not 99"):
            candidate(llama, "quantized", activation="uint99")
        with pytest.raises(wrappers.errors.WrappersError, match="'prefil'"):
            candidate(llama, "wrapped", variant="prefil")


@pytest.fixture(scope="module")
def checkpoint(processor_folder, tmp_path_factory) -> Path:
    """A Qwen3-VL that comes with its processor."""
    folder = tmp_path_factory.mktemp("checkpoint")
    load("tiny-qwen3-vl", processor=processor_folder, prompt="Hi.").model.save_pretrained(folder)
    for file in processor_folder.iterdir():
        if file.name != "config.json":
            shutil.copyfile(file, folder / file.name)
    return folder


@pytest.fixture(scope="module")
def cat(photos, processor_folder) -> Loaded:
    """The built-in model with a photo of a cat."""
    return load("tiny-qwen3-vl", images=[photos["chelsea.png"]], processor=processor_folder)


class TestImages:
    """tiny-qwen3-vl and checkpoints of it, with the processor of a real Qwen3-VL."""

    def test_the_built_in_model_takes_the_processors_vocabulary(self, cat, processor_folder):
        config = cat.model.config
        assert cat.model.get_input_embeddings().weight.shape == (151669, 64)
        assert (config.image_token_id, config.video_token_id) == (151655, 151656)
        assert (config.vision_start_token_id, config.vision_end_token_id) == (151652, 151653)
        assert cat.tokenizer is cat.processor.tokenizer
        assert cat.inputs["image_grid_thw"].tolist() == [[1, 18, 28]]
        first, second = cat.notes
        assert first.startswith(f"processor: {processor_folder}, with a Qwen2VLImageProcessor")
        assert second == (
            "inputs: 140 tokens: the default question with chelsea.png (18 x 28 patches, "
            "126 tokens)"
        )

    def test_positions_count_rows_and_columns_of_the_photo(self, cat):
        inputs = {name: tensor for name, tensor in cat.inputs.items() if name != "pixel_values"}
        positions, _ = cat.model.model.get_rope_index(**inputs)
        photo = positions[:, 0, cat.inputs["mm_token_type_ids"][0] == 1]
        # Four tokens of the chat come before: three of the turn, and the start of the image.
        rows, columns = torch.meshgrid(torch.arange(9), torch.arange(14), indexing="ij")
        expected = torch.stack([torch.zeros_like(rows), rows, columns]).flatten(1) + 4
        assert torch.equal(photo, expected)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("names", "options"),
        [
            (["chelsea.png", "rocket.jpg"], {"prompt": "Which of them flies?"}),
            (["chelsea.png", "camera.png"], {"batch": 2, "padding": "left"}),
        ],
    )
    def test_candidates_agree(self, photos, processor_folder, names, options):
        images = [photos[name] for name in names]
        options = options | {"processor": processor_folder, "max_pixels": 20_000}
        loaded = load("tiny-qwen3-vl", images=images, **options)
        for kind in ("wrapped", "sdpa", "bfloat16"):
            made = candidate(loaded, kind)
            assert compare(loaded.model, made, loaded.inputs).verdict.agrees, kind

    def test_a_checkpoint_comes_with_its_processor(self, checkpoint, photos):
        loaded = load(checkpoint, images=[photos["camera.png"]], max_pixels=20_000)
        assert loaded.inputs["image_grid_thw"].tolist() == [[1, 8, 8]]
        assert loaded.notes[-2].startswith(f"processor: {checkpoint}, with a Qwen2VLImageProcessor")
        assert compare(
            loaded.model, candidate(loaded, str(checkpoint)), loaded.inputs
        ).verdict.agrees

    def test_a_checkpoint_without_images(self, checkpoint):
        loaded = load(checkpoint)
        assert "a synthetic image of 16 x 16 patches" in loaded.notes[-1]
        assert loaded.processor is None
        loaded = load(checkpoint, prompt="Hello, world!")
        assert loaded.inputs["input_ids"].tolist() == [[9707, 11, 1879, 0]]
        assert loaded.notes[-1] == (
            "inputs: 4 tokens of the prompt; without an image, so that the vision model is not "
            "called"
        )

    def test_no_processor(self, photos, tmp_path: Path):
        with pytest.raises(UsageError, match=r"tiny-qwen3-vl has no processor.*--processor"):
            load("tiny-qwen3-vl", images=[photos["camera.png"]])
        load("tiny-qwen3-vl").model.save_pretrained(tmp_path)
        with pytest.raises(ModelLoadError, match=r"without preprocessor_config.json"):
            load(tmp_path, images=[photos["camera.png"]])

    def test_a_processor_of_another_model(self, photos, processor_folder, tmp_path: Path):
        load("tiny-qwen3-vl").model.save_pretrained(tmp_path)
        with pytest.raises(UsageError, match=f"image token 151655, and {tmp_path} has 508"):
            load(tmp_path, images=[photos["camera.png"]], processor=processor_folder)

    def test_a_model_that_takes_no_images(self, shared_data, photos, processor_folder):
        llama = shared_data / "stories260K" / "hf"
        for options in ({"images": [photos["camera.png"]]}, {"processor": processor_folder}):
            with pytest.raises(UsageError, match="is a LlamaForCausalLM: images, a processor"):
                load(llama, **options)

    def test_not_an_image_is_found_before_anything_is_loaded(self, tmp_path: Path):
        (tmp_path / "a.png").write_text("a text")
        with pytest.raises(InputError, match=r"a.png: not an image"):
            load("organisation/none", images=[tmp_path / "a.png"])

    def test_a_photo_of_ones_own(self, tmp_path: Path, processor_folder):
        Image.new("RGBA", (70, 40), (255, 0, 0, 128)).save(tmp_path / "red.png")
        loaded = load(
            "tiny-qwen3-vl",
            images=[str(tmp_path / "red.png")],
            processor=str(processor_folder),
            max_pixels=4096,
        )
        assert "red.png (2 x 4 patches, 2 tokens)" in loaded.notes[-1]


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
    copy_model = share_parameters(model)
    assert copy_model[0] is copy_model[2]
    assert copy_model[0] is not layer
    assert copy_model[0].weight is layer.weight
