"""What the wrappers use of transformers, accelerate and torch that is not public there.

Nothing else in this package names such an attribute. Each is pinned by one test of the same order,
which says what to do when a release breaks it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves as tree_leaves
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import merge_with_config_defaults as merge_with_config_defaults
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY
from transformers.utils.output_capturing import capture_outputs as capture_outputs

_HOOK, _OWN_FORWARD = "_hf_hook", "_old_forward"


def note_recordable_outputs(model: PreTrainedModel) -> None:
    """Lets transformers record outputs inside the wrapper of a model, as inside its float class.

    transformers notes for each model, when it is constructed, which classes' outputs it can record:
    `output_hidden_states` and the like. Wrappers are not constructed, so a wrapper whose forward is
    under `capture_outputs` notes it itself.
    """
    # Early releases of version 5 keep a plain dict with the class's name as key.
    by_name = type(_CAN_RECORD_REGISTRY) is dict
    _CAN_RECORD_REGISTRY[str(type(model)) if by_name else model] = model._can_record_outputs


def without_recording_hooks(state: Mapping[str, Any]) -> dict[str, Any]:
    """A module's attributes without the note that hooks which record outputs are on it."""
    noted = "_output_capturing_hooks_installed"
    return {name: value for name, value in state.items() if name != noted}


def attends_eagerly(config: PreTrainedConfig) -> bool:
    """Whether a config's implementation of attention is the one that returns its weights.

    It is also what transformers takes for an attention of its own outside any model.
    """
    return config._attn_implementation in (None, "eager")


def attention_implementation(config: PreTrainedConfig) -> str | None:
    """A config's implementation of attention."""
    implementation: str | None = config._attn_implementation
    return implementation


def is_hooked(module: nn.Module) -> bool:
    """Whether accelerate's hook is the reason why a module has a forward of its own."""
    return _HOOK in vars(module) and _OWN_FORWARD in vars(module)


def without_hook(state: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a hooked module without those that accelerate has put on it.

    Besides the hook these are functions of accelerate that stand before methods: `forward`, and
    `to`, `cuda` and others by which it could be moved.
    """
    return {
        name: value
        for name, value in state.items()
        if name not in (_HOOK, _OWN_FORWARD) and not _is_function_of_accelerate(value)
    }


def take_hook(module: nn.Module, source: nn.Module) -> None:
    """Gives a copy of a hooked module such a hook, which loads the same weights."""
    from accelerate.hooks import add_hook_to_module

    hook = copy.copy(cast(Any, source._hf_hook))
    if hasattr(hook, "hooks"):
        hook.hooks = tuple(copy.copy(part) for part in hook.hooks)
    add_hook_to_module(module, hook)


def loading_hook(module: nn.Module) -> Any:
    """The hook of accelerate that loads a module's own parameters; None if there is none.

    Its `weights_map` holds them by name.
    """
    hook = getattr(module, _HOOK, None)
    for part in getattr(hook, "hooks", (hook,)):
        if getattr(part, "offload", False):
            return part
    return None


def share_loaded(module: nn.Module, memo: dict[int, Any]) -> None:
    """Has a deep copy of a module share what its hook of accelerate loads weights from."""
    loader = loading_hook(module)
    if loader is not None:
        memo |= {id(each): each for each in (loader.weights_map, loader.tied_params_map)}


def load_from(module: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Has a module load its weights from a mapping, in which `name` is tied to no other's."""
    loader = loading_hook(module)
    loader.weights_map = weights
    loader.tied_params_names = loader.tied_params_names - {name}


def convolved(module: nn.Conv2d | nn.Conv3d, x: Tensor, weight: Tensor) -> Tensor:
    """A convolution with another weight, whatever its padding mode."""
    output: Tensor = module._conv_forward(x, weight, module.bias)
    return output


def _is_function_of_accelerate(value: object) -> bool:
    function = value.func if isinstance(value, functools.partial) else value
    module: str = getattr(function, "__globals__", {}).get("__name__", "")
    return module.startswith("accelerate.")
