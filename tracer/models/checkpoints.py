"""Checkpoints in transformers' layout, from a local folder or the hub, refused if not whole.

transformers fills weights that a checkpoint lacks with random values and warns; here that is an
error, as is anything else that would let a comparison run on a model other than the one meant.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tracer.errors import ModelLoadError
from tracer.execution.offload import quiet_accelerate
from tracer.tensors.leaves import dtype_name
from tracer.text import brief, first_line, listed

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def load_pretrained(
    name: str,
    source: Path | str,
    dtype: torch.dtype | None,
    *,
    trust_remote_code: bool = False,
    offload_folder: str | None = None,
) -> tuple[nn.Module, tuple[str, ...]]:
    """Loads a checkpoint into the class that its config names.

    Args:
        name: how the user called it, for messages.
        source: a local folder or a hub id.
        dtype: of the weights; None as stored.
        offload_folder: leaves the weights on disk until they are needed: where they are in the
            checkpoint, or in this folder, if transformers has to convert them.

    Returns:
        The model, and what is worth knowing about it, in words.

    Raises:
        ModelLoadError: the config, the class or the weights cannot be had, or weights are missing.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    # transformers raises whatever its many parts raise; to the caller it is one error.
    except Exception as error:
        raise ModelLoadError(f"{name}: config.json cannot be used: {brief(error)}") from error
    loader = _loader(name, config, trust_remote_code)
    if isinstance(source, Path):
        _check_weight_files(source)
    extra: dict[str, Any] = {"trust_remote_code": True} if trust_remote_code else {}
    if offload_folder is not None:
        extra |= {"device_map": {"": "disk"}, "offload_folder": offload_folder}
    try:
        with _quiet_transformers(), quiet_accelerate():
            model, report = loader(
                source,
                config=config,
                dtype="auto" if dtype is None else dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, by name
                **extra,
            )
    except Exception as error:
        raise ModelLoadError(f"{name}: the weights cannot be loaded: {brief(error)}") from error
    _check_report(name, type(model).__name__, report)
    notes = []
    if report["unexpected_keys"]:
        names = listed(sorted(report["unexpected_keys"]), 3)
        notes.append(
            f"weights in the checkpoint that {type(model).__name__} has no use for: {names}"
        )
    stored = getattr(config, "dtype", None)
    if dtype is not None and stored is not None and stored != dtype:
        notes.append(f"loaded in {dtype_name(dtype)}; the checkpoint is {dtype_name(stored)}")
    return model, tuple(notes)


def load_tokenizer(
    name: str, source: Path | str, *, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase | None":
    """The checkpoint's tokenizer; None if it comes without.

    Raises:
        ModelLoadError: its files are there and cannot be used.
    """
    from transformers import AutoTokenizer

    try:
        if not any(_has_file(source, file) for file in _TOKENIZER_FILES):
            return None
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelLoadError(
            f"{name}: the tokenizer cannot be loaded: {brief(error)}; without its files, random "
            "tokens are used"
        ) from error


def _has_file(source: Path | str, file: str) -> bool:
    from transformers.utils import cached_file

    if isinstance(source, Path):
        return (source / file).is_file()
    return cached_file(source, file, _raise_exceptions_for_missing_entries=False) is not None


def _loader(
    name: str, config: "PretrainedConfig", trust_remote_code: bool
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """`from_pretrained` of the class that the config names."""
    import transformers

    classes = getattr(config, "architectures", None)
    if not classes:
        raise ModelLoadError(
            f'{name}: config.json names no class under "architectures"; add one, such as '
            '"architectures": ["LlamaForCausalLM"]'
        )
    architecture = str(classes[0])
    for auto_class, path in (getattr(config, "auto_map", None) or {}).items():
        if trust_remote_code and str(path).endswith(f".{architecture}"):
            return getattr(transformers, auto_class).from_pretrained  # type: ignore[no-any-return]
    model_class = getattr(transformers, architecture, None)
    if model_class is None:
        hint = (
            "the checkpoint brings code of its own, which --trust-remote-code runs"
            if getattr(config, "auto_map", None)
            else "use a version of transformers that has it"
        )
        raise ModelLoadError(
            f"{name}: the architecture {architecture!r} is not in transformers "
            f"{transformers.__version__}; {hint}"
        )
    return model_class.from_pretrained  # type: ignore[no-any-return]


def _check_weight_files(folder: Path) -> None:
    """Opens each safetensors file, whose header tells whether the file is whole."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
            raise ModelLoadError(
                f"{index}: cannot be read as an index of shards: {error}"
            ) from error
        missing = sorted(shards - {file.name for file in files})
        if missing:
            raise ModelLoadError(f"{folder} lacks {listed(missing)}, which {index.name} names")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(
                f"{file}: the weights cannot be read ({brief(error)}); is the file complete? It "
                f"has {file.stat().st_size:,} bytes"
            ) from error


def _check_report(name: str, kind: str, report: Mapping[str, Any]) -> None:
    """Weights that transformers would leave random are an error."""
    missing, mismatched = sorted(report["missing_keys"]), sorted(report["mismatched_keys"])
    if mismatched:
        key, stored, expected = mismatched[0]
        raise ModelLoadError(
            f"{name}: {len(mismatched)} weights have another shape than config.json says, first "
            f"{key}: {list(stored)} in the checkpoint, {list(expected)} in {kind}"
        )
    if missing:
        raise ModelLoadError(
            f"{name}: the checkpoint lacks {len(missing)} weights of {kind}, which would be "
            f"random: {listed(missing, 3)}"
        )
    if report["error_msgs"]:
        raise ModelLoadError(f"{name}: {first_line('; '.join(report['error_msgs']))}")


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without transformers' own progress bar and table of missing weights."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
