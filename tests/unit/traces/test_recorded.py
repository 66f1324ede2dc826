"""Recordings in the place of a model: compared as the model itself would be."""

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import tracer
from tests.builders.comparing import agreed
from tests.builders.small_net import Net, X, recorded
from tests.builders.traces import as_format_2
from tracer.choices import VALUES
from tracer.comparison.result import Comparison
from tracer.errors import InputError, ModelRunError, NothingComparedError, StorageError, UsageError
from tracer.execution.hooks import Phase
from tracer.measurement.remarks import Remark, RemarkKind
from tracer.measurement.rows import Row
from tracer.models import Stepping, ending_in_steps
from tracer.models.candidates import candidate
from tracer.models.loading import load
from tracer.traces.recorded import Playback, Recorded, open_trace

TINY = ("tiny-llama", "tiny-qwen3-vl")


def places(comparison: Comparison) -> list[Row]:
    """The rows without what depends on where tensors live."""
    return [replace(row, remarks=(), sample=None) for row in comparison.rows]


class TestSameAsTheModel:
    @pytest.mark.parametrize("name", TINY)
    @pytest.mark.parametrize("kind", ["wrapped", "bfloat16", "sdpa"])
    def test_a_recorded_reference(self, tmp_path: Path, name: str, kind: str) -> None:
        loaded = load(name)
        other = candidate(loaded, kind)
        live = tracer.compare(loaded.model, other, loaded.inputs)
        again = tracer.compare(recorded(loaded.model, loaded.inputs, tmp_path / "a"), other)
        assert (places(again), again.coverage) == (places(live), live.coverage)
        assert again.verdict.agrees == live.verdict.agrees
        assert again.form_differences == live.form_differences

    @pytest.mark.covers
    @pytest.mark.parametrize("kind", ["wrapped", "float16"])
    def test_a_recorded_candidate(self, tmp_path: Path, kind: str) -> None:
        loaded = load("tiny-llama", batch=2)
        other = candidate(loaded, kind)
        live = tracer.compare(loaded.model, other, loaded.inputs, confirm=False)
        trace = recorded(other, loaded.inputs, tmp_path / "a")
        again = tracer.compare(loaded.model, trace)
        assert [row.peir for row in again.rows] == [row.peir for row in live.rows]
        assert again.verdict.symptom == live.verdict.symptom
        both = tracer.compare(recorded(loaded.model, loaded.inputs, tmp_path / "b"), trace)
        assert [row.peir for row in both.rows] == [row.peir for row in live.rows]

    def test_a_real_checkpoint(self, tmp_path: Path, shared_data: Path) -> None:
        loaded = load(shared_data / "stories260K" / "hf")
        again = agreed(recorded(loaded.model, loaded.inputs, tmp_path / "a"), loaded.model)
        assert all(row.peir == 0.0 for row in again.rows)
        assert len(again.coverage.paired_modules) == len(list(loaded.model.modules()))

    @pytest.mark.covers
    def test_a_model_that_steps(self, tmp_path: Path) -> None:
        loaded = load("tiny-llama", batch=2)
        inputs = ending_in_steps(loaded.inputs, 3)
        model = Stepping(loaded.model, steps=3)
        trace = recorded(model, inputs, tmp_path / "a")
        live = tracer.compare(model, Stepping(loaded.model, steps=3), inputs)
        again = tracer.compare(trace, Stepping(loaded.model, steps=3))
        assert places(again) == places(live)
        assert {row.call for row in again.rows} == {0, 1, 2, 3}
        written = [row for row in again.rows if row.is_written]
        assert written
        assert all(row.agrees for row in written)

    @pytest.mark.covers
    def test_the_same_mistake_is_found_and_confirmed(self, tmp_path, net, broken) -> None:
        live = tracer.compare(net, broken, X).verdict
        again = tracer.compare(recorded(net, X, tmp_path / "a"), broken).verdict
        assert again.confirmed
        assert (again.symptom, again.origin) == (live.symptom, live.origin)
        assert again.origin.kind == "parameter"
        assert "`weight` differs (its checksum is not the recorded one)" in again.explanation
        assert "1 of 6 parameters are not those recorded: `block.second.weight`" in (
            again.explanation
        )

    @pytest.mark.covers
    def test_a_mistake_in_the_lines_of_a_module(self, tmp_path, net) -> None:
        class Doubled(Net):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.last(self.block(x, scale=4.0))

        other = copy.deepcopy(net)
        other.__class__ = Doubled
        live = tracer.compare(net, other, X).verdict
        again = tracer.compare(recorded(net, X, tmp_path / "a"), other).verdict
        assert (again.confirmed, again.origin) == (live.confirmed, live.origin)
        assert again.origin.reference_line == live.origin.reference_line
        assert "parameters are not those recorded" not in again.explanation

    def test_isolation_with_a_recorded_reference(self, tmp_path: Path) -> None:
        loaded = load("tiny-llama")
        other = candidate(loaded, "bfloat16")
        live = tracer.compare(loaded.model, other, loaded.inputs, isolate="blocks").isolation
        trace = recorded(loaded.model, loaded.inputs, tmp_path / "a")
        again = tracer.compare(trace, other, isolate="blocks").isolation
        assert len(live.modules) > 3
        assert [(i.module, i.share) for i in again.modules] == [
            (i.module, i.share) for i in live.modules
        ]


