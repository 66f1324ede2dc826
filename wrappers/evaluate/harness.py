"""Tasks of lm-eval on models as they are in memory: float, wrapped or quantised.

    results = run_tasks(model, tokenizer, ["arc_easy"])                      # from the hub
    results = run_tasks(model, tokenizer, ["tasks/local_copa.yaml"], data="data_folder")
    results["results"]["local_copa"]["acc,none"]

A wrapped model is still of the class that transformers knows, so lm-eval's own adapter of
transformers runs it. Results are lm-eval's, with its names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from trace_model.annotations import checked
from wrappers.errors import ArgumentError, MissingExtraError, ModelInputError

_TASK_FILES = (".yaml", ".yml")


@checked(ArgumentError)
def run_tasks(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str | Path],
    *,
    data: str | Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    batch: int = 1,
    seed: int = 1234,
) -> dict[str, Any]:
    """Runs tasks and returns lm-eval's results: by task under "results", and how they were made.

    Args:
        model: a causal LM of transformers, wrapped or not.
        tokenizer: its tokenizer.
        tasks: names that lm-eval knows, whose data come from the hub, or task files.
        data: the folder that the paths of data in task files start from; by default the file's.
        limit: examples of each task, at most.
        shots: examples in the prompt; by default the task's.
        batch: sequences that are run together.
        seed: of all that is drawn.

    Raises:
        MissingExtraError: lm-eval is not installed.
        ModelInputError: no tasks, one that is not known, or a task file without its data.
    """
    chosen, manager = _chosen(tasks, data)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    found: dict[str, Any] | None = simple_evaluate(
        HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch,
            device=str(next(model.parameters()).device),
        ),
        tasks=chosen,
        num_fewshot=shots,
        limit=limit,
        task_manager=manager,
        log_samples=False,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    assert found is not None  # None is for the ranks of a distributed run but the first
    return found


@checked(ArgumentError)
def check_tasks(tasks: Sequence[str | Path], *, data: str | Path | None = None) -> None:
    """Checks what `run_tasks` needs before a model is at hand.

    Raises:
        MissingExtraError, ModelInputError: as there.
    """
    _chosen(tasks, data)


def _chosen(
    tasks: Sequence[str | Path], data: str | Path | None
) -> tuple[list[str | dict[str, Any]], Any]:
    """The tasks as lm-eval takes them, and its task manager."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtraError(
            f"lm-eval's tasks need a package: {error}; pip install 'lm-eval>=0.4.13'"
        ) from error
    if not tasks:
        raise ModelInputError("no tasks were given; expected names of lm-eval or task files")
    # Reading lm-eval's own tasks takes seconds, and task files need none of them.
    manager = TaskManager(include_defaults=not all(_is_file(task) for task in tasks))
    return [_task(task, data, manager) for task in tasks], manager


def _is_file(task: str | Path) -> bool:
    return Path(task).suffix in _TASK_FILES


def _task(task: str | Path, data: str | Path | None, manager: Any) -> str | dict[str, Any]:
    if not _is_file(task):
        if not manager.match_tasks([str(task)]):
            raise ModelInputError(
                f"lm-eval knows no task {str(task)!r}; expected a name of `lm_eval ls tasks` or a "
                "task file (.yaml)"
            )
        return str(task)
    file = Path(task)
    if not file.is_file():
        raise ModelInputError(f"there is no task file {file}")
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(config, Mapping) or "task" not in config:
        raise ModelInputError(f"{file} is no task file of lm-eval: it names no `task`")
    return _with_data(dict(config), Path(data) if data is not None else file.parent, file)


def _with_data(config: dict[str, Any], folder: Path, file: Path) -> dict[str, Any]:
    """The task with absolute paths of its data files."""
    options = dict(config.get("dataset_kwargs") or {})
    files = options.get("data_files")
    if files is None:
        return config

    def absolute(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {split: absolute(part) for split, part in value.items()}
        if isinstance(value, list):
            return [absolute(part) for part in value]
        path = (folder / str(value)).resolve()
        if not path.is_file():
            raise ModelInputError(
                f"the task file {file} wants the data {value}: there is no {path}"
            )
        return str(path)

    return config | {"dataset_kwargs": options | {"data_files": absolute(files)}}
