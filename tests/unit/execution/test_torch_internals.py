"""What other packages do not promise: each test says what to do when a new version breaks it."""

import inspect
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import accelerate
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from tracer.execution import torch_internals as internals
from tracer.tensors.leaves import children, version_of


def make_llama() -> LlamaForCausalLM:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=8, num_hidden_layers=1, attn_implementation="eager", **sizes)
    return LlamaForCausalLM(config).eval()


def test_the_default_device_is_where_new_tensors_go() -> None:
    # Broken: find what `torch.utils._device.DeviceContext` saves on entering, and set that.
    assert internals.default_device() is None
    torch.set_default_device("meta")
    try:
        assert internals.default_device() == torch.device("meta")
        internals.set_default_device(torch.device("cpu"))
        assert internals.default_device() == torch.device("cpu")
    finally:
        torch.set_default_device(None)
    assert internals.default_device() is None


def test_function_modes_are_taken_off_and_put_back() -> None:
    # Broken: see how `TorchFunctionMode.__enter__` pushes itself.
    with TorchFunctionMode() as outer, TorchFunctionMode() as inner:
        assert internals.function_modes() == [outer, inner]
        internals.set_function_modes([])
        assert internals.function_modes() == []
        internals.set_function_modes([outer, inner])
        assert internals.function_modes() == [outer, inner]


