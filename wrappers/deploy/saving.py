"""Saves a quantised model, and loads it without calibration.

    save(quantized, "quantized")
    quantized = load("quantized")              # from the checkpoint that it was made of
    quantized = load("quantized", model)       # from the float model, when it is at hand

What is written is what cannot be made of the checkpoint and the config again: parameters that an
algorithm has changed or added, buffers that no checkpoint holds, and what every quantization point
was frozen to. Loading prepares the float model with the same config and puts these in their places,
so the logits are those of the saved model, bit for bit.

Only a quantised model is saved: one with quantisation off has nothing that its checkpoint and its
config do not give.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trace_model.annotations import checked
from wrappers.algorithms.stage import copied
from wrappers.algorithms.structure import untie_configs
from wrappers.core.config import PTQConfig
from wrappers.core.module import iter_wrappers
from wrappers.core.point import Mode
from wrappers.core.registry import float_class_of
from wrappers.deploy.checkpoint import (
    architecture,
    attention_of,
    check_same,
    dtype_of,
    float_model_of,
    from_checkpoint,
    named_by,
    place_of,
    weights_checksum,
)
from wrappers.deploy.folders import (
    QPARAMS,
    WEIGHTS,
    check_place,
    read_header,
    read_tensors,
    replaced_folder,
    write_folder,
)
from wrappers.errors import ArgumentError, ConfigError, ModeError, SavedModelError, WrappersError
from wrappers.quantize import listed, prepare, set_mode


@checked(ArgumentError)
def save(
    model: nn.Module,
    folder: str | PathLike[str],
    checkpoint: nn.Module | str | PathLike[str] | None = None,
    *,
    force: bool = False,
) -> None:
    """Writes a quantised model to a folder, whole or not at all.

    Args:
        model: quantised, of any variant, after any algorithms.
        folder: is made; what stands there already is replaced by `force` alone, and only if it is
            a saved model.
        checkpoint: what the model was made of: the float model, or where it was loaded from; by
            default where the model itself says that it was.
        force: see above.

    Raises:
        ModeError: the model is not quantised, or in part only.
        SavedModelError: the folder cannot be written, the checkpoint is not known, or not the one
            that the model was made of.
    """
    target = Path(folder).expanduser().absolute()
    check_place(target, force=force)
    _check_quantized(model)
    with replaced_folder(target, force=force) as beside:
        write_model(model, beside, checkpoint, final=target)


def write_model(
    model: nn.Module,
    folder: Path,
    checkpoint: nn.Module | str | PathLike[str] | None = None,
    *,
    final: Path,
) -> None:
    """Writes the files of `save` to a folder that exists.

    Args:
        model, checkpoint: as for `save`.
        folder: where they are written.
        final: where they will lie.

    Raises:
        ModeError, SavedModelError: as `save`.
    """
    _check_quantized(model)
    config: PTQConfig = vars(model)["ptq_config"]
    reference = float_model_of(model, checkpoint)
    own, tied = _own_tensors(model, prepare(copied(reference), config))
    points, qparams = _split(
        {name: wrapper.point_states() for name, wrapper in iter_wrappers(model)}
    )
    float_class = float_class_of(type(model))
    given = str(checkpoint) if isinstance(checkpoint, str | PathLike) else named_by(model)
    header = {
        "class": f"{float_class.__module__}.{float_class.__qualname__}",
        "dtype": dtype_of(reference),
        "attention": attention_of(reference),
        "config": config.to_dict(),
        "points": points,
        "tied": tied,
        "untied": _ties(reference) and not _ties(model),
        "checkpoint": {
            **place_of(given, final),
            "sha256": weights_checksum(reference),
            "config": architecture(reference),
        },
        "versions": {
            "torch": torch.__version__,
            "transformers": metadata.version("transformers"),
            "trace_model": _version(),
        },
    }
    write_folder(folder, header, {WEIGHTS: own, QPARAMS: qparams})


@checked(ArgumentError)
def load(folder: str | PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """A saved model, quantised, without calibration.

    Args:
        folder: what `save` has written.
        model: the float model that it was made of, which stays as it is and shares what was not
            changed; by default it is loaded from the checkpoint that the folder names.

    Raises:
        SavedModelError: the folder is damaged, incomplete or of a newer format, its class is not
            known here, or the float model is another than the saved one was made of.
        WrapError: the weights of `model` are loaded when they are needed.
    """
    source = Path(folder).expanduser()
    header = read_header(source)
    try:
        config = PTQConfig.from_dict(header["config"])
    except (ConfigError, TypeError) as error:
        raise SavedModelError(f"{source}: its config cannot be used: {error}") from error
    weights, qparams = (read_tensors(source, header, name) for name in (WEIGHTS, QPARAMS))
    float_model = from_checkpoint(source, header) if model is None else model
    check_same(float_model, source, header)
    try:
        own = copied(float_model)
        if header["untied"]:
            untie_configs(own)
        wrapped = prepare(own, config).eval()
        _put(wrapped, weights, header["tied"])
        _put_points(wrapped, _joined(header["points"], qparams))
    except (WrappersError, LookupError, TypeError) as error:
        raise SavedModelError(f"{source} cannot be put together here: {error}") from error
    set_mode(wrapped, Mode.QUANT)
    return wrapped


def _check_quantized(model: nn.Module) -> None:
    modes = {name or "the root": wrapper.mode for name, wrapper in iter_wrappers(model)}
    others = [f"{name} ({mode.value})" for name, mode in modes.items() if mode is not Mode.QUANT]
    if not modes:
        raise ModeError(f"{type(model).__name__} has no wrappers: quantise it, then save it")
    if others:
        raise ModeError(
            f"{len(others)} of {len(modes)} wrappers are not quantised: {listed(others)}; call "
            "convert() first. With quantisation off a model is its checkpoint with its config, "
            "which PTQConfig.to_json() writes"
        )
    config = vars(model).get("ptq_config")
    if config is None or config.scope:
        raise ModeError(
            f"{type(model).__name__} is a part of a prepared model: save the whole that prepare() "
            "returned"
        )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name; tied ones under each of their names."""
    both = model.named_parameters, model.named_buffers
    return dict(itertools.chain.from_iterable(named(remove_duplicate=False) for named in both))