class TestRecordedCandidate:
    def test_its_cause_stays_a_suspect(self, tmp_path, net, broken) -> None:
        verdict = tracer.compare(net, recorded(broken, X, tmp_path / "a")).verdict
        assert not verdict.confirmed
        assert verdict.symptom.module == "block.second"
        assert "Not confirmed: the candidate is a recording, which cannot be run again." in (
            verdict.explanation
        )

    @pytest.mark.parametrize(("options", "message"), [
        ({"isolate": "leaves"}, "isolate: the candidate is a recording"),
        ({"breakpoints": "*"}, "the debugger stands in the candidate's code"),
        ({"post_mortem": True}, "the debugger stands in the candidate's code"),
        ({"zoom": ""}, "zoom looks at the operations of both models"),
    ])  # fmt: skip
    def test_what_cannot_be_asked_for(self, tmp_path, net, options, message) -> None:
        trace = recorded(net, X, tmp_path / "a")
        with pytest.raises(UsageError, match=message):
            tracer.compare(net, trace, **options)

    def test_the_noise_floor_of_the_reference(self, tmp_path, net) -> None:
        comparison = tracer.compare(net, recorded(net, X, tmp_path / "a"), noise_floor=True)
        assert any(row.floor for row in comparison.rows)


class TestRecordedReference:
    @pytest.mark.parametrize("option", [{"noise_floor": True}, {"what_if": 1}])
    def test_what_cannot_be_asked_for(self, tmp_path, net, option) -> None:
        trace = recorded(net, X, tmp_path / "a")
        with pytest.raises(UsageError, match="runs the reference's modules, and it is a recording"):
            tracer.compare(trace, net, **option)

    @pytest.mark.parametrize("values", ["outputs", "fingerprints"])
    def test_less_than_all_cannot_be_run_with(self, tmp_path, net, broken, values) -> None:
        trace = recorded(net, X, tmp_path / "a", values=values)
        verdict = tracer.compare(trace, broken).verdict
        assert not verdict.agrees
        assert verdict.symptom.module == "block.second"
        assert not verdict.confirmed
        assert "Not confirmed: the recording of the reference holds" in verdict.explanation
        with pytest.raises(UsageError, match="which nothing can be run with"):
            tracer.compare(trace, net, isolate="leaves")

    def test_outputs_and_values_alone(self, tmp_path, net, broken) -> None:
        trace = recorded(net, X, tmp_path / "a", values="outputs")
        comparison = tracer.compare(trace, broken)
        assert "may come from what calls it" in comparison.verdict.explanation
        assert all(row.is_output for row in comparison.rows)
        assert comparison.coverage.left_out == 5  # what each of the modules was given
        assert "may come from" not in tracer.compare(trace, net).verdict.explanation
        kept = tracer.capture(recorded(net, X, tmp_path / "b"), net, include="block.first")
        assert [k.value for k in kept] == ["kwargs.input", "output"]
        assert torch.equal(kept[1].reference, net.block.first(X))


