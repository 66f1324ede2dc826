import json
import math
from pathlib import Path

import pytest

from wrappers.errors import StudyError
from wrappers.studies import Result, Results, Trial

HEAD = {"study": "s", "workload": {"model": "m", "tasks": ("a",)}, "environment": {"torch": "1"}}

LINE = {"format": 1, **HEAD}


def trial(fill: float = -1.0, seed: int = 0) -> Trial:
    return Trial({"fill": fill, "weight": "uint8"}, seed)


class TestTrial:
    def test_what_makes_it_another(self):
        assert trial().key == Trial({"weight": "uint8", "fill": -1.0}, 0).key
        assert len({trial(fill, seed).key for fill in (-1.0, -2.0) for seed in (0, 1)}) == 4


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
        assert (first.number("loss"), first.number("worst")) == (1.5, math.inf)
        assert (first.metrics["layers"][0], second.error) == (0.1, "ValueError: no")
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

    def test_heads_of_this_and_another_machine(self, tmp_path: Path):
        path = tmp_path / "r.jsonl"
        path.write_text('{"format": 1, "stu')
        Results(path, HEAD).add(Result(trial()))
        assert len(Results(path, HEAD)) == 1
        path = tmp_path / "s.jsonl"
        Results(path, HEAD | {"environment": {"torch": "1", "machine": "arm"}}).add(Result(trial()))
        there = Results(path, HEAD | {"environment": {"torch": "1", "machine": "x86"}})
        there.add(Result(trial(seed=1)))
        # What is reported is what the study was begun with.
        assert there.head["environment"] == {"torch": "1", "machine": "arm"}
        assert len(Results(path, HEAD)) == 2

    @pytest.mark.parametrize("name", ["trace_model", "torch", "transformers"])
    def test_other_versions_may_not(self, tmp_path: Path, name: str):
        path = tmp_path / "r.jsonl"
        Results(path, HEAD | {"environment": {name: "2.11.0"}}).add(Result(trial()))
        with pytest.raises(StudyError, match=f"was begun with {name} 2.11.0, and now it is 2.13.0"):
            Results(path, HEAD | {"environment": {name: "2.13.0"}})

    def test_a_later_line_of_the_same_trial_wins(self, tmp_path: Path):
        made = Results(tmp_path / "r.jsonl", HEAD)
        made.add(Result(trial(), error="MemoryError: "))
        made.add(Result(trial(seed=1), {"loss": 2.0}))
        assert made.missing([trial(), trial(seed=1)]) == []
        assert made.missing([trial(), trial(seed=1)], or_failed=True) == [trial()]
        made.forget_failed()
        assert made.missing([trial(), trial(seed=1)]) == [trial()]
        assert len(Results(made.path, HEAD)) == 2  # not yet tried again
        made.add(Result(trial(), {"loss": 1.0}))
        again = Results(made.path, HEAD)
        assert [result.error for result in again] == ["", ""]
        assert {r.trial.seed: r.number("loss") for r in again} == {0: 1.0, 1: 2.0}

    def test_nothing_is_written_before_there_is_something(self, tmp_path: Path):
        Results(tmp_path / "r.jsonl", HEAD)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(("head", "message"), [
        (HEAD | {"study": "t"}, r"another study \(study 's', and now 't'\)"),
        (HEAD | {"workload": {"model": "n", "tasks": ["a"]}}, "model 'm', and now 'n'"),
    ])  # fmt: skip
    def test_results_of_another_study_stay(self, tmp_path: Path, head, message):
        path = tmp_path / "r.jsonl"
        Results(path, HEAD).add(Result(trial()))
        before = path.read_bytes()
        with pytest.raises(StudyError, match=message):
            Results(path, head)
        assert path.read_bytes() == before

    @pytest.mark.parametrize(("text", "message"), [
        ("hello\n", "damaged in line 1"),
        ('{"a": 1}\n', "holds no results of a study"),
        ("[1]\n", "holds no results of a study"),
        ("hello", "holds no results of a study: give another file"),
        ('{"trial": {}}\n', "see its line 1, which has no 'format'"),
        ('{"format": 99}\n', "has format 99, and this version reads up to 1"),
        ('{"format": "1"}\n', "damaged in line 1: format is '1'"),
        (LINE | {"environment": 5}, "damaged in line 1: environment is 5"),
    ])  # fmt: skip
    def test_other_files_stay(self, tmp_path: Path, text, message):
        path = tmp_path / "r.jsonl"
        written = text if isinstance(text, str) else json.dumps(text) + "\n"
        path.write_text(written)
        with pytest.raises(StudyError, match=message):
            Results(path, HEAD)
        assert path.read_text() == written

    @pytest.mark.parametrize(("line", "message"), [
        ({"trial": 5}, "must be a mapping"),
        ({"trial": {"settings": {}}}, "'seed'"),
        ({"trial": {"settings": {}, "seed": "0"}}, "seed is '0'"),
        ({"trial": {"settings": 5, "seed": 0}}, "settings is 5"),
        ({"trial": {"settings": {}, "seed": 0}, "metric": {}}, "'metric'"),
        ({"trial": {"settings": {}, "seed": 0}, "metrics": []}, r"metrics is \[\]"),
        ({"trial": {"settings": {}, "seed": 0}, "error": None}, "error is None"),
        ({"trial": {"settings": {}, "seed": 0}, "seconds": "1"}, "seconds is '1'"),
    ])  # fmt: skip
    def test_lines_that_are_no_results(self, tmp_path: Path, line, message):
        path = tmp_path / "r.jsonl"
        Results(path, HEAD).add(Result(trial()))
        path.write_text(path.read_text() + json.dumps(line) + "\n")
        with pytest.raises(StudyError, match=f"damaged in line 3: .*{message}"):
            Results(path, HEAD)

    def test_files_that_cannot_go_on(self, tmp_path: Path):
        path = tmp_path / "r.jsonl"
        path.write_text((json.dumps(LINE) + "\n") * 2)
        with pytest.raises(StudyError, match="see its line 2, which has no 'trial'"):
            Results(path, HEAD)
        path = tmp_path / "s.jsonl"
        Results(path, HEAD).add(Result(trial()))
        path.write_text(path.read_text() + "x\n" + json.dumps({"trial": {}}) + "\n")
        with pytest.raises(StudyError, match="damaged in line 3"):
            Results(path, HEAD)

    def test_nowhere_to_write(self, tmp_path: Path):
        with pytest.raises(StudyError, match="create it first"):
            Results(tmp_path / "none" / "r.jsonl", HEAD)
        with pytest.raises(StudyError, match="cannot read"):
            Results(tmp_path, HEAD)

    def test_other_contents_under_the_same_names(self, tmp_path: Path):
        head = HEAD | {"workload": {"model": "m", "checksum": "1"}}
        Results(tmp_path / "r.jsonl", head).add(Result(trial()))
        with pytest.raises(StudyError, match="a model or a text of other contents"):
            Results(tmp_path / "r.jsonl", HEAD | {"workload": {"model": "m", "checksum": "2"}})