def test_dispatch_modes_are_taken_off_and_put_back() -> None:
    # Broken: see how `TorchDispatchMode.__enter__` pushes itself.
    class Passes(internals.TorchDispatchMode):
        def __torch_dispatch__(self, func, _, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Passes() as mode:
        internals.set_dispatch_modes([])
        assert internals.dispatch_modes() == []
        internals.set_dispatch_modes([mode])
        assert internals.dispatch_modes() == [mode]


def test_modes_are_seen_to_be_there() -> None:
    class Nothing(TorchFunctionMode):
        pass

    assert internals.are_set(None, [], [])
    assert not internals.are_set(torch.device("cpu"), [], [])
    with Nothing() as mode:
        assert not internals.are_set(None, [], [])
        assert internals.are_set(None, [mode], [])
        assert not internals.are_set(None, [Nothing()], [])
    with FlopCounterMode(display=False):
        assert not internals.are_set(None, [], [])
        assert internals.are_set(None, [], internals.dispatch_modes())


def test_hooks_of_one_key_are_those_that_pytorch_would_register() -> None:
    calls = []

    def start(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        calls.append(("start", args, kwargs))

    def end(module: nn.Module, args: tuple[object, ...], kwargs: object, output: object) -> None:
        calls.append(("end", args, output))

    one, other = nn.Identity(), nn.Identity()
    one.register_forward_pre_hook(start, with_kwargs=True)
    one.register_forward_hook(end, with_kwargs=True, always_call=True)
    key = internals.hook_key()
    internals.attach_hooks(other, key, start, end)
    for module in (one, other):
        assert module(3) == 3
        with pytest.raises(TypeError):
            module(3, wrong=4)
    assert calls[:4] == calls[4:]
    attached = {name: list(v.values()) for name, v in vars(one).items() if "_hooks" in name}
    assert attached == {n: list(v.values()) for n, v in vars(other).items() if "_hooks" in n}
    handle = other.register_forward_hook(end)
    assert handle.id != key
    internals.detach_hooks([other], key)
    assert list(other._forward_hooks) == [handle.id]
    handle.remove()
    left = {name: v for name, v in vars(other).items() if "_hooks" in name}
    assert left == {n: v for n, v in vars(nn.Identity()).items() if "_hooks" in n}


def test_a_declared_attribute_is_what_python_finds() -> None:
    class Declares(nn.Identity):
        on_class = 1

        @property
        def computed(self) -> str:
            return "computed"

    class Finds(nn.Identity):
        def __getattr__(self, name: str) -> str:
            return f"found {name}"

    model = Declares()
    vars(model)["own"] = 2
    names = ("on_class", "computed", "own", "missing")
    assert [internals.declared(model, n) for n in names] == [1, "computed", 2, None]
    assert internals.declared(Finds(), "missing") == "found missing"


def test_what_is_compiled_is_known_without_compiling_anything() -> None:
    # Broken: see where `torch.compile` and `nn.Module.compile` keep what they made.
    plain, own = nn.Linear(2, 2), nn.Linear(2, 2)
    wrapped = torch.compile(plain, backend="eager")
    own.compile(backend="eager")
    assert [internals.is_compiled(module) for module in (plain, wrapped, own)] == [0, 1, 1]
    assert [internals.calls_compiled(module) for module in (plain, wrapped, own)] == [0, 0, 1]
    assert internals.as_written(wrapped) is plain
    assert internals.as_written(own) is own


def test_a_replaced_call_is_what_python_calls() -> None:
    # Broken: see which attribute `nn.Module.__call__` looks at before it runs hooks.
    module = nn.Linear(2, 2)
    seen: list[str] = []

    def around(call: Callable[..., object]) -> Callable[..., object]:
        def replaced(x: torch.Tensor) -> object:
            seen.append("before")
            return call(x)

        return replaced

    x = torch.ones(1, 2)
    with internals.call_replaced(module, around):
        inside = module(x)
    assert torch.equal(inside, module(x))
    assert seen == ["before"]
    assert "_compiled_call_impl" not in vars(module)


def test_transforms_are_known() -> None:
    # Broken: see how `torch._functorch` asks whether it is inside `vmap`.
    found: list[bool] = []

    def note(x: torch.Tensor) -> torch.Tensor:
        found.append(internals.is_inside_transform())
        return x

    note(torch.ones(2))
    torch.func.vmap(note)(torch.ones(2))
    torch.func.jacrev(note)(torch.ones(2))
    assert found == [False, True, True]


def test_the_fused_path_of_an_encoder_layer_is_known() -> None:
    # Broken: see the conditions in `nn.TransformerEncoderLayer.forward`. Whatever this says, what
    # is recorded must be what the layer computes without hooks.
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True).eval()
    assert internals.takes_fused_path(layer)
    with torch.no_grad(), torch.profiler.profile() as profile:
        layer(torch.ones(1, 3, 8))
    assert "aten::_transformer_encoder_layer_fwd" in {event.key for event in profile.key_averages()}
    others = {"batch_first": False}, {"batch_first": True, "bias": False}
    for options in others:
        assert not internals.takes_fused_path(nn.TransformerEncoderLayer(8, 2, **options).eval())
    assert not internals.takes_fused_path(layer.train())
    assert not internals.takes_fused_path(nn.MultiheadAttention(8, 2))


def test_operators_views_and_dictionaries() -> None:
    # Broken: see how `torch.library` reads the schema of an operator.
    assert internals.written_arguments(torch.ops.aten.add_.Tensor) == [(0, "self")]
    assert internals.written_arguments(torch.ops.aten.add.Tensor) == []
    # Broken: any number that two tensors of one storage share, whose storage may be empty, does.
    tensor = torch.zeros(4)
    assert internals.memory_of(tensor) == internals.memory_of(tensor[1:])
    assert internals.memory_of(tensor) != internals.memory_of(tensor.clone())
    # Broken: these are what `named_parameters` and `named_buffers` read; see there.
    module = nn.BatchNorm1d(2)
    assert internals.parameters_of(module)["weight"] is module.weight
    assert internals.buffers_of(module)["running_mean"] is module.running_mean


def test_trees_and_versions_of_tensors() -> None:
    # Broken: `torch.utils._pytree` has become public; `version_of` may return None for all, which
    # costs a clone of each tensor that is held.
    tensor = torch.zeros(2)
    assert internals.tree_leaves({"a": [tensor, 1]})[0] is tensor
    assert children([tensor])[0][1] is tensor
    before = version_of(tensor)
    tensor.add_(1)
    assert before is not None
    assert version_of(tensor) == before + 1


def test_sums_that_no_mode_sees() -> None:
    # Broken: see how the stacks of modes are read and written.
    seen = []

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    tensors = [torch.tensor([1.5, 2.0], requires_grad=True), torch.tensor([True, True])]
    with Watching():
        assert internals.sums_of(tensors) == ["3.5", "2"]
        assert not seen
        torch.add(1, 1)
    assert len(seen) == 1


def test_the_attention_of_a_transformers_model() -> None:
    # Broken: see what `set_attn_implementation` writes.
    model = make_llama()
    assert internals.attention_implementation(model) == "eager"
    model.set_attn_implementation("sdpa")
    assert internals.attention_implementation(model) == "sdpa"
    with pytest.raises(AttributeError):
        internals.attention_implementation(nn.Linear(1, 1))


def test_accelerate_hooks_load_and_refuse_to_move(tmp_path: Path) -> None:
    # Broken: see `add_hook_to_module`, `AlignDevicesHook` and `dispatch_model` of accelerate.
    model = make_llama()
    assert internals.accelerate_hook(model.lm_head) is None
    assert internals.refusals_to_move(model) == []
    accelerate.disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    hook = internals.loading_hook(model.lm_head)
    assert "lm_head.weight" in internals.offloaded_weights(hook)
    dispatched = accelerate.dispatch_model(make_llama(), {"": "disk"}, offload_dir=tmp_path)
    assert "to" in internals.refusals_to_move(dispatched)
    code = inspect.unwrap(type(hook).pre_forward).__code__
    assert internals.is_hook_of_accelerate(code)
    assert internals.is_loading(code)
    assert not internals.is_loading(make_llama.__code__)
    assert isinstance(code, types.CodeType)


def test_the_place_of_parameters_can_be_another() -> None:
    # Broken: find where `nn.Module.__getattr__` looks for parameters.
    layer = nn.Linear(2, 2)
    before, other = internals.parameters_of(layer), nn.Parameter(torch.zeros(2, 2))
    internals.set_parameters(layer, {**before, "weight": other})
    assert layer.weight is other
    internals.set_parameters(layer, before)
    assert layer.weight is before["weight"]


def test_hooks_before_a_forward_are_found_by_their_handle() -> None:
    # Broken: find where `nn.Module.register_forward_pre_hook` keeps them.
    layer, hook = nn.Linear(2, 2), lambda module, args: None
    handle = layer.register_forward_pre_hook(hook)
    assert internals.forward_pre_hooks(layer)[handle.id] is hook


@pytest.mark.covers
def test_a_program_is_read_with_the_containers_of_transformers(tmp_path: Path) -> None:
    # Broken: see `torch.export.load` for what it calls now, and the archive for its description.
    model, ids = make_llama(), torch.ones(1, 3, dtype=torch.long)
    with torch.no_grad():
        program = torch.export.export(model, (ids,), {"use_cache": False})
    file = tmp_path / "llama.pt2"
    torch.export.save(program, file)
    with zipfile.ZipFile(file) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("/models/model.json")]
        text = archive.read(name)
    assert internals._CONTAINERS.findall(text) == [b"transformers.modeling_outputs"]
    found = internals.load_program(file, text)
    assert torch.equal(found.module()(ids, use_cache=False).logits, model(ids).logits)
    in_spec, out_spec, names = internals.forward_spec(found.module().graph)
    assert in_spec is not None
    assert out_spec is not None
    assert names is not None
    assert "input_ids" in names
    graph = internals.graph_of(found.graph_module)
    assert internals.forward_spec(graph)[2] is None
