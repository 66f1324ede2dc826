"""Where a model's name leads: a built-in model, a folder, a repository on the hub, a function.

Nothing here loads PyTorch, so that a misspelt name is answered at once.
"""

import os
import re
import sys
from collections.abc import Mapping
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

from tracer.choices import BUILT_IN, GRAPHS, TRACE_HEADER
from tracer.errors import ModelLoadError, UsageError, near_names
from tracer.execution.limits import user_path, what_it_is
from tracer.text import brief

# Each part begins and ends with a letter or digit, and no two signs follow each other.
_HUB_ID = re.compile(r"[^\W_]+([._-][^\W_]+)*/[^\W_]+([._-][^\W_]+)*", re.ASCII)
# A function in a file or a module: "port.py:build", "package.port:build".
_FACTORY = re.compile(r"(?P<place>.+\.py|[^\W\d]\w*(\.\w+)*):(?P<function>[^\W\d]\w*(\.\w+)*)")
_HUB_TIMEOUT = 10.0  # seconds
# The built-in models that are checkpoints, which come with this package.
_TRAINED: Mapping[str, Path] = {"tiny-llama": Path(__file__).parent / "trained" / "tiny-llama"}
# The suffixes of what is read of a checkpoint.
_READ = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".py")
# What transformers reads the settings of an image processor from; the second since release 5.
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def locate(name: str, others: Mapping[str, str] | None = None) -> Path | str:
    """A folder with a config, or a name: of a seeded built-in model, a hub id or a function.

    Args:
        others: more names that would have been possible, for the message.

    Raises:
        ModelLoadError: it is none of them.
    """
    if name in _TRAINED:
        return _TRAINED[name]
    if name in BUILT_IN:
        return name
    if (factory := factory_of(name)) is not None:
        _check_place(name, factory[0])
        return name
    folder = user_path(name)
    if folder.is_dir():
        _check_files(folder)
        if not (folder / "config.json").is_file():
            raise ModelLoadError(
                f"{name} is a folder without config.json: expected a checkpoint in transformers' "
                "layout, with config.json and model.safetensors"
            )
        return folder
    if is_graph(name):
        if found := what_it_is(folder):
            what = f"there is no file {name}" if found == "nothing" else f"{name} is {found}"
            raise ModelLoadError(what)
        return folder
    if folder.exists():
        raise ModelLoadError(
            f"{name} is a file: give the folder that holds config.json and model.safetensors, or "
            f"an exported graph ({', '.join(GRAPHS)})"
        )
    if _HUB_ID.fullmatch(name):
        return name
    known = [*(others or ()), *BUILT_IN]
    what = "candidate" if others else "model"
    raise ModelLoadError(
        f"unknown {what} {name!r}: it is none of {', '.join(known)}, there is no folder of that "
        "name, a hub id has the form organisation/name, and a function that makes a model "
        f"FILE.py:FUNCTION{near_names(name, known)}"
    )


def _check_files(folder: Path) -> None:
    """Checks that all that would be read is a file, as a pipe would be waited for.

    Raises:
        ModelLoadError: something is not, or the folder is closed to us.
    """
    try:
        files = [path for path in folder.iterdir() if path.suffix in _READ]
    except OSError as error:
        raise ModelLoadError(f"{folder} cannot be read: {error.strerror}") from error
    for path in files:
        if found := what_it_is(path):
            raise ModelLoadError(f"{path} is {found}: expected a regular file")


def factory_of(name: str) -> tuple[str, str] | None:
    """The file or module, and the function in it, of a name such as "port.py:build"."""
    found = _FACTORY.fullmatch(name)
    return None if found is None else (found["place"], found["function"])


def _check_place(name: str, place: str) -> None:
    """Checks that a function's file or module is there, as far as is seen unimported."""
    if place.endswith(".py"):
        if found := what_it_is(user_path(place)):
            what = f"there is no file {place}" if found == "nothing" else f"{place} is {found}"
            raise ModelLoadError(f"{name}: {what}")
        return
    package = place.partition(".")[0]
    if PathFinder.find_spec(package, [str(Path.cwd()), *sys.path]) is None:
        raise ModelLoadError(
            f"{name}: there is no module {package!r}, neither installed nor in this folder: "
            "expected MODULE:FUNCTION or FILE.py:FUNCTION"
        )


def check_offload(place: bool | str | Path) -> None:
    """Checks that weights can be kept on disk.

    Args:
        place: a folder for those that a checkpoint does not hold as they are needed, or True.

    Raises:
        UsageError: accelerate is not installed, or the folder is missing or closed to us.
    """
    if find_spec("accelerate") is None:
        raise UsageError(
            "weights are kept on disk by accelerate, which is not installed: "
            "pip install 'accelerate>=1.10'"
        )
    if isinstance(place, bool):
        return
    folder = user_path(place)
    if not folder.is_dir():
        raise UsageError(f"the directory {folder} for weights does not exist; create it first")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"the folder {folder}, to keep weights in, is not writable")


def is_trace(name: str) -> bool:
    """Whether a name is that of a trace's folder, or of what should be one by its suffix."""
    folder = user_path(name)
    return (folder / TRACE_HEADER).is_file() or folder.suffix == ".trace"


def is_graph(name: str) -> bool:
    """Whether a name is that of a file with an exported graph, by its suffix."""
    return Path(name).suffix in GRAPHS and not user_path(name).is_dir()


def locate_processor(name: str) -> Path | str:
    """A folder with a processor, or a hub id.

    Raises:
        ModelLoadError: it is neither.
    """
    folder = user_path(name)
    if folder.is_dir():
        _check_files(folder)
        if not any((folder / file).is_file() for file in _PROCESSOR_FILES):
            raise ModelLoadError(
                f"{name} is a folder without {' or '.join(_PROCESSOR_FILES)}: expected the folder "
                "of a Qwen3-VL's processor"
            )
        return folder
    if not folder.exists() and _HUB_ID.fullmatch(name):
        return name
    raise ModelLoadError(
        f"no processor {name!r}: there is no folder of that name, and a hub id has the form "
        "organisation/name"
    )


def check_hub(name: str) -> None:
    """Asks once for the config of a hub repository, where transformers would retry for long.

    Raises:
        ModelLoadError: it is neither in the local cache nor to be had from the hub.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=_HUB_TIMEOUT)
    # Errors of the network are those of the HTTP library, which changes between hub versions.
    except Exception as error:
        if isinstance(error, OfflineModeIsEnabled):
            reason = "it is not in the local cache, and HF_HUB_OFFLINE is set"
        elif isinstance(error, GatedRepoError):
            reason = "its owner grants access on its page; then log in with `hf auth login`"
        elif isinstance(error, RepositoryNotFoundError):
            reason = "no such repository, or a private one and you are not logged in"
        elif isinstance(error, EntryNotFoundError):
            reason = "the repository has no config.json, so it is no checkpoint"
        else:
            reason = f"it is not in the local cache, and the hub cannot be reached ({brief(error)})"
        raise ModelLoadError(
            f"{name}: there is no folder of that name; as a hub id: {reason}"
        ) from error