def _lasting(model: nn.Module) -> set[str]:
    """Names of what a checkpoint holds."""
    return set(model.state_dict())


def _own_tensors(model: nn.Module, fresh: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors that a freshly prepared model does not have, and further names of some."""
    found, made = _tensors(model), _tensors(fresh)
    gone = sorted(made.keys() - found.keys())
    if gone:
        raise SavedModelError(
            f"{type(model).__name__} lacks {listed(gone)} of its checkpoint: is it another one?"
        )
    own: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    names: dict[int, str] = {}
    lasting = _lasting(fresh)
    for name, tensor in found.items():
        if name in made and name in lasting and _equal(tensor, made[name]):
            continue
        first = names.setdefault(id(tensor), name)
        if first == name:
            # A copy, as two views of one storage cannot be written.
            own[name] = tensor.detach().cpu().clone()
        else:
            tied[name] = first
    return own, tied


def _equal(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b.to(a.device))


def _put(wrapped: nn.Module, weights: Mapping[str, Tensor], tied: Mapping[str, str]) -> None:
    """Gives a prepared model the tensors of a saved one."""
    device = next((tensor.device for tensor in _tensors(wrapped).values()), torch.device("cpu"))
    made: dict[str, Tensor] = {}
    for name in (*weights, *tied):
        owner, _, own_name = name.rpartition(".")
        module = wrapped.get_submodule(owner)
        if own_name in module._buffers:
            module._buffers[own_name] = weights[name].to(device)
            continue
        if own_name not in module._parameters:
            raise SavedModelError(f"there is no parameter {name} in {type(wrapped).__name__}")
        if name in weights:
            made[name] = nn.Parameter(weights[name].to(device), requires_grad=False)
        setattr(module, own_name, made[tied.get(name, name)])


def _put_points(wrapped: nn.Module, states: Mapping[str, Mapping[str, Any]]) -> None:
    wrappers = dict(iter_wrappers(wrapped))
    lost = sorted(states.keys() - wrappers.keys())
    if lost:
        raise SavedModelError(f"there are no wrappers {listed(lost)} in {type(wrapped).__name__}")
    for name, wrapper in wrappers.items():
        known = states.get(name, {})
        unknown = sorted(wrapper.points.keys() - known.keys())
        if unknown:
            raise SavedModelError(
                f"it has nothing for the points {listed(unknown)} of {name or 'the root'}: it was "
                "saved by another version; quantise the model again"
            )
        wrapper.load_point_states(known)


def _split(
    states: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Quantisers as plain values, with their lists of numbers apart as tensors."""
    tensors: dict[str, Tensor] = {}

    def plain(value: Any, name: str) -> Any:
        if not isinstance(value, list):
            return value
        tensors[name] = _packed(value)
        return {"tensor": name}

    points = {
        module: {
            point: {key: plain(value, f"{module}:{point}.{key}") for key, value in state.items()}
            for point, state in by_point.items()
        }
        for module, by_point in states.items()
    }
    return points, tensors


def _joined(points: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The quantisers that `_split` took apart."""
    return {
        module: {
            point: {
                key: tensors[value["tensor"]].tolist() if isinstance(value, dict) else value
                for key, value in state.items()
            }
            for point, state in by_point.items()
        }
        for module, by_point in points.items()
    }


def _packed(values: list[Any]) -> Tensor:
    """Numbers as a tensor of four bytes each where that loses nothing."""
    wide = torch.tensor(values)
    if wide.is_floating_point():
        wide = torch.tensor(values, dtype=torch.float64)
        narrow = wide.to(torch.float32)
    else:
        narrow = wide.to(torch.int32)
    return narrow if torch.equal(narrow.to(wide.dtype), wide) else wide


def _configs(model: nn.Module) -> Iterator[Any]:
    return (module.config for module in model.modules() if hasattr(module, "config"))


def _ties(model: nn.Module) -> bool:
    return any(getattr(config, "tie_word_embeddings", False) for config in _configs(model))


def _version() -> str:
    try:
        return metadata.version("trace-model")
    except metadata.PackageNotFoundError:
        return "unknown"  # run from its source
