from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wrappers.errors import ModelInputError, StudyError
from wrappers.evaluate import Opening
from wrappers.studies import LoadedWorkload, Workload, load
from wrappers.studies.plan.workload import _load, batches


class TestLoad:
    def test_documents_are_scored_or_calibrate(self, loaded: LoadedWorkload, workload: Workload):
        scored = sum(map(len, loaded.texts))
        assert 80 < scored <= 150
        text = Path(loaded.workload.text).read_text().replace("|", " ").split()
        assert (scored + len(loaded.calibration), loaded.bos) == (len(text), 0)
        found = load(replace(workload, separator=None, tokens=100))
        assert [len(ids) for ids in found.texts] == [100]

    def test_texts_of_ones_own(self, workload: Workload, tmp_path: Path):
        other = tmp_path / "other.txt"
        other.write_text("w3 " * 50)
        assert set(load(replace(workload, calibration_text=str(other))).calibration) == {5}
        (tmp_path / "empty.txt").write_text(" \n")
        with pytest.raises(StudyError, match=r"empty\.txt: found no text"):
            load(replace(workload, text=str(tmp_path / "empty.txt")))

    def test_calibration_sets_and_texts(self, loaded: LoadedWorkload, workload: Workload):
        sets = [loaded.calibration_set(seed, 5) for seed in (0, 0, 1)]
        assert sets[0] == sets[1] != sets[2]
        assert all(len(ids) == 24 and ids[0] == loaded.bos for ids in sets[0])
        text = list(loaded.calibration)
        for ids in sets[0]:
            assert any(ids[1:] == text[at : at + 23] for at in range(len(text)))
        made = batches(loaded.calibration_set(0, 11), 8)
        assert [batch["input_ids"].shape for batch in made] == [(8, 24), (3, 24)]
        own = replace(workload, text=None, separator=None)
        state = torch.random.get_rng_state()
        found = load(own)
        assert torch.equal(torch.random.get_rng_state(), state)
        again = _load.__wrapped__(own)
        assert (found.texts, found.checksum) == (again.texts, again.checksum)
        assert len({tuple(ids) for ids in found.texts}) > 1
        assert len(found.calibration) >= 4096

    def test_sets_that_cannot_differ_are_refused(self, loaded: LoadedWorkload):
        few = replace(loaded, calibration=loaded.calibration[:100])
        few.check_sets(1, 4)
        with pytest.raises(StudyError) as raised:
            few.check_sets(3, 4)
        assert str(raised.value) == (
            "found 100 tokens to calibrate on, 4 sequences of 23; expected 276, 12 sequences for 3 "
            "calibration sets of 4, as sets of the same text say nothing of the luck in drawing "
            "them: give more text to calibrate on, or fewer or smaller sets"
        )
        again = replace(few, calibration=[*few.calibration] * 30)
        with pytest.raises(StudyError, match=r"found 115 tokens .* \(2885 more repeat them\)"):
            again.check_sets(3, 4)

    @pytest.mark.parametrize("tokens", [20, 400])
    def test_what_it_writes_is_long_enough(self, workload: Workload, tokens: int):
        found = load(replace(workload, text=None, separator=None, tokens=tokens))
        assert {len(ids) for ids in found.texts} == {63}
        assert tokens <= sum(map(len, found.texts)) < tokens + 2 * 63

    def test_the_checksum_knows_the_model_and_the_texts(self, workload, loaded):
        other = _load.__wrapped__(workload)
        assert other.checksum == loaded.checksum
        with torch.no_grad():
            other.model.model.norm.weight[0] += 1e-3
        other = replace(other)
        assert other.checksum != loaded.checksum
        assert _load.__wrapped__(replace(workload, tokens=100)).checksum != loaded.checksum

    @pytest.mark.parametrize(("changed", "message"), [
        ({"model": "random-llama"}, "has no tokenizer"),
        ({"images": ("synthetic",)}, "takes no images: leave them out"),
        ({"model": "tiny-qwen3-vl", "images": ("synthetic",), "text": None, "separator": None},
         "have 84 tokens, and a calibration sequence 24: give a larger calibration length"),
        ({"text": "/none.txt"}, "cannot read the text /none.txt"),
        ({"tokens": 10_000}, r"the rest of .*text.txt has \d+ tokens to calibrate on; expected at"),
        ({"window": 65}, "found window 65 for a model of 64 positions"),
        ({"calibration_length": 65}, "found calibration_length 65 for a model of 64 positions"),
        ({"checksum": "0" * 64}, "has other contents here than where the study was begun"),
    ])  # fmt: skip
    def test_what_cannot_be(self, workload: Workload, changed, message):
        with pytest.raises(StudyError, match=message):
            load(replace(workload, **changed))

    def test_tasks_that_cannot_be(self, workload: Workload, tmp_path: Path):
        pytest.importorskip("lm_eval", reason="needs the extra eval")
        with pytest.raises(ModelInputError, match="there is no task file"):
            load(replace(workload, tasks=(str(tmp_path / "none.yaml"),)))

    @pytest.mark.parametrize(("changed", "message"), [
        ({"tokens": "many"}, "found tokens 'many'; expected a whole number from 1 up"),
        ({"tokens": 300.5}, "found tokens 300.5; expected a whole number"),
        ({"window": True}, "found window True; expected a whole number from 2 up"),
        ({"prompts": -1}, "found prompts -1; expected a whole number from 0 up"),
        ({"new_tokens": None}, "found new_tokens None; expected a whole number"),
        ({"text": 3}, "found text 3; expected a text"),
        ({"model": None}, "found model None; expected a text"),
        ({"tasks": "arc_easy"}, "found tasks 'arc_easy'; expected a list"),
        ({"images": "photo.png"}, "found images 'photo.png'; expected a list of files"),
        ({"images": ("synthetic", "photo.png")}, "expected files, or synthetic alone"),
        ({"tasks": [1]}, r"found tasks \[1\]; expected a list"),
    ])  # fmt: skip
    def test_values_of_other_types(self, workload: Workload, changed, message):
        with pytest.raises(StudyError, match=message):
            replace(workload, **changed)

    def test_its_own_checksum_and_prompts(self, workload: Workload, loaded: LoadedWorkload):
        assert load(replace(workload, checksum=loaded.checksum)) is load(workload)
        scored = [token for ids in loaded.texts for token in ids]
        for prompt in loaded.prompts:
            assert prompt[0] == loaded.bos
            assert any(prompt[1:] == scored[at : at + 15] for at in range(len(scored)))


