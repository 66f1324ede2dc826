"""The folder of a saved model: how it is written whole or not at all, and how damage is noticed.

    quantized/
      quantized.json          format, versions, config, points, checkpoint; checksums of all files
      weights.safetensors     parameters and buffers that are not the checkpoint's
      qparams.safetensors     scales, zero points and the like

`quantized.json` has a checksum of its own, and is written last.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wrappers.errors import SavedModelError

FORMAT = 1
HEADER = "quantized.json"
WEIGHTS, QPARAMS = "weights.safetensors", "qparams.safetensors"

# What may lie in such a folder besides: what a recipe writes.
BESIDE = ("recipe.toml", "evaluation.json", "export", "decode")

_NEEDED: Mapping[str, type] = {
    "class": str, "dtype": str, "config": dict, "points": dict, "tied": dict, "untied": bool,
    "checkpoint": dict, "versions": dict, "files": dict,
}  # fmt: skip
_CHUNK = 1 << 24  # bytes that are read at a time


@contextmanager
def replaced_folder(folder: Path, *, force: bool) -> Iterator[Path]:
    """A folder beside `folder` that takes its place at the end, and is gone after an error.

    Raises:
        SavedModelError: something is there that is not to be replaced, or nothing can be written.
    """
    check_place(folder, force=force)
    beside = _beside(folder)
    try:
        beside.mkdir()
        yield beside
        if folder.exists():
            former = folder.with_name(f"{beside.name}.former")
            folder.rename(former)
            beside.rename(folder)
            shutil.rmtree(former)
        else:
            beside.rename(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def check_place(folder: Path, *, force: bool) -> None:
    """Checks that a model can be saved in a folder, before the work for it is done.

    Raises:
        SavedModelError: it cannot.
    """
    if not folder.parent.is_dir():
        raise SavedModelError(f"directory {folder.parent} does not exist; create it first")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise SavedModelError(f"{folder} is no folder: choose another name")
    try:
        held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        # What takes the folder's place is made beside it.
        beside = _beside(folder)
        beside.mkdir()
        beside.rmdir()
    except OSError as error:
        raise _unwritable(folder, error) from error
    if not held:
        return
    foreign = [name for name in held if name not in (HEADER, WEIGHTS, QPARAMS, *BESIDE)]
    if HEADER not in held or foreign:
        raise SavedModelError(
            f"{folder} holds {', '.join((foreign or held)[:3])}, which no saved model has: nothing "
            "else is ever replaced; choose another folder"
        )
    if not force:
        raise SavedModelError(
            f"{folder} holds a saved model already: choose another folder, or replace it with "
            "force (--force)"
        )


def _beside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.partial")


def _unwritable(folder: Path, error: OSError) -> SavedModelError:
    return SavedModelError(f"{folder} cannot be written: {error.strerror}; give another folder")


def write_folder(
    folder: Path, header: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Writes the files of a saved model.

    Args:
        folder: exists.
        header: plain values; the format and the checksums are added.
        tensors: by the names of the files that hold them.
    """
    files = {}
    for name, held in tensors.items():
        save_file({key: tensor.contiguous() for key, tensor in held.items()}, folder / name)
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
    whole = {"format": FORMAT, **header, "files": files}
    whole["checksum"] = _checksum(whole)
    (folder / HEADER).write_text(json.dumps(whole, indent=1), encoding="utf-8")


def read_header(folder: Path) -> dict[str, Any]:
    """What is known of a saved model, checked.

    Raises:
        SavedModelError: there is none, it is damaged, or it is of a newer format.
    """
    file = folder / HEADER
    try:
        header: Any = json.loads(file.read_bytes())
    except FileNotFoundError:
        what = f"a folder without {HEADER}" if folder.is_dir() else "no folder"
        raise SavedModelError(
            f"{folder} is {what}: expected what wrappers.save() or `trace_model quantize` has "
            "written"
        ) from None
    except OSError as error:
        raise SavedModelError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SavedModelError(f"{file} is damaged: it is no JSON; save the model again") from error
    found = header.get("format") if isinstance(header, dict) else None
    if type(found) is int and found > FORMAT:
        raise SavedModelError(
            f"{folder} has format {found}, and this version reads up to {FORMAT}: install the "
            "trace-model that wrote it or a later one"
        )
    whole = found == FORMAT and header.get("checksum") == _checksum(header)
    if not whole or not all(isinstance(header.get(key), kind) for key, kind in _NEEDED.items()):
        raise SavedModelError(
            f"{file} is damaged, or was changed by hand: its checksum is another; save the model "
            "again"
        )
    return dict(header)


def read_tensors(folder: Path, header: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The tensors of one file, after its checksum.

    Raises:
        SavedModelError: it is missing, cut off or changed.
    """
    file, known = folder / name, header["files"].get(name, {})
    if not file.is_file():
        raise SavedModelError(f"{folder} lacks {name}, which {HEADER} names: save the model again")
    size = file.stat().st_size
    if size != known.get("bytes"):
        raise SavedModelError(
            f"{file} has {size:,} bytes, and {known.get('bytes', 0):,} were written: it is cut off "
            "or another; copy or save it again"
        )
    if sha256_of(file) != known.get("sha256"):
        raise SavedModelError(f"{file} is damaged: its checksum is another; save the model again")
    try:
        return dict(load_file(file))
    except (SafetensorError, OSError) as error:
        raise SavedModelError(f"{file} cannot be read: {error}") from error


def add_tensors(digest: Any, model: nn.Module) -> None:
    """Adds the parameters and buffers that a checkpoint holds to a digest of `hashlib`."""
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # As bytes: numpy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def _checksum(header: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in header.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def sha256_of(file: Path) -> str:
    """The checksum of a file, which may be larger than memory."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
