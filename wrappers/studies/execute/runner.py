"""Runs the trials of a study: in this process, in several, or on a Ray cluster.

A study is asked again and again what it wants to try, given what is known; its trials are
independent of each other and of where they run, so that every way gives the same numbers.
"""

from __future__ import annotations

import os
import platform
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as wait_for
from typing import Any, Protocol

import torch

from wrappers.errors import MissingExtraError, StudyError
from wrappers.studies.execute.quantising import check_on, check_sets
from wrappers.studies.execute.scoring import measure
from wrappers.studies.plan.trials import Result, Results, Trial
from wrappers.studies.plan.workload import Workload, load

Execute = Callable[[Sequence[Trial]], Iterator[Result]]

OnResult = Callable[[Result, int, int], None]
"""Called with each result, how many there are by now, and how many are wanted so far."""

_PATIENCE = 5.0  # seconds in which a cluster has to answer


class Study(Protocol):
    """What to try."""

    @property
    def name(self) -> str:
        """As in the file of results."""

    def wanted(self, known: Results) -> list[Trial]:
        """The trials that the study wants, those that have been run included.

        It depends on nothing but the results of earlier trials, so that a study that was killed
        goes on as it would have.
        """


@dataclass(frozen=True)
class Where:
    """Where trials run.

    Attributes:
        workers: processes on this machine; with one worker, this process.
        ray: the address of a Ray cluster ("auto", "local" for one of its own, HOST:PORT); None for
            no cluster.
    """

    workers: int = 1
    ray: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise StudyError(f"found {self.workers} workers; expected at least 1")


def head_of(study: Study, workload: Workload, command: str | None = None) -> dict[str, Any]:
    """The head of a file of results: what all its trials have in common.

    Raises:
        StudyError: the workload cannot be loaded.
    """
    import transformers

    import tracer

    return {
        "study": study.name,
        "workload": asdict(replace(workload, checksum=load(workload).checksum)),
        "environment": {
            "command": command, "trace_model": tracer.__version__, "torch": torch.__version__,
            "transformers": transformers.__version__, "python": platform.python_version(),
            "machine": platform.machine(),
        },
    }  # fmt: skip


def run(
    study: Study,
    workload: Workload,
    results: Results,
    *,
    where: Where | None = None,
    told: OnResult | None = None,
    retry_failed: bool = False,
) -> None:
    """Runs what a study wants and has no result yet; each result is kept as it comes.

    A trial that fails is kept with its error, and one that kills its process too.

    Args:
        where: trials run; in this process by default.
        told: is called with each result.
        retry_failed: trials that failed in earlier runs are tried again.

    Raises:
        StudyError: the workload cannot be loaded, nothing is wanted, the text is too short for
            calibration sets that differ, settings do not fit the model, another run is writing to
            the results, or there is no such cluster.
        MissingExtraError: a cluster is named, and Ray is not installed.
    """
    where = where or Where()
    # What is wrong with any of these is reported before the trials begin.
    loaded = load(workload)
    wanted = study.wanted(results)
    if not wanted:
        raise StudyError(f"the study {study.name} has nothing to try")
    missing = results.missing(wanted, or_failed=retry_failed)
    if not missing:
        return
    check_sets(loaded, wanted)
    check_on(loaded, missing)
    # Others check that they have loaded the same.
    workload = replace(workload, checksum=loaded.checksum)
    with _executor(workload, where) as executed, results.locked():
        if retry_failed:
            results.forget_failed()
        while trials := results.missing(wanted := study.wanted(results)):
            total = len({trial.key for trial in wanted})
            for ended, result in enumerate(executed(trials), total - len(trials) + 1):
                results.add(result)
                if told is not None:
                    told(result, ended, total)


def check_succeeded(study: Study, results: Results) -> None:
    """Checks that a study has found anything.

    Raises:
        StudyError: none of its trials has succeeded.
    """
    found = results.of(study.wanted(results))
    if found and all(result.error for result in found):
        raise StudyError(
            f"none of the {len(found)} trials has succeeded; the first: {found[0].error}"
        )


def run_trial(workload: Workload, trial: Trial) -> Result:
    """One trial; whatever it raises is its result.

    It runs on one thread, so that sums are in the same order wherever it runs.
    """
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        torch.manual_seed(trial.seed)
        result = Result(trial, measure(load(workload), trial))
    except Exception as error:
        result = _failed(trial, error)
    finally:
        torch.set_num_threads(threads)
        torch.random.set_rng_state(state)
    return replace(result, seconds=round(time.perf_counter() - start, 3))


