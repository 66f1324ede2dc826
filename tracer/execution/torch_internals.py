"""What the tracer uses of PyTorch, transformers, accelerate and IPython that they do not promise.

Everything private is used here and nowhere else in this package, but for the leaves of nested
values (`tracer.tensors.leaves`: a tensor's version, the nodes of a tree), which lie below, and the
walks over a model (`tracer.execution.walks`); what belongs to `torch.compile` is in
`tracer.execution.compile_internals`. Each function has one test, which says what to do when a new
version breaks it.
"""

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from logging import ERROR, getLogger
from pathlib import Path
from types import CodeType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import fx, nn, overrides
from torch._C import _len_torch_dispatch_stack, _len_torch_function_stack
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode
from torch.utils import _device, _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import TreeSpec as TreeSpec
from torch.utils._pytree import tree_flatten as tree_flatten
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_unflatten as tree_unflatten
from torch.utils.dlpack import from_dlpack as from_dlpack
from torch.utils.dlpack import to_dlpack as to_dlpack  # type: ignore[attr-defined]
from torch.utils.hooks import RemovableHandle

TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_ACCELERATE_HOOKS = ("accelerate/hooks.py", "accelerate\\hooks.py")


def default_device() -> torch.device | None:
    """The device that `torch.set_default_device` has set; None where there is none."""
    return _device.CURRENT_DEVICE


def set_default_device(device: torch.device | None) -> None:
    """Sets what `default_device` returns, without the function mode that belongs to it."""
    _device.CURRENT_DEVICE = device


def autocast_dtype() -> torch.dtype | None:
    """The dtype that autocast computes in, on either kind of device; None where it is off."""
    if not torch.is_autocast_enabled("cpu") and not torch.is_autocast_enabled("cuda"):
        return None
    return torch.get_autocast_dtype("cpu" if torch.is_autocast_enabled("cpu") else "cuda")


def function_modes() -> list[TorchFunctionMode]:
    """The modes that see PyTorch's functions called in this thread, the innermost last."""
    return list(overrides._get_current_function_mode_stack())


def set_function_modes(modes: Sequence[TorchFunctionMode]) -> None:
    """Sets what `function_modes` returns."""
    for _ in function_modes():
        overrides._pop_mode()
    for mode in modes:
        overrides._push_mode(mode)


def dispatch_modes() -> list[TorchDispatchMode]:
    """The modes that see PyTorch's operators called in this thread, the innermost last."""
    return list(_python_dispatch._get_current_dispatch_mode_stack())


def are_set(
    device: torch.device | None, functions: Sequence[object], dispatch: Sequence[object]
) -> bool:
    """Whether these are the `default_device`, `function_modes` and `dispatch_modes`, without making
    lists of none."""
    return (
        device == _device.CURRENT_DEVICE
        and (_len_torch_function_stack() == len(functions))
        and (_len_torch_dispatch_stack() == len(dispatch))
        and (not functions or function_modes() == functions)
        and (not dispatch or dispatch_modes() == dispatch)
    )


def sums_of(tensors: Sequence[torch.Tensor]) -> list[str]:
    """The sum of each tensor's numbers, computed where no mode sees it."""
    modes = function_modes(), dispatch_modes()
    set_dispatch_modes([])
    set_function_modes([])
    try:
        with torch.no_grad():
            return [str(t.sum().item()) for t in tensors if not (t.is_meta or t.is_sparse)]
    finally:
        set_function_modes(modes[0])
        set_dispatch_modes(modes[1])


def set_dispatch_modes(modes: Sequence[TorchDispatchMode]) -> None:
    """Sets what `dispatch_modes` returns."""
    for _ in dispatch_modes():
        _python_dispatch._pop_mode()
    for mode in modes:
        _python_dispatch._push_mode(mode)


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is what `torch.compile` returns, or was compiled by its own `compile`."""
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None


def calls_compiled(module: nn.Module) -> bool:
    """Whether a module's call goes elsewhere than through its hooks, as after `module.compile`."""
    return module._compiled_call_impl is not None


def as_written(module: nn.Module) -> nn.Module:
    """The module that was compiled, for what `torch.compile` returns; else the module itself."""
    original: nn.Module = module
    if "_orig_mod" in module._modules:  # which is a mapping of its own kind in a scripted module
        original = module._orig_mod  # type: ignore[assignment]
    return original


