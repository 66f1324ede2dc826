"""Small Llamas as compressed-tensors (llm-compressor), torchao and wrapq quantise them."""

import contextlib
import io
import json

import torch
from safetensors.torch import load_file, save_file

from tests.builders.llama import tiny, tokens

INPUTS = {"input_ids": tokens(2, 9)}


def small():
    """The float model; groups of 32 divide its sizes."""
    return tiny(num_hidden_layers=1, intermediate_size=64)


def float_folder(folder):
    """A folder that holds the float model."""
    model = small()
    model.save_pretrained(folder)
    return folder


def compressed(folder, preset, *, group_size=None, ignore=("lm_head",), status="frozen"):
    """A checkpoint of the same model as llm-compressor writes it."""
    model = observed(preset, group_size=group_size, ignore=ignore)
    from compressed_tensors.compressors import ModelCompressor

    compressor = ModelCompressor.from_pretrained_model(model)
    with contextlib.redirect_stderr(io.StringIO()):
        compressor.compress_model(model)
        model.save_pretrained(folder, state_dict=model.state_dict())
    compressor.update_config(folder)
    return folder


def observed(preset, *, group_size=None, ignore=("lm_head",)):
    """The model with scales in it, before it is compressed."""
    from compressed_tensors.quantization import (
        QuantizationConfig,
        apply_quantization_config,
        preset_name_to_scheme,
    )

    model = small()
    scheme = preset_name_to_scheme(preset, ["Linear"])
    if group_size is not None:
        scheme.weights.group_size = group_size
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, ignore=list(ignore), quantization_status="frozen"
    )
    apply_quantization_config(model, config, show_progress=False)
    seen = {}

    def note(module, given):
        seen[module] = given[0]

    layers = [m for m in model.modules() if hasattr(m, "quantization_scheme")]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    for layer in layers:
        layer.quantization_enabled = False
    with torch.no_grad():
        model(**INPUTS)
    for layer, hook in zip(layers, hooks, strict=True):
        hook.remove()
        del layer.quantization_enabled
        _fill(layer, "weight", layer.weight.data, scheme.weights)
        inputs = scheme.input_activations
        if inputs is not None and not inputs.dynamic:
            _fill(layer, "input", seen[layer], inputs)
    return model


def _fill(layer, name, values, args):
    from compressed_tensors.quantization.utils import calculate_qparams

    if args.strategy == "channel":
        values = values.flatten(1)
    elif args.strategy == "group":
        values = values.unflatten(1, (-1, args.group_size))
    else:
        values = values.flatten()
    made = calculate_qparams(values.amin(-1), values.amax(-1), args)
    for part, value in zip(("scale", "zero_point"), made, strict=True):
        held = getattr(layer, f"{name}_{part}", None)
        if held is not None:
            held.data = value.reshape(held.shape).to(held.dtype)


def edit(folder, change):
    """Changes the tensors of a checkpoint, a dict of them by name."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})
    return folder


def edit_config(folder, change):
    """Changes the quantization config of a checkpoint."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config["quantization_config"])
    file.write_text(json.dumps(config))
    return folder


def wrapped(inputs=INPUTS):
    """The model as wrapq quantises it."""
    from tico.quantization import convert, prepare
    from tico.quantization.config.ptq import PTQConfig

    model = small()
    model = prepare(model, PTQConfig(strict_wrap=False))
    with torch.no_grad():
        model(**inputs, return_dict=True)
    return convert(model)
