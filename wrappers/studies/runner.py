"""Runs the trials of a study: in this process, in several, or on a Ray cluster.

A study is asked again and again what it wants to try, given what is known; its trials are
independent of each other and of where they run, so that every way gives the same numbers.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from typing import Any, Protocol

import torch

from wrappers.errors import MissingExtraError, StudyError
from wrappers.studies.scoring import measure
from wrappers.studies.trials import Result, Results, Trial
from wrappers.studies.workload import Workload, load

Execute = Callable[[Sequence[Trial]], Iterator[Result]]

Told = Callable[[Result, int, int], None]
"""Called with each result, how many there are by now, and how many are wanted so far."""


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
            "command": command,
            "trace_model": tracer.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
    }


def run(
    study: Study,
    workload: Workload,
    results: Results,
    *,
    where: Where | None = None,
    told: Told | None = None,
) -> None:
    """Runs what a study wants and has no result yet; each result is kept as it comes.

    A trial that fails is kept with its error, and not tried again.

    Raises:
        StudyError: the workload cannot be loaded, or nothing is wanted.
        MissingExtraError: a cluster is named, and Ray is not installed.
    """
    where = where or Where()
    load(workload)  # what is wrong with it is told before the trials begin
    if not study.wanted(results):
        raise StudyError(f"the study {study.name} has nothing to try")
    with _executor(workload, where) as executed:
        while trials := results.missing(study.wanted(results)):
            total = len(results) + len(trials)
            for result in executed(trials):
                results.add(result)
                if told is not None:
                    told(result, len(results), total)


def run_trial(workload: Workload, trial: Trial) -> Result:
    """One trial; whatever it raises is its result.

    It runs on one thread, so that sums are in the same order wherever it runs.
    """
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    torch.set_num_threads(1)
    torch.manual_seed(trial.seed)
    start = time.perf_counter()
    try:
        result = Result(trial, measure(load(workload), trial))
    except Exception as error:
        result = Result(trial, error=f"{type(error).__name__}: {' '.join(str(error).split())}")
    finally:
        torch.set_num_threads(threads)
        torch.random.set_rng_state(state)
    return replace(result, seconds=round(time.perf_counter() - start, 3))


@contextmanager
def _executor(workload: Workload, where: Where) -> Iterator[Execute]:
    """A function that runs trials and yields their results in the order in which they come."""
    if where.ray is not None:
        with _on_ray(workload, where) as executed:
            yield executed
    elif where.workers > 1:
        with _in_processes(workload, where.workers) as executed:
            yield executed
    else:
        yield lambda trials: (run_trial(workload, trial) for trial in trials)


@contextmanager
def _in_processes(workload: Workload, workers: int) -> Iterator[Execute]:
    # Forked processes would inherit threads of PyTorch that do not exist in them.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:

        def executed(trials: Sequence[Trial]) -> Iterator[Result]:
            pending = [pool.submit(run_trial, workload, trial) for trial in trials]
            try:
                for future in as_completed(pending):
                    yield future.result()
            finally:
                for future in pending:
                    future.cancel()

        yield executed


@contextmanager
def _on_ray(workload: Workload, where: Where) -> Iterator[Execute]:
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            f"a cluster needs a package: {error}; pip install 'trace-model[ray]'"
        ) from error
    own = not ray.is_initialized()
    if own:
        _connect(ray, where)
    try:
        remote = ray.remote(max_retries=2)(run_trial)

        def executed(trials: Sequence[Trial]) -> Iterator[Result]:
            pending = [remote.remote(workload, trial) for trial in trials]
            while pending:
                done, pending = ray.wait(pending, num_returns=1)
                yield from ray.get(done)

        yield executed
    finally:
        if own:
            ray.shutdown()


def _connect(ray: Any, where: Where) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False}
    if where.ray == "local":
        options["num_cpus"] = where.workers
    try:
        ray.init(address=where.ray, **options)
    except Exception as error:
        raise StudyError(
            f"cannot reach a Ray cluster at {where.ray!r}: {' '.join(str(error).split())}"
        ) from error
