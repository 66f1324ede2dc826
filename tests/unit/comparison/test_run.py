"""compare(): inputs of every kind, coverage that fails closed, and models left as they are."""

import copy
import math
from collections import UserDict
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import tracer
from tests.builders.comparing import agreed
from tracer.comparison.capturing import capture
from tracer.comparison.result import ROW_COLUMNS, Comparison
from tracer.comparison.run import compare
from tracer.diagnosis.gradients import GradientsAgree
from tracer.errors import InputError, ModelRunError, UsageError
from tracer.tensors.difference import Difference
from tracer.tensors.tolerance import Tolerance

X = torch.linspace(-1.0, 1.0, 32).reshape(4, 8)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Tanh(), nn.Linear(8, 8)))


def broken(model: nn.Sequential) -> nn.Sequential:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[1][1].weight[2, 3] += 0.5
    return other


class Named(nn.Module):
    """Takes arguments in several forms."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x, scale=1.0, *, shift=None):
        y = self.layer(x) * scale
        return y if shift is None else y + shift


class TestInputs:
    @pytest.mark.parametrize("inputs", [
        X, (X,), (X, 2.0), {"x": X}, {"x": X, "shift": torch.ones(8)}, UserDict(x=X, scale=3.0),
    ])  # fmt: skip
    def test_a_tensor_a_tuple_or_a_mapping(self, inputs) -> None:
        model = Named()
        assert agreed(model, copy.deepcopy(model), inputs).coverage.compared_calls == 2

    @pytest.mark.parametrize("inputs", [[X], None, 3, "text", {1, 2}])
    def test_other_types_are_refused(self, model: nn.Module, inputs: object) -> None:
        with pytest.raises(InputError, match="expected a dict of keyword arguments, a tuple"):
            compare(model, model, inputs)

    def test_a_name_that_forward_does_not_take(self) -> None:
        with pytest.raises(InputError, match=r"'shif'.*it takes x, scale, shift.*mean 'shift'"):
            compare(Named(), Named(), {"x": X, "shif": 1.0})

    @pytest.mark.parametrize("inputs", [(), (X, 1.0, 2.0), {}, torch.ones(3, 5)])
    def test_inputs_that_do_not_fit_are_the_references_matter(self, inputs) -> None:
        model = Named()
        with pytest.raises(ModelRunError, match="the reference raised") as caught:
            compare(model, copy.deepcopy(model), inputs)
        assert str(caught.value).endswith("the candidate raised too")

    def test_they_are_never_edited(self) -> None:
        class Edits(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(8, 8)

            def forward(self, x, states, options):
                x.mul_(0.0)
                states.append(self.layer(x))
                options["seen"] = True
                return states[-1]

        inputs = {"x": X.clone(), "states": [X.clone()], "options": {}}
        model = Edits()
        assert compare(model, model, inputs).verdict.agrees
        assert torch.equal(inputs["x"], X)
        assert len(inputs["states"]) == 1
        assert torch.equal(inputs["states"][0], X)
        assert inputs["options"] == {}

    def test_a_cache_is_as_it_was_and_both_sides_start_from_it(self) -> None:
        model = tiny_llama()
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(input_ids=torch.tensor([[1, 2, 3]]), past_key_values=cache)
        before = [layer.keys.clone() for layer in cache.layers]
        inputs = {"input_ids": torch.tensor([[4, 5]]), "past_key_values": cache}
        comparison = agreed(model, copy.deepcopy(model), inputs)
        assert cache.get_seq_length() == 3
        assert all(
            torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, before, strict=True)
        )
        row = next(r for r in comparison.rows if r.value.endswith("past_key_values.layers.1.keys"))
        assert row.shape == (1, 1, 3, 8)
        left = [r for r in comparison.rows if r.value == "written.past_key_values.layers.1.keys"]
        assert [(r.module, r.shape) for r in left] == [("model.layers.1.self_attn", (1, 1, 5, 8))]

    def test_a_tensor_given_twice_stays_one_tensor(self) -> None:
        class Same(nn.Module):
            def forward(self, x, y):
                return x + 1 if x is y else x - 1

        reference = Same()
        assert compare(reference, copy.deepcopy(reference), (X, X)).verdict.agrees
        captured = capture(reference, reference, (X, X), include="*")
        assert torch.equal(next(c for c in captured if c.value == "output").reference, X + 1)

    def test_gradients_and_dtypes(self, model: nn.Module) -> None:
        x = X.clone().requires_grad_()
        captured = capture(model, copy.deepcopy(model), x * 2, include="*")
        assert not any(c.reference.requires_grad or c.candidate.requires_grad for c in captured)
        assert all(p.grad is None for p in model.parameters())
        assert compare(model, copy.deepcopy(model), x).verdict.agrees
        reference = Named()
        candidate = copy.deepcopy(reference).bfloat16()
        comparison = agreed(reference, candidate, {"x": X, "shift": torch.arange(8)})
        row = next(r for r in comparison.rows if r.module == "layer" and r.value == "output")
        assert (row.dtype, row.candidate_dtype) == (torch.float32, torch.bfloat16)


class TestModelsAreLeftAsTheyAre:
    @pytest.mark.covers
    def test_running_statistics(self) -> None:
        model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).train()
        other = copy.deepcopy(model)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for candidate in (model, other, broken_norm(other)):
            compare(model, candidate, X)
            after = model.state_dict()
            assert all(torch.equal(after[name], value) for name, value in before.items())
            assert model.training
        model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True)).train()
        comparison = agreed(model, copy.deepcopy(model), X)
        assert all(row.difference.max == 0.0 for row in comparison.rows)

    @pytest.mark.parametrize("keep", ["attribute", "buffer", "edited buffer"])
    def test_a_recurrent_state(self, keep: str) -> None:
        """Each run begins with the state that the models had, so that the cause is confirmed."""
        model = Stateful(keep).eval()
        candidate = copy.deepcopy(model)
        with torch.no_grad():
            candidate.layer.weight[0, 0] += 1.0
        names = set(vars(model))
        state, version = model.state, model.layer.weight._version
        verdict = compare(model, candidate, X).verdict
        assert (verdict.origin.module, verdict.origin.kind) == ("layer", "parameter")
        assert verdict.confirmed
        assert "everything agrees" in verdict.explanation
        assert model.state is state
        assert torch.equal(state, torch.zeros(4, 8))
        assert (set(vars(model)), model.layer.weight._version) == (names, version)

    def test_buffers_also_after_a_failure(self) -> None:
        model = Named()
        model.register_buffer("table", torch.ones(3))
        model.eval()
        compare(model, copy.deepcopy(model), {"x": X})
        assert model.table._version == 0
        model = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(3, 3)).train()
        with pytest.raises(ModelRunError):
            compare(model, copy.deepcopy(model), X)
        assert int(model[0].num_batches_tracked) == 0
        assert float(model[0].running_mean.abs().sum()) == 0.0

    def test_parameters_after_a_confirmation(self, model: nn.Sequential) -> None:
        candidate = broken(model)
        before = [p for m in (model, candidate) for p in m.parameters()]
        values = [p.clone() for p in before]
        assert compare(model, candidate, X).verdict.confirmed
        after = [p for m in (model, candidate) for p in m.parameters()]
        assert all(one is other for one, other in zip(after, before, strict=True))
        assert all(torch.equal(p, value) for p, value in zip(after, values, strict=True))


class Stateful(nn.Module):
    """Adds up what it has seen, in an attribute or a buffer."""

    def __init__(self, keep: str) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.keep = keep
        if keep == "attribute":
            self.state = torch.zeros(4, 8)
        else:
            self.register_buffer("state", torch.zeros(4, 8))

    def forward(self, x):
        self.seen = x
        if self.keep == "edited buffer":
            self.state += self.layer(x)
        else:
            self.state = self.state + self.layer(x)
        return self.state * 2


def broken_norm(model: nn.Sequential) -> nn.Sequential:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[1].weight[0] += 0.5
    return other


class TestCoverage:
    def test_everything(self, model: nn.Module) -> None:
        coverage = compare(model, copy.deepcopy(model), X).coverage
        assert tuple(coverage.paired_modules) == ("", "0", "1", "1.0", "1.1")
        assert coverage.reference_only == coverage.candidate_only == ()
        assert coverage.reasons == {}
        assert coverage.compared_calls == 5
        # The input, and the outputs of `0`, `1.0` and `1.1`; those of `1` and the root are 1.1's.
        assert (coverage.compared_elements, coverage.unmatched_calls) == (4 * 32, ())
        assert str(coverage) == "5 of 5 modules, 5 calls, 128 elements compared"

    def test_modules_on_one_side_only_are_named_with_the_reason(self, model: nn.Module) -> None:
        candidate = copy.deepcopy(model)
        candidate[1][0] = nn.Sequential()
        candidate.extra = nn.Identity()
        coverage = compare(model, candidate, X, confirm=False).coverage
        assert (coverage.reference_only, coverage.candidate_only) == ((), ("extra",))
        assert coverage.reasons == {"extra": "the reference has no such module"}
        coverage = compare(candidate, model, X, confirm=False).coverage
        assert coverage.reference_only == ("extra",)
        assert coverage.reasons == {"extra": "the candidate has no such module"}
        assert "1 modules in the candidate only" not in str(coverage)

    def test_what_a_compiled_child_hides_and_what_it_does_not(self, model: nn.Module) -> None:
        candidate = copy.deepcopy(model)
        candidate[1] = torch.compile(candidate[1], backend="eager")
        reference = copy.deepcopy(model)
        reference.extra = nn.Identity()
        coverage = compare(reference, candidate, X).coverage
        assert tuple(coverage.paired_modules) == ("", "0", "1")
        assert coverage.reference_only == ("1.0", "1.1", "extra")
        assert (
            coverage.reasons["1.1"] == "hidden: `1` of the candidate is compiled, scripted or fused"
        )
        assert coverage.reasons["extra"] == "the candidate has no such module"

    def test_modules_that_the_other_side_does_not_call(self, model: nn.Module) -> None:
        class Skips(nn.Sequential):
            def forward(self, x):
                return self[1][1](torch.tanh(self[0](x)))

        candidate = Skips(*copy.deepcopy(model))
        coverage = compare(model, candidate, X).coverage
        assert coverage.reference_only == ("1", "1.0")
        assert set(coverage.reasons.values()) == {"called by the reference, not by the candidate"}
        coverage = compare(candidate, model, X).coverage
        assert coverage.candidate_only == ("1", "1.0")
        assert set(coverage.reasons.values()) == {"called by the candidate, not by the reference"}

    def test_data_parallel_prefixes_and_rename_rules(self, model: nn.Module) -> None:
        coverage = compare(model, nn.DataParallel(copy.deepcopy(model)), X).coverage
        assert tuple(coverage.paired_modules) == ("", "0", "1", "1.0", "1.1")
        assert coverage.candidate_only == ("module",)
        candidate = nn.Module()
        candidate.first, candidate.second = copy.deepcopy(model[0]), copy.deepcopy(model[1])
        candidate.forward = lambda input: candidate.second(candidate.first(input))  # noqa: A006
        comparison = agreed(model, candidate, X, rename={"^first": "0", "^second": "1"})
        assert tuple(comparison.coverage.paired_modules) == ("", "0", "1", "1.0", "1.1")

    def test_a_counterpart_of_another_shape_is_a_divergence(self, model: nn.Module) -> None:
        class Narrow(nn.Sequential):
            def forward(self, x):
                return nn.functional.pad(super().forward(x), (0, 4))

        comparison = compare(
            nn.Sequential(nn.Linear(8, 8)), Narrow(nn.Linear(8, 4)), X, confirm=False
        )
        assert comparison.verdict.symptom.module == "0"
        assert comparison.verdict.symptom.peir == math.inf


class TestOptions:
    def test_include_keeps_the_rows_of_some_modules(self, model: nn.Module) -> None:
        comparison = compare(model, copy.deepcopy(model), X, include="1.*")
        assert {row.module for row in comparison.rows} == {"1.0", "1.1"}
        comparison = compare(model, copy.deepcopy(model), X, include=["0", "1.1"])
        assert {row.module for row in comparison.rows} == {"0", "1.1"}
        assert {row.module for row in compare(model, model, X).rows} == {"", "0", "1", "1.0", "1.1"}
        with pytest.raises(UsageError, match=r"'2\.\*' matches none of the 5 modules"):
            compare(model, model, X, include=["0", "2.*"])

    @pytest.mark.covers
    def test_a_tolerance_may_be_a_number_or_a_tolerance(self, model: nn.Module) -> None:
        candidate = broken(model)
        assert not compare(model, candidate, X).verdict.agrees
        assert compare(model, candidate, X, tolerance=0.9).verdict.agrees
        assert compare(model, candidate, X, tolerance=Tolerance(0.9)).verdict.agrees
        assert compare(model, model, X, tolerance=0.0).verdict.agrees
        with pytest.raises(UsageError, match="expected a finite PEIR"):
            compare(model, model, X, tolerance=-1.0)

    @pytest.mark.covers
    def test_runs_and_finished_calls_are_counted(self, model: nn.Sequential) -> None:
        candidate, runs = broken(model), []
        candidate[0].register_forward_hook(lambda *_: runs.append(1))
        comparison = compare(model, candidate, X, confirm=False)
        assert len(runs) == 1
        assert not comparison.verdict.confirmed
        assert compare(model, candidate, X).verdict.confirmed
        assert len(runs) > 2
        counts: list[int] = []
        compare(model, copy.deepcopy(model), X, progress=counts.append)
        assert counts == [1, 2, 3, 4, 5]


def test_the_statistics_are_those_of_an_untraced_run(model: nn.Sequential) -> None:
    candidate = broken(model)
    comparison = compare(model, candidate, X)
    with torch.no_grad():
        expected = Difference.of(model(X), candidate(X))
    assert [row for row in comparison.rows if row.module == ""][-1].difference == expected
    assert not comparison.verdict.agrees


class TestFrame:
    def test_one_row_per_leaf_with_the_columns_first(self, model: nn.Sequential) -> None:
        comparison = compare(model, broken(model), X, confirm=False)
        frame = comparison.to_frame()
        assert isinstance(frame, pandas.DataFrame)
        assert tuple(frame.columns) == ROW_COLUMNS
        assert list(frame.columns)[:13] == [
            *("module", "call", "value", "shape", "dtype", "mean", "min", "max", "stddev"),
            *("peir", "sqnr", "cosine", "agrees"),
        ]
        assert len(frame) == len(comparison.rows)
        row, kept = frame.iloc[-1], comparison.rows[-1]
        assert (row["module"], row["value"], row["shape"]) == ("", "output", (4, 8))
        assert row["peir"] == kept.difference.peir
        assert (row["stddev"], row["dtype"]) == (kept.difference.stddev, "float32")
        assert list(frame["agrees"]) == [r.agrees for r in comparison.rows]

    def test_rows_without_numbers(self, model: nn.Sequential) -> None:
        class Narrow(nn.Sequential):
            def forward(self, x):
                return super().forward(x)[:2]

        comparison = compare(model, Narrow(*copy.deepcopy(model)), X, confirm=False)
        row = comparison.to_frame().iloc[-1]
        assert row["peir"] == math.inf
        assert pandas.isna(row["mean"])
        assert not row["agrees"]
        assert row["note"] == "shape [4, 8]; candidate [2, 8]"

    def test_a_comparison_without_rows_has_the_columns_all_the_same(self) -> None:
        comparison = compare(nn.Identity(), nn.Identity(), X)
        empty = Comparison(comparison.verdict, comparison.coverage, (), ())
        assert tuple(empty.to_frame().columns) == ROW_COLUMNS


class TestCapture:
    def test_copies_that_later_edits_do_not_reach(self, model: nn.Sequential) -> None:
        candidate = broken(model)
        captured = capture(model, candidate, X, include="1.1")
        assert [(c.module, c.call, c.value) for c in captured] == [
            ("1.1", 0, "kwargs.input"),
            ("1.1", 0, "output"),
        ]
        with torch.no_grad():
            assert torch.equal(captured[1].reference, model(X))
            assert torch.equal(captured[1].candidate, candidate(X))
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True))
        captured = capture(model, copy.deepcopy(model), X, include="0")
        with torch.no_grad():
            assert torch.equal(captured[1].reference, model[0](X))
        with pytest.raises(ModelRunError):
            capture(model, model, torch.ones(3, 5), include="*")


def test_a_failure_keeps_what_was_compared(model: nn.Sequential) -> None:
    candidate = copy.deepcopy(model)
    candidate[1][1] = nn.Linear(3, 3)
    with pytest.raises(ModelRunError) as caught:
        compare(model, candidate, X)
    comparison = caught.value.comparison
    assert "the candidate raised RuntimeError in module '1.1' (Linear, call 0)" in str(caught.value)
    assert {"0", "1.0"} <= {row.module for row in comparison.rows}
    assert comparison.coverage.compared_elements > 0


def test_weights_without_values_and_formats_that_there_are_not(model, tmp_path: Path) -> None:
    candidate = copy.deepcopy(model)
    candidate[1][1].to("meta")
    with pytest.raises(ModelRunError, match="on the meta device and hold no values: load the"):
        compare(model, candidate, X)
    with pytest.raises(UsageError, match=r"the candidate holds '0.weight', which has no shape yet"):
        compare(model, nn.Sequential(nn.LazyLinear(8)), X)
    with pytest.raises(UsageError):
        compare(model, model, X).save(tmp_path / "report.xyz")


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_padded_llama_agrees_with_another_attention(implementation: str) -> None:
    reference = tiny_llama()
    reference.set_attn_implementation("eager")
    candidate = copy.deepcopy(reference)
    candidate.set_attn_implementation(implementation)
    inputs = {
        "input_ids": torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(0)),
        "attention_mask": torch.tensor([[1] * 9, [0] * 4 + [1] * 5, [0] * 2 + [1] * 7]),
    }
    comparison = agreed(reference, candidate, inputs)
    assert all(row.agrees for row in comparison.rows)
    assert comparison.coverage.reference_only == ()


class Drops(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.share = share

    def forward(self, x):
        x = nn.functional.dropout(self.first(x), self.share, training=True)
        return x + float(np.random.rand())


class TestRandomNumbersInEvaluation:
    @pytest.mark.parametrize("share", [0.5, 0.0])
    def test_a_model_that_draws_is_not_called_equal_to_itself(self, share: float) -> None:
        model = Drops(share).eval()
        verdict = tracer.compare(model, copy.deepcopy(model), torch.randn(2, 8)).verdict
        assert verdict.agrees
        assert "The candidate draws random numbers in evaluation" in verdict.explanation
        assert "each may differ even from itself" in verdict.explanation

    def test_nothing_is_said_in_training_or_without(self) -> None:
        net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
        for train in (True, False):
            models = [copy.deepcopy(net).train(train) for _ in range(2)]
            verdict = tracer.compare(*models, torch.randn(2, 8), train=train).verdict
            assert verdict.agrees
            assert list(map(type, verdict.beside)) == ([GradientsAgree] if train else [])


class Casts(nn.Module):
    """A model under autocast, or of which a part is, or whose own code casts down."""

    def __init__(self, *, autocast: bool = False, part: bool = False, casts: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(32, 32), nn.Sequential(nn.Linear(32, 32))
        self.third = nn.Linear(32, 32)
        self.autocast, self.casts = autocast, casts
        if part:
            self.second.forward = self.in_part

    def in_part(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.second[0](x).float()

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            x = self.second(self.first(x)).float()
        x = x.bfloat16().float() if self.casts else x
        return self.third(x)


@pytest.mark.parametrize(
    ("reference", "candidate", "agrees"),
    [
        ({}, {"autocast": True}, True),
        ({"autocast": True}, {}, True),
        ({"autocast": True}, {"autocast": True}, True),
        ({}, {"casts": True}, False),
        ({}, {"part": True}, False),
    ],
)
def test_the_rounding_of_autocast_agrees_and_that_of_a_cast_does_not(
    reference, candidate, agrees
) -> None:
    verdict = tracer.compare(Casts(**reference), Casts(**candidate), torch.randn(4, 32)).verdict
    assert verdict.agrees is agrees


@pytest.mark.parametrize("raising", ["reference", "candidate"])
def test_models_of_which_one_raises_do_not_agree(raising: str) -> None:
    class Raises(nn.Linear):
        def forward(self, x):
            raise ValueError("no")

    models = {side: nn.Sequential(nn.Linear(4, 4)) for side in ("reference", "candidate")}
    models[raising][0] = Raises(4, 4)
    with pytest.raises(ModelRunError) as raised:
        tracer.compare(**models, inputs=torch.randn(2, 4))
    assert not raised.value.comparison.verdict.agrees