class TestFingerprints:
    def test_rows_are_estimates_and_say_so(self, tmp_path: Path) -> None:
        loaded = load("random-llama")
        other = candidate(loaded, "bfloat16")
        trace = recorded(loaded.model, loaded.inputs, tmp_path / "a", values="fingerprints")
        live = tracer.compare(loaded.model, other, loaded.inputs)
        found = tracer.compare(trace, other)
        assert found.verdict.agrees == live.verdict.agrees
        true = {(r.module, r.call, r.value): r for r in live.rows}
        measured = [r for r in found.rows if r.difference.sum_square > 0]
        assert len(measured) > 50
        for row in measured:
            assert row.remarks == (Remark(RemarkKind.ESTIMATED),)
            exact = true[row.module, row.call, row.value].difference
            assert 0.5 < row.difference.relative_l2 / exact.relative_l2 < 2.5, row
        assert "holds fingerprints" in found.verdict.explanation

    def test_the_folder_is_small(self, tmp_path: Path) -> None:
        loaded = load("tiny-llama")
        whole = tracer.record(loaded.model, loaded.inputs, tmp_path / "a")
        small = tracer.record(loaded.model, loaded.inputs, tmp_path / "b", values="fingerprints")
        inputs = sum(t.numel() * t.element_size() for t in loaded.inputs.values())
        assert small.tensors == whole.tensors
        assert small.size - inputs <= 176 * (small.tensors - len(loaded.inputs))
        folder = sum(file.stat().st_size for file in (tmp_path / "b").iterdir())
        assert folder < 1000 * small.tensors  # names, lines, shapes and checksums of all modules

    @pytest.mark.slow
    def test_padded_positions_are_left_out(self, tmp_path: Path) -> None:
        """As they are where the values themselves are compared."""
        loaded = load("tiny-llama", batch=3, padding="left")
        other = candidate(loaded, "sdpa")
        live = tracer.compare(loaded.model, other, loaded.inputs)
        noted = [r for r in live.rows if r.has(RemarkKind.PADDED)]
        assert len(noted) > 30
        trace = recorded(loaded.model, loaded.inputs, tmp_path / "a", values="fingerprints")
        fused = recorded(other, loaded.inputs, tmp_path / "b", values="fingerprints")
        for models in ((trace, other), (loaded.model, fused), (trace, fused)):
            left_out = [r for r in agreed(*models).rows if r.has(RemarkKind.PADDED)]
            assert {(r.module, r.value) for r in left_out} == {(r.module, r.value) for r in noted}
            assert all(row.has(RemarkKind.ESTIMATED) for row in left_out)

    def test_a_mistake_in_what_is_not_padding(self, tmp_path: Path) -> None:
        loaded = load("tiny-llama", batch=3)
        trace = recorded(loaded.model, loaded.inputs, tmp_path / "a", values="fingerprints")
        other = candidate(loaded, "sdpa")
        with torch.no_grad():
            wrong = copy.deepcopy(other)
            wrong.model.layers[1].mlp.up_proj.weight[3] *= 1.5
        verdict = tracer.compare(trace, wrong).verdict
        assert verdict.symptom.module == "model.layers.1.mlp.up_proj"
        assert verdict.origin.kind == "parameter"

    def test_shapes_that_differ(self, tmp_path, net) -> None:
        trace = recorded(net, X, tmp_path / "a", values="fingerprints")
        wider = copy.deepcopy(net)
        wider.last = nn.Linear(8, 5)
        row = next(
            r for r in tracer.compare(trace, wider).rows if r.module == "last" and r.is_output
        )
        assert (row.agrees, row.difference) == (False, None)
        assert row.note == "shape [3, 4]; candidate [3, 5]"

    def test_masks_are_compared_only_where_they_are_equal(self, tmp_path: Path) -> None:
        loaded = load("tiny-llama", batch=2)
        trace = recorded(loaded.model, loaded.inputs, tmp_path / "a", values="fingerprints")
        assert tracer.compare(trace, loaded.model).coverage.left_out == 0
        assert tracer.compare(trace, candidate(loaded, "wrapped")).coverage.left_out > 0

    def test_a_missing_output_is_no_agreement(self, tmp_path, net) -> None:
        trace = recorded(net, X, tmp_path / "a", values="fingerprints")
        silent = copy.deepcopy(net)
        silent.last.forward = lambda x: None
        assert tracer.compare(trace, silent).verdict.symptom.module == "last"


class TestAnotherModel:
    def test_names_that_differ_wholesale(self, tmp_path, net) -> None:
        trace = recorded(load("tiny-llama").model, load("tiny-llama").inputs, tmp_path / "a")
        message = r"was recorded from another model: of the 59 modules of its LlamaForCausalLM, 0"
        with pytest.raises(StorageError, match=message):
            tracer.compare(trace, net)
        with pytest.raises(StorageError, match=message):
            tracer.compare(net, trace)

    def test_names_that_differ_and_hold_the_same_need_rules(self, tmp_path, net) -> None:
        class Renamed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body, self.head = copy.deepcopy(net.block), copy.deepcopy(net.last)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.head(self.body(x, scale=2.0))

        trace = recorded(net, X, tmp_path / "a")
        rules = {"^body": "block", "^head": "last"}
        assert tracer.compare(trace, Renamed().eval(), rename=rules).verdict.agrees
        with pytest.raises(StorageError, match="give rename rules"):
            tracer.compare(trace, Renamed().eval())

    def test_other_inputs_or_none(self, tmp_path, net) -> None:
        trace = recorded(net, X, tmp_path / "a")
        assert tracer.compare(trace, net, X).verdict.agrees
        with pytest.raises(InputError, match=r"are not those that .* was recorded with"):
            tracer.compare(trace, net, X + 1)

    def test_no_inputs(self, tmp_path, net) -> None:
        trace = recorded(net, X, tmp_path / "a")
        events = as_format_2(tmp_path / "a") / "events.jsonl"
        _, *rest = events.read_bytes().splitlines(keepends=True)
        events.write_bytes(b"".join(rest))
        with pytest.raises(InputError, match="holds no inputs: give what it was recorded with"):
            tracer.compare(open_trace(tmp_path / "a"), net)
        assert trace.inputs() is not None

    def test_two_models_still_need_inputs(self, net) -> None:
        with pytest.raises(InputError, match="expected a dict"):
            tracer.compare(net, net)


