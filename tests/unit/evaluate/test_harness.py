"""Tasks of lm-eval on models in memory, against counting by hand."""

import builtins
import json

import pytest
import torch
from transformers import AutoTokenizer

import wrappers
from tests.builders.llama import real_model
from tracer.models.loading import load
from wrappers.errors import MissingExtraError, ModelInputError
from wrappers.evaluate import DecodedModel, run_tasks

TASK = """
task: own_task
dataset_path: json
dataset_kwargs:
  data_files:
    test: FILES
output_type: multiple_choice
test_split: test
doc_to_text: "{{query}}"
doc_to_target: "{{gold}}"
doc_to_choice: "{{choices}}"
target_delimiter: " "
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
QUESTIONS = [
    ("The dog was hungry, so", ["it ate its food.", "it slept all day in the sun."], 0),
    ("Tom lost his red hat and", ["was sad.", "was a tree."], 0),
    ("It was raining. Anna took", ["a big banana", "her umbrella", "the moon"], 1),
    ("The cat sat on", ["the mat.", "the happy and."], 0),
    ("At night they all went", ["to bed.", "to the sun."], 0),
    ("The boat was", ["very of.", "on the lake."], 1),
]


@pytest.fixture(scope="module", autouse=True)
def lm_eval(tmp_path_factory):
    """lm-eval, with the caches of its data sets in a folder of the tests."""
    datasets = pytest.importorskip("datasets", reason="needs the extra eval")
    pytest.importorskip("lm_eval", reason="needs the extra eval")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def llama():
    return load("tiny-llama")


@pytest.fixture
def task(tmp_path):
    """A task file with a relative path of its data."""
    (tmp_path / "data").mkdir()
    rows = [{"query": q, "choices": c, "gold": g} for q, c, g in QUESTIONS]
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "data" / "own.jsonl").write_text(lines)
    file = tmp_path / "own.yaml"
    file.write_text(TASK.replace("FILES", "data/own.jsonl"))
    return file


def accuracy_by_hand(model, tokenizer, questions=QUESTIONS):
    """How often the right choice is the likeliest, by the sum of its tokens' log-probabilities."""
    right = 0
    for query, choices, gold in questions:
        scores = []
        for choice in choices:
            before = len(tokenizer(query)["input_ids"])
            ids = torch.tensor(tokenizer(f"{query} {choice}")["input_ids"])
            with torch.no_grad():
                likely = model(ids[None]).logits[0, :-1].double().log_softmax(-1)
            scores.append(float(likely.gather(1, ids[1:, None])[before - 1 :].sum()))
        right += scores.index(max(scores)) == gold
    return right / len(questions)


def in_kind(model, kind, inputs):
    """The model itself, or its wrapped form, quantised to 4-bit weights or not."""
    if kind == "float":
        return model
    config = {"weight": wrappers.affine("uint4"), "variant": "prefill_reference"}
    wrapped = wrappers.prepare(model, wrappers.PTQConfig(**config))
    if kind == "wrapped":
        return wrapped
    wrappers.calibrate(wrapped, [inputs])
    return wrappers.convert(wrapped)


