"""What a quantised candidate is calibrated on."""

from pathlib import Path

import pytest
import torch

import wrappers
from tracer.errors import UsageError
from tracer.models import Loaded, calibration, candidate, load


@pytest.fixture(scope="module")
def llama() -> Loaded:
    return load("tiny-llama")


class TestTokens:
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


class TestSyntheticImages:
    @pytest.mark.parametrize("options", [{}, {"batch": 2, "video": 3}], ids=str)
    def test_others_of_the_same_form(self, options):
        loaded = load("tiny-qwen3-vl", **options)
        data = calibration(loaded, count=3)
        assert data.batches[0] is loaded.inputs
        assert len(data.batches) == 4
        for batch in data.batches[1:]:
            assert {name: tensor.shape for name, tensor in batch.items()} == {
                name: tensor.shape for name, tensor in loaded.inputs.items()
            }
        for name in {"input_ids", "pixel_values", "pixel_values_videos"} & loaded.inputs.keys():
            kinds = {tuple(batch[name].flatten().tolist()) for batch in data.batches}
            assert len(kinds) == 4
        assert data.description == (
            "the inputs themselves and 3 like them with other random tokens and pixels (seed 0)"
        )

    def test_given_ones_stay_alone(self):
        inputs = load("tiny-qwen3-vl").inputs
        loaded = load("tiny-qwen3-vl", inputs=inputs)
        data = calibration(loaded)
        assert len(data.batches) == 1
        assert data.description == "the inputs themselves"

    def test_text_alone_does_not_do(self, tmp_path: Path):
        with pytest.raises(UsageError, match="text alone cannot calibrate it"):
            calibration(load("tiny-qwen3-vl"), text=tmp_path / "text.txt")

    def test_every_point_of_a_video_model_is_reached(self):
        loaded = load("tiny-qwen3-vl", video=2)
        made = candidate(loaded, "quantized", calibration=calibration(loaded, count=1))
        with torch.no_grad():
            r, c = (model(**loaded.inputs).logits for model in (loaded.model, made))
        assert 1e-3 < (r - c).abs().max() / (r.max() - r.min()) < 0.5
        assert {module.mode for _, module in wrappers.iter_wrappers(made)} == {wrappers.Mode.QUANT}


@pytest.fixture(scope="module")
def photographed(photos, processor_folder) -> Loaded:
    """The built-in Qwen3-VL with two photos."""
    return load(
        "tiny-qwen3-vl",
        images=[photos["chelsea.png"], photos["camera.png"]],
        processor=processor_folder,
        max_pixels=20_000,
        batch=2,
    )


class TestPhotos:
    def question(self, loaded: Loaded, batch: dict[str, torch.Tensor], row: int) -> str:
        text = loaded.tokenizer.decode(batch["input_ids"][row])
        return text.split("<|vision_end|>")[-1].partition("<|im_end|>")[0]

    def test_parts_of_them_with_other_questions(self, photographed):
        data = calibration(photographed, count=3)
        assert data.batches[0] is photographed.inputs
        assert data.description == (
            "the inputs themselves and 3 like them with random parts of the images and other "
            "questions (seed 0)"
        )
        asked = [self.question(photographed, batch, 0) for batch in data.batches]
        assert asked[0] == "Describe this image."
        assert len(set(asked)) == 4
        sums = {float(batch["pixel_values"].double().sum()) for batch in data.batches}
        assert len(sums) == 4
        for batch in data.batches:
            assert batch["image_grid_thw"].shape == (2, 3)
            tokens = int((batch["mm_token_type_ids"] == 1).sum())
            assert tokens == int(batch["image_grid_thw"].prod(1).sum()) // 4
        again = calibration(photographed, count=3)
        assert torch.equal(data.batches[3]["pixel_values"], again.batches[3]["pixel_values"])

    def test_passages_of_a_text_over_and_over(self, photographed, tmp_path: Path):
        text = tmp_path / "text.txt"
        text.write_text(" ".join(f"word{i}" for i in range(30)))
        data = calibration(photographed, count=3, text=text)
        asked = [self.question(photographed, batch, 0).split() for batch in data.batches[1:]]
        assert [(words[0], words[-1]) for words in asked] == [
            ("word0", "word23"),
            ("word24", "word29"),
            ("word0", "word23"),
        ]
        assert data.description.endswith(f"of the images and passages of {text} (seed 0)")
        text.write_text(" \n")
        with pytest.raises(UsageError, match="has no words"):
            calibration(photographed, text=text)
