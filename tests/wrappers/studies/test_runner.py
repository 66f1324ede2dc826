"""Studies that are run: here, in processes, with failing trials, killed and gone on with."""

import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import wrappers
from wrappers.errors import MissingExtraError, StudyError
from wrappers.studies import (
    Results,
    Trial,
    Where,
    Workload,
    head_of,
    run,
    run_trial,
)


@dataclass(frozen=True)
class Few:
    """Fill values, one after the other is known."""

    fills: tuple[float, ...] = (-120.0, -60.0)
    seeds: tuple[int, ...] = (0, 1)
    name: str = "few"

    def wanted(self, known: Results) -> list[Trial]:
        trials: list[Trial] = []
        for fill in self.fills:
            more = [Trial({"attention_mask_fill_value": fill}, seed) for seed in self.seeds]
            if known.missing(trials):
                break
            trials += more
        return trials


@pytest.fixture
def quick(workload: Workload) -> Workload:
    return replace(workload, tokens=60, new_tokens=0)


def results_of(study: Few, quick: Workload, path: Path, where: Where | None = None) -> Results:
    results = Results(path, head_of(study, quick))
    run(study, quick, results, where=where)
    return results


def figures(study: Few, results: Results) -> list[dict]:
    found = results.of(study.wanted(results))
    assert len(found) == len(study.fills) * len(study.seeds)
    return [dict(result.metrics) for result in found]


class TestRun:
    def test_phase_after_phase(self, quick: Workload, tmp_path: Path):
        told = []
        study = Few()
        results = Results(tmp_path / "r.jsonl", head_of(study, quick))
        run(study, quick, results, told=lambda r, ended, wanted: told.append((ended, wanted)))
        assert told == [(1, 2), (2, 2), (3, 4), (4, 4)]
        assert all("loss" in each for each in figures(study, results))

    def test_what_has_been_run_is_not_run_again(self, quick: Workload, tmp_path: Path):
        first = results_of(Few(), quick, tmp_path / "r.jsonl")
        before = first.path.read_bytes()
        results_of(Few(), quick, tmp_path / "r.jsonl")
        assert first.path.read_bytes() == before

    def test_a_trial_that_fails_is_kept_and_the_others_go_on(self, quick: Workload, tmp_path: Path):
        @dataclass(frozen=True)
        class Failing(Few):
            def wanted(self, known: Results) -> list[Trial]:
                return [Trial({"leave_out": "nothing"}, 0), Trial({}, 0)]

        results = results_of(Failing(), quick, tmp_path / "r.jsonl")
        failed, done = results
        assert failed.error.startswith("StudyError: the model has no wrapped module 'nothing'")
        assert failed.metrics == {}
        assert done.metrics["loss"] > 0

    def test_nothing_to_try(self, quick: Workload, tmp_path: Path):
        with pytest.raises(StudyError, match="the study few has nothing to try"):
            results_of(Few(fills=()), quick, tmp_path / "r.jsonl")

    def test_the_state_of_torch_stays(self, quick: Workload):
        torch.manual_seed(3)
        expected = torch.rand(2)
        torch.manual_seed(3)
        run_trial(quick, Trial({}, 0))
        assert torch.equal(torch.rand(2), expected)

    def test_no_workers(self):
        with pytest.raises(StudyError, match="found 0 workers"):
            Where(workers=0)


class TestElsewhere:
    @pytest.mark.no_cover
    def test_processes_give_the_same_numbers(self, quick: Workload, tmp_path: Path):
        here = results_of(Few(), quick, tmp_path / "here.jsonl")
        there = results_of(Few(), quick, tmp_path / "there.jsonl", Where(workers=2))
        assert figures(Few(), here) == figures(Few(), there)

    @pytest.mark.no_cover
    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_a_ray_cluster_gives_the_same_numbers(self, quick: Workload, tmp_path: Path):
        pytest.importorskip("ray", reason="the extra ray is not installed")
        here = results_of(Few(), quick, tmp_path / "here.jsonl")
        there = results_of(Few(), quick, tmp_path / "there.jsonl", Where(workers=2, ray="local"))
        assert figures(Few(), here) == figures(Few(), there)

    def test_no_ray(self, quick: Workload, tmp_path: Path, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'trace-model\[ray\]'"):
            results_of(Few(), quick, tmp_path / "r.jsonl", Where(ray="auto"))


ROOT = Path(wrappers.__file__).parent.parent

KILLED = """
import sys
sys.path.insert(0, {path!r})
from pathlib import Path
from wrappers import studies
from wrappers.studies import MaskFill
if __name__ == "__main__":
    workload = studies.Workload(**{workload!r})
    study = MaskFill(fills=(-60.0,), pairs=[("uint8", "uint8")], seeds=(0, 1), calibration=2)
    results = studies.Results({results!r}, studies.head_of(study, workload))
    studies.run(study, workload, results)
"""


@pytest.mark.no_cover
def test_a_killed_study_goes_on_where_it_was(quick: Workload, tmp_path: Path):
    path = tmp_path / "r.jsonl"
    script = tmp_path / "study.py"
    script.write_text(KILLED.format(path=str(ROOT), workload=vars(quick), results=str(path)))
    process = subprocess.Popen([sys.executable, str(script)])
    try:
        end = time.monotonic() + 120
        while not (path.exists() and path.read_bytes().count(b"\n") >= 3):
            assert process.poll() is None, "the study ended before it could be killed"
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    before = path.read_bytes()
    kept = before[: before.rfind(b"\n") + 1]
    done = subprocess.run([sys.executable, str(script)], check=True, capture_output=True)
    assert done.returncode == 0
    after = path.read_bytes()
    assert after.startswith(kept)
    lines = after.splitlines()
    assert len(lines) == len(set(lines)) == 1 + 4 + 2 * 2  # the head, the search, the finalists