def declared(module: nn.Module, name: str) -> Any:
    """An attribute that a module may have; None without. PyTorch takes long to say that it is not
    there."""
    found = module.__dict__.get(name)
    if found is not None:
        return found
    kind = type(module)
    if kind.__getattr__ is not _GETATTR or getattr(kind, name, None) is not None:
        return getattr(module, name, None)
    return None


_GETATTR = nn.Module.__getattr__


def attach_hooks(
    module: nn.Module,
    key: int,
    start: Callable[..., object],
    end: Callable[..., object],
) -> None:
    """Has a module call a forward pre-hook and a forward hook, both with keyword arguments, the
    latter also where the forward raises.

    That is what `register_forward_pre_hook` and `register_forward_hook` do, without a handle each:
    thousands of these made and taken apart in every run take longer than the run.

    Args:
        key: from `hook_key`; of which `detach_hooks` takes off both.
    """
    module._forward_pre_hooks[key] = start
    module._forward_pre_hooks_with_kwargs[key] = True
    module._forward_hooks[key] = end
    module._forward_hooks_with_kwargs[key] = True
    module._forward_hooks_always_called[key] = True


def detach_hooks(modules: Iterable[nn.Module], key: int) -> None:
    """Takes off what `attach_hooks` has attached."""
    for module in modules:
        module._forward_pre_hooks.pop(key, None)
        module._forward_pre_hooks_with_kwargs.pop(key, None)
        module._forward_hooks.pop(key, None)
        module._forward_hooks_with_kwargs.pop(key, None)
        module._forward_hooks_always_called.pop(key, None)


def hook_key() -> int:
    """A key under which no module has a hook, nor will have one of `register_forward_hook`."""
    return RemovableHandle(OrderedDict()).id


@contextmanager
def call_replaced(
    module: nn.Module, around: Callable[[Callable[..., object]], Callable[..., object]]
) -> Iterator[None]:
    """Puts a function where PyTorch looks for a module's compiled call.

    Args:
        around: makes the function from what is called without it.
    """
    compiled = module._compiled_call_impl
    module.__dict__["_compiled_call_impl"] = around(
        module._call_impl if compiled is None else compiled
    )
    try:
        yield
    finally:
        if compiled is None:
            del module.__dict__["_compiled_call_impl"]
        else:
            module.__dict__["_compiled_call_impl"] = compiled


def is_inside_transform() -> bool:
    """Whether this is called inside `vmap`, `grad`, `jvp` or another transform of torch.func."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def takes_fused_path(module: nn.Module) -> bool:
    """Whether a module computes all in one call of PyTorch's, unless hooks are inside it.

    Its numbers are others then, and the modules inside are not called.
    """
    return may_be_fused(module) and torch.backends.mha.get_fastpath_enabled()


def may_be_fused(module: nn.Module) -> bool:
    """Whether a module would take the fused path, were that not switched off."""
    if not isinstance(module, nn.TransformerEncoderLayer) or module.training:
        return False
    attention = module.self_attn
    return (
        type(module).forward is nn.TransformerEncoderLayer.forward
        and attention.batch_first
        and attention.in_proj_bias is not None
        and attention._qkv_same_embed_dim
        and attention.num_heads % 2 == 0
        and bool(module.activation_relu_or_gelu)
        and module.norm1.eps == module.norm2.eps
        and not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    )


P = ParamSpec("P")
R = TypeVar("R")


def can_open_fused(function: Callable[P, R]) -> Callable[P, R]:
    """Switches the fused path off while a function runs that is called with `inside=True`."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(before and not kwargs.get("inside", False))
        try:
            return function(*args, **kwargs)
        finally:
            torch.backends.mha.set_fastpath_enabled(before)

    return call


