"""Questions about photos, against log-likelihoods counted token by token."""

import json
import math

import pytest
import torch

import wrappers
from tracer.models import load
from wrappers.errors import ModelInputError
from wrappers.evaluate import ImageAnswer, ImageQuestions, image_questions, read_questions
from wrappers.evaluate.harness import check_tasks
from wrappers.evaluate.images import asked, opened

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two small photos."""
    found = tmp_path_factory.mktemp("photos")
    for name, colour in (("red.png", (200, 30, 30)), ("blue.png", (20, 30, 220))):
        Image.new("RGB", (70, 66), colour).save(found / name)
    return found


def write(folder, *rows):
    file = folder / "questions.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return file


RED = {"image": "red.png", "question": "Which colour?", "choices": ["red", "blue"], "answer": 0}


def test_what_a_file_holds(folder) -> None:
    written = {"images": ["red.png", "blue.png"], "question": "Colours?", "answers": ["a", "b"]}
    first, second, third = read_questions(write(folder, RED, "", written, RED | {"answer": "blue"}))
    assert (first.images, first.answers) == ((folder / "red.png",), ("red",))
    assert (len(second.images), second.answers, second.choices) == (2, ("a", "b"), ())
    assert third.answers == ("blue",)


@pytest.mark.parametrize(("row", "message"), [
    ("{", "line 1: Expecting"),
    ("[1]", "expected an object with image, images"),
    ({"image": "red.png", "question": "?", "anser": "a"}, "unknown key 'anser'"),
    ({"image": "none.png", "question": "?", "answer": "a"}, "there is no image .*none.png"),
    ({"question": "?", "answer": "a"}, "names no image"),
    ({"image": "red.png", "question": "?"}, "has no answer that is a text"),
    ({"image": "red.png", "answer": "a"}, "found the question None"),
    (RED | {"answer": 2}, "the answer is choice 2; expected from 0 to 1"),
    (RED | {"answer": "green"}, "with the answer 'green' among them"),
    (RED | {"choices": ["red"], "answer": 0}, "expected at least two"),
    (RED | {"image": 3}, "image is 3; expected a text, or a list of texts"),
    ("", "holds no questions"),
])  # fmt: skip
def test_what_is_no_question(folder, row, message) -> None:
    with pytest.raises(ModelInputError, match=message):
        read_questions(write(folder, row))


def test_the_figures() -> None:
    found = ImageQuestions(tuple(ImageAnswer("a", right) for right in (True, True, False, True)))
    assert found.accuracy == 0.75
    # The standard deviation of the sample over the root of its size, as lm-eval has it.
    assert found.standard_error == pytest.approx(torch.tensor([1.0, 1, 0, 1]).std() / 2)
    assert repr(found) == "<ImageQuestions: 75.0% ± 25.0% of 4 right>"
    assert math.isnan(ImageQuestions(found.answers[:1]).standard_error)


def test_images_that_are_none(folder, tmp_path) -> None:
    assert opened("red.png", folder).size == (70, 66)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ModelInputError, match="no image that can be read"):
        opened(tmp_path / "text.png", tmp_path)


def test_a_task_with_images_and_choices(tmp_path) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra eval")
    file = tmp_path / "task.yaml"
    file.write_text("task: own\noutput_type: multiple_choice\ndoc_to_image: [image]\n")
    with pytest.raises(ModelInputError, match="questions with choices are for image_questions"):
        check_tasks([file])


@pytest.fixture(scope="module")
def loaded(shared_data):
    return load("tiny-qwen3-vl", processor=shared_data / "qwen_processor" / "qwen3vl")


@pytest.mark.covers
def test_choices_against_token_by_token(loaded, folder) -> None:
    questions = read_questions(write(folder, RED, RED | {"image": "blue.png", "answer": 1}))
    wrapped = wrappers.prepare(loaded.model, wrappers.PTQConfig())
    wrappers.calibrate(wrapped, [loaded.inputs])
    for model in (loaded.model, wrappers.convert(wrapped)):
        found = image_questions(model, loaded.processor, questions)
        for item, answer in zip(questions, found.answers, strict=True):
            by_hand = [by_tokens(model, loaded.processor, item, text) for text in item.choices]
            assert answer.likelihoods == pytest.approx(by_hand, rel=1e-4)
            best = item.choices[by_hand.index(max(by_hand))]
            assert (answer.text, answer.right) == (best, best == item.answers[0])
    # An answer that is written is what generate() writes.
    first = questions[0]
    inputs = asked(loaded.processor, first.question, [opened(first.images[0], folder)])
    made = loaded.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    text = loaded.processor.tokenizer.decode(made[0, -2:]).strip()
    row = {"image": "red.png", "question": "Which colour?", "answers": ["x", f"{text.upper()}. "]}
    found = image_questions(loaded.model, loaded.processor, write(folder, row), max_new_tokens=2)
    assert found.answers == (ImageAnswer(text, True),)
    with pytest.raises(ModelInputError, match="found limit 0; expected at least 1"):
        image_questions(loaded.model, loaded.processor, questions, limit=0)


@pytest.mark.covers
def test_images_are_shrunk_as_for_a_calibration(loaded, folder, shared_data) -> None:
    image, limit = folder / "red.png", 5000
    grid = asked(loaded.processor, "?", [opened(image, folder)], max_pixels=limit)["image_grid_thw"]
    processor = shared_data / "qwen_processor" / "qwen3vl"
    shown = load("tiny-qwen3-vl", processor=processor, images=[image], max_pixels=limit)
    assert grid.tolist() == shown.inputs["image_grid_thw"].tolist() == [[1, 4, 4]]
    with pytest.raises(ModelInputError, match="max pixels 9: expected at least 1024"):
        asked(loaded.processor, "?", [opened(image, folder)], max_pixels=9)


@torch.no_grad()
def by_tokens(model, processor, item, choice):
    """The log-likelihood of a choice, with a forward for each of its tokens."""
    inputs = asked(processor, item.question, [opened(item.images[0], item.images[0].parent)])
    total = 0.0
    for token in processor.tokenizer(choice)["input_ids"]:
        total += float(model(**inputs).logits[0, -1].double().log_softmax(-1)[token])
        added = torch.tensor([[token]])
        inputs["input_ids"] = torch.cat((inputs["input_ids"], added), 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        kinds = inputs["mm_token_type_ids"]
        inputs["mm_token_type_ids"] = torch.cat((kinds, torch.zeros_like(kinds[:, :1])), 1)
    return total


@pytest.mark.covers
def test_a_local_task_of_lm_eval(loaded, folder, tmp_path, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra eval")
    pytest.importorskip("lm_eval", reason="needs the extra eval")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"image": "red.png", "question": "Which?", "answer": "none"}]
    first = asked(loaded.processor, "Which?", [opened("blue.png", folder)])
    made = loaded.model.generate(**first, max_new_tokens=2, do_sample=False)
    text = loaded.processor.tokenizer.decode(made[0, -2:], skip_special_tokens=True)
    rows.append({"image": "blue.png", "question": "Which?", "answer": text})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "task.yaml").write_text("""
task: own_photos
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
output_type: generate_until
test_split: test
doc_to_image: [image]
doc_to_text: "<image>{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["<never>"], max_gen_toks: 2, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""")
    found = wrappers.evaluate.run_tasks(
        loaded.model,
        loaded.processor.tokenizer,
        [folder / "task.yaml"],
        processor=loaded.processor,
    )
    assert found["results"]["own_photos"]["exact_match,none"] == 0.5
