"""Checkpoints in transformers' layout, from a local folder or the hub, refused if not whole.

transformers fills weights that a checkpoint lacks with random values and warns; here that is an
error, as is anything else that would let a comparison run on a model other than the one meant.
"""

import contextlib
import io
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tracer.adapters.quantised.lookup import settle
from tracer.adapters.quantised.silent import take_from_report
from tracer.errors import ModelLoadError, UsageError
from tracer.execution.limits import LARGEST_INTEGER, check_memory, read_json
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

    if isinstance(source, Path):
        _check_config(source / "config.json")
    try:
        with _quiet_transformers():
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
    report = take_from_report(model, report)
    _check_report(name, type(model).__name__, report)
    try:
        settle(model)
    except Exception as error:
        raise ModelLoadError(
            f"{name}: the weights cannot be decompressed: {brief(error)}"
        ) from error
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
    if not isinstance(classes, list | tuple) or not classes:
        raise ModelLoadError(
            f'{name}: config.json names no class under "architectures"; add one, such as '
            '"architectures": ["LlamaForCausalLM"]'
        )
    architecture = str(classes[0])
    own = getattr(config, "auto_map", None)
    for auto_class, path in own.items() if isinstance(own, Mapping) else ():
        if trust_remote_code and str(path).endswith(f".{architecture}"):
            return getattr(transformers, auto_class).from_pretrained  # type: ignore[no-any-return]
    model_class = getattr(transformers, architecture, None)
    if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
        hint = (
            "the checkpoint brings code of its own, which --trust-remote-code runs"
            if own
            else "use a version of transformers that has it"
        )
        raise ModelLoadError(
            f"{name}: the architecture {architecture!r} is not in transformers "
            f"{transformers.__version__}; {hint}"
        )
    return model_class.from_pretrained  # type: ignore[attr-defined, no-any-return]


def _check_weight_files(folder: Path) -> None:
    """Opens each safetensors file, whose header tells whether the file is whole."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    if index.is_file():
        try:
            shards = set(read_json(index.read_bytes())["weight_map"].values())
            if not all(isinstance(shard, str) for shard in shards):
                raise TypeError("a file's name is no text")
        except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
            raise ModelLoadError(
                f"{index}: cannot be read as an index of shards ({type(error).__name__}: "
                f'{brief(error)}); expected {{"weight_map": {{"NAME": "FILE.safetensors"}}}}'
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


def _check_config(file: Path) -> None:
    """Checks of a config what transformers would answer by taking all time and memory.

    Raises:
        ModelLoadError: it is no JSON object, or a number in it is beyond reason.
    """
    try:
        config = read_json(file.read_bytes())
    except (ValueError, OSError) as error:
        raise ModelLoadError(f"{file} cannot be read as JSON: {brief(error)}") from error
    if not isinstance(config, dict):
        raise ModelLoadError(f"{file} holds {type(config).__name__}: expected an object")
    names = config.get("architectures") or []
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ModelLoadError(f'{file}: "architectures" is {names!r:.80}: expected a list of names')
    if not isinstance(config.get("auto_map") or {}, dict):
        raise ModelLoadError(
            f'{file}: "auto_map" is {config["auto_map"]!r:.80}: expected an object'
        )
    levels: list[Any] = [config]
    while levels:
        level = levels.pop()
        for key, value in level.items() if isinstance(level, dict) else enumerate(level):
            if isinstance(value, dict | list):
                levels.append(value)
            most = _MOST_LAYERS if _COUNTS.search(str(key)) else LARGEST_INTEGER
            if isinstance(value, int) and abs(value) > most:
                raise ModelLoadError(f"{file} says {key} = {value:.3g}: expected at most {most:,}")
    sizes = sorted(
        value
        for part in (config, *(v for v in config.values() if isinstance(v, dict)))
        for key, value in part.items()
        if type(value) is int and _SIZES.search(key)
    )
    if len(sizes) > 1:
        what = f"{file}: a weight of {sizes[-2]:,} x {sizes[-1]:,}"
        try:
            check_memory(sizes[-2] * sizes[-1], what)
        except UsageError as error:
            raise ModelLoadError(str(error)) from error


# The numbers of a config that modules are made by, and those that weights are as large as.
_COUNTS = re.compile(r"(^|_)(n_layers?|layers|num_.*(layers|experts|blocks))$")
_SIZES = re.compile(r"(^|_)(vocab_size|hidden_size|intermediate_size|hidden_dim|d_model|n_embd)$")
_MOST_LAYERS = 10_000


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
            f"random: {listed(missing, 3)}{_not_quantized(missing, report['unexpected_keys'])}"
        )
    if report["error_msgs"]:
        raise ModelLoadError(f"{name}: {first_line('; '.join(report['error_msgs']))}")


def _not_quantized(missing: Collection[str], unexpected: Collection[str]) -> str:
    """What is stored as it was where a quantised weight is missing, in a clause."""
    modules = {key.rpartition(".")[0] for key in missing if key.endswith(".weight_packed")}
    stored = sorted({f"{module}.weight" for module in modules}.intersection(unexpected))
    if not stored:
        return ""
    return f"; it holds {listed(stored, 3)} as floats, although config.json says quantised"


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without progress bars, and transformers' table of missing weights."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars of what quantised a checkpoint
            yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
