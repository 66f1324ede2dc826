"""What a quantised candidate is calibrated on."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

import wrappers
from tracer.errors import UsageError
from tracer.models import calibration
from tracer.models.candidates import candidate
from tracer.models.loading import Loaded, load


@pytest.fixture(scope="module")
def llama() -> Loaded:
    return load("random-llama")


@pytest.fixture(scope="module")
def trained() -> Loaded:
    return load("tiny-llama", batch=2, sequence_length=24, padding="left")


class TestTokens:
    def test_random_sequences_besides_the_inputs(self, llama):
        data = calibration(llama, count=3, seed=0)
        assert data.batches[0] is llama.inputs
        assert [tuple(batch["input_ids"].shape) for batch in data.batches] == [(1, 32)] * 4
        assert len({tuple(batch["input_ids"][0].tolist()) for batch in data.batches}) == 4
        assert data.description == (
            "the inputs themselves and 3 random sequences of 32 tokens (seed 0)"
        )
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


class TestOwnText:
    """What a model with a tokenizer is calibrated on where no text is given."""

    def test_is_what_the_model_is_likely_to_write(self, trained):
        data = calibration(trained, count=4, seed=3)
        assert data.batches[0] is trained.inputs
        assert data.description == (
            "the inputs themselves and 4 sequences of 24 tokens that the model wrote (seed 3)"
        )
        rows = torch.cat([batch["input_ids"] for batch in data.batches[1:]])
        assert rows.shape == (4, 24)
        assert rows[:, 0].tolist() == [trained.tokenizer.bos_token_id] * 4
        assert len({tuple(row) for row in rows.tolist()}) == 4
        assert all(bool(batch["attention_mask"].all()) for batch in data.batches[1:])
        random = torch.randint(0, 512, rows.shape, generator=torch.Generator().manual_seed(0))
        random[:, 0] = rows[:, 0]
        assert self.loss(trained, rows) < 3.5
        assert self.loss(trained, random) > 6

    def loss(self, loaded: Loaded, rows: torch.Tensor) -> float:
        """The mean negative log-likelihood of a token, in nats."""
        with torch.no_grad():
            logits = loaded.model(rows).logits[:, :-1].double()
        return -float(logits.log_softmax(-1).gather(2, rows[:, 1:, None]).mean())

    def test_drawn_from_what_the_model_says_by_a_seed(self, trained):
        """Against drawing from whole sequences, without a cache."""
        data = calibration(trained, count=3, seed=5)
        generator = torch.Generator().manual_seed(5)
        rows = torch.full((3, 1), trained.tokenizer.bos_token_id)
        for _ in range(23):
            with torch.no_grad():
                likely = trained.model(rows, use_cache=False).logits[:, -1].softmax(-1)
            rows = torch.cat([rows, torch.multinomial(likely, 1, generator=generator)], dim=1)
        assert torch.equal(torch.cat([batch["input_ids"] for batch in data.batches[1:]]), rows)
        state = torch.get_rng_state()
        one, again, other = (calibration(trained, count=1, seed=seed) for seed in (0, 0, 1))
        ids = [data.batches[1]["input_ids"] for data in (one, again, other)]
        assert torch.equal(ids[0], ids[1])
        assert not torch.equal(ids[0], ids[2])
        assert torch.equal(torch.get_rng_state(), state)
        assert calibration(trained, count=0).description == "the inputs themselves"

    def test_models_that_do_not_write(self, trained):
        broken = replace(trained, model=copy.deepcopy(trained.model))
        with torch.no_grad():
            broken.model.lm_head.weight[0] = math.nan
        with pytest.raises(UsageError, match="tiny-llama computes logits that are not finite"):
            calibration(broken)
        config = LlamaConfig(
            vocab_size=512, hidden_size=8, num_hidden_layers=1, num_attention_heads=2
        )
        other = replace(trained, model=LlamaForSequenceClassification(config))
        assert "random sequences" in calibration(other, count=1).description


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
            assert len({tuple(batch[name].flatten().tolist()) for batch in data.batches}) == 4
        assert data.description == (
            "the inputs themselves and 3 like them with other random tokens and pixels (seed 0)"
        )

    def test_what_is_given_alone(self, tmp_path: Path):
        data = calibration(load("tiny-qwen3-vl", inputs=load("tiny-qwen3-vl").inputs))
        assert (len(data.batches), data.description) == (1, "the inputs themselves")
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

    @pytest.mark.covers
    def test_parts_of_them_with_other_questions(self, photographed):
        data = calibration(photographed, count=3)
        assert data.batches[0] is photographed.inputs
        assert data.description == (
            "the inputs themselves and 3 like them with random parts of the images and other "
            "questions (seed 0)"
        )
        asked = [self.question(photographed, batch, 0) for batch in data.batches]
        assert (asked[0], len(set(asked))) == ("Describe this image.", 4)
        assert len({float(batch["pixel_values"].double().sum()) for batch in data.batches}) == 4
        for batch in data.batches:
            assert batch["image_grid_thw"].shape == (2, 3)
            tokens = int((batch["mm_token_type_ids"] == 1).sum())
            assert tokens == int(batch["image_grid_thw"].prod(1).sum()) // 4
        again = calibration(photographed, count=3)
        assert torch.equal(data.batches[3]["pixel_values"], again.batches[3]["pixel_values"])

    def test_parts_as_large_as_the_whole(self, photographed):
        data = calibration(photographed, count=2, same_grids=True)
        grid = photographed.inputs["image_grid_thw"]
        assert all(torch.equal(batch["image_grid_thw"], grid) for batch in data.batches)
        pixels = [batch["pixel_values"] for batch in data.batches]
        assert not torch.equal(pixels[1], pixels[2])

    def test_passages_of_a_text_over_and_over(self, photographed, tmp_path: Path):
        text = tmp_path / "text.txt"
        text.write_text(" ".join(f"word{i}" for i in range(30)))
        data = calibration(photographed, count=3, text=text)
        asked = [self.question(photographed, batch, 0).split() for batch in data.batches[1:]]
        assert [(words[0], words[-1]) for words in asked] == [
            ("word0", "word23"), ("word24", "word29"), ("word0", "word23"),
        ]  # fmt: skip
        assert data.description.endswith(f"of the images and passages of {text} (seed 0)")
        text.write_text(" \n")
        with pytest.raises(UsageError, match="has no words"):
            calibration(photographed, text=text)
