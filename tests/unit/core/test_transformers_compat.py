"""Private parts of transformers, accelerate and torch, each pinned by one test: what to do when a
release breaks it stands in the test."""

import copy
import functools

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

import wrappers
from tests.builders.llama import tiny, tokens, wrap
from wrappers.core import transformers_compat as compat


def test_outputs_inside_a_wrapper_can_be_recorded():
    """`_CAN_RECORD_REGISTRY` and `_can_record_outputs`: see in transformers'
    `utils/output_capturing.py` where a model notes, when it is constructed, what `capture_outputs`
    records, and note the same in `note_recordable_outputs`."""
    model = tiny()
    with torch.no_grad():
        expected, found = (
            candidate(tokens(1, 4), output_hidden_states=True).hidden_states
            for candidate in (model, wrap(model, "prefill"))
        )
    assert len(found) == len(expected) == 3


def test_the_note_of_installed_hooks_is_known_by_its_name():
    """`_output_capturing_hooks_installed`: find the attribute that `capture_outputs` sets on a
    model once its hooks are there, and leave that out in `without_recording_hooks`."""
    model = tiny()
    before = set(vars(model.model))
    with torch.no_grad():
        model(tokens(1, 4), output_hidden_states=True)
    noted = set(vars(model.model)) - before
    assert noted
    assert noted.isdisjoint(compat.without_recording_hooks(vars(model.model)))


@pytest.mark.parametrize(
    ("implementation", "eager"), [("eager", True), ("sdpa", False), (None, True)]
)
def test_the_implementation_of_attention(implementation, eager):
    """`_attn_implementation`: find how a config now names what `set_attn_implementation` has set,
    and read that in `attends_eagerly`."""
    config = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8
    )
    if implementation is not None:
        LlamaModel(config).set_attn_implementation(implementation)
    assert compat.attends_eagerly(config) == eager


def offloaded():
    accelerate = pytest.importorskip("accelerate")
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def test_the_hooks_of_accelerate():
    """`_hf_hook`, `_old_forward`, `offload` and `weights_map`: see in accelerate's `hooks.py` what
    `add_hook_to_module` puts on a module, and what an `AlignDevicesHook` keeps."""
    linear = offloaded()[0]
    assert compat.is_hooked(linear)
    assert compat.loading_hook(linear).weights_map["weight"].shape == (4, 4)
    assert compat.loading_hook(nn.Linear(2, 2)) is None


def test_what_accelerate_has_put_on_a_module_is_left_out():
    """Functions of accelerate are known by the module that they are defined in. If this fails, see
    in its `hooks.py` and `big_modeling.py` what stands before `forward` and `to`."""
    from accelerate import dispatch_model

    model = tiny()
    before = set(vars(model))
    dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    added = set(vars(model)) - before
    assert {"_hf_hook", "forward"} <= added
    assert added & set(compat.without_hook(vars(model))) <= {"hf_device_map"}
    own = {"act": functools.partial(torch.add), "name": "x", "forward": torch.relu}
    assert compat.without_hook(own) == own


def test_a_hook_is_taken_along():
    """`add_hook_to_module`: the one function of accelerate that puts a hook on a module."""
    source = offloaded()
    wrapped = wrappers.prepare(source, wrappers.PTQConfig())
    assert compat.loading_hook(wrapped[0]) is not compat.loading_hook(source[0])
    assert torch.equal(wrapped(torch.ones(1, 4)), source(torch.ones(1, 4)))


def test_a_module_loads_from_another_mapping():
    """`weights_map`, `tied_params_map` and `tied_params_names` of an `AlignDevicesHook`: see in
    accelerate's `hooks.py` what its `pre_forward` loads weights from."""
    source = offloaded()
    hook = compat.loading_hook(source[0])
    memo = {}
    compat.share_loaded(source[0], memo)
    copied = copy.deepcopy(source, memo)
    assert compat.loading_hook(copied[0]) is not hook
    assert compat.loading_hook(copied[0]).weights_map is hook.weights_map
    assert compat.loading_hook(copied[0]).tied_params_map is hook.tied_params_map
    expected = source(torch.ones(1, 4))
    zeros = {"weight": torch.zeros(4, 4), "bias": torch.zeros(4)}
    compat.load_from(copied[0], zeros, "weight")
    assert not copied(torch.ones(1, 4)).any()
    assert torch.equal(source(torch.ones(1, 4)), expected)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_a_convolution_with_another_weight(mode):
    """`_conv_forward`: torch's own forward of a convolution calls what replaces it."""
    module = nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode)
    x = torch.randn(1, 2, 5, 5)
    assert torch.equal(compat.convolved(module, x, module.weight), module(x))
    assert not torch.equal(compat.convolved(module, x, module.weight * 2), module(x))


def test_leaves_of_nested_outputs():
    """`torch.utils._pytree.tree_leaves`: `torch.export` flattens by what replaces it."""
    assert compat.tree_leaves({"a": (1, [2]), "b": None}) == [1, 2, None]