def written_arguments(operator: Any) -> list[tuple[int, str]]:
    """Position and name of the arguments that an operator writes to."""
    return [
        (position, argument.name)
        for position, argument in enumerate(operator._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def is_dispatched() -> bool:
    """Whether a dispatch mode sees what is computed."""
    return torch._C._len_torch_dispatch_stack() > 0


def as_operator(
    name: str, given: list[torch.Tensor], compute: Callable[[], list[torch.Tensor]]
) -> list[torch.Tensor]:
    """What something outside PyTorch computes, as an operator of that name for dispatch modes."""
    if not hasattr(_OUTSIDE, name):
        _OPERATORS.define(f"{name}(Tensor[] given, int ticket) -> Tensor[]")
        _OPERATORS.impl(name, lambda _, ticket: _COMPUTING[ticket](), "CompositeExplicitAutograd")
    ticket = id(compute)
    _COMPUTING[ticket] = compute
    try:
        made: list[torch.Tensor] = getattr(_OUTSIDE, name)(given, ticket)
    finally:
        del _COMPUTING[ticket]
    return made


_OUTSIDE = torch.ops.tracer_outside
_OPERATORS = torch.library.Library("tracer_outside", "FRAGMENT")
_COMPUTING: dict[int, Callable[[], list[torch.Tensor]]] = {}


def graph_of(module: nn.Module) -> fx.Graph:
    """The graph that a module of fx runs, or one that `torch.export.unflatten` makes."""
    return module.graph  # type: ignore[return-value]


def load_program(file: Path, text: bytes) -> ExportedProgram:
    """Reads a file of `torch.export.save`, with the containers of transformers that it names.

    `torch.export.load` would log what is wrong and raise something else.

    Args:
        text: the description of the graph in it; of a file of PyTorch 2.7 or older, nothing.
    """
    # It brings the whole compiler with it, which takes longer to import than all else of PyTorch.
    from torch.export.pt2_archive._package import load_pt2

    if not text:
        return torch.export.load(file)
    for module in {found.decode() for found in _CONTAINERS.findall(text)}:
        import_module(module)
    if b"transformers.cache_utils." in text:
        register_dynamic_cache_export_support = import_module(
            "transformers.integrations.executorch"
        ).register_dynamic_cache_export_support
        register_dynamic_cache_export_support()
    loggers = [getLogger(name) for name in ("torch._export", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:  # which say how, and not what
            logger.setLevel(ERROR)
        return load_pt2(str(file)).exported_programs["model"]
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# The types of containers, in a text that is quoted in another one.
_CONTAINERS = re.compile(rb'"type\\*": \\*"(transformers(?:\.\w+)*)\.\w+')


def forward_spec(
    graph: fx.Graph,
) -> tuple[TreeSpec | None, TreeSpec | None, list[str] | None]:
    """How a graph's inputs and outputs are nested, and the names of its arguments, if it says."""
    info = getattr(graph._codegen, "pytree_info", None)
    if info is None:
        return None, None, None
    return info.in_spec, info.out_spec, [name for name in info.orig_args if name != "self"]


def memory_of(tensor: torch.Tensor) -> int:
    """What tensors that share memory have in common."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return id(tensor)
    return int(tensor.untyped_storage()._cdata)


def parameters_of(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """Where a module keeps its own parameters."""
    return module._parameters  # type: ignore[return-value]


def set_parameters(module: nn.Module, parameters: dict[str, torch.Tensor | None]) -> None:
    """Sets what `parameters_of` returns."""
    vars(module)["_parameters"] = parameters


def buffers_of(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """Where a module keeps its own buffers."""
    return module._buffers


def forward_pre_hooks(module: nn.Module) -> Mapping[int, Callable[..., object]]:
    """The hooks that are called before a module's forward, by the number of their handle."""
    return module._forward_pre_hooks


def attention_implementation(model: nn.Module) -> object:
    """Which attention a model of transformers computes: "eager", "sdpa"; by part where they differ.

    Raises:
        AttributeError: the model is none of transformers'.
    """
    return model.config._attn_implementation  # type: ignore[union-attr]


def accelerate_hook(module: nn.Module) -> Any:
    """The hook that accelerate has put around the forward of a module; None if there is none."""
    return declared(module, "_hf_hook")


def loading_hook(module: nn.Module) -> Any:
    """The hook of accelerate that loads a module's own parameters; None if there is none."""
    hook = accelerate_hook(module)
    for part in getattr(hook, "hooks", (hook,)):
        if getattr(part, "offload", False) and isinstance(part.weights_map, Mapping):
            return part
    return None


def offloaded_weights(hook: Any) -> Any:
    """What the `loading_hook`s of a model all read from, each through a view of its own."""
    return hook.weights_map.dataset


def refusals_to_move(module: nn.Module) -> list[str]:
    """The methods that accelerate has replaced in a model itself, so that it is not moved."""
    return [
        name
        for name, value in vars(module).items()
        if Path(getattr(value, "__code__", _NO_CODE).co_filename).parent.name == "accelerate"
    ]


def is_hook_of_accelerate(code: CodeType) -> bool:
    """Whether a function is one of accelerate's around the forward of a module."""
    return code.co_filename.endswith(_ACCELERATE_HOOKS)


def is_loading(code: CodeType) -> bool:
    """Whether a function is one of accelerate's that load weights, or let go of them."""
    return code.co_name in ("pre_forward", "post_forward") and is_hook_of_accelerate(code)


_NO_CODE = compile("", "", "exec")
