"""Photos: opened, cut, and put before a question."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tracer.errors import InputError, UsageError
from tracer.models.inputs.images import crop, from_images, open_image
from tracer.models.inputs.text import InputSpec

SMALL = 20_000  # pixels, for photos of a few tokens


class TestOpen:
    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
    def test_any_kind_becomes_rgb(self, tmp_path: Path, mode: str):
        Image.new(mode, (40, 30)).save(tmp_path / "image.tiff")
        image = open_image(tmp_path / "image.tiff")
        assert (image.mode, image.size) == ("RGB", (40, 30))

    def test_files_of_images(self, tmp_path: Path):
        image = Image.new("RGB", (40, 30))
        exif = image.getexif()
        exif[0x0112] = 6  # orientation: to be turned by a quarter
        image.save(tmp_path / "photo.jpg", exif=exif)
        assert open_image(tmp_path / "photo.jpg").size == (30, 40)
        Image.new("RGB", (4, 3)).save(tmp_path / "image.png")
        image = open_image(tmp_path / "image.png")
        (tmp_path / "image.png").unlink()
        assert image.getpixel((0, 0)) == (0, 0, 0)
        (tmp_path / "image.png").write_text("a text")
        with pytest.raises(InputError, match=r"image.png: not an image that can be read"):
            open_image(tmp_path / "image.png")

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif"])
    def test_half_an_image(self, tmp_path: Path, suffix: str):
        path = tmp_path / f"image{suffix}"
        Image.effect_noise((200, 200), 90).convert("RGB").save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match="not an image that can be read"):
            open_image(path)

    def test_without_pillow(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "PIL", None)
        with pytest.raises(UsageError, match="images need Pillow"):
            open_image(Path("image.png"))


class TestFromImages:
    def made(self, processor, photos, names: list[str], **fields: object):
        paths = tuple(photos[name] for name in names)
        request = InputSpec(images=paths, **{"max_pixels": SMALL} | fields)
        return from_images(processor, request, [open_image(path) for path in paths])

    def words(self, processor, row: torch.Tensor) -> str:
        text = processor.tokenizer.decode(row).split("<|vision_end|>")[-1]
        return text.partition("<|im_end|>")[0]

    @pytest.mark.covers
    def test_photos_of_one_sequence(self, processor, photos):
        made, description = self.made(processor, photos, ["chelsea.png"], max_pixels=None)
        assert made["input_ids"].shape == (1, 140)
        assert description == (
            "140 tokens: the default question with chelsea.png (18 x 28 patches, 126 tokens)"
        )
        names = ["chelsea.png", "camera.png", "rocket.jpg"]
        made, description = self.made(processor, photos, names, prompt="Which is older?")
        assert made["input_ids"].shape[0] == 1
        assert made["image_grid_thw"].tolist() == [[1, 6, 10], [1, 8, 8], [1, 6, 10]]
        assert self.words(processor, made["input_ids"][0]) == "Which is older?"
        assert "the prompt with chelsea.png (6 x 10 patches, 15 tokens), camera.png" in description

    @pytest.mark.parametrize("padding", ["right", "left"])
    def test_one_in_each_sequence(self, processor, photos, padding: str):
        names = ["chelsea.png", "camera.png"]
        made, description = self.made(
            processor, photos, names, batch=2, padding=padding, prompt="Say  what\nthat is."
        )
        assert made["mm_token_type_ids"].sum(1).tolist() == [15, 16]
        assert made["image_grid_thw"].tolist() == [[1, 6, 10], [1, 8, 8]]
        # The first says the prompt as it was given.
        assert [self.words(processor, row) for row in made["input_ids"]] == [
            "Say  what\nthat is.",
            "Say what that",
        ]
        assert f"padded on the {padding}" in description

    def test_the_only_one_and_an_empty_prompt(self, processor, photos):
        made, description = self.made(processor, photos, ["camera.png"], batch=3)
        lengths = made["attention_mask"].sum(1).tolist()
        assert len(set(lengths)) == 3
        first, *others = made["pixel_values"].chunk(3)
        assert all(torch.equal(first, other) for other in others)
        assert description.count("camera.png") == 1
        assert f"a batch of 3 with lengths {', '.join(map(str, lengths))}" in description
        made, _ = self.made(processor, photos, ["camera.png"], prompt="", batch=2)
        assert [self.words(processor, row) for row in made["input_ids"]] == ["", ""]


class TestRequest:
    @pytest.mark.parametrize(("fields", "message"), [
        ({"images": (), "max_pixels": 5000}, "max pixels go with images"),
        ({"max_pixels": 0}, "max pixels 0: expected at least 1"),
        ({"images": (), "frames": 0}, "video 0: expected at least 1"),
        ({"frames": 2}, "a synthetic clip does not go with --image"),
        ({"sequence_length": 20}, "a sequence length does not go with --image"),
        ({"batch": 3}, "2 images in a batch of 3: expected one for each sequence, or one"),
    ])  # fmt: skip
    def test_refused(self, fields: dict[str, object], message: str):
        with pytest.raises(UsageError, match=message):
            InputSpec(**{"images": (Path("a.png"), Path("b.png"))} | fields)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32))
@settings(deadline=None)
def test_a_crop_is_a_part_of_at_least_half_of_each_side(width: int, height: int, seed: int):
    # Each pixel tells where it is.
    image = Image.new("RGB", (width, height))
    image.putdata([(x, y, 0) for y in range(height) for x in range(width)])
    part, again = (crop(image, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert part.tobytes() == again.tobytes()
    left, top, _ = part.getpixel((0, 0))
    right, bottom, _ = part.getpixel((part.width - 1, part.height - 1))
    assert (right - left + 1, bottom - top + 1) == part.size
    assert width // 2 <= part.width <= width
    assert height // 2 <= part.height <= height
