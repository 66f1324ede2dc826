"""What all runs of a comparison share: pairs, inputs that fit both sides, and names by globs."""

import pytest
import torch
from torch import nn

from tracer.errors import InputError, ModelRunError, UsageError
from tracer.execution.hooks import Phase
from tracer.execution.session import (
    Session,
    matching,
    matching_pairs,
    named_modules,
    run_alone,
    working_dtype,
)
from tracer.execution.stepping import Stepping

X = torch.ones(2, 4)


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh()).to(dtype)


def test_names_and_dtypes() -> None:
    assert Session(net(), net(), X, None, "*").pairs == {"": "", "0": "0", "1": "1"}
    assert Session(net(), net(), X, None, ["0"]).pairs == {"0": "0"}
    fits = Session(net(), net(torch.bfloat16), X, None, "*").adapt_inputs
    assert fits(X).dtype == torch.bfloat16
    assert fits(X.double()).dtype == torch.float64  # not what the reference works in
    assert fits(torch.ones(1, dtype=torch.int64)).dtype == torch.int64


@pytest.mark.parametrize(
    ("inputs", "given"), [(X, (X,)), ((X,), (X,)), ({"input": X}, {"input": X})]
)
def test_inputs_in_every_form(inputs: object, given: object) -> None:
    assert Session(net(), net(), inputs, None, "*").given == given


@pytest.mark.parametrize(("inputs", "message"), [
    (None, "inputs are a NoneType; expected a dict"),
    ([X], "inputs are a list; expected a dict"),
    ({"inptu": X}, "'inptu', which forward of Sequential does not take.*'input'"),
])  # fmt: skip
def test_inputs_that_are_refused(inputs: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Session(net(), net(), inputs, None, "*")


def test_lazy_modules_globs_and_dtypes() -> None:
    with pytest.raises(UsageError, match=r"the candidate holds '0\.weight', which has no shape"):
        Session(net(), nn.Sequential(nn.LazyLinear(4), nn.Tanh()), X, None, "*")
    names = ["", "layers.0.mlp", "layers.1.mlp", "norm"]
    assert matching("layers.*.mlp", names) == ["layers.0.mlp", "layers.1.mlp"]
    with pytest.raises(UsageError, match=r"'\*\.mpl' matches none of the 4 .* mean '\*mlp'"):
        matching("*.mpl", names)
    mixed = nn.Sequential(nn.Linear(64, 64).bfloat16(), nn.LayerNorm(64))
    assert working_dtype(mixed) == torch.bfloat16
    assert working_dtype(nn.Tanh()) is None


class TestRunAlone:
    def test_a_listener_sees_each_call_and_nothing_changes(self) -> None:
        model, seen = net(), []
        state, x = torch.get_rng_state(), X.clone()
        run_alone(model, x, lambda call, phase: seen.append((call.name, phase)))
        start, end = Phase.START, Phase.END
        assert seen == [
            *[("", start), ("0", start), ("0", end)],
            *[("1", start), ("1", end), ("", end)],
        ]
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(x, X)
        assert not any(module._forward_hooks for module in model.modules())

    def test_a_model_that_raises(self) -> None:
        with pytest.raises(ModelRunError, match="the model raised RuntimeError in module '0'"):
            run_alone(net(), torch.ones(2, 5), lambda call, phase: None)


def test_modules_of_two_stages_go_by_stage() -> None:
    assert list(named_modules(net())) == ["", "0", "1"]
    assert list(named_modules(Stepping(nn.Tanh(), nn.Tanh(), steps=1)))[-2:] == [
        *("prefill", "decode")
    ]


PAIRS = {
    "body": "model", "blocks.0": "layers.0", "blocks.1": "layers.1", "layers.0": "layers.2",
    "qkv[query]": "query", "qkv[key]": "key",
}  # fmt: skip


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("layers.*", ["layers.0", "layers.1", "layers.2"]),
        ("blocks.*", ["layers.0", "layers.1"]),
        ("body", ["model"]),
        ("layers.0", ["layers.0"]),  # the reference's name comes first
        ("qkv", ["query", "key"]),
        ("qkv[key]", ["key"]),
    ],
)
def test_either_sides_names(glob: str, found: list[str]) -> None:
    assert matching_pairs(glob, PAIRS) == found


def test_neither_sides_name_is_refused_with_near_ones_of_both() -> None:
    with pytest.raises(UsageError, match=r"'block\.0' matches none of the 6 .* mean 'blocks\.0'"):
        matching_pairs("block.0", PAIRS)
