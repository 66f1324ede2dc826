"""Tasks of lm-eval on models as they are in memory: float, wrapped or quantised.

    results = run_tasks(model, tokenizer, ["arc_easy"])                      # from the hub
    results = run_tasks(model, tokenizer, ["tasks/local_copa.yaml"], data="data_folder")
    results["results"]["local_copa"]["acc,none"]

    run_tasks(model, tokenizer, ["photos.yaml"], processor=processor)       # with images

Tasks with images are those whose answers are written (`generate_until`): lm-eval computes no
log-likelihoods behind images, which `image_questions` does. Their `doc_to_image` may be a list of
columns with paths, which start from the folder of the data.

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
from wrappers.evaluate.images import opened

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
    processor: Any = None,
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
        processor: of a model with images, for tasks with images; questions are then put by its chat
            template.

    Raises:
        MissingExtraError: lm-eval is not installed.
        ModelInputError: no tasks, one that is not known, a task file without its data, or one with
            images that needs log-likelihoods.
    """
    chosen, manager = _chosen(tasks, data)
    from lm_eval import simple_evaluate

    found: dict[str, Any] | None = simple_evaluate(
        _adapter(model, tokenizer, processor, _folders(tasks, data), batch),
        apply_chat_template=processor is not None,
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


def _folders(tasks: Sequence[str | Path], data: str | Path | None) -> dict[str, Path]:
    """Where the paths of images start from, by the names of task files."""
    files = [Path(task) for task in tasks if _is_file(task)]
    return {
        str(yaml.safe_load(file.read_text(encoding="utf-8"))["task"]): (
            file.parent if data is None else Path(data)
        )
        for file in files
    }


def _adapter(
    model: nn.Module, tokenizer: Any, processor: Any, folders: Mapping[str, Path], batch: int
) -> Any:
    """The model as lm-eval runs it."""
    from lm_eval.models.huggingface import HFLM

    options = {"batch_size": batch, "device": str(next(model.parameters()).device)}
    if processor is None:
        return HFLM(pretrained=model, tokenizer=tokenizer, **options)
    from lm_eval.models.hf_vlms import HFMultimodalLM

    class WithImages(HFMultimodalLM):  # type: ignore[misc, unused-ignore]
        """With the processor that is at hand; lm-eval's own takes a class of transformers' only."""

        def _create_tokenizer(self, *_: object, **__: object) -> None:
            self.processor = _Processor(processor)
            self.tokenizer = processor.tokenizer

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            return str(processor.chat_template)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            for request in requests:
                context, how, *shown = request.arguments
                if shown:
                    folder = folders.get(request.task_name, Path())
                    visual = [opened(image, folder) for image in shown[0]["visual"]]
                    request.arguments = (context, how, {"visual": visual})
            written: list[str] = super().generate_until(requests, disable_tqdm)
            return written

    return WithImages(pretrained=model, **options)


class _Processor:
    """A processor as lm-eval calls it."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def apply_chat_template(self, conversation: Any, **options: Any) -> str:
        return str(self._processor.apply_chat_template(conversation, tokenize=False, **options))

    def __call__(self, *, text: Any, images: Any, **options: Any) -> Any:
        from transformers import BatchFeature

        shown = [image for each in images for image in each]
        made = self._processor(text=text, images=shown, images_kwargs={}, **options)
        return BatchFeature(dict(made))


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
    if config.get("doc_to_image") and config.get("output_type") != "generate_until":
        raise ModelInputError(
            f"{file} shows images and is of the type {config.get('output_type')}: lm-eval takes "
            "images with generate_until; questions with choices are for image_questions()"
        )
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