@pytest.mark.slow
class TestOwnTask:
    @pytest.mark.parametrize(("kind", "batch"), [("float", 1), ("wrapped", 4), ("quantized", 4)])
    def test_counts_as_by_hand(self, llama, task, kind, batch):
        model = in_kind(llama.model, kind, llama.inputs)
        results = run_tasks(model, llama.tokenizer, [task], batch=batch)
        expected = accuracy_by_hand(model, llama.tokenizer)
        assert results["results"]["own_task"]["acc,none"] == pytest.approx(expected)
        assert results["n-samples"]["own_task"] == {"original": 6, "effective": 6}

    def test_a_prefill_and_a_decode_graph(self, llama, task):
        wrapped = in_kind(llama.model, "wrapped", llama.inputs)
        decode = wrappers.prepare(llama.model, wrappers.PTQConfig(variant="decode"))
        results = run_tasks(
            DecodedModel(wrapped, decode, prompt=3), llama.tokenizer, [task], batch=3
        )
        expected = accuracy_by_hand(llama.model, llama.tokenizer)
        assert results["results"]["own_task"]["acc,none"] == pytest.approx(expected)

    def test_a_limit_and_a_folder_of_data(self, llama, task, tmp_path):
        (tmp_path / "tasks").mkdir()
        moved = task.rename(tmp_path / "tasks" / "own.yaml")
        with pytest.raises(
            ModelInputError, match=r"wants the data data/own.jsonl: there is no .*tasks"
        ):
            run_tasks(llama.model, llama.tokenizer, [moved])
        results = run_tasks(llama.model, llama.tokenizer, [str(moved)], data=tmp_path, limit=2)
        expected = accuracy_by_hand(llama.model, llama.tokenizer, QUESTIONS[:2])
        assert results["results"]["own_task"]["acc,none"] == pytest.approx(expected)

    def test_a_list_of_files(self, llama, task):
        task.write_text(TASK.replace("FILES", "[data/own.jsonl, data/own.jsonl]"))
        results = run_tasks(llama.model, llama.tokenizer, [task])
        assert results["n-samples"]["own_task"]["original"] == 12

    @pytest.mark.parametrize(("text", "message"), [
        ("- 1", "is no task file of lm-eval: it names no `task`"),
        ("dataset_path: json", "is no task file of lm-eval: it names no `task`"),
        (TASK.replace("FILES", "none.jsonl"), r"wants the data none.jsonl: there is no "),
    ])  # fmt: skip
    def test_refused(self, llama, task, text, message):
        task.write_text(text)
        with pytest.raises(ModelInputError, match=message):
            run_tasks(llama.model, llama.tokenizer, [task])


class TestNames:
    def test_none_and_unknown_ones(self, llama, tmp_path, monkeypatch):
        from lm_eval.tasks import TaskManager

        with pytest.raises(ModelInputError, match="no tasks were given"):
            run_tasks(llama.model, llama.tokenizer, [])
        with pytest.raises(ModelInputError, match=r"there is no task file .*none.yaml"):
            run_tasks(llama.model, llama.tokenizer, [tmp_path / "none.yaml"])
        # Reading all of lm-eval's tasks takes many seconds.
        monkeypatch.setattr(
            "lm_eval.tasks.TaskManager", lambda **given: TaskManager(include_defaults=False)
        )
        with pytest.raises(
            ModelInputError, match="lm-eval knows no task 'arc_esay'; expected a name of"
        ):
            run_tasks(llama.model, llama.tokenizer, ["arc_esay"])

    def test_without_lm_eval(self, llama, monkeypatch):
        real = builtins.__import__

        def without(name, *args, **kwargs):
            if name.partition(".")[0] == "lm_eval":
                raise ImportError(f"No module named {name!r}")
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(MissingExtraError, match=r"pip install 'lm-eval>="):
            run_tasks(llama.model, llama.tokenizer, ["arc_easy"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"), [("float", "copa"), ("wrapped", "piqa"), ("quantized", "arc_easy")]
)
def test_real_tasks(shared_data, tmp_path, kind, name):
    # Their files name the data as lying in a folder `data`.
    (tmp_path / "data").symlink_to(shared_data)
    file = shared_data / "mc" / "lm_eval_tasks" / f"local_{name}.yaml"
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "stories260K" / "hf")
    rows = [*map(json.loads, (shared_data / "mc" / f"{name}.jsonl").read_text().splitlines()[:8])]
    asked = "" if name == "copa" else "\nAnswer:"
    questions = [(row["query"] + asked, row["choices"], row["gold"]) for row in rows]
    inputs = tokenizer(questions[0][0], return_tensors="pt")
    model = in_kind(real_model(shared_data, "stories260K", "eager"), kind, inputs)
    results = run_tasks(model, tokenizer, [file], data=tmp_path, limit=8)
    found = results["results"][f"local_{name}"]["acc,none"]
    assert found == pytest.approx(accuracy_by_hand(model, tokenizer, questions))
