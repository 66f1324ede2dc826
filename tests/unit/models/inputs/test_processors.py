"""Processors of a Qwen3-VL: tokens, patches and grids of texts with photos."""

import copy
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from tracer.errors import InputError, ModelLoadError, UsageError
from tracer.models.builtin import build
from tracer.models.inputs.processors import (
    PilProcessor,
    check_processor,
    encode_chats,
    load_processor,
    tokens_of,
)
from tracer.models.locate import locate_processor

QUESTION = "Describe this image."
IMAGE = 151655


@pytest.fixture(scope="module")
def model(processor) -> nn.Module:
    return build("tiny-qwen3-vl", 0, tokens=tokens_of(processor))


def drawn(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise of a size."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


class TestEncode:
    # Counted with the processor of Qwen3-VL-2B-Instruct.
    @pytest.mark.parametrize(("name", "grid", "length"), [
        ("chelsea.png", [1, 18, 28], 140), ("rocket.jpg", [1, 26, 40], 274),
        ("camera.png", [1, 32, 32], 270),
    ])  # fmt: skip
    def test_grids_and_lengths_of_photos(self, processor, photos, name: str, grid, length: int):
        with Image.open(photos[name]) as image:
            made = encode_chats(processor, [QUESTION], [[image.convert("RGB")]])
        patches = grid[1] * grid[2]
        assert made["image_grid_thw"].tolist() == [grid]
        assert made["pixel_values"].shape == (patches, 1536)
        assert made["pixel_values"].dtype == torch.float32
        assert made["input_ids"].shape == made["attention_mask"].shape == (1, length)
        assert int((made["input_ids"] == IMAGE).sum()) == patches // 4
        assert torch.equal(made["mm_token_type_ids"], (made["input_ids"] == IMAGE).long())

    def test_the_chat_around_images(self, processor):
        made = encode_chats(processor, [QUESTION], [[drawn(256, 256), drawn(320, 256)]])
        assert processor.tokenizer.decode(made["input_ids"][0]) == (
            "<|im_start|>user\n"
            f"<|vision_start|>{'<|image_pad|>' * 64}<|vision_end|>"
            f"<|vision_start|>{'<|image_pad|>' * 80}<|vision_end|>"
            f"{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
        )

    def test_pixels_are_those_of_the_image(self, processor):
        image = drawn(320, 256)  # whole patches, and within the limits: not resized
        made = encode_chats(processor, [QUESTION], [[image]])
        assert made["image_grid_thw"].tolist() == [[1, 16, 20]]
        # Back from patches: token row and column, patch row and column, channel, frame, pixel.
        cut = made["pixel_values"].view(8, 10, 2, 2, 3, 2, 16, 16)
        frames = cut.permute(5, 4, 0, 2, 6, 1, 3, 7).reshape(2, 3, 256, 320)
        pixels = torch.tensor(list(image.tobytes())).view(256, 320, 3).permute(2, 0, 1)
        for frame in frames:
            assert torch.allclose(frame, pixels / 127.5 - 1, atol=1e-6)

    @pytest.mark.parametrize("padding", ["right", "left"])
    def test_a_batch_is_its_sequences_padded(self, processor, padding: str):
        texts = [QUESTION, "What?"]
        images = [[drawn(256, 256)], [drawn(288, 256, seed=1), drawn(256, 320, seed=2)]]
        made = encode_chats(processor, texts, images, padding=padding)
        alone = [
            encode_chats(processor, [text], [shown])
            for text, shown in zip(texts, images, strict=True)
        ]
        mask = made["attention_mask"].bool()
        assert mask.sum(1).tolist() == [one["input_ids"].shape[1] for one in alone]
        padded = mask[0].int().diff()
        assert padded.unique().tolist() == ([-1, 0] if padding == "right" else [0, 1])
        for i, one in enumerate(alone):
            for key in ("input_ids", "mm_token_type_ids"):
                assert torch.equal(made[key][i, mask[i]], one[key][0])
        assert int(made["mm_token_type_ids"][~mask].sum()) == 0
        for key in ("pixel_values", "image_grid_thw"):
            assert torch.equal(made[key], torch.cat([one[key] for one in alone]))

    @pytest.mark.parametrize(
        ("size", "limit", "grid"),
        [
            ((640, 320), 60_000, [1, 10, 20]),
            ((640, 320), 1024, [1, 2, 2]),
            ((64, 32), 10_000, [1, 2, 4]),  # below the processor's own least size
            ((256, 256), 10_000_000, [1, 16, 16]),
        ],
    )
    def test_a_limit_shrinks_images(self, processor, size, limit: int, grid):
        made = encode_chats(processor, [QUESTION], [[drawn(*size)]], max_pixels=limit)
        assert made["image_grid_thw"].tolist() == [grid]

    def test_a_limit_below_a_token(self, processor):
        with pytest.raises(UsageError, match="max pixels 1023: expected at least 1024"):
            encode_chats(processor, [QUESTION], [[drawn(64, 64)]], max_pixels=1023)

    @pytest.mark.parametrize("token", ["<|image_pad|>", "<|video_pad|>"])
    def test_a_prompt_that_holds_an_image_token(self, processor, token: str):
        with pytest.raises(UsageError, match=r"the prompt holds '<\|(image|video)_pad\|>'"):
            encode_chats(processor, [f"What is {token}?"], [[drawn(64, 64)]])

    def test_an_image_that_is_too_narrow(self, processor):
        with pytest.raises(InputError, match="aspect ratio must be smaller than 200"):
            encode_chats(processor, [QUESTION], [[drawn(2010, 10)]])


class TestLoad:
    @pytest.fixture
    def folder(self, processor_folder: Path, tmp_path: Path) -> Path:
        """A copy of the processor, to be changed."""
        for file in processor_folder.iterdir():
            shutil.copyfile(file, tmp_path / file.name)
        return tmp_path

    def test_special_tokens(self, processor):
        tokens = tokens_of(processor)
        assert (tokens.image, tokens.video) == (151655, 151656)
        assert (tokens.vision_start, tokens.vision_end) == (151652, 151653)
        assert (tokens.vocabulary, tokens.padding) == (151669, 151643)
        assert processor.tokenizer("Hello, world!")["input_ids"] == [9707, 11, 1879, 0]

    def test_by_pillow_as_by_torchvision(self, processor, processor_folder, photos):
        pytest.importorskip("torchvision", reason="transformers' own processor needs torchvision")
        by_pillow = PilProcessor(processor_folder)
        with (
            Image.open(photos["chelsea.png"]) as chelsea,
            Image.open(photos["rocket.jpg"]) as rocket,
        ):
            images = [[chelsea.convert("RGB")], [rocket.convert("RGB"), drawn(640, 64)]]
        for options in ({}, {"padding": "left", "max_pixels": 50_000}):
            one, other = (
                encode_chats(made_by, [QUESTION, "What?"], images, **options)
                for made_by in (processor, by_pillow)
            )
            assert one.keys() == other.keys()
            pixels = one.pop("pixel_values"), other.pop("pixel_values")
            assert all(torch.equal(one[key], other[key]) for key in one)
            # Two ways to resize: a few of the 255 steps at edges, and next to none on average.
            difference = (pixels[0] - pixels[1]).abs()
            assert difference.max() < 0.05
            assert difference.mean() < 0.005

    def test_a_chat_template_in_a_file_of_the_old_kind(self, processor, folder: Path):
        template = (folder / "chat_template.jinja").read_text()
        (folder / "chat_template.jinja").unlink()
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
        one, other = (
            encode_chats(made_by, [QUESTION], [[drawn(64, 64)]])
            for made_by in (processor, load_processor("old", folder))
        )
        assert torch.equal(one["input_ids"], other["input_ids"])

    def test_what_it_lacks(self, folder: Path):
        (folder / "chat_template.jinja").unlink()
        with pytest.raises(ModelLoadError, match="mute: the processor has no chat template"):
            load_processor("mute", folder)
        (folder / "preprocessor_config.json").unlink()
        (folder / "video_preprocessor_config.json").unlink()
        with pytest.raises(ModelLoadError, match=r"blind: .*(give|expected) the folder or hub id"):
            load_processor("blind", folder)

    def test_no_tokenizer(self, folder: Path):
        for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            (folder / file).unlink()
        with pytest.raises(
            ModelLoadError, match="dumb: the tokenizer lacks the tokens for image, video"
        ):
            load_processor("dumb", folder)

    def test_another_models_tokenizer(self, folder: Path, shared_data: Path):
        for file in ("vocab.json", "merges.txt"):
            (folder / file).unlink()
        for file in (shared_data / "stories260K" / "hf").glob("tokenizer*"):
            shutil.copyfile(file, folder / file.name)
        with pytest.raises(
            ModelLoadError, match="llama: the tokenizer lacks the tokens for image, video"
        ):
            load_processor("llama", folder)

    def test_without_pillow(self, processor_folder: Path, monkeypatch):
        monkeypatch.setitem(sys.modules, "PIL", None)
        with pytest.raises(UsageError, match=r"need Pillow.*pip install 'pillow>="):
            load_processor("any", processor_folder)


class TestCheck:
    def test_one_that_fits(self, model, processor):
        check_processor(model, processor, "tiny")

    @pytest.mark.parametrize(("part", "field", "message"), [
        ("vision_config", "patch_size", "patch size 16, and tiny has 17"),
        ("vision_config", "temporal_patch_size", "temporal patch size 2, and tiny has 3"),
        ("vision_config", "spatial_merge_size", "merge size 2, and tiny has 3"),
        (None, "image_token_id", "image token 151655, and tiny has 151656"),
        (None, "video_token_id", "video token 151656, and tiny has 151657"),
    ])  # fmt: skip
    def test_one_that_does_not(self, model, processor, monkeypatch, part, field, message: str):
        config = copy.deepcopy(model.config)
        owner = config if part is None else getattr(config, part)
        setattr(owner, field, getattr(owner, field) + 1)
        monkeypatch.setattr(model, "config", config)
        with pytest.raises(UsageError, match=message):
            check_processor(model, processor, "tiny")


class TestLocate:
    def test_a_folder_or_a_hub_id(self, processor_folder: Path, tmp_path: Path):
        assert locate_processor(str(processor_folder)) == processor_folder
        assert locate_processor("organisation/name") == "organisation/name"
        (tmp_path / "processor_config.json").write_text("{}")
        assert locate_processor(str(tmp_path)) == tmp_path

    def test_neither(self, tmp_path: Path):
        with pytest.raises(ModelLoadError, match=r"folder without preprocessor_config.json or"):
            locate_processor(str(tmp_path))
        with pytest.raises(ModelLoadError, match="no processor 'nowhere': there is no folder"):
            locate_processor("nowhere")
