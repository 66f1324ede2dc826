from dataclasses import replace
from pathlib import Path

import pytest

import wrappers
from wrappers.errors import StudyError
from wrappers.studies import File, LoadedWorkload, Results, Trial, report_of, run_trial

SENSITIVITY = """
[study]
seeds = [0, 1]
baseline = { leave_out = "model.layers.1.mlp" }

[settings]
weight = "uint4"

[grid]
leave_out = ["model.layers.*.mlp"]
activation = ["uint8", "int16"]

[workload]
tokens = 100
"""


@pytest.fixture
def file(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "sensitivity.toml"
        path.write_text(text)
        return path

    return write


class TestFile:
    def test_globs_stand_for_modules(self, file, loaded: LoadedWorkload):
        made = File.read(file(SENSITIVITY))
        assert made.workload == {"tokens": 100}
        grid = made.on(loaded.model)
        assert grid.name == "sensitivity"
        assert [(c["leave_out"], c["activation"]) for c in grid.combinations] == [
            (f"model.layers.{layer}.mlp", activation)
            for layer in (0, 1)
            for activation in ("uint8", "int16")
        ]
        assert all(c["weight"] == "uint4" for c in grid.combinations)
        assert grid.baseline["leave_out"] == "model.layers.1.mlp"
        assert len(grid.wanted(None)) == 8

    @pytest.mark.parametrize(("text", "message"), [
        ("[grid", "is no TOML"),
        ("[studdy]\n", "unknown section 'studdy'"),
        ("grid = 3\n", r"\[grid\] is 3; expected a table"),
        ("[study]\nseed = 1\n[grid]\nweight = ['int8']\n", r"unknown name in \[study\] 'seed'"),
        ("[workload]\ntoken = 1\n", r"unknown name in \[workload\] 'token'"),
        ("[settings]\nweight = 'int8'\n", r"has no \[grid\]"),
        ("[grid]\nweight = 'int8'\n", "weight in .grid. is 'int8'; expected a list"),
        ("[grid]\nweight = ['int99']\n", "these settings make no PTQConfig"),
        ("[study]\nseeds = 2\n[grid]\nweight = ['int8']\n", "found seeds 2; expected a list"),
        ("[study]\nseeds = []\n[grid]\nweight = ['int8']\n", r"found seeds \[\]"),
        ("[study]\nseeds = [1, 1]\n[grid]\nweight = ['int8']\n", "expected each once"),
        ("[study]\nseeds = [true]\n[grid]\nweight = ['int8']\n", r"found seeds \[True\]"),
        ("[study]\nseeds = [0, 1.5]\n[grid]\nweight = ['int8']\n", r"found seeds \[0, 1.5\]"),
        ("[study]\nseeds = [9223372036854775808]\n[grid]\nweight = ['int8']\n", "2..63 - 1"),
        ("[study]\nname = 5\n[grid]\nweight = ['int8']\n", "found name 5; expected a text"),
        ("[study]\nbaseline = 'a'\n[grid]\nweight = ['int8']\n", "'a'; expected a table"),
        (
            "[study]\nmeasured = 'equal'\n[grid]\nweight = ['int8']\n",
            "'equal'; expected one of loss, quantized_past_loss, float_past_loss",
        ),
        ("[study]\nmeasured = ['loss']\n[grid]\nweight = ['int8']\n", r"\['loss'\]; expected"),
        (
            "[study]\nmeasured = 'float_past_loss'\n[grid]\nweight = ['int8']\n",
            "float_past_loss is measured of decode models: give a `source`",
        ),
        ("[grid]\nweight = [1979-05-27]\n", "these settings make no PTQConfig"),
        ("[grid]\nonly = [5]\n", "found only 5; expected the name of a module"),
        ("[grid]\nweigth = ['int8']\n", "unknown setting 'weigth'"),
    ])  # fmt: skip
    def test_files_that_cannot_be(self, file, text, message):
        with pytest.raises(StudyError, match=message):
            File.read(file(text))

    @pytest.mark.parametrize(
        "place", ["[settings]\nsource = 'float'", "[grid]\nsource = ['float']"]
    )
    def test_decode_models_are_compared_by_either_past(self, file, loaded: LoadedWorkload, place):
        text = f"[study]\nmeasured = 'float_past_loss'\n{place}\n"
        if "[grid]" not in place:
            text += "[grid]\nweight = ['int8']\n"
        assert File.read(file(text)).on(loaded.model).measured == "float_past_loss"

    def test_no_file(self, tmp_path: Path):
        with pytest.raises(StudyError, match="cannot read"):
            File.read(tmp_path / "none.toml")

    @pytest.mark.parametrize(("text", "message"), [
        ("[grid]\nonly = ['model.layer.*']\n", "matches no wrapped module"),
        (
            "[study]\nbaseline = {weight = 'int4'}\n[grid]\nweight = ['int8']\n",
            "none of the 1 combinations has the baseline",
        ),
    ])  # fmt: skip
    def test_what_the_model_does_not_have(self, file, loaded: LoadedWorkload, text, message):
        made = File.read(file(text))
        with pytest.raises(StudyError, match=message):
            made.on(loaded.model)


def test_before_its_first_trial_there_is_nothing_to_say(file, loaded, tmp_path):
    grid = File.read(file(SENSITIVITY)).on(loaded.model)
    known = Results(tmp_path / "r.jsonl", {"study": "s", "workload": {}})
    assert report_of(grid, known).reading == ("No trial has ended yet.",)


EXAMPLES = Path(wrappers.__file__).parent.parent / "examples" / "studies"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_examples(path: Path, loaded: LoadedWorkload, tmp_path: Path):
    grid = File.read(path).on(loaded.model)
    quick = replace(loaded.workload, tokens=60, new_tokens=0)
    settings = [grid.combinations[0], grid.combinations[-1]]
    results = [run_trial(quick, Trial(each, 0)) for each in settings]
    assert [result.error for result in results] == ["", ""]
    assert results[0].number("loss") != results[1].number("loss")