class TestImages:
    @pytest.fixture
    def pictured(self) -> LoadedWorkload:
        return load(Workload(
            "tiny-qwen3-vl", images=("synthetic",), tokens=40, window=110, calibration_length=100,
            prompts=2, new_tokens=3,
        ))  # fmt: skip

    @pytest.mark.covers
    def test_each_sequence_begins_with_them(self, pictured: LoadedWorkload):
        opening = pictured.bos
        assert isinstance(opening, Opening)
        assert (len(opening.ids), sum(opening.kinds)) == (84, 64)
        marks = set(range(508, 512))
        assert not any(marks & set(ids) for ids in pictured.texts)
        assert {len(ids) for ids in pictured.texts} == {110 - 84}
        sequences = pictured.calibration_set(0, 3)
        [batch] = batches(sequences, 3, pictured.calibration_beginning(0))
        assert batch["input_ids"].shape == batch["mm_token_type_ids"].shape == (3, 100)
        assert batch["image_grid_thw"].tolist() == [[1, 16, 16]] * 3
        assert len(batch["pixel_values"]) == 3 * 256
        assert all(tuple(prompt[:84]) == opening.ids for prompt in pictured.prompts)

    def test_a_calibration_set_has_images_of_its_own(self, pictured: LoadedWorkload):
        pixels = [pictured.bos.pixels["pixel_values"]] + [
            pictured.calibration_beginning(seed).pixels["pixel_values"] for seed in (0, 1, 1)
        ]
        assert torch.equal(pixels[2], pixels[3])
        assert not torch.equal(pixels[0], pixels[1])
        assert not torch.equal(pixels[1], pixels[2])

    def test_a_model_without_bos_begins_with_a_token_at_random(self):
        found = load(Workload("tiny-qwen3-vl", tokens=60, window=30, calibration_length=20))
        assert (found.bos, found.tokenizer) == (None, None)
        assert len({ids[0] for ids in found.texts}) > 1
