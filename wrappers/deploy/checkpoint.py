"""The checkpoint that a quantised model was made of: where it is, and whether a model is of it."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from wrappers.algorithms.stage import is_prepared
from wrappers.core.registry import float_class_of
from wrappers.core.transformers_compat import attention_implementation
from wrappers.deploy.folders import add_tensors
from wrappers.errors import SavedModelError
from wrappers.quantize import listed

# Of a model's config what says nothing of what it computes.
_VOLATILE = ("transformers_version", "dtype", "torch_dtype", "architectures", "use_cache")


def float_model_of(
    model: nn.Module, checkpoint: nn.Module | str | PathLike[str] | None
) -> nn.Module:
    """The float model that a quantised one was made of.

    Raises:
        SavedModelError: it is not known, or cannot be loaded.
    """
    if isinstance(checkpoint, nn.Module):
        if is_prepared(checkpoint):
            raise SavedModelError("checkpoint is a wrapped model: give the float model")
        return checkpoint
    place = named_by(model) if checkpoint is None else os.fspath(checkpoint)
    if not place:
        raise SavedModelError(
            f"{type(model).__name__} does not say where its checkpoint is: give "
            "save(..., checkpoint=) the float model or its folder"
        )
    float_class = float_class_of(type(model))
    return _loaded(float_class, place, dtype_of(model), attention_of(model))


def named_by(model: nn.Module) -> str:
    """Where a model says that it was loaded from; empty if it does not."""
    return str(getattr(model, "name_or_path", "") or "")


def place_of(given: str, final: Path) -> dict[str, str]:
    """Where the checkpoint is: of a folder its path, from the root and from the saved model."""
    if not given:
        return {}
    path = Path(given).expanduser()
    if not path.is_dir():
        return {"hub": given}
    return {"path": str(path.resolve()), "relative": os.path.relpath(path.resolve(), final)}


def from_checkpoint(source: Path, header: Mapping[str, Any]) -> nn.Module:
    """The float model that a saved one was made of, loaded.

    Args:
        source: the folder of the saved model.
        header: of it.

    Raises:
        SavedModelError: its checkpoint or class is not here.
    """
    kept = header["checkpoint"]
    places = [Path(kept[key]) for key in ("path",) if key in kept]
    places += [source.absolute() / kept["relative"]] if "relative" in kept else []
    found = next((str(place.resolve()) for place in places if place.is_dir()), kept.get("hub"))
    if found is None:
        raise SavedModelError(
            f"{source} was made of "
            + (f"the checkpoint {kept['path']}, which is not there" if places else "no checkpoint")
            + ": give the float model, load(folder, model)"
        )
    return _loaded(_float_class(source, header), found, header["dtype"], header.get("attention"))


def _float_class(source: Path, header: Mapping[str, Any]) -> type[nn.Module]:
    module, _, name = header["class"].rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SavedModelError(
            f"{source} is a {header['class']}, which is not installed here ({error}): install the "
            f"versions that it was saved with, {header['versions']}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise SavedModelError(f"{source}: {header['class']} is no nn.Module class")
    return found


def _loaded(
    float_class: type[nn.Module], place: str, dtype: str, attention: str | None
) -> nn.Module:
    if not issubclass(float_class, PreTrainedModel):
        raise SavedModelError(
            f"a {float_class.__name__} is no model of transformers, which could be loaded from "
            f"{place}: give the float model"
        )
    options = {} if attention is None else {"attn_implementation": attention}
    try:
        loaded, report = float_class.from_pretrained(  # type: ignore[attr-defined]
            place, dtype=getattr(torch, dtype), output_loading_info=True, **options
        )
    # transformers raises whatever its many parts raise.
    except Exception as error:
        raise SavedModelError(f"the checkpoint {place} cannot be loaded: {error}") from error
    if report["missing_keys"]:
        raise SavedModelError(
            f"the checkpoint {place} lacks weights of {float_class.__name__}: "
            f"{listed(sorted(report['missing_keys']))}"
        )
    model: nn.Module = loaded
    return model.eval()


def check_same(model: nn.Module, source: Path, header: Mapping[str, Any]) -> None:
    """Checks that a float model is the one that the saved one was made of.

    Raises:
        SavedModelError: it is another.
    """
    if is_prepared(model):
        raise SavedModelError("the model given is wrapped: give the float model")
    found = f"{type(model).__module__}.{type(model).__qualname__}"
    if found != header["class"]:
        raise SavedModelError(f"{source} was made of a {header['class']}, found a {found}")
    kept = header["checkpoint"]
    here = architecture(model)
    # What only one of the two knows belongs to another version of transformers.
    for key in sorted(here.keys() & kept["config"].keys()):
        if here[key] != kept["config"][key]:
            raise SavedModelError(
                f"{source} was made of a model with {key} = {kept['config'][key]!r:.200}, and this "
                f"one has {here[key]!r:.200}: give the float model that it was made of"
            )
    if dtype_of(model) != header["dtype"]:
        raise SavedModelError(
            f"{source} was made of a {header['dtype']} model, and this one is {dtype_of(model)}: "
            f"load it with dtype {header['dtype']}"
        )
    if weights_checksum(model) != kept["sha256"]:
        raise SavedModelError(
            f"{source} was made of another checkpoint: its weights have another checksum than "
            "those of the float model here; give the one that it was made of"
        )


def dtype_of(model: nn.Module) -> str:
    """The dtype of a model's parameters by its name in torch."""
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    return str(next(floating, torch.float32)).removeprefix("torch.")


def attention_of(model: nn.Module) -> str | None:
    """A model's implementation of attention, if it is one of transformers."""
    return attention_implementation(model.config) if isinstance(model, PreTrainedModel) else None


def architecture(model: nn.Module) -> dict[str, Any]:
    """What a config says of what its model computes, in plain values."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return {}
    plain = json.loads(json.dumps(config.to_dict(), default=str))
    return _without_volatile(plain)


def _without_volatile(plain: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_volatile(value) if isinstance(value, dict) else value
        for key, value in plain.items()
        if key not in _VOLATILE and not key.startswith("_")
    }


def weights_checksum(model: nn.Module) -> str:
    """SHA-256 of what a checkpoint holds of a model."""
    digest = hashlib.sha256()
    add_tensors(digest, model)
    return digest.hexdigest()
