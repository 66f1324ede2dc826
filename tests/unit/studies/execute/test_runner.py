"""Studies that are run: here, in processes, with failing trials, killed and gone on with."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import wrappers
from wrappers.errors import MissingExtraError, StudyError
from wrappers.studies import (
    LoadedWorkload,
    Result,
    Results,
    Trial,
    Where,
    Workload,
    check_succeeded,
    head_of,
    load,
    run,
    run_trial,
)
from wrappers.studies.execute.runner import _Processes


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


def measured_but(failing: int | None):
    """A way of measuring that fails for one seed."""

    def measure(loaded: LoadedWorkload, trial: Trial) -> dict[str, float]:
        if trial.seed == failing:
            raise RuntimeError("no memory\n for that")
        return {"loss": 1.0}

    return measure


class TestRun:
    @pytest.mark.covers
    def test_phase_after_phase_without_repeating(self, quick: Workload, tmp_path: Path):
        told = []
        study = Few()
        results = Results(tmp_path / "r.jsonl", head_of(study, quick))
        run(study, quick, results, told=lambda r, ended, wanted: told.append((ended, wanted)))
        assert told == [(1, 2), (2, 2), (3, 4), (4, 4)]
        assert all("loss" in each for each in figures(study, results))
        first = results_of(Few(), quick, tmp_path / "r.jsonl")
        before = first.path.read_bytes()
        results_of(Few(), quick, tmp_path / "r.jsonl")
        assert first.path.read_bytes() == before

    def test_a_trial_that_fails_is_kept_and_the_others_go_on(self, quick, tmp_path, monkeypatch):
        monkeypatch.setattr("wrappers.studies.execute.runner.measure", measured_but(0))
        failed, done = results_of(Few(fills=(-60.0,)), quick, tmp_path / "r.jsonl")
        assert failed.error == "RuntimeError: no memory for that"
        assert failed.metrics == {}
        assert done.metrics == {"loss": 1.0}

    def test_trials_that_failed_are_tried_again_if_that_is_asked_for(
        self, quick: Workload, tmp_path: Path, monkeypatch
    ):
        study, path = Few(fills=(-60.0,)), tmp_path / "r.jsonl"
        monkeypatch.setattr("wrappers.studies.execute.runner.measure", measured_but(0))
        results_of(study, quick, path)
        monkeypatch.setattr("wrappers.studies.execute.runner.measure", measured_but(None))
        assert [result.error != "" for result in results_of(study, quick, path)] == [True, False]
        told = []
        again = Results(path, head_of(study, quick))
        run(study, quick, again, told=lambda r, *count: told.append(count), retry_failed=True)
        assert told == [(2, 2)]
        assert figures(study, Results(path, head_of(study, quick))) == [{"loss": 1.0}] * 2

    def test_a_seed_that_cannot_be_is_an_error_of_its_trial(self, quick: Workload):
        assert "Overflow" in run_trial(quick, Trial({}, 2**70)).error

    def test_sets_of_the_same_text_are_refused(self, quick: Workload, tmp_path: Path):
        quick = replace(quick, tokens=300)  # which leaves little to calibrate on
        study = Few(seeds=(0, 1, 2))
        results = Results(tmp_path / "r.jsonl", head_of(study, quick))
        with pytest.raises(StudyError, match=r"for 3 calibration sets of \d+, as sets of the same"):
            run(study, quick, results)
        assert not results.path.exists()

    def test_none_has_succeeded(self, quick: Workload, tmp_path: Path, monkeypatch):
        study = Few(fills=(-60.0,), seeds=(0,))
        results = Results(tmp_path / "r.jsonl", head_of(study, quick))
        check_succeeded(study, results)  # nothing has been tried
        monkeypatch.setattr("wrappers.studies.execute.runner.measure", measured_but(0))
        run(study, quick, results)
        with pytest.raises(StudyError, match="none of the 1 trials has succeeded; the first: Run"):
            check_succeeded(study, results)
        check_succeeded(
            replace(study, seeds=(0, 1)),
            results_of(replace(study, seeds=(0, 1)), quick, tmp_path / "r.jsonl"),
        )

    def test_settings_that_do_not_fit_the_model(self, quick: Workload, tmp_path: Path):
        @dataclass(frozen=True)
        class Unfit(Few):
            def wanted(self, known: Results) -> list[Trial]:
                return [Trial({}, 0), Trial({"leave_out": "nothing"}, 0)]

        with pytest.raises(StudyError, match="the model has no wrapped module 'nothing'"):
            results_of(Unfit(), quick, tmp_path / "r.jsonl")
        assert not list(tmp_path.iterdir())

    def test_a_study_that_has_ended_needs_nothing_more(self, quick, tmp_path, monkeypatch):
        monkeypatch.setattr("wrappers.studies.execute.runner.measure", measured_but(0))
        study, path = Few(fills=(-60.0,)), tmp_path / "r.jsonl"
        results = results_of(study, quick, path)
        with results.locked():  # nor writes anything
            results_of(study, quick, path, Where(ray="no address"))

    def test_a_second_run_on_the_same_file(self, quick: Workload, tmp_path: Path):
        pytest.importorskip("fcntl", reason="a system without locks")
        held = Results(tmp_path / "r.jsonl", head_of(Few(), quick))
        with held.locked(), pytest.raises(StudyError, match="another run is writing"):
            results_of(Few(), quick, tmp_path / "r.jsonl")

    def test_others_are_told_what_to_load(self, quick: Workload, tmp_path: Path, monkeypatch):
        seen = []

        def noted(workload: Workload, trial: Trial) -> Result:
            seen.append(workload.checksum)
            return Result(trial, {"loss": 1.0})

        monkeypatch.setattr("wrappers.studies.execute.runner.run_trial", noted)
        results_of(Few(fills=(-60.0,), seeds=(0,)), quick, tmp_path / "r.jsonl")
        assert seen == [load(quick).checksum]

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
    @pytest.mark.slow
    @pytest.mark.no_cover
    def test_processes_give_the_same_numbers(self, quick: Workload, tmp_path: Path):
        here = results_of(Few(), quick, tmp_path / "here.jsonl")
        there = results_of(Few(), quick, tmp_path / "there.jsonl", Where(workers=2))
        assert figures(Few(), here) == figures(Few(), there)

    @pytest.mark.slow
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
        with pytest.raises(MissingExtraError, match=r"pip install 'ray>="):
            results_of(Few(), quick, tmp_path / "r.jsonl", Where(ray="auto"))


def deadly(workload: Workload, trial: Trial) -> Result:
    """Ends its own process for seed 0, always, and for seed 1 where it is the first to."""
    once = Path(workload.model) / "died"
    if trial.seed == 0 or (trial.seed == 1 and not once.exists()):
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return Result(trial, {"loss": float(trial.seed), "process": os.getpid()})


@pytest.mark.slow
class TestProcessesThatDie:
    @pytest.fixture(autouse=True)
    def forked(self, monkeypatch):
        """Processes that start at once; these do nothing with PyTorch."""
        if "fork" not in multiprocessing.get_all_start_methods():
            pytest.skip("a system that cannot fork")
        context = multiprocessing.get_context("fork")
        monkeypatch.setattr("wrappers.studies.execute.runner.get_context", lambda _: context)
        monkeypatch.setattr("wrappers.studies.execute.runner.run_trial", deadly)

    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    @pytest.mark.parametrize("seeds", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (1,), (0,)])
    def test_the_others_go_on(self, tmp_path: Path, seeds: tuple[int, ...]):
        trials = [Trial({}, seed) for seed in seeds]
        with _Processes(Workload(str(tmp_path)), 2) as processes:
            found = {result.trial.seed: result for result in processes.run(trials)}
            assert sorted(found) == sorted(seeds)
            failed = [seed for seed, result in found.items() if result.error]
            assert failed == [seed for seed in seeds if seed == 0]
            assert all("its process died" in found[seed].error for seed in failed)
            assert all(found[seed].number("loss") == seed for seed in found if seed != 0)
            # And further trials find processes that live.
            assert [r.number("loss") for r in processes.run([Trial({}, 7)])] == [7.0]

    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    def test_between_two_phases(self, tmp_path: Path):
        with _Processes(Workload(str(tmp_path)), 2) as processes:
            (first,) = processes.run([Trial({}, 5)])
            os.kill(int(first.number("process")), signal.SIGKILL)
            assert [r.error for r in processes.run([Trial({}, 5)])] == [""]


@pytest.mark.slow
class TestRay:
    def test_nothing_answers(self, quick: Workload, tmp_path: Path, monkeypatch):
        self.stand_in(monkeypatch)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        for given in (address, f"ray://{address}"):
            with pytest.raises(StudyError, match=f"cannot reach a Ray cluster at '{given}': "):
                results_of(Few(), quick, tmp_path / "r.jsonl", Where(ray=given))

    @pytest.mark.parametrize("address", ["somewhere", ":1", "host:", "host:port"])
    def test_no_address(self, quick: Workload, tmp_path: Path, monkeypatch, address):
        self.stand_in(monkeypatch)
        with pytest.raises(StudyError, match="expected auto, local or HOST:PORT"):
            results_of(Few(), quick, tmp_path / "r.jsonl", Where(ray=address))
        assert not list(tmp_path.iterdir())

    def test_ray_itself_finds_nothing(self, quick: Workload, tmp_path: Path, monkeypatch):
        self.stand_in(monkeypatch)
        with pytest.raises(StudyError, match="cluster at 'auto': there is none; start one"):
            results_of(Few(), quick, tmp_path / "r.jsonl", Where(ray="auto"))

    def test_what_cannot_be_got_is_an_error_of_its_trial(self, quick, tmp_path, monkeypatch):
        """Such as an actor whose process was killed, or whose machine has gone."""
        shut = self.stand_in(monkeypatch)
        with socket.create_server(("127.0.0.1", 0)) as server:
            where = Where(ray=f"127.0.0.1:{server.getsockname()[1]}")
            results = results_of(Few(fills=(-60.0,)), quick, tmp_path / "r.jsonl", where)
        assert [result.error for result in results] == ["RayError: the worker died", ""]
        assert shut == [True]

    @staticmethod
    def stand_in(monkeypatch) -> list[bool]:
        """In the place of Ray, which takes seconds to begin: the calls that are made of it."""

        class RayError(Exception):
            pass

        def get(reference: SimpleNamespace) -> Result:
            if reference.trial.seed == 0:
                raise RayError("the worker\n died")
            return Result(reference.trial, {"loss": 1.0})

        class Reference(SimpleNamespace):
            __hash__ = object.__hash__

        def init(address: str, **_: object) -> None:
            if address == "auto":
                raise ConnectionError("there is none; start one")

        shut: list[bool] = []
        remote = SimpleNamespace(remote=lambda _, trial: Reference(trial=trial))
        stand_in = SimpleNamespace(
            is_initialized=lambda: False,
            init=init,
            remote=lambda **_: lambda _: remote,
            wait=lambda pending, num_returns: (pending[:num_returns], pending[num_returns:]),
            get=get,
            exceptions=SimpleNamespace(RayError=RayError),
            shutdown=lambda: shut.append(True),
        )
        monkeypatch.setitem(sys.modules, "ray", stand_in)
        return shut


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


@pytest.mark.slow
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


WITH_WORKERS = """
import sys, time
from wrappers.studies.execute.runner import _Processes
from wrappers.studies.plan.workload import Workload

def main():
    with _Processes(Workload("."), 2) as processes:
        pool = processes._pool
        list(pool.map(abs, [1, 2]))
        print(*pool._processes, flush=True)
        time.sleep(120)

if __name__ == "__main__":
    main()
"""


def lives(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # ended, and not waited for yet


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="a system without /proc")
@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(ended_by: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "study.py"
    script.write_text(WITH_WORKERS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        workers = [int(number) for number in parent.stdout.readline().split()]
        assert workers
        assert all(map(lives, workers))
        parent.send_signal(ended_by)
        parent.wait()
        until = time.monotonic() + 30
        while any(map(lives, workers)) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(map(lives, workers))
