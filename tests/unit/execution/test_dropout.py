"""Training mode: dropout is refused unless asked for, and then drops alike on both sides."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaModel

import tracer
from tests.builders.comparing import agreed
from tracer.execution.dropout import Dropout, active_dropout

X = torch.linspace(-1.0, 1.0, 24).reshape(3, 8)
TOKENS = {"input_ids": torch.arange(12).view(2, 6)}
SIZES = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 50}


def gpt2() -> nn.Module:
    names = {"bos_token_id": 0, "eos_token_id": 1, "n_positions": 16}
    return GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50, attn_pdrop=0.3, **names)
    )


def bert() -> nn.Module:
    return BertModel(BertConfig(**SIZES, intermediate_size=24, attention_probs_dropout_prob=0.3))


def llama() -> nn.Module:
    return LlamaModel(LlamaConfig(**SIZES, intermediate_size=24, attention_dropout=0.3))


def trained(make: Callable[[], nn.Module], attention: str = "eager") -> nn.Module:
    torch.manual_seed(0)
    model = make().train()
    model.set_attn_implementation(attention)
    return model


class Siblings(nn.Module):
    """Two branches, each with dropout of its own, and dropout in its own forward."""

    def __init__(self, order: str = "ab", draws: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(0.5))
        self.b = copy.deepcopy(self.a)
        self.order, self.draws = order, draws

    def forward(self, x):
        found = {}
        for name in self.order:
            torch.rand(self.draws)
            found[name] = self.get_submodule(name)(x)
        return functional.dropout(found["a"] - found["b"], 0.5, self.training)


class TestActiveDropout:
    @pytest.mark.parametrize(("module", "found"), [
        (nn.Dropout(0.25), Dropout("0", "p", 0.25)), (nn.AlphaDropout(0.1), Dropout("0", "p", 0.1)),
        (nn.Dropout2d(1), Dropout("0", "p", 1)),
        (nn.MultiheadAttention(4, 2, dropout=0.1), Dropout("0", "dropout", 0.1)),
        (nn.LSTM(4, 4, num_layers=2, dropout=0.1), Dropout("0", "dropout", 0.1)),
        (nn.Dropout(0.0), None), (nn.GRU(4, 4), None), (nn.MultiheadAttention(4, 2), None),
        (nn.Linear(4, 4), None),
    ])  # fmt: skip
    def test_of_torch(self, module: nn.Module, found: Dropout | None) -> None:
        model = nn.Sequential(module)
        assert next(active_dropout(model.train()), None) == found
        assert not any(active_dropout(model.eval()))

    def test_rates_of_modules(self) -> None:
        model = llama().train()
        assert next(active_dropout(model)) == Dropout(
            "layers.0.self_attn", "attention_dropout", 0.3
        )
        assert len(list(active_dropout(model))) == 2
        module = nn.GRU(4, 4, num_layers=2, dropout=0.1)
        module.num_layers = 1
        assert not any(active_dropout(module))
        model = nn.Linear(4, 4)
        model.drop_last, model.dropouts, model.rate, model.drop_prob = True, 3, 0.5, None
        assert not any(active_dropout(model))


class TestRefused:
    def test_without_being_asked_for(self) -> None:
        model = Siblings()
        with pytest.raises(
            tracer.UsageError, match=r"`a\.1` drops out \(p 0\.5\) in the reference"
        ):
            tracer.compare(model, copy.deepcopy(model), X)
        model = Siblings()
        with pytest.raises(tracer.UsageError, match=r"in the candidate, .* call \.eval\(\)"):
            tracer.compare(copy.deepcopy(model).eval(), model, X)
        model = Siblings().eval()
        with pytest.raises(tracer.UsageError, match="neither model is in training mode"):
            tracer.compare(model, copy.deepcopy(model), X, train=True)

    def test_recordings_and_two_devices(self, tmp_path) -> None:
        model = nn.Linear(8, 8)
        tracer.record(model, X, tmp_path / "run.trace")
        with pytest.raises(tracer.UsageError, match="random numbers are not known"):
            tracer.compare(tracer.open_trace(tmp_path / "run.trace"), model, train=True)
        model = Siblings()
        other = copy.deepcopy(model).to("meta")
        other.a = nn.Linear(8, 8)
        other.a.weight = Elsewhere(other.a.weight)
        with pytest.raises(tracer.UsageError, match="are on cpu and cuda, which never draw"):
            tracer.compare(model, other, X, train=True)


class Elsewhere(nn.Parameter):
    """A parameter that says that it is on a GPU."""

    device = torch.device("cuda")


class TestAlike:
    @pytest.mark.parametrize("make", [gpt2, bert, llama])
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_a_copy(self, make: Callable[[], nn.Module], attention: str) -> None:
        model = trained(make)
        candidate = copy.deepcopy(model)
        candidate.set_attn_implementation(attention)
        comparison = agreed(model, candidate, TOKENS, train=True)
        assert model.training
        if attention == "eager":
            assert all(row.error == 0.0 for row in comparison.rows)

    def test_what_is_dropped_in_any_order_and_under_other_names(self) -> None:
        model = nn.Sequential(nn.Dropout(0.5))
        captured = tracer.capture(model, copy.deepcopy(model), torch.ones(1000), include="0")
        (output,) = (value for value in captured if value.value == "output")
        assert 400 < int((output.candidate == 0).sum()) < 600
        assert torch.equal(output.reference, output.candidate)
        comparison = agreed(Siblings("ab"), Siblings("ba"), X, train=True)
        assert all(row.error == 0.0 for row in comparison.rows)

    def test_draws_in_between(self) -> None:
        comparison = tracer.compare(Siblings(), Siblings(draws=5), X, train=True)
        # What the root draws before its own dropout is part of its own forward.
        assert comparison.verdict.origin is not None
        assert comparison.verdict.origin.module == ""
        assert all(row.agrees for row in comparison.rows if row.module)

    def test_modules_that_are_not_compared_draw_alike_too(self) -> None:
        both = Siblings("ab"), Siblings("ba")
        comparison = tracer.compare(*both, X, train=True, include=["a", "b"])
        assert comparison.verdict.agrees
        assert {row.module for row in comparison.rows} == {"a", "b"}

    def test_other_names(self) -> None:
        candidate = nn.Module()
        candidate.first, candidate.second = Siblings().a, Siblings().b
        candidate.forward = lambda x: functional.dropout(
            candidate.first(x) - candidate.second(x), 0.5
        )
        rename = {"^first": "a", "^second": "b"}
        agreed(Siblings(), candidate, X, train=True, rename=rename)

    def test_draws_in_between_and_in_modules_that_are_not_compared(self) -> None:
        comparison = tracer.compare(Siblings(), Siblings(draws=5), X, train=True)
        # What the root draws before its own dropout is part of its own lines.
        assert comparison.verdict.origin is not None
        assert comparison.verdict.origin.module == ""
        assert all(row.agrees for row in comparison.rows if row.module)
        both = Siblings("ab"), Siblings("ba")
        comparison = agreed(*both, X, train=True, include=["a", "b"])
        assert {row.module for row in comparison.rows} == {"a", "b"}

    def test_each_call_of_a_module_draws_other_numbers(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.drop = nn.Dropout(0.5)

            def forward(self, x):
                return torch.stack([self.drop(x), self.drop(x)])

        model = Twice()
        captured = tracer.capture(model, copy.deepcopy(model), torch.ones(100), include="drop")
        first, second = (value.candidate for value in captured if value.value == "output")
        assert not torch.equal(first, second)

    def test_after_an_exception_that_the_model_catches(self) -> None:
        class Careful(nn.Module):
            def __init__(self, tries: int) -> None:
                super().__init__()
                self.inner, self.drop, self.tries = nn.Linear(8, 8), nn.Dropout(0.5), tries

            def forward(self, x):
                for _ in range(self.tries):
                    try:
                        self.inner(x[:, 1:])
                    except RuntimeError:
                        torch.rand(1)
                return self.drop(x)

        agreed(Careful(0), Careful(2), X, train=True, include="drop")

    def test_another_seed_drops_other_elements(self) -> None:
        model = nn.Sequential(nn.Dropout(0.5))
        dropped = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            captured = tracer.capture(model, copy.deepcopy(model), torch.ones(100), include="0")
            dropped.append(captured[-1].candidate)
        assert torch.equal(dropped[0], dropped[1])
        assert not torch.equal(dropped[0], dropped[2])


class TestFound:
    @pytest.mark.parametrize(("make", "module", "setting"), [
        (gpt2, "transformer.h.1.mlp.dropout", "p"),
        (llama, "layers.1.self_attn", "attention_dropout"),
    ])  # fmt: skip
    def test_another_rate(self, make: Callable[[], nn.Module], module: str, setting: str) -> None:
        model = trained(make)
        candidate = copy.deepcopy(model)
        setattr(candidate.get_submodule(module), setting, 0.6)
        verdict = tracer.compare(model, candidate, TOKENS, train=True).verdict
        assert verdict.origin is not None
        assert verdict.origin.module == module
        assert verdict.confirmed
        assert f"Its `{setting}` is" in verdict.explanation

    def test_a_weight(self) -> None:
        model = trained(gpt2)
        candidate = copy.deepcopy(model)
        with torch.no_grad():
            candidate.transformer.h[1].mlp.c_fc.weight[0] += 1.0
        verdict = tracer.compare(model, candidate, TOKENS, train=True).verdict
        assert verdict.origin is not None
        assert (verdict.origin.module, verdict.origin.kind) == (
            "transformer.h.1.mlp.c_fc",
            "parameter",
        )
        assert verdict.confirmed


def test_running_statistics_are_put_back() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert tracer.compare(model, copy.deepcopy(model), X, train=True).verdict.agrees
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.covers
def test_the_noise_floor_and_isolation_draw_alike() -> None:
    model = trained(bert)
    candidate = copy.deepcopy(model).bfloat16()
    options = {"train": True, "noise_floor": True, "isolate": "leaves", "what_if": 1}
    comparison = agreed(model, candidate, TOKENS, **options)
    floors = [row.floor for row in comparison.rows if row.floor is not None]
    assert floors
    assert max(floors) < 1e-4
    assert comparison.isolation is not None
    assert max(call.introduced for call in comparison.isolation.calls) < 0.05