def _failed(trial: Trial, error: Exception) -> Result:
    return Result(trial, error=f"{type(error).__name__}: {_line(error)}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


@contextmanager
def _executor(workload: Workload, where: Where) -> Iterator[Execute]:
    """A function that runs trials and yields their results in the order in which they come."""
    if where.ray is not None:
        with _on_ray(workload, where) as executed:
            yield executed
    elif where.workers > 1:
        with _Processes(workload, where.workers) as processes:
            yield processes.run
    else:
        yield lambda trials: (run_trial(workload, trial) for trial in trials)


class _Processes:
    """Processes of this machine, which are replaced when one of them dies.

    No more trials are started than there are processes, as one that dies takes down all others
    and with them what they were doing. Which of them it was is not known: all are run again, and
    those that are lost a second time one by one.
    """

    def __init__(self, workload: Workload, workers: int) -> None:
        self._workload = workload
        self._workers = workers
        self._pool = self._new_pool(workers)

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, trials: Sequence[Trial]) -> Iterator[Result]:
        """Yields results in the order in which they come."""
        waiting, alone = deque(trials), list[Trial]()
        losses = Counter[str]()
        while waiting:
            lost = yield from self._until_one_dies(waiting)
            losses.update(trial.key for trial in lost)
            alone += [trial for trial in lost if losses[trial.key] > 1]
            waiting.extendleft(trial for trial in lost if losses[trial.key] == 1)
        for trial in alone:
            with self._new_pool(1) as pool:
                try:
                    yield pool.submit(run_trial, self._workload, trial).result()
                except BrokenProcessPool:
                    yield Result(trial, error="its process died: killed, or out of memory?")

    def _until_one_dies(self, waiting: deque[Trial]) -> Generator[Result, None, list[Trial]]:
        """Runs what is waiting, and returns what is lost with a process that dies."""
        running: dict[Future[Result], Trial] = {}
        lost: list[Trial] = []
        while not lost and (waiting or running):
            while waiting and len(running) < self._workers:
                trial = waiting.popleft()
                running[self._submitted(trial)] = trial
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                trial = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    lost.append(trial)
                else:
                    yield result
        if lost:
            self._pool.shutdown()
            self._pool = self._new_pool(self._workers)
        return lost + list(running.values())

    def _submitted(self, trial: Trial) -> Future[Result]:
        try:
            return self._pool.submit(run_trial, self._workload, trial)
        except BrokenProcessPool as error:  # since the last trial ended
            future: Future[Result] = Future()
            future.set_exception(error)
            return future

    @staticmethod
    def _new_pool(workers: int) -> ProcessPoolExecutor:
        # Forked processes would inherit threads of PyTorch that do not exist in them.
        return ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=_end_with_parent
        )


def _end_with_parent() -> None:
    """Ends this process when its parent ends, however that does: its end of a pipe closes then."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _on_ray(workload: Workload, where: Where) -> Iterator[Execute]:
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            f"a cluster needs a package: {error}; pip install 'ray>=2.50'"
        ) from error
    own = not ray.is_initialized()
    if own:
        _connect(ray, where)
    try:
        remote = ray.remote(max_retries=2)(run_trial)

        def executed(trials: Sequence[Trial]) -> Iterator[Result]:
            pending = {remote.remote(workload, trial): trial for trial in trials}
            while pending:
                done, _ = ray.wait(list(pending), num_returns=1)
                for reference in done:
                    trial = pending.pop(reference)
                    try:
                        result = ray.get(reference)
                    except ray.exceptions.RayError as error:  # of its process or machine
                        result = _failed(trial, error)
                    yield result

        yield executed
    finally:
        if own:
            ray.shutdown()


def _connect(ray: Any, where: Where) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False}
    if where.ray == "local":
        options["num_cpus"] = where.workers
    elif where.ray != "auto":
        _check_address(str(where.ray))
    try:
        ray.init(address=where.ray, **options)
    except Exception as error:
        raise StudyError(f"cannot reach a Ray cluster at {where.ray!r}: {_line(error)}") from error


def _check_address(address: str) -> None:
    """Checks that something is there, as Ray itself waits for minutes.

    Raises:
        StudyError: nothing answers, or this is no address.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise StudyError(f"found the Ray address {address!r}; expected auto, local or HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise StudyError(
            f"cannot reach a Ray cluster at {address!r}: {_line(error)}; is its head running there?"
        ) from error
