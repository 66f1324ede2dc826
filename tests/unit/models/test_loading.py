"""Models by name, and candidates made of them."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from tracer import compare
from tracer.errors import InputError, ModelLoadError, UsageError
from tracer.models.candidates import candidate
from tracer.models.loading import Loaded, load


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
            (
                {"sequence_length": 513},
                InputError,
                "513 tokens: LlamaForCausalLM has 512 positions",
            ),
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

    @pytest.mark.covers
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

    @pytest.mark.covers
    def test_a_checkpoint_comes_with_its_processor(self, checkpoint, photos):
        loaded = load(checkpoint, images=[photos["camera.png"]], max_pixels=20_000)
        assert loaded.inputs["image_grid_thw"].tolist() == [[1, 8, 8]]
        assert loaded.notes[-2].startswith(f"processor: {checkpoint}, with a Qwen2VLImageProcessor")
        assert compare(
            loaded.model, candidate(loaded, str(checkpoint)), loaded.inputs
        ).verdict.agrees

    @pytest.mark.covers
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

    @pytest.mark.covers
    def test_processors_that_do_not_fit(
        self, photos, tmp_path: Path, shared_data, processor_folder
    ):
        with pytest.raises(UsageError, match=r"tiny-qwen3-vl has no processor.*--processor"):
            load("tiny-qwen3-vl", images=[photos["camera.png"]])
        load("tiny-qwen3-vl").model.save_pretrained(tmp_path)
        with pytest.raises(ModelLoadError, match=r"without preprocessor_config.json"):
            load(tmp_path, images=[photos["camera.png"]])
        llama = shared_data / "stories260K" / "hf"
        for options in ({"images": [photos["camera.png"]]}, {"processor": processor_folder}):
            with pytest.raises(UsageError, match="is a LlamaForCausalLM: images, a processor"):
                load(llama, **options)

    def test_files_that_do_not_fit(self, photos, processor_folder, tmp_path: Path):
        load("tiny-qwen3-vl").model.save_pretrained(tmp_path)
        with pytest.raises(UsageError, match=f"image token 151655, and {tmp_path} has 508"):
            load(tmp_path, images=[photos["camera.png"]], processor=processor_folder)
        (tmp_path / "a.png").write_text("a text")
        with pytest.raises(InputError, match=r"a.png: not an image"):
            load("organisation/none", images=[tmp_path / "a.png"])

    @pytest.mark.covers
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
    def test_dtype_as_stored_and_prompts(self, shared_data: Path):
        model = load(shared_data / "wikitext2-llama" / "hf", dtype="auto").model
        assert next(model.parameters()).dtype == torch.bfloat16
        loaded = load(shared_data / "stories260K" / "hf", prompt="Lily went home.")
        assert loaded.tokenizer.decode(loaded.inputs["input_ids"][0]).endswith("Lily went home.")
        assert "tokens of the prompt" in loaded.notes[-1]
        with pytest.raises(InputError, match="has 512 positions; give a shorter text"):
            load(shared_data / "stories260K" / "hf", prompt="Lily went home. " * 300)
