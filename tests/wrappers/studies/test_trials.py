import json
import math
from pathlib import Path

import pytest

from wrappers.errors import StudyError
from wrappers.studies import Result, Results, Trial

HEAD = {"study": "s", "workload": {"model": "m", "tasks": ("a",)}, "environment": {"torch": "1"}}


def trial(fill: float = -1.0, seed: int = 0) -> Trial:
    return Trial({"fill": fill, "weight": "uint8"}, seed)


class TestTrial:
    def test_the_order_of_settings_does_not_matter(self):
        assert trial().key == Trial({"weight": "uint8", "fill": -1.0}, 0).key

    def test_other_settings_and_seeds_are_others(self):
        keys = {trial(fill, seed).key for fill in (-1.0, -2.0) for seed in (0, 1)}
        assert len(keys) == 4


class TestResults:
    def test_they_are_read_again(self, tmp_path: Path):
        path = tmp_path / "r.jsonl"
        made = Results(path, HEAD)
        made.add(
            Result(trial(), {"loss": 1.5, "worst": math.inf, "layers": [0.1, math.nan]}, "", 2.0)
        )
        made.add(Result(trial(seed=1), error="ValueError: no", seconds=1.0))
        again = Results(path, HEAD)
        first, second = again.of([trial(), trial(seed=1)])
        assert first.number("loss") == 1.5
        assert first.number("worst") == math.inf
        assert first.metrics["layers"][0] == 0.1
        assert second.error == "ValueError: no"
        assert again.missing([trial(), trial(seed=2), trial(seed=2)]) == [trial(seed=2)]

    def test_each_line_is_strict_json(self, tmp_path: Path):
        def refuse(name: str) -> float:
            raise AssertionError(name)

        made = Results(tmp_path / "r.jsonl", HEAD)
        made.add(Result(trial(), {"worst": -math.inf}))
        for line in made.path.read_text().splitlines():
            json.loads(line, parse_constant=refuse)

    @pytest.mark.parametrize("kept", range(1, 60, 7))
    def test_a_line_that_was_being_written_is_written_again(self, tmp_path: Path, kept: int):
        path = tmp_path / "r.jsonl"
        made = Results(path, HEAD)
        made.add(Result(trial(), {"loss": 1.0}))
        whole = path.read_bytes()
        made.add(Result(trial(seed=1), {"loss": 2.0}))
        path.write_bytes(path.read_bytes()[: len(whole) + kept])
        again = Results(path, HEAD)
        assert again.missing([trial(), trial(seed=1)]) == [trial(seed=1)]
        again.add(Result(trial(seed=1), {"loss": 2.0}))
        assert [r.number("loss") for r in Results(path, HEAD)] == [1.0, 2.0]

    def test_a_head_that_was_being_written_is_written_again(self, tmp_path: Path):
        path = tmp_path / "r.jsonl"
        path.write_text('{"format": 1, "stu')
        Results(path, HEAD).add(Result(trial()))
        assert len(Results(path, HEAD)) == 1

    def test_another_machine_may_go_on(self, tmp_path: Path):
        Results(tmp_path / "r.jsonl", HEAD)
        Results(tmp_path / "r.jsonl", HEAD | {"environment": {"torch": "2"}})

    @pytest.mark.parametrize(
        ("head", "message"),
        [
            (HEAD | {"study": "t"}, r"another study \(study 's', and now 't'\)"),
            (HEAD | {"workload": {"model": "n", "tasks": ["a"]}}, "model 'm', and now 'n'"),
        ],
    )
    def test_results_of_another_study_stay(self, tmp_path: Path, head, message):
        path = tmp_path / "r.jsonl"
        Results(path, HEAD)
        before = path.read_bytes()
        with pytest.raises(StudyError, match=message):
            Results(path, head)
        assert path.read_bytes() == before

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("hello\n", "damaged in line 1"),
            ('{"a": 1}\n', "holds no results of a study"),
            ("[1]\n", "holds no results of a study"),
            ('{"format": 99}\n', "has format 99, and this version reads up to 1"),
        ],
    )
    def test_other_files_stay(self, tmp_path: Path, text, message):
        path = tmp_path / "r.jsonl"
        path.write_text(text)
        with pytest.raises(StudyError, match=message):
            Results(path, HEAD)
        assert path.read_text() == text

    def test_damage_before_the_last_line(self, tmp_path: Path):
        path = tmp_path / "r.jsonl"
        Results(path, HEAD).add(Result(trial()))
        path.write_text(path.read_text() + "x\n" + json.dumps({"trial": {}}) + "\n")
        with pytest.raises(StudyError, match="damaged in line 3"):
            Results(path, HEAD)

    def test_nowhere_to_write(self, tmp_path: Path):
        with pytest.raises(StudyError, match="there is no folder"):
            Results(tmp_path / "none" / "r.jsonl", HEAD)
        with pytest.raises(StudyError, match="cannot read"):
            Results(tmp_path, HEAD)

    def test_other_contents_under_the_same_names(self, tmp_path: Path):
        head = HEAD | {"workload": {"model": "m", "checksum": "1"}}
        Results(tmp_path / "r.jsonl", head)
        with pytest.raises(StudyError, match="a model or a text of other contents"):
            Results(tmp_path / "r.jsonl", HEAD | {"workload": {"model": "m", "checksum": "2"}})