class TestLocked:
    def test_no_two_runs_write_to_one_file(self, tmp_path: Path):
        pytest.importorskip("fcntl", reason="a system without locks")
        one, other = (Results(tmp_path / "r.jsonl", HEAD) for _ in range(2))
        with one.locked():
            one.add(Result(trial()))
            with pytest.raises(StudyError, match="another run is writing to"), other.locked():
                pass
        with other.locked():
            assert other.missing([trial(), trial(seed=1)]) == [trial(seed=1)]
            other.add(Result(trial(seed=1)))
        assert len(Results(tmp_path / "r.jsonl", HEAD)) == 2

    def test_what_is_being_written_is_left_to_its_writer(self, tmp_path: Path):
        path = tmp_path / "r.jsonl"
        Results(path, HEAD).add(Result(trial()))
        with path.open("a") as file:
            file.write('{"trial": ')
        before = path.read_bytes()
        assert (len(Results(path, HEAD)), path.read_bytes()) == (1, before)

    def test_a_system_without_locks(self, tmp_path: Path, monkeypatch):
        monkeypatch.setattr("wrappers.studies.plan.trials.fcntl", None)
        one, other = (Results(tmp_path / "r.jsonl", HEAD) for _ in range(2))
        with one.locked(), other.locked():
            one.add(Result(trial()))
        assert len(Results(one.path, HEAD)) == 1

    def test_a_file_system_without_locks(self, tmp_path: Path, monkeypatch):
        fcntl = pytest.importorskip("fcntl", reason="a system without locks")

        def refuse(*_: object) -> None:
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(fcntl, "flock", refuse)
        made = Results(tmp_path / "r.jsonl", HEAD)
        with pytest.raises(StudyError, match=r"cannot lock .*Function not implemented"):
            made.locked().__enter__()

    def test_nowhere_to_write(self, tmp_path: Path):
        made = Results(tmp_path / "r.jsonl", HEAD)
        (tmp_path / "r.jsonl").mkdir()
        with pytest.raises(StudyError, match="cannot write to"), made.locked():
            pass
        with pytest.raises(StudyError, match="cannot write to"):
            made.add(Result(trial()))