class TestEndedEarly:
    def cut(self, path: Path, events: int) -> Recorded:
        """The trace as a kill would have left it."""
        file = path / "events.jsonl"
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(lines[:events]) + lines[events][:10])
        return open_trace(path)

    @pytest.mark.covers
    def test_at_every_event(self, tmp_path: Path, net) -> None:
        whole = recorded(net, X, tmp_path / "whole")
        assert whole.file.is_complete
        count = len(whole.file.events)
        outputs = 0
        for events in range(count, 0, -1):
            trace = self.cut(tmp_path / "whole", events)
            ended = sum(event["event"] == "end" for event in trace.file.events)
            if not ended:
                with pytest.raises(NothingComparedError):
                    tracer.compare(trace, net)
                continue
            comparison = tracer.compare(trace, net)
            compared = [row for row in comparison.rows if row.is_output]
            assert {row.module for row in compared} == {
                call.name for call, phase in Playback(trace).events() if phase is Phase.END
            }
            assert not comparison.verdict.agrees  # what was not seen is no agreement
            assert comparison.verdict.symptom is None
            assert "The recording of the reference was ended early" in (
                comparison.verdict.explanation
            )
            assert "what was compared until then agrees" in comparison.verdict.explanation
            assert "the recording of the reference was ended early" in str(comparison.coverage)
            assert comparison.coverage.unmatched_calls == ()
            outputs += len(compared)
        assert outputs > 5

    def test_what_was_not_reached(self, tmp_path, net) -> None:
        recorded(net, X, tmp_path / "a")
        trace = self.cut(tmp_path / "a", 5)  # inputs, root, block, first begins and ends
        coverage = tracer.compare(trace, net).coverage
        reasons = {name: coverage.reasons[name] for name in coverage.reference_only}
        late = "the recording ends before its first call"
        assert reasons == {"block.second": late, "last": late}
        for models in ((trace, net), (net, trace)):
            coverage = tracer.compare(*models).coverage
            assert (coverage.held_bytes_peak, coverage.unmatched_calls) == (0, ())

    def test_a_mistake_before_the_end_is_found(self, tmp_path, net, broken) -> None:
        recorded(net, X, tmp_path / "a")
        verdict = tracer.compare(self.cut(tmp_path / "a", 7), broken).verdict
        assert verdict.symptom.module == "block.second"

    @pytest.mark.slow
    def test_by_a_kill_while_a_model_runs(self, tmp_path: Path) -> None:
        """Of every kind, in children of one process."""
        script = """
import os, signal, sys, torch, tracer
from tracer.models import load
torch.set_num_threads(1)
loaded = load("tiny-llama", batch=2)
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
loaded.model.model.layers[2].mlp.register_forward_hook(kill)
for values in sys.argv[2:]:
    child = os.fork()
    if not child:
        tracer.record(loaded.model, loaded.inputs, f"{sys.argv[1]}/{values}", values=values)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
"""
        subprocess.run([sys.executable, "-c", script, str(tmp_path), *VALUES], check=True)
        loaded = load("tiny-llama", batch=2)
        for values in VALUES:
            trace = open_trace(tmp_path / values)
            assert (trace.values, trace.file.is_complete) == (values, False)
            comparison = tracer.compare(trace, loaded.model)
            assert comparison.verdict.symptom is None
            assert all(row.peir == 0.0 for row in comparison.rows)
            outputs = [row.module for row in comparison.rows if row.is_output]
            assert outputs[-1] == "model.layers.2.mlp.down_proj"
            assert "model.layers.3" in comparison.coverage.reference_only

    def test_by_the_model(self, tmp_path, net) -> None:
        net.last.forward = lambda x: 1 / 0
        with pytest.raises(ModelRunError, match=r"ZeroDivisionError in module 'last'.*holds what"):
            tracer.record(net, X, tmp_path / "a")
        trace = open_trace(tmp_path / "a")
        assert not trace.file.is_complete
        assert trace.called == {"": 1, "block": 1, "block.first": 1, "block.second": 1, "last": 1}
